"""What a task will take on each device of a model that is split by layers, or streamed from the host's memory.

Where blocks go is `sh2.devices.placement`'s choice, made as loading makes it; what each device then holds is that of a
model with the blocks that run there. No weights are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sh2.devices.placement import HOST, Placement, place
from sh2.planning.accounting import block_bytes, ends_bytes
from sh2.planning.plan import Memory, Plan, Task, predict_memory, runtime_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one device does and holds.

    blocks: that run there. room: its memory in bytes; None if it is not known. memory: at the worst moment.
    """

    device: torch.device
    blocks: int
    room: int | None
    memory: Memory

    @property
    def fits(self) -> bool:
        """Whether it holds its part; of one whose memory is not known, that is taken for granted."""
        return self.room is None or self.memory.total <= self.room


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """A task over devices. plan: of the whole model, with the pieces that it runs in and the bytes that it streams."""

    plan: Plan
    shares: tuple[Share, ...]

    @property
    def fits(self) -> bool:
        """Whether every device holds its part."""
        return all(share.fits for share in self.shares)


def split(plan: Plan, devices: Sequence[torch.device], rooms: Sequence[int | None]) -> Split:
    """Plan a task for a model over devices, as `sh2.devices.placement.parse_devices` reads them.

    Args:
        plan: its room is not looked at.
        rooms: memory of each device, in bytes; a GPU's is known.

    Raises:
        Sh2Error: the weights do not fit.
    """
    sizes = [block_bytes(plan.config, kind, plan.numbers) for kind in plan.config.kinds]
    rest = ends_bytes(plan.config, plan.numbers)
    known = dict(zip(devices, rooms, strict=True))
    free = [(room or 0) - runtime_bytes(True) if one.type == "cuda" else 1 for one, room in known.items()]
    placement = place(plan.config, sizes, rest, list(known), free)
    held = _held(placement, sizes, rest)
    streamed = _streamed(plan, placement)
    if streamed:  # two buffers, and what FP8 products keep of the block that runs
        held[placement.home] += 2 * max(streamed) + max(sizes[block] for block in placement.streamed) - max(streamed)
        held[HOST] = sum(streamed)
    gpus = [replace(plan, room=known[one] or 0, held=size) for one, size in held.items() if one.type == "cuda"]
    plan = replace(plan, piece=min((one.chunk for one in gpus), default=plan.chunk), streamed=sum(streamed))
    shares = [_share(plan, placement, device, known[device], size) for device, size in held.items()]
    return Split(plan=plan, shares=tuple(shares))


def _held(placement: Placement, sizes: Sequence[int], rest: int) -> dict[torch.device, int]:
    """The weights that stay on each device, in bytes, the first device first."""
    held = {placement.home: rest}
    for block, (device, size) in enumerate(zip(placement.blocks, sizes, strict=True)):
        if block not in placement.streamed:
            held[device] = held.get(device, 0) + size
    return held


def _streamed(plan: Plan, placement: Placement) -> list[int]:
    """What is copied of each streamed block: its tensors, not what FP8 products keep beside them."""
    packed = plan.numbers.fp8_weights
    numbers = plan.numbers if packed else replace(plan.numbers, projections=None)
    return [block_bytes(plan.config, plan.config.kinds[block], numbers) for block in placement.streamed]


def _share(plan: Plan, placement: Placement, device: torch.device, room: int | None, held: int) -> Share:
    """What a device does: with the blocks that run there; log-probabilities are taken at home alone."""
    kinds = [kind for kind, where in zip(plan.config.kinds, placement.blocks, strict=True) if where == device]
    memory = Memory(weights=held)
    if kinds:
        config = replace(plan.config, layout="".join(kinds))
        task = Task.EMBED if plan.task is Task.SCORE and device != placement.home else plan.task
        memory = predict_memory(replace(plan, config=config, task=task, held=held, gpu=device.type == "cuda"))
    return Share(device=device, blocks=len(kinds), room=room, memory=memory)
