"""The copy model: what it may know, what it makes of likeness, and that it costs little where there is none."""

import numpy as np
import pytest
from numpy.typing import NDArray

from data import seeds
from data.copying import Trust, copied_log_probs, hold_out, learn_trust
from data.errors import DataError
from data.sequence import reverse_complement

Bases = NDArray[np.uint8]
ACGT = np.frombuffer(b"ACGT", dtype=np.uint8)


def random_bases(length: int, seed: int) -> Bases:
    return ACGT[np.random.default_rng(seed).integers(0, 4, length)]


def mutated(bases: Bases, rate: float, seed: int) -> Bases:
    """Another base at `rate` of the positions."""
    rng = np.random.default_rng(seed)
    codes = np.searchsorted(ACGT, bases)
    return ACGT[(codes + rng.integers(1, 4, len(codes)) * (rng.random(len(codes)) < rate)) % 4]


def with_indels(bases: Bases, every: int) -> Bases:
    """In turn, a base less and three bases more."""
    parts = np.array_split(bases, max(1, len(bases) // every))
    return np.concatenate([part[:-1] if turn % 2 else np.append(part, ACGT[:3]) for turn, part in enumerate(parts)])


def uniform(text: Bases) -> NDArray[np.float32]:
    return np.full((len(text), 4), -np.log(4), dtype=np.float32)


def bits(text: Bases, memory: list[Bases], log_probs: NDArray[np.float32] | None = None) -> float:
    got = copied_log_probs(memory, text, uniform(text) if log_probs is None else log_probs)
    return float(-np.nanmean(got) / np.log(2))


@pytest.fixture(scope="module")
def genome() -> Bases:
    return random_bases(60_000, 1)


@pytest.mark.parametrize("strand", ["forward", "reverse"])
def test_copies_near_the_entropy_through_substitutions_and_indels(genome: Bases, strand: str) -> None:
    rate = 0.1
    entropy = -(rate * np.log2(rate / 3) + (1 - rate) * np.log2(1 - rate))
    text = with_indels(mutated(genome, rate, 2), 500)
    memory = genome if strand == "forward" else reverse_complement(genome)
    # the rest is what it costs to find the place again after each indel, and to learn
    assert entropy < bits(text, [random_bases(5000, 3), memory]) < entropy + 0.25


def test_more_relatives_are_better_than_one(genome: Bases) -> None:
    text = genome[:20_000]
    relatives = [mutated(text, 0.2, seed) for seed in range(6)]
    assert bits(text, relatives) < 0.6 * bits(text, relatives[:1])


def test_the_own_past_is_memory_on_both_strands() -> None:
    unit = random_bases(4000, 4)
    text = np.concatenate([unit, random_bases(1000, 5), mutated(unit, 0.05, 6), reverse_complement(unit)])
    log_probs = copied_log_probs([], text, uniform(text))
    parts = [-log_probs[first : first + 4000].mean() / np.log(2) for first in (0, 5000, 9000)]
    assert parts[0] == pytest.approx(2, abs=0.02)
    assert parts[1] < 0.9
    assert parts[2] < 0.6


def test_nothing_alike_costs_next_to_nothing() -> None:
    text = random_bases(30_000, 7)
    assert bits(text, [random_bases(100_000, 8)]) < 2.01
    sure = np.log(np.where(text[:, None] == ACGT, 0.7, 0.1)).astype(np.float32)
    assert bits(text, [random_bases(100_000, 8)], sure) < -np.log2(0.7) + 0.02


def test_the_end_of_a_repeat_is_no_catastrophe() -> None:
    repeat = np.tile(np.frombuffer(b"CA", dtype=np.uint8), 150)
    random = [random_bases(3000, seed) for seed in (16, 17, 18)]
    text = np.concatenate([random[0], repeat, random[1], repeat, random[2]])
    costs = copied_log_probs([], text, uniform(text)) / -np.log(2)
    assert costs.max() <= 16.01
    # hundreds of experts are wrong at once where a repeat ends
    assert all(costs[end : end + 96].sum() < 2 * 96 + 80 for end in (3300, 6600))
    assert costs[6300:6600].mean() < 0.5


def test_a_base_depends_on_nothing_behind_it(genome: Bases) -> None:
    rng = np.random.default_rng(9)
    text = np.concatenate([mutated(genome[:9000], 0.15, 10), genome[:6000], reverse_complement(genome[5000:9000])])
    log_probs = rng.standard_normal((len(text), 4)).astype(np.float32)
    log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
    before = copied_log_probs([genome], text, log_probs)
    for cut in (31, 500, 8192, 9100, 15_003, 18_999):
        changed, others = text.copy(), log_probs.copy()
        changed[cut:] = rng.permutation(text[cut:])
        others[cut + 1 :] = -np.log(4)
        assert np.array_equal(copied_log_probs([genome], changed, others)[:cut], before[:cut])
        # where the text goes on is no matter either, but for rounding
        shorter = copied_log_probs([genome], text[: cut + 1], log_probs[: cut + 1])
        np.testing.assert_allclose(shorter, before[: cut + 1], atol=2e-3)


def test_repeats_further_on_are_not_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "_FREQUENT", 3)
    monkeypatch.setattr(seeds, "_MOST", 2)
    unit = random_bases(700, 14)
    text = np.concatenate([mutated(unit, 0.1, seed) for seed in range(12)])
    changed = text.copy()
    changed[2000:] = random_bases(len(text) - 2000, 15)
    one, other = (copied_log_probs([unit, unit, unit], bases, uniform(bases)) for bases in (text, changed))
    assert np.array_equal(one[:2000], other[:2000])


@pytest.mark.parametrize("position", [0, 40, 3000, 9999])
def test_probabilities_of_the_four_bases_sum_to_one(genome: Bases, position: int) -> None:
    text = mutated(genome[:10_000], 0.1, 11)
    total = 0.0
    for base in ACGT:
        text[position] = base
        total += np.exp(float(copied_log_probs([genome], text, uniform(text))[position]))
    assert total == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def trust(genome: Bases) -> Trust:
    """Learned from a relative of the genome."""
    text = with_indels(mutated(genome, 0.1, 20), 500)
    return learn_trust([genome], text, uniform(text))


def test_a_static_reader_copies_as_well_and_learns_nothing(genome: Bases, trust: Trust) -> None:
    rate = 0.1
    entropy = -(rate * np.log2(rate / 3) + (1 - rate) * np.log2(1 - rate))
    text = with_indels(mutated(genome[:20_000], rate, 21), 500)
    once, again = (copied_log_probs([genome], text, uniform(text), trust=trust) for _ in range(2))
    assert np.array_equal(once, again)
    assert entropy < -once.mean() / np.log(2) < entropy + 0.2
    # what was read 10,000 bases before is as if it had never been: the rest alone is read alike
    rest = copied_log_probs([genome], text[10_000:], uniform(text[10_000:]), trust=trust)
    np.testing.assert_allclose(rest[500:], once[10_500:], atol=2e-3)


def test_the_own_past_of_a_static_reader_is_no_memory(genome: Bases, trust: Trust) -> None:
    unit = random_bases(4000, 22)
    text = np.concatenate([unit, unit, reverse_complement(unit)])
    assert -copied_log_probs([genome], text, uniform(text), trust=trust).mean() / np.log(2) > 1.98


def test_a_static_reader_knows_nothing_behind_a_base_and_its_four_sum_to_one(genome: Bases, trust: Trust) -> None:
    text = with_indels(mutated(genome[:9000], 0.15, 23), 700)
    before = copied_log_probs([genome], text, uniform(text), trust=trust)
    for cut in (31, 500, 4096, 8999):
        changed = text.copy()
        changed[cut:] = random_bases(len(text) - cut, 24)
        total = 0.0
        for base in ACGT:
            changed[cut] = base
            got = copied_log_probs([genome], changed, uniform(changed), trust=trust)
            assert np.array_equal(got[:cut], before[:cut])
            total += np.exp(float(got[cut]))
        assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("lengths", [[1_000_000], [30_000, 0, 7, 12_345], [100], [3], [0], []])
def test_windows_are_held_out_of_a_memory(lengths: list[int]) -> None:
    memory = [random_bases(length, seed) for seed, length in enumerate(lengths)]
    left, held = hold_out(memory)
    total = sum(lengths)
    assert sum(map(len, left)) + sum(map(len, held)) == total
    if total > 100:
        assert 0.06 * total < sum(map(len, held)) < 0.14 * total
        # what is left stands in its order, and the windows, taken from all along, do not
        where = bytes(np.concatenate(memory))
        places = [where.index(bytes(window)) for window in held]
        assert places != sorted(places)
        left_places = [where.index(bytes(piece)) for piece in left if len(piece) > 20]
        assert left_places == sorted(left_places)
        assert max(places) - min(places) > 0.6 * total


def test_case_is_no_matter_and_only_bases_are_scored(genome: Bases) -> None:
    text = mutated(genome[:12_000], 0.1, 12)
    text[5000:5100] = ord("N")
    text[7000] = ord("R")
    log_probs = copied_log_probs([genome], text, uniform(text))
    assert np.array_equal(np.isnan(log_probs), ~np.isin(text, ACGT))
    assert -np.nanmean(log_probs[5300:]) / np.log(2) < 1.0
    lower = np.frombuffer(text.tobytes().lower(), dtype=np.uint8)
    lower_genome = np.frombuffer(genome.tobytes().lower(), dtype=np.uint8)
    assert np.array_equal(copied_log_probs([lower_genome], lower, uniform(lower)), log_probs, equal_nan=True)


@pytest.mark.parametrize("text", [b"", b"A", b"N", b"ACGTNNACGTTGCA", b"N" * 100, b"ACGTTGCATC" * 3, b"A" * 3000])
@pytest.mark.parametrize("memory", [[], [b""], [b"A"], [b"ACGTTGCATC" * 10, b"N" * 40], [b"A" * 3000]])
def test_short_and_simple_texts(text: bytes, memory: list[bytes]) -> None:
    bases = np.frombuffer(text, dtype=np.uint8)
    log_probs = copied_log_probs([np.frombuffer(one, dtype=np.uint8) for one in memory], bases, uniform(bases))
    assert log_probs.dtype == np.float32
    assert np.array_equal(np.isfinite(log_probs), np.isin(bases, ACGT))


def test_pieces_of_the_memory_change_next_to_nothing(genome: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    text = with_indels(mutated(genome[:20_000], 0.1, 13), 700)
    whole = bits(text, [genome])
    monkeypatch.setattr(seeds, "_PIECE", 7001)
    assert bits(text, [genome[:33_000], genome[33_000:]]) == pytest.approx(whole, abs=0.01)


def test_progress_counts_every_position(genome: Bases) -> None:
    text, seen = genome[:20_000], list[int]()
    copied_log_probs([genome], text, uniform(text), progress=seen.append)
    assert sum(seen) == len(text)


def test_refuses_log_probabilities_of_another_text(genome: Bases) -> None:
    with pytest.raises(DataError, match=r"of shape \[9, 4\] do not fit a text of 10 bases"):
        copied_log_probs([genome], genome[:10], uniform(genome[:9]))
