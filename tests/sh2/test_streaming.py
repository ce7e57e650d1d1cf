"""The ring through which weights pass: what a block sees while it runs, and what everybody else sees."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sh2.devices.streaming import Ring
from sh2.errors import Sh2Error
from sh2.fp8 import InputProjection
from sh2.model import StripedHyena2
from tests.sh2.models import TINY

CPU = torch.device("cpu")
IDS_BL = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(1))
TURNS = [1, 2, 4, 5, 7]


class Clocks:
    """Streams and events that tell what must have happened before what, as a GPU would see it.

    A stream's clock holds the last operation of each stream that it has waited for; an event keeps the clock of the
    stream that recorded it.
    """

    def __init__(self) -> None:
        self.computing, self.copying = {"computing": 0, "copying": 0}, {"computing": 0, "copying": 0}
        self.streams = {"computing": self.computing, "copying": self.copying}
        self.current = "computing"

    def run(self, name: str) -> tuple[str, int]:
        """Queue an operation on a stream; it is known by the stream and its number there."""
        self.streams[name][name] += 1
        return name, self.streams[name][name]

    def follows(self, name: str, operation: tuple[str, int]) -> bool:
        """Whether what is queued on a stream now runs after that operation."""
        return self.streams[name][operation[0]] >= operation[1]


class ClockStream:
    def __init__(self, clocks: Clocks, name: str) -> None:
        self.clocks, self.name = clocks, name

    def wait_event(self, event: "ClockEvent") -> None:
        mine = self.clocks.streams[self.name]
        for name, number in event.clock.items():
            mine[name] = max(mine[name], number)


class ClockEvent:
    def __init__(self) -> None:
        self.clock: dict[str, int] = {}

    def record(self, stream: ClockStream) -> None:
        self.clock = dict(stream.clocks.streams[stream.name])


def two(layout: str = "SML*SML*", **options: object) -> tuple[StripedHyena2, StripedHyena2]:
    config = replace(TINY, layout=layout, **options)  # type: ignore[arg-type]
    return StripedHyena2(config, seed=1).eval(), StripedHyena2(config, seed=1).eval()


def ring_of(model: StripedHyena2) -> Ring:
    return Ring([model.blocks[turn] for turn in TURNS], CPU)


@torch.inference_mode()
def logits(model: StripedHyena2) -> Tensor:
    return model(IDS_BL)[0]


def test_a_block_runs_on_what_lies_in_its_buffer_and_shows_the_host_s_otherwise() -> None:
    whole, model = two()
    for one in (whole, model):
        one.bfloat16()
    ring = ring_of(model)
    # what a command does after it has loaded a model in this dtype: nothing is cast, but buffers become other objects
    model.use_precision("bf16")
    seen: list[int] = []

    def look(turn: int) -> None:
        slot, block = ring._slot(turn), model.blocks[TURNS[turn]]
        begin = slot.buffer.data_ptr()
        for tensor in (*block.parameters(), *block.buffers()):
            assert begin <= tensor.data_ptr() < begin + slot.buffer.nbytes
        seen.append(turn)

    for turn, layer in enumerate(TURNS):
        model.blocks[layer].mixer.register_forward_pre_hook(lambda *_, turn=turn: look(turn))
    for _ in range(3):
        assert torch.equal(logits(model), logits(whole))
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, whole.state_dict()[name]), name
    assert seen == [0, 1, 2, 3, 4] * 3


def test_every_pass_copies_every_block_again() -> None:
    whole, model = two()
    ring = ring_of(model)
    logits(model)
    assert {slot.turn for slot in ring.slots} == {0, 1}
    for turn in (2, 3):  # neither lies in a buffer now: a copy that is left out would show
        ring.cargoes[turn].host.zero_()
        for tensor in whole.blocks[TURNS[turn]].state_dict().values():
            tensor.zero_()
    assert torch.equal(logits(model), logits(whole))


def test_a_pass_that_was_given_up_leaves_no_block_with_the_weights_of_another() -> None:
    whole, model = two()
    ring_of(model)
    for layer in (3, 5, 1, 2, 7):  # one that stays, and some that are streamed
        handle = model.blocks[layer].feed_forward.register_forward_pre_hook(out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            logits(model)
        handle.remove()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, whole.state_dict()[name]), name
        assert torch.equal(logits(model), logits(whole))


def out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("no room")


def test_on_a_gpu_no_block_runs_before_its_copy_and_no_copy_overtakes_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = two()
    ring = ring_of(model)
    clocks = Clocks()
    computing, ring.copying = ClockStream(clocks, "computing"), ClockStream(clocks, "copying")
    ring.streams = SimpleNamespace(stream=lambda _: nullcontext(), current_stream=lambda _: computing)
    copied: dict[int, tuple[str, int]] = {}
    used: dict[int, tuple[str, int]] = {}
    fetch, overlapping = ring._fetch, 0
    for slot in ring.slots:
        slot.filled, slot.used, slot.turn = ClockEvent(), ClockEvent(), -1

    def watch_fetch(turn: int, slot: Any) -> None:
        record = slot.filled.record

        def copy_before(stream: ClockStream) -> None:
            if id(slot) in used:
                assert clocks.follows("copying", used[id(slot)])
            copied[turn] = clocks.run("copying")
            record(stream)

        slot.filled.record = copy_before
        fetch(turn, slot)
        del slot.filled.record

    def use(turn: int) -> None:
        nonlocal overlapping
        assert clocks.follows("computing", copied[turn])
        used[id(ring._slot(turn))] = clocks.run("computing")
        overlapping += any(not clocks.follows("computing", copy) for copy in copied.values())

    monkeypatch.setattr(ring, "_fetch", watch_fetch)
    for turn, layer in enumerate(TURNS):
        model.blocks[layer].mixer.register_forward_pre_hook(lambda *_, turn=turn: use(turn))
    for _ in range(3):
        logits(model)
    # but for the first two, which nobody had asked for in advance, each has another block's copy under way beside it
    assert overlapping == 3 * len(TURNS) - 2


def test_weights_in_fp8_are_those_of_the_model_and_are_not_kept() -> None:
    whole, model = two(fp8_input_projections=True)
    for one in (whole, model):
        one.use_precision("fp8-emulated")
    ring_of(model)
    for _ in range(2):
        assert torch.equal(logits(model), logits(whole))
    kept = [
        layer
        for layer, block in enumerate(model.blocks)
        if isinstance(block.mixer.input, InputProjection) and block.mixer.input._kept is not None
    ]
    assert kept == [0, 6]  # of those that stay and have a projection in FP8


def test_gradients_are_not_kept_and_a_cast_is_refused() -> None:
    _, model = two()
    ring_of(model)
    assert not any(parameter.requires_grad for turn in TURNS for parameter in model.blocks[turn].parameters())
    with pytest.raises(Sh2Error, match="streamed from the host's memory cannot be cast or moved"):
        logits(model.bfloat16())
    assert model.blocks[1].mixer.output.weight.dtype is torch.bfloat16  # and is left as it was made


def test_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Tensor:
        raise RuntimeError("CUDA error: out of memory\nmore lines")

    _, model = two()
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(
        Sh2Error, match=r"no room in the host's memory for 0\.0 GB of weights: CUDA error: out of memory\n"
    ):
        ring_of(model)
