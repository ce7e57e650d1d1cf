"""Scores of branches against sequences scored whole, however they share, batch and chunk."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import sh2
from sh2.errors import Sh2Error
from sh2.mixers import AttentionState
from sh2.planning.accounting import state_bytes
from sh2.presets import preset
from sh2.reading.branches import Branch, Family, _batches, _Budget, _Plan, _Reader, score_families
from sh2.state import repeat, select
from tests.sh2.models import CONFIGS, tiny

BASES = np.frombuffer(b"ACGT", dtype=np.uint8)


def bases(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.choice(BASES, length)


def whole(model: sh2.StripedHyena2, ids: np.ndarray) -> float:
    """The log-likelihood of a sequence that is read in one go; nothing is predicted of fewer than two tokens."""
    return sh2.score(model, [ids])[0].log_likelihood if len(ids) > 1 else 0.0


def check(model: sh2.StripedHyena2, families: list[Family], **options: int) -> None:
    for family, scores in zip(families, score_families(model, families, **options), strict=True):
        for branch, score in zip(family.branches, scores, strict=True):
            reference = family.reference[: branch.end]
            other = np.concatenate([family.reference[: branch.start], branch.ids])
            want = whole(model, reference), whole(model, other)
            assert score.reference == pytest.approx(want[0], rel=1e-6, abs=1e-4)
            assert score.branch == pytest.approx(want[1], rel=1e-6, abs=1e-4)
            assert score.delta == pytest.approx(want[1] - want[0], abs=1e-4)
            assert (score.num_reference, score.num_branch) == (max(0, len(reference) - 1), max(0, len(other) - 1))


def substitutions(rng: np.random.Generator, length: int, starts: list[int]) -> Family:
    """A reference and, for every start, the same with one base changed there."""
    reference = bases(rng, length)
    branches = []
    for start in starts:
        ids = reference[start:].copy()
        ids[0] = BASES[(np.flatnonzero(ids[0] == BASES)[0] + 1) % 4]
        branches.append(Branch(start=start, ids=ids, end=length))
    return Family(reference=reference, branches=branches)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "options", [{}, {"reuse": False}, {"spacing": 1}, {"max_tokens": 100}, {"chunk": 7}, {"chunk": 128}], ids=str
)
def test_a_branch_scores_as_the_sequence_that_it_is(name: str, options: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    long = substitutions(rng, 200, [0, 1, 63, 64, 70, 79, 80, 130, 130, 199])
    odd = Family(
        reference=long.reference,
        branches=[
            Branch(start=100, ids=bases(rng, 40), end=150),  # ends before the reference does, and is shorter
            Branch(start=104, ids=bases(rng, 200), end=130),  # goes on longer than the reference
            Branch(start=200, ids=bases(rng, 3), end=200),  # the whole reference and more
            Branch(start=150, ids=bases(rng, 0), end=160),  # the reference, cut off
            Branch(start=80, ids=bases(rng, 0), end=80),  # nothing is compared
        ],
    )
    short = [substitutions(rng, 1, [0]), substitutions(rng, 2, [1]), substitutions(rng, 90, [70])]
    check(tiny(name), [long, odd, *short, Family(reference=long.reference, branches=[])], **options)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1000),
    starts=st.lists(st.lists(st.integers(0, 119), max_size=6), min_size=1, max_size=6),
    spacing=st.sampled_from([1, 2, 16, 1000]),
    max_tokens=st.sampled_from([1, 300, 65_536]),
    chunk=st.sampled_from([1, 50, 8192]),
)
def test_scores_depend_on_neither_batch_mates_nor_cuts(
    seed: int, starts: list[list[int]], spacing: int, max_tokens: int, chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    families = [substitutions(rng, 120, own) for own in starts]
    check(tiny(), families, spacing=spacing, max_tokens=max_tokens, chunk=chunk)


def test_what_is_shared_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three alternatives of a site: the shared half once, then four halves; without reuse, four wholes."""
    model, family = tiny(), substitutions(np.random.default_rng(1), 512, [256, 256, 256])
    read: list[int] = []
    hidden = model.hidden

    def counted(ids_BL, state=None):  # type: ignore[no-untyped-def]
        read.append(ids_BL.numel())
        return hidden(ids_BL, state)

    monkeypatch.setattr(model, "hidden", counted)
    done: list[int] = []
    score_families(model, [family], progress=done.append)
    assert read == [256, 4 * 256]
    assert done == read
    read.clear()
    score_families(model, [family, family], reuse=False)
    assert read == [8 * 512]


def test_families_share_the_calls_at_their_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three families, two of which have a cut of their own: what is read, in rows and tokens."""
    model, rng = tiny(), np.random.default_rng(4)
    families = [substitutions(rng, 200, starts) for starts in ([70, 130, 131], [140], [130, 100, 130])]
    shapes: list[tuple[int, ...]] = []
    hidden = model.hidden

    def seen(ids_BL, state=None):  # type: ignore[no-untyped-def]
        shapes.append(tuple(ids_BL.shape))
        return hidden(ids_BL, state)

    monkeypatch.setattr(model, "hidden", seen)
    check(model, families)
    trunk_and_calls = [(3, 64), (2, 136), (3, 32), (2, 104), (3, 32), (3 + 2 + 1 + 2, 72)]
    assert shapes[: len(trunk_and_calls)] == trunk_and_calls


def test_rows_of_other_lengths_are_read_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch that is compared to the end does not lengthen those of a few tokens."""
    model, reference = tiny(), bases(np.random.default_rng(5), 400)
    short = [Branch(start=128, ids=bases(np.random.default_rng(seed), 10), end=138) for seed in range(20)]
    family = Family(reference=reference, branches=[*short, Branch(start=130, ids=reference[131:], end=400)])
    read: list[int] = []
    hidden = model.hidden

    def counted(ids_BL, state=None):  # type: ignore[no-untyped-def]
        read.append(ids_BL.numel())
        return hidden(ids_BL, state)

    monkeypatch.setattr(model, "hidden", counted)
    score_families(model, [family])
    assert read == [128, 2 * 272, 21 * 10]
    check(model, [family])


@pytest.mark.parametrize("most", [4, 8])
def test_calls_that_do_not_fit_are_read_in_halves(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    model, rng = tiny(), np.random.default_rng(6)
    families = [substitutions(rng, 400, [200, 200, 201, 202, 203]), substitutions(rng, 400, [200, 204, 205])]
    want = score_families(model, families)
    hidden = model.hidden
    rows, read = [], []

    def crowded(ids_BL, state=None):  # type: ignore[no-untyped-def]
        if len(ids_BL) > most:
            raise torch.OutOfMemoryError
        rows.append(len(ids_BL))
        read.append(ids_BL.numel())
        return hidden(ids_BL, state)

    monkeypatch.setattr(model, "hidden", crowded)
    done: list[int] = []
    found = score_families(model, families, progress=done.append)
    assert max(rows) <= most
    assert done == read
    for one, other in zip(want, found, strict=True):
        assert [score.delta for score in one] == pytest.approx([score.delta for score in other], abs=1e-4)
    most = 1
    with pytest.raises(Sh2Error, match="out of memory: 2 sequences of 104 tokens at once do not fit"):
        score_families(model, [families[0]])


def test_rows_are_as_many_as_memory_has_room_for() -> None:
    """Of the 7B on a GPU of 80 GB, by its window of 8,192: the three changes of 15 bases and their reference."""
    config = preset("evo2_7b")
    room = (80 * 2**30 - 13 * 10**9) // 2
    budget = _Budget(config=config, dtype="bf16", max_tokens=65_536, chunk=8192, room=room)
    assert budget.rows(8192) == 48 >= 3 * 15 + 1
    assert (budget.families(4096), budget.families(100)) == (16, 64)
    kept = 8192 * 80 * 1024 + state_bytes(config, "bf16")
    tight = replace(budget, room=20 * kept + 20)
    assert (tight.rows(8192), tight.rows(4096)) == (20, 38)
    assert tight.families(8192) == 8 < replace(tight, room=room).families(4096)
    assert _Budget.of(tiny(), 65_536, 8192).rows(8192) == 48


class _NoAnswers(TorchDispatchMode):
    """Refuses whatever would make the process wait for a GPU's values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "equal")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CONFIGS)
def test_values_are_not_looked_at_before_all_is_queued(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(name)
    families = [substitutions(np.random.default_rng(7), 300, starts) for starts in ([0, 70, 290], [150], [150])]
    monkeypatch.setattr(model, "_check", lambda *_: None)  # on a GPU it does not look at the ids
    fetch = _Reader.fetch

    def fetched(reader: _Reader) -> int:
        with _disable_current_modes():
            return fetch(reader)

    monkeypatch.setattr(_Reader, "fetch", fetched)
    with _NoAnswers():
        scores = score_families(model, families)
    assert [len(of_family) for of_family in scores] == [3, 1, 1]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@torch.inference_mode()
def test_a_gpu_is_never_waited_for_while_a_batch_is_read() -> None:
    model = tiny().to("cuda")
    families = [substitutions(np.random.default_rng(8), 300, starts) for starts in ([0, 70, 290], [150], [150])]
    plans = [_Plan(family, model.config.vocab_size, 16) for family in families]
    for mode in ("default", "error"):  # what is compiled or tried out at first may wait
        budget = _Budget.of(model, 65_536, 8192)
        readers = [_Reader(model, batch, budget) for batch in _batches(plans, budget)]
        try:
            torch.cuda.set_sync_debug_mode(mode)
            for reader in readers:
                reader.read()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [reader.fetch() for reader in readers] == [5]


@pytest.mark.parametrize(
    ("start", "end"), [(-1, 4), (3, 2), (0, 11), (11, 11)], ids=["before", "backwards", "behind", "outside"]
)
def test_a_branch_lies_on_its_reference(start: int, end: int) -> None:
    reference = bases(np.random.default_rng(2), 10)
    with pytest.raises(Sh2Error, match=rf"in 0\.\.10, the length of its reference, not at {start} and {end}"):
        Family(reference=reference, branches=[Branch(start=start, ids=reference[:1], end=end)])


def test_an_empty_reference_and_a_foreign_id_are_refused() -> None:
    with pytest.raises(Sh2Error, match="reference of a family is empty"):
        Family(reference=BASES[:0], branches=[])
    family = Family(reference=BASES, branches=[Branch(start=2, ids=np.array([600]), end=3)])
    with pytest.raises(Sh2Error, match=r"must lie in 0\.\.511, not 600"):
        score_families(tiny(), [family])
    with pytest.raises(Sh2Error, match="spacing must be at least 1, not 0"):
        score_families(tiny(), [family], spacing=0)


@pytest.mark.parametrize("room", [0, 20])
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_a_row_repeated_goes_on_as_a_row_picked_so_many_times(name: str, room: int) -> None:
    model = tiny(name)
    ids = torch.from_numpy(bases(np.random.default_rng(3), 60).astype(np.int64))[None]
    _, state = model(ids[:, :40])
    views, copies = repeat(state, 3, room=room), select(state, torch.zeros(3, dtype=torch.int64), room=room)
    more = ids[:, 40:].expand(3, -1)
    (one, _), (other, after) = (model(more, start) for start in (views, copies))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    if room:  # keys and values went into the room that was made for them
        for before, now in zip(copies, after, strict=True):
            if isinstance(now.mixer, AttentionState):
                assert isinstance(before.mixer, AttentionState)
                assert now.mixer.keys_BSJC.data_ptr() == before.mixer.keys_BSJC.data_ptr()
    # what went on from the views left the row as it was
    torch.testing.assert_close(model(ids[:, 40:], state)[0], other[:1], rtol=1e-5, atol=1e-5)
