"""Where a model's blocks live: on one device, cut by layers over several, or on a GPU with the host's memory behind it.

All but the blocks is at home, on the first device: tokens go in there and logits come out there, so whoever uses a
model need not know that it is spread. Between blocks on different devices the activations move, and a block's state
stays with the block. Knows nothing of files.
"""

# D width

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sh2.config import MixerKind, ModelConfig
from sh2.errors import Sh2Error

HOST = torch.device("cpu")
_CONTEXT = 131_072  # tokens whose keys and values are counted with a block, at most
_WEIGHTS = 2 / 3  # of a GPU's free memory, where the host's is behind it: the rest is for states and activations


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The devices of a model."""

    home: torch.device  # of the embedding, the last norm and the logits
    blocks: tuple[torch.device, ...]  # where each block runs
    streamed: tuple[int, ...] = ()  # blocks whose weights wait in the host's memory until they run, in order

    def of(self, name: str) -> torch.device:
        """The device that keeps the tensor of ours with this name."""
        if not name.startswith("blocks."):
            return self.home
        block = int(name.split(".")[1])
        return HOST if block in self.streamed else self.blocks[block]


def parse_devices(text: str | torch.device) -> tuple[torch.device, ...]:
    """Read `cuda:0`, or `cuda:0+cuda:1` for one model over two GPUs, or `cuda:0+cpu` for one backed by the host.

    Raises:
        Sh2Error: a device is unknown or comes twice, or they are not GPUs, or a GPU and the host, or one device.
    """
    names = str(text).split("+")
    devices = []
    for name in names:
        try:
            device = torch.device(name.strip())
        except RuntimeError:
            raise Sh2Error(f"unknown device `{name}`").hint("use cpu, cuda, cuda:N, or cuda:0+cuda:1") from None
        devices.append(device if device.type != "cuda" or len(names) == 1 else torch.device("cuda", device.index or 0))
    gpus = [device for device in devices if device.type == "cuda"]
    if len(set(gpus)) < len(gpus):
        raise Sh2Error(f"`{text}` names a GPU twice")
    # several times `cpu` is how the split is tried without GPUs
    if len(devices) > 1 and gpus and devices not in (gpus, [gpus[0], HOST]):
        raise Sh2Error(f"a model cannot be spread over `{text}`").hint(
            "use GPUs (cuda:0+cuda:1), or one GPU with the host's memory behind it (cuda:0+cpu)"
        )
    return tuple(devices)


def place(
    config: ModelConfig, sizes: Sequence[int], rest: int, devices: Sequence[torch.device], free: Sequence[int]
) -> Placement:
    """Choose where a model's blocks live.

    Over several devices the blocks are cut in order, so that the fullest one is as empty as can be: weights, and keys
    and values of a long context, against what is free there. On a GPU with the host behind it, blocks stay on the GPU
    as long as two thirds of its free memory hold them; those that do not are spread evenly among them, so that one is
    copied while several others run.

    Args:
        sizes: bytes of each block's weights. rest: of all others together, which are at home.
        free: memory of each device, in bytes; of a host it is not looked at.

    Raises:
        Sh2Error: the weights do not fit.
    """
    home, *_ = devices
    if len(devices) == 2 and home.type == "cuda" and devices[1] == HOST:
        streamed = choose_streamed(sizes, rest, int(_WEIGHTS * free[0]))
        return Placement(home=home, blocks=(home,) * len(sizes), streamed=streamed)
    cache = 2 * 2 * min(config.context, _CONTEXT) * config.num_kv_heads * config.head_dim  # two bytes a number
    costs = [size + cache * (kind is MixerKind.ATTENTION) for size, kind in zip(sizes, config.kinds, strict=True)]
    owners = partition(costs, rest, free)
    placement = Placement(home=home, blocks=tuple(devices[owner] for owner in owners))
    for number, (device, room) in enumerate(zip(devices, free, strict=True)):
        needed = sum(size for size, owner in zip(sizes, owners, strict=True) if owner == number) + rest * (number == 0)
        if device.type == "cuda" and needed > room:
            raise Sh2Error(
                f"the model does not fit: {needed / 1e9:,.1f} GB of weights for `{device}`, which has"
                f" {room / 1e9:,.1f} GB free"
            ).hint("spread it over more GPUs (cuda:0+cuda:1), or back one with the host's memory (cuda:0+cpu)")
    return placement


def partition(costs: Sequence[int], first: int, capacities: Sequence[int]) -> list[int]:
    """Cut a row of costs into one piece a capacity, in order, so that the fullest piece is as empty as can be.

    Args:
        first: what the first piece holds besides.

    Returns:
        For each cost the number of its piece; the numbers do not fall. A piece may be empty.
    """
    # fullest[b]: how full the fullest of the pieces so far is, when they end before cost b; cuts[p][b]: where p begins
    ends = range(len(costs) + 1)
    total = [first + sum(costs[:end]) for end in ends]
    fullest = [total[end] / capacities[0] for end in ends]
    cuts: list[list[int]] = []
    for capacity in capacities[1:]:
        options = [[max(fullest[cut], (total[end] - total[cut]) / capacity) for cut in range(end + 1)] for end in ends]
        cuts.append([row.index(min(row)) for row in options])
        fullest = [min(row) for row in options]
    owners: list[int] = []
    end = len(costs)
    for piece in range(len(cuts), -1, -1):
        begin = cuts[piece - 1][end] if piece else 0
        owners = [piece] * (end - begin) + owners
        end = begin
    return owners


def choose_streamed(sizes: Sequence[int], rest: int, room: int) -> tuple[int, ...]:
    """Choose the fewest blocks that must wait in the host's memory, spread evenly, so that `room` bytes suffice.

    Raises:
        Sh2Error: not even two blocks fit beside the rest.
    """
    if rest + sum(sizes) <= room:
        return ()
    ring = 2 * max(sizes)
    for count in range(3, len(sizes) + 1):  # two would lie in the ring for good
        streamed = tuple((2 * number + 1) * len(sizes) // (2 * count) for number in range(count))
        kept = sum(size for block, size in enumerate(sizes) if block not in streamed)
        if rest + ring + kept <= room:
            return streamed
    raise Sh2Error(
        f"the model does not fit even block by block: two of them take {(rest + ring) / 1e9:,.1f} GB, and there is room"
        f" for {room / 1e9:,.1f} GB of weights"
    ).hint("free memory of the GPU, or use a larger one")


def free_bytes(device: torch.device) -> int:
    """Memory that a GPU has free, at least 1; 1 for a host, whose devices are alike."""
    if device.type != "cuda":
        return 1
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, torch.cuda.mem_get_info(device)[0] + cached)


def follow(blocks: nn.ModuleList, placement: Placement) -> None:
    """Let activations move to each block's device, and home after the last one."""
    if len(set(placement.blocks)) == 1:
        return
    for block, device in zip(blocks, placement.blocks, strict=True):
        block.register_forward_pre_hook(partial(_move_in, device))
    blocks[-1].register_forward_hook(partial(_move_out, placement.home))


def _move_in(device: torch.device, _: nn.Module, inputs: tuple[Tensor, Any]) -> tuple[Any, ...]:
    x_BLD, *state = inputs
    return x_BLD.to(device), *state


def _move_out(device: torch.device, _: nn.Module, __: object, outputs: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    x_BLD, state = outputs
    return x_BLD.to(device), state
