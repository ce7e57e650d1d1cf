"""Rows in slots against passes without a state; and that a step stays in place, and makes nothing twice."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sh2
from sh2.generation import decoding
from sh2.generation import generate as generation
from sh2.generation.decoding import Decoder, affordable_rows
from sh2.generation.generate import GenerationOptions, generate_each, generate_jobs
from sh2.mixers import Attention, HyenaLI, HyenaMR, KVDtype, KVSlots
from sh2.model import StripedHyena2
from sh2.presets import preset
from tests.kernels.definitions import relative_error
from tests.sh2.models import CONFIGS, tiny


def ids(length: int, seed: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def whole(model: StripedHyena2, tokens: list[int]) -> Tensor:
    """The logits after the last token, from one pass."""
    return model(torch.tensor([tokens], device=model.embedding.weight.device))[0][0, -1]


class Rows:
    """Rows in a decoder, and their tokens beside them."""

    def __init__(self, model: StripedHyena2, rows: int) -> None:
        self.model, self.decoder = model, Decoder(model, rows)
        self.tokens: dict[int, list[int]] = {}

    def put(self, slot: int, tokens: list[int], *, most: int = 400, give: bool = False) -> None:
        logits, state = self.model(torch.tensor([tokens], device=self.decoder.device))
        self.decoder.put({slot: 0}, state, logits[:, -1], length=len(tokens), most=most, give=give)
        self.tokens[slot] = list(tokens)

    def step(self, seed: int) -> None:
        new = ids(self.decoder.rows, seed)
        self.decoder.step(torch.tensor(new, device=self.decoder.device))
        for slot, tokens in self.tokens.items():
            tokens.append(new[slot])

    def check(self, tolerance: float = 1e-5) -> None:
        for slot, tokens in self.tokens.items():
            assert relative_error(self.decoder.logits_RV[slot], whole(self.model, tokens)) < tolerance

    def slots(self) -> list[KVSlots]:
        return [block.mixer for block in self.decoder._state if isinstance(block.mixer, KVSlots)]


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_rows_come_go_and_stay_each_as_if_alone(name: str, kv_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_SPARE", 12)
    rows = Rows(tiny(name).use_kv_dtype(kv_dtype), 3)
    for slot, length in ((1, 60), (0, 9), (2, 1)):
        rows.put(slot, ids(length, slot))
    rows.check()
    for step in range(9):
        rows.step(step)
    rows.check()
    # a row ends, the others go on, and another begins in its place
    del rows.tokens[1]
    rows.decoder.take_out(1)
    rows.step(20)
    rows.put(1, ids(90, 7))
    rows.step(21)
    rows.check()
    # two are left, in another order
    del rows.tokens[0]
    rows.decoder.take_out(0)
    rows.decoder.keep([2, 1])
    rows.tokens = {0: rows.tokens[2], 1: rows.tokens[1]}
    for step in range(30, 50):
        rows.step(step)
    rows.check()


@torch.inference_mode()
def test_a_step_in_triton_is_one_in_torch() -> None:
    for name in ("attention only", "grouped heads, biases, untied"):
        results = []
        for backend in ("reference", "triton"):
            rows = Rows(tiny(name).use_backend(backend), 2)
            rows.put(0, ids(40, 0))
            rows.put(1, ids(3, 1))
            rows.step(2)
            results.append(rows.decoder.logits_RV)
        assert relative_error(results[1], results[0]) < 1e-5


@torch.inference_mode()
def test_memory_moves_only_when_it_is_full_and_ends_as_long_as_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_SPARE", 20)
    rows = Rows(tiny("any order"), 2)
    rows.put(0, ids(30, 0), most=61)
    rows.put(1, ids(5, 1), most=40)
    places, lengths = [], []
    for step in range(31):
        rows.step(step)
        places.append(tuple(t.data_ptr() for block in rows.decoder._state for t in block.mixer if t is not None))
        lengths.append(rows.slots()[0].keys_BSJC.shape[1])
    rows.check()
    assert lengths == [40] * 10 + [51] * 11 + [61] * 10
    assert len(set(places)) == 3


@torch.inference_mode()
def test_a_row_that_ended_never_writes_outside_its_slot() -> None:
    rows = Rows(tiny("attention only"), 2)
    rows.put(0, ids(10, 0), most=11)
    rows.put(1, ids(4, 1), most=11)
    rows.decoder.take_out(0)
    del rows.tokens[0]
    for step in range(7):
        rows.step(step)
    rows.check()
    assert [part.end_B.tolist() for part in rows.slots()] == [[11, 11]] * 2


@torch.inference_mode()
def test_a_state_that_is_given_away_is_not_copied() -> None:
    model = tiny("attention only")
    tokens = ids(300, 0)
    _, state = model(torch.tensor([tokens[:200]]))
    logits, state = model(torch.tensor([tokens[200:]]), state)
    cache = state[0].mixer.cache
    assert cache is not None
    for give in (False, True):
        decoder = Decoder(model, 1)
        decoder.put({0: 0}, state, logits[:, -1], length=300, most=340, give=give)
        slots = decoder._state[0].mixer
        assert (slots.keys_BSJC.data_ptr() == cache.memory.keys_BSJC.data_ptr()) == give
        decoder.step(torch.tensor([65]))
        assert relative_error(decoder.logits_RV[0], whole(model, [*tokens, 65])) < 1e-5


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """Count the calls of a method: the list has one entry a call."""
    calls: list[int] = []
    original: Callable[..., Any] = getattr(owner, name)

    def wrapper(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        return original(*arguments, **settings)

    monkeypatch.setattr(owner, name, wrapper)
    return calls


def test_filters_are_made_once_and_anew_when_weights_change(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = counted(monkeypatch, HyenaMR, "inner_filter")
    poles = counted(monkeypatch, HyenaLI, "effective_log_poles")
    model, settings = tiny(), {"temperature": 0, "stop_at_eod": False}
    counts = []
    for length in (2, 20):
        windows.clear(), poles.clear()
        sh2.generate(model, ["ACGT"], length=length, **settings)  # type: ignore[arg-type]
        counts.append((len(windows), len(poles)))
    # reading a prompt makes its own; of the tokens after it, the very first
    assert counts == [(2, 2), (1, 1)]
    before = sh2.generate(model, ["ACGT"], length=20, **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        model.blocks[1].mixer.taps.mul_(-3)
        model.blocks[2].mixer.pole_shift.add_(2)
    (changed,) = sh2.generate(model, ["ACGT"], length=20, **settings)  # type: ignore[arg-type]
    fresh = StripedHyena2(CONFIGS["striped"]).eval()
    fresh.load_state_dict(model.state_dict())
    (want,) = sh2.generate(fresh, ["ACGT"], length=20, **settings)  # type: ignore[arg-type]
    assert changed.ids.tolist() == want.ids.tolist() != before[0].ids.tolist()


def test_a_slot_that_is_free_is_filled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = counted(monkeypatch, Decoder, "step")
    options = GenerationOptions(
        length=80, alphabet="ACGT", temperature=5.0, samples=12, seed=1, max_rows=3, stop_at_eod=True
    )
    results = list(generate_each(tiny(), ["ACGT", "GG"], options))
    lengths = [len(one.ids) for one in results]
    assert [(one.prompt, one.sample) for one in results] == [(p, s) for p in range(2) for s in range(12)]
    assert len(set(lengths)) > 5
    # every slot was written into nearly all the time: a sample that the model ends writes one token more than it keeps
    written = sum(lengths) + sum(one.end == "eod" for one in results)
    assert written / 3 <= len(steps) + 1 <= written / 3 + max(lengths)
    assert len(steps) < 0.8 * sum(max(lengths[first : first + 3]) for first in range(0, 24, 3))


def test_a_prompt_is_read_once_however_many_samples_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    original = generation.read_prompts

    def read(model: StripedHyena2, prompts: list[Any], *, chunk: int) -> Any:
        reads.append(len(prompts))
        return original(model, prompts, chunk=chunk)

    monkeypatch.setattr(generation, "read_prompts", read)
    hidden = counted(monkeypatch, StripedHyena2, "hidden")
    results = sh2.generate(tiny(), ["ACGTACGT", "A", "GGG"], length=8, samples=7, max_rows=4, alphabet="ACGT")
    assert len(results) == 21
    assert len(hidden) == 3


def test_results_wait_for_their_turn_and_jobs_for_room() -> None:
    taken: list[tuple[int, int]] = []

    def jobs() -> Any:
        for sample in range(10**9):
            taken.append((0, sample))
            yield 0, sample

    options = GenerationOptions(length=5, alphabet="ACGT", max_rows=2, seed=4)
    stream = generate_jobs(tiny(), ["ACGT"], jobs(), options)
    got = [next(stream).sample for _ in range(5)]
    assert got == list(range(5))
    assert len(taken) <= 5 + 2 * 5 + 3


def test_some_samples_are_those_of_all() -> None:
    options = GenerationOptions(length=9, alphabet="ACGT", samples=4, seed=2)
    everything = {(one.prompt, one.sample): one.text for one in generate_each(tiny(), ["A", "CC"], options)}
    pairs = [(1, 3), (0, 0), (1, 0)]
    some = list(generate_jobs(tiny(), ["A", "CC"], pairs, options))
    assert [(one.prompt, one.sample) for one in some] == pairs
    assert [one.text for one in some] == [everything[pair] for pair in pairs]
    assert list(generate_jobs(tiny(), ["A"], [], options)) == []


class Recorded:
    """In the place of a CUDA graph: runs the step, on the very memory that there was when it was recorded."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.memory, self.replays = decoder, self.places(decoder), 0

    @staticmethod
    def places(decoder: Decoder) -> list[int]:
        tensors = [tensor for block in decoder._state for part in block if part is not None for tensor in part]
        return [tensor.data_ptr() for tensor in [decoder.logits_RV, decoder._ids_R, *tensors] if tensor is not None]

    def replay(self) -> None:
        assert self.memory == self.places(self.decoder)
        self.replays += 1
        self.decoder._run()


def test_a_step_is_recorded_once_for_as_long_as_its_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Recorded] = []

    def record(decoder: Decoder) -> None:
        graphs.append(Recorded(decoder))
        decoder._graph = graphs[-1]  # type: ignore[assignment]

    def watched(model: StripedHyena2, rows: int) -> Decoder:
        decoder = Decoder(model, rows)
        decoder.records = True
        return decoder

    prompts, settings = ["A", "ACGT" * 9], {"length": 300, "samples": 3, "alphabet": "ACGT", "temperature": 5.0}
    want = sh2.generate(tiny(), prompts, **settings, max_rows=4)  # type: ignore[arg-type]
    monkeypatch.setattr(decoding, "_SPARE", 160)
    monkeypatch.setattr(Decoder, "_record", record)
    monkeypatch.setattr(generation, "Decoder", watched)
    got = sh2.generate(tiny(), prompts, **settings, max_rows=4)  # type: ignore[arg-type]
    assert [(one.text, one.end) for one in got] == [(one.text, one.end) for one in want]
    # slots that empty out are not worth a recording each: only halves are, and memory that moves
    long = sh2.generate(tiny(), prompts, **settings, max_rows=4, stop_at_eod=False)  # type: ignore[arg-type]
    assert {len(one.ids) for one in long} == {300}
    assert sum(graph.replays for graph in graphs) > 500
    assert len(graphs) < 30


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU records")
@torch.inference_mode()
def test_a_step_that_cannot_be_recorded_says_why_and_runs(caplog: pytest.LogCaptureFixture) -> None:
    rows = Rows(tiny(), 2)
    rows.decoder.records = True
    rows.put(0, ids(30, 0))
    rows.put(1, ids(3, 1))
    for step in range(5):
        rows.step(step)
    rows.check()
    (record,) = caplog.records
    assert "decoding launches every kernel of a step: it could not be recorded as a CUDA graph: " in record.message


def test_rows_are_as_many_as_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: 2)
    mixers = [module for module in tiny("attention only").modules() if isinstance(module, Attention)]
    embedding = SimpleNamespace(weight=on_gpu)
    model = SimpleNamespace(embedding=embedding, config=preset("evo2_7b"), modules=lambda: mixers)
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 30 * gib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20 * gib)
    # two layers of 32 heads of 128 numbers of two bytes, twice: 32 KiB a token
    for tokens, most, rows in [(2**16, 64, 7), (2**16, 4, 4), (2**30, 64, 1)]:
        assert affordable_rows(model, tokens, most) == rows  # type: ignore[arg-type]
    for mixer in mixers:
        mixer.kv_dtype = KVDtype.FP8
    assert affordable_rows(model, 2**16, 64) == 13  # type: ignore[arg-type]


def test_a_cpu_holds_any_number_of_rows() -> None:
    assert affordable_rows(tiny(), 10**9, 64) == 64


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gpu_recorded_steps_give_the_tokens_of_eager_ones(
    name: str, kv_dtype: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_SPARE", 40)  # memory moves, and steps are recorded anew
    model = StripedHyena2(CONFIGS[name]).cuda().use_backend(backend).use_kv_dtype(kv_dtype)
    recorded = counted(monkeypatch, Decoder, "_record")
    settings = {"length": 90, "samples": 3, "alphabet": "ACGT", "temperature": 2.0, "max_rows": 5, "stop_at_eod": False}
    fast = sh2.generate(model, ["A", "ACGTACGT" * 9, "GATTACA"], **settings)  # type: ignore[arg-type]
    assert len(recorded) >= 2
    monkeypatch.setattr(decoding, "_EAGER_STEPS", 10**9)
    slow = sh2.generate(model, ["A", "ACGTACGT" * 9, "GATTACA"], **settings)  # type: ignore[arg-type]
    assert len(recorded) >= 2
    assert [one.text for one in fast] == [one.text for one in slow]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_gpu_rows_in_recorded_steps_are_each_as_if_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_SPARE", 30)
    rows = Rows(StripedHyena2(CONFIGS["any order"]).cuda().to(dtype), 3)
    for slot, length in ((1, 60), (0, 9), (2, 1)):
        rows.put(slot, ids(length, slot))
    for step in range(25):
        rows.step(step)
    rows.decoder.take_out(1)
    del rows.tokens[1]
    rows.step(30)
    rows.put(1, ids(120, 7))
    for step in range(40, 60):
        rows.step(step)
    assert rows.decoder._graph is not None
    rows.check(1e-5 if dtype is torch.float32 else 0.05)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@torch.inference_mode()
def test_gpu_a_recorded_step_allocates_nothing_and_never_waits() -> None:
    model = StripedHyena2(CONFIGS["striped"]).cuda()
    rows = Rows(model, 2)
    rows.put(0, ids(9, 0))
    rows.put(1, ids(9, 1))
    for step in range(5):
        rows.step(step)
    ids_R = torch.tensor([65, 67], device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(20):
            rows.decoder.step(ids_R)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_only_a_model_on_one_gpu_is_recorded() -> None:
    assert not Decoder(tiny(), 1).records
