"""Scores of branches against sequences scored whole, however they share, batch and chunk."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sh2
from sh2.branches import Branch, Family, score_families
from sh2.errors import Sh2Error
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


@settings(max_examples=15, deadline=None)
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
    assert sum(done) == 3
    read.clear()
    score_families(model, [family, family], reuse=False)
    assert read == [8 * 512]


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


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_a_row_repeated_goes_on_as_a_row_picked_so_many_times(name: str) -> None:
    model = tiny(name)
    ids = torch.from_numpy(bases(np.random.default_rng(3), 60).astype(np.int64))[None]
    _, state = model(ids[:, :40])
    views, copies = repeat(state, 3), select(state, torch.zeros(3, dtype=torch.int64))
    more = ids[:, 40:].expand(3, -1)
    one, other = (model(more, start)[0] for start in (views, copies))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    # what went on from the views left the row as it was
    torch.testing.assert_close(model(ids[:, 40:], state)[0], other[:1], rtol=1e-5, atol=1e-5)
