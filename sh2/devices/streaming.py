"""Blocks whose weights wait in the host's memory: copied to the GPU ahead of their turn, through two buffers.

While one block runs, the weights of those after it are on their way on a stream of their own. The copies go on from the
end of one pass to the beginning of the next, so a pass that takes longer than its copies loses no time by them: a chunk
of a few thousand tokens does, a single token waits for every byte.

Between passes a block's tensors are those in the host's memory: what saves or looks at the model finds its values.
"""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn

from sh2.errors import Sh2Error
from sh2.fp8 import InputProjection

_ALIGNED = 256  # bytes: where a tensor begins in a buffer


class Ring:
    """Two buffers on a device, which the streamed blocks take by turns."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """Move the blocks' tensors into page-locked memory, and start to copy the first two.

        Args:
            blocks: on the CPU, in the order in which they run.
            device: where they run; on a CPU the copies are made at once, which is for tests.
        """
        self.device = device
        self.streams = torch.get_device_module(device)
        # torch's stand-ins for a CPU have the same methods, and other types
        self.copying: Any = torch.cuda.Stream(device) if device.type == "cuda" else torch.cpu.Stream()
        # made outside of inference mode, buffers can be written in it and out of it
        with torch.inference_mode(False), torch.no_grad():
            self.cargoes = [_Cargo(block, pinned=device.type == "cuda") for block in blocks]
            size = max(cargo.host.numel() for cargo in self.cargoes)
            self.slots = [_Slot(torch.empty(size, dtype=torch.uint8, device=device)) for _ in range(2)]
        # the buffers' memory may have been that of something still in use
        self.copying.wait_stream(self.streams.current_stream(device))
        self.running: int | None = None
        for turn, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *_, turn=turn: self._begin(turn))
            block.register_forward_hook(lambda *_, turn=turn: self._end(turn), always_call=True)
        for turn, slot in zip(range(len(blocks)), self.slots, strict=False):
            self._fetch(turn, slot)

    def _fetch(self, turn: int, slot: "_Slot") -> None:
        """Queue the copy of a block into a buffer, behind whatever still reads the buffer."""
        host = self.cargoes[turn].host
        with self.streams.stream(self.copying):
            self.copying.wait_event(slot.used)
            slot.buffer[: host.numel()].copy_(host, non_blocking=True)
            slot.filled.record(self.copying)
        slot.turn = turn

    def _begin(self, turn: int) -> None:
        """Wait for the block's weights, and let it see them."""
        cargo = self.cargoes[turn]
        cargo.check()
        if turn not in [slot.turn for slot in self.slots]:  # the last pass was given up
            following = (turn + 1) % len(self.cargoes)
            self._fetch(turn, next(slot for slot in self.slots if slot.turn != following))
        slot = self._slot(turn)
        self.streams.current_stream(self.device).wait_event(slot.filled)
        cargo.show(slot.buffer)
        self.running = turn

    def _end(self, turn: int) -> None:
        """Take the block's weights from its sight, and queue those of the next but one in their place."""
        if self.running != turn:  # it did not begin
            return
        self.running = None
        self.cargoes[turn].hide()
        slot = self._slot(turn)
        slot.used.record(self.streams.current_stream(self.device))
        following = (turn + 2) % len(self.cargoes)
        if slot.turn != following:
            self._fetch(following, slot)

    def _slot(self, turn: int) -> "_Slot":
        return next(slot for slot in self.slots if slot.turn == turn)


class _Slot:
    """A buffer, whose weights it holds or will hold, and when it was filled and last read."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.turn = buffer, -1
        event: Any = torch.cuda.Event if buffer.is_cuda else torch.cpu.Event
        self.filled, self.used = event(), event()


class _Cargo:
    """All tensors of a block, in one piece of the host's memory."""

    def __init__(self, block: nn.Module, *, pinned: bool) -> None:
        block.requires_grad_(False)
        self.block = block
        self.host = _host_memory(sum(map(_aligned, self.tensors)), pinned=pinned)
        self.at_host = self._views(self.host)
        for tensor, view in zip(self.tensors, self.at_host, strict=True):
            view.copy_(tensor)
        self.hide()

    @property
    def tensors(self) -> list[Tensor]:
        """Those that the block has now: a cast that changes nothing may still put another object in place of one."""
        return list(chain(self.block.parameters(), self.block.buffers()))

    def show(self, buffer: Tensor) -> None:
        """Let the block see its tensors in a buffer."""
        for tensor, view in zip(self.tensors, self._views(buffer), strict=True):
            tensor.data = view

    def hide(self) -> None:
        """Let the block's tensors be those in the host's memory."""
        for tensor, view in zip(self.tensors, self.at_host, strict=True):
            tensor.data = view
        for module in self.block.modules():
            if isinstance(module, InputProjection):
                module.forget()

    def check(self) -> None:
        """Refuse a model whose tensors are no longer those that are copied.

        Raises:
            Sh2Error: the model was cast or moved.
        """
        if any(tensor.data_ptr() != view.data_ptr() for tensor, view in zip(self.tensors, self.at_host, strict=True)):
            raise Sh2Error("a model that is streamed from the host's memory cannot be cast or moved").hint(
                "give its dtype when it is loaded: `sh2.load(..., dtype=...)`, or --precision"
            )

    def _views(self, buffer: Tensor) -> list[Tensor]:
        tensors = self.tensors
        ends = accumulate(map(_aligned, tensors))
        return [
            buffer[end - _aligned(tensor) :][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for end, tensor in zip(ends, tensors, strict=True)
        ]


def _host_memory(size: int, *, pinned: bool) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise Sh2Error(f"there is no room in the host's memory for {size / 1e9:,.1f} GB of weights: {reason}").hint(
            "use a GPU or several that hold more of the model, or a machine with more memory"
        ) from None


def _aligned(tensor: Tensor) -> int:
    """The bytes of a tensor and of the gap behind it."""
    return -(-tensor.nbytes // _ALIGNED) * _ALIGNED


def stream(blocks: nn.ModuleList, turns: Sequence[int], device: torch.device) -> None:
    """Let the blocks with these numbers, which are on the CPU, run on a device."""
    if turns:
        Ring([blocks[turn] for turn in turns], device)
