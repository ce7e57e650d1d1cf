"""Scores of alleles against haplotypes that are edited as text and scored as plain sequences, whatever is shared."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sh2
from data.reference import Reference
from data.sequence import reverse_complement
from data.variants import IndelMode, WindowRule, variant_window
from data.vcf import Allele
from evo_cli.scoring.variant_jobs import score_groups
from evo_cli.scoring.variants import COLUMNS, VariantOptions, VariantScore, blocks
from sh2.devices.replicas import Replicas
from tests.data.haplotypes import haplotypes
from tests.sh2.models import tiny

CONTIG = "".join(random.Random(3).choices("ACGT", k=600))
MODEL = tiny()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    path = tmp_path_factory.mktemp("variants") / "genome.fa"
    path.write_text(f">chr1\n{CONTIG}\n")
    with Reference(path) as genome:
        yield genome


@pytest.fixture(scope="module")
def replicas() -> Replicas:
    return Replicas(lambda _: MODEL, ["cpu"])


def score_alleles(
    replicas: Replicas, alleles: Iterable[Allele], reference: Reference, options: VariantOptions
) -> Iterator[VariantScore]:
    for group in score_groups(replicas, iter(alleles), reference, options, unit=192, done=0):
        yield from (one.score for one in group)


def allele(pos: int, ref_length: int, alt: str) -> Allele:
    return Allele(chrom="chr1", pos=pos, id=".", ref=CONTIG[pos - 1 : pos - 1 + ref_length], alt=alt)


def substitutions(positions: Iterable[int]) -> list[Allele]:
    return [allele(pos, 1, alt) for pos in positions for alt in "ACGT" if alt != CONTIG[pos - 1]]


ALLELES = [
    *substitutions([1, 2, 100, 101, 118, 300, 301, 305, 330, 599, 600]),
    allele(300, 1, CONTIG[299] + "GATTACA"),
    allele(310, 6, CONTIG[309]),
    allele(305, 3, "TTT" if CONTIG[304:307] != "TTT" else "GGG"),
    allele(1, 3, CONTIG[0]),
    allele(600, 1, CONTIG[599] + "CC"),
    allele(590, 11, CONTIG[589]),
    allele(300, 1, "A" if CONTIG[299] != "A" else "C"),
    Allele(chrom="chr9", pos=5, id="x", ref="A", alt="C"),
]


def log_likelihood(text: str) -> float:
    return sh2.score(MODEL, [text])[0].log_likelihood


def check(score: VariantScore, options: VariantOptions) -> None:
    """Compare a score with that of the haplotypes that its place says."""
    allele = score.allele
    old, new = haplotypes(CONTIG, allele.pos, allele.ref, allele.alt)
    start, length = score.window_start, score.window_length
    if options.rule.indels is IndelMode.APPEND:
        ref, alt = old[start : start + length], new[start : start + length + len(allele.alt) - len(allele.ref)]
    else:
        # where an end of the contig lets one haplotype begin further right, it still ends where the contig does
        ref = old[start : start + length]
        alt_start = start if start + length <= len(new) else len(new) - length
        if start + score.offset + len(allele.alt) > alt_start + length:
            alt_start = start + score.offset + len(allele.alt) - length
        alt = new[alt_start : alt_start + length]
    pairs = [(ref, alt), (reverse_complement(ref.encode()).decode(), reverse_complement(alt.encode()).decode())]
    for (one, other), strand in zip(pairs, score.strands, strict=False):
        want = log_likelihood(one), log_likelihood(other)
        assert strand.delta == pytest.approx(want[1] - want[0], abs=2e-4)
        assert strand.reference == pytest.approx(want[0], abs=2e-4)
        assert strand.branch == pytest.approx(want[1], abs=2e-4)
    assert len(score.strands) == 1 + options.both_strands


@pytest.mark.parametrize("length", [64, 256, 8192])
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("share", [1, 32])
@pytest.mark.parametrize("indels", IndelMode)
def test_every_way_of_sharing_gives_the_scores_of_the_whole_haplotypes(
    reference: Reference, replicas: Replicas, length: int, reuse: bool, share: int, indels: IndelMode
) -> None:
    rule = WindowRule(length=length, share=share, indels=indels)
    options = VariantOptions(rule=rule, reuse=reuse, both_strands=length != 64)
    results = list(score_alleles(replicas, ALLELES, reference, options))
    assert [result.allele for result in results] == ALLELES
    assert [str(result.status) for result in results] == ["ok"] * (len(ALLELES) - 1) + ["missing_contig"]
    for result in results[:-1]:
        check(result, options)


@settings(max_examples=8, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_a_score_depends_on_no_other_allele(data: st.DataObject, seed: int, reference: Reference) -> None:
    """Any alleles in any order and budget score as each does alone."""
    rng = random.Random(seed)
    share, suffix = data.draw(st.sampled_from([1, 20])), data.draw(st.sampled_from([None, 0, 24]))
    options = VariantOptions(rule=WindowRule(length=128, share=share), suffix=suffix)
    chosen = rng.sample(ALLELES[:-1], data.draw(st.integers(1, 12)))
    replicas = Replicas(lambda _: MODEL, ["cpu"])
    crowded = VariantOptions(**{**_values(options), "max_tokens": data.draw(st.sampled_from([1, 500, 65_536]))})
    together = list(score_alleles(replicas, chosen, reference, crowded))
    for one, result in zip(chosen, together, strict=True):
        (alone,) = score_alleles(replicas, [one], reference, options)
        assert result.row()[:6] == alone.row()[:6]
        for many, single in zip(result.strands, alone.strands, strict=True):
            assert many.delta == pytest.approx(single.delta, abs=1e-4)
            assert many.reference == pytest.approx(single.reference, abs=1e-4)


def _values(options: VariantOptions) -> dict[str, object]:
    return {name: getattr(options, name) for name in ("rule", "both_strands", "suffix", "reuse")}


@pytest.mark.parametrize("suffix", [0, 1, 10, 1000])
def test_a_suffix_compares_only_so_many_bases_behind_the_allele(
    reference: Reference, replicas: Replicas, suffix: int
) -> None:
    """Of a substitution, on each strand; log-probabilities of single bases are the oracle."""
    options = VariantOptions(rule=WindowRule(length=128), suffix=suffix)
    for result in score_alleles(replicas, substitutions([300, 305]), reference, options):
        old, new = (text[result.window_start :][:128] for text in haplotypes(CONTIG, *_place(result.allele)))
        for turn, strand in zip((str, _turn), result.strands, strict=True):
            (ref, alt), at = (turn(old), turn(new)), result.offset if turn is str else 127 - result.offset
            log_probs = [score.log_probs for score in sh2.score(MODEL, [ref, alt], per_token=True)]
            # log_probs[i] is that of base i + 1
            ends = min(128, at + 1 + suffix) - 1
            want = log_probs[1][at - 1 : ends].sum() - log_probs[0][at - 1 : ends].sum()
            assert strand.delta == pytest.approx(float(want), abs=2e-4)
            assert strand.num_reference == strand.num_branch == ends


@pytest.mark.parametrize("suffix", [0, 3, 1000])
@pytest.mark.parametrize(("ref", "alt"), [("TCA", "T"), ("T", "TCA"), ("TCACA", "TCACACACA")])
def test_a_suffix_counts_from_where_a_repeat_ends(
    ref: str, alt: str, suffix: int, replicas: Replicas, tmp_path: Path
) -> None:
    """An allele at either end of a repeat changes nothing before the other."""
    contig = CONTIG[:100] + "T" + "CA" * 15 + "G" + CONTIG[100:200]
    (tmp_path / "genome.fa").write_text(f">chr1\n{contig}\n")
    changed = Allele(chrom="chr1", pos=101, id=".", ref=ref, alt=alt)
    rule = WindowRule(length=8192, indels=IndelMode.APPEND)
    with Reference(tmp_path / "genome.fa") as genome:
        (result,) = score_alleles(replicas, [changed], genome, VariantOptions(rule=rule, suffix=suffix))
    for turn, strand in zip((str, _turn), result.strands, strict=True):
        old, new = (turn(text) for text in haplotypes(contig, 101, ref, alt))
        before = 100 if turn is str else len(old) - 100 - len(ref)
        first = next(at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other)
        assert first > 120 or turn is not str
        ends = max(before + max(len(ref), len(alt)), first + 1) + suffix
        assert strand.delta == pytest.approx(log_likelihood(new[:ends]) - log_likelihood(old[:ends]), abs=2e-4)


def _place(allele: Allele) -> tuple[int, str, str]:
    return allele.pos, allele.ref, allele.alt


def _turn(text: str) -> str:
    return reverse_complement(text.encode()).decode()


def test_a_row_has_a_cell_a_column_and_means_over_strands(reference: Reference, replicas: Replicas) -> None:
    good, bad = score_alleles(replicas, [ALLELES[6], ALLELES[-1]], reference, VariantOptions())
    row = dict(zip(COLUMNS, good.row(), strict=True))
    fwd, rev = good.strands
    assert float(row["delta"]) == pytest.approx((fwd.delta + rev.delta) / 2, abs=1e-6)
    assert float(row["delta"]) == pytest.approx(float(row["alt_ll"]) - float(row["ref_ll"]), abs=1e-4)
    assert float(row["delta_mean"]) == pytest.approx(float(row["delta"]) / 599, rel=1e-3)
    assert (row["window_start"], row["window_length"], row["offset"]) == ("0", "600", "99")
    assert dict(zip(COLUMNS, bad.row(), strict=True)) == {
        **dict.fromkeys(COLUMNS, "NA"),
        **{"chrom": "chr9", "pos": "5", "id": "x", "ref": "A", "alt": "C", "status": "missing_contig"},
    }


def test_memory_holds_few_alleles_at_a_time(reference: Reference, replicas: Replicas) -> None:
    """The first score is there long before the last allele was read."""
    read = 0

    def endless() -> Iterator[Allele]:
        nonlocal read
        while True:
            read += 1
            yield from substitutions([1 + read % 600])

    options = VariantOptions(rule=WindowRule(length=2), both_strands=False)
    scores = score_alleles(replicas, endless(), reference, options)
    next(scores)
    assert read < 1000


@pytest.mark.parametrize(
    ("length", "suffix", "block"), [(8192, None, 2048), (1024, None, 8192), (8192, 1024, 4096), (8192, 0, 8192)]
)
def test_alleles_that_read_less_are_scored_more_at_once(length: int, suffix: int | None, block: int) -> None:
    options = VariantOptions(rule=WindowRule(length=length, share=32), suffix=suffix)
    assert options.block == block


def test_a_shared_window_is_held_once(reference: Reference) -> None:
    options = VariantOptions(rule=WindowRule(length=128, share=32))
    (block,) = blocks(ALLELES, reference, options)
    held: dict[tuple[str, bytes], set[int]] = {}
    for one, window in block:
        held.setdefault((one.chrom, window.ref), set()).add(id(window.ref))
    assert [len(objects) for objects in held.values()] == [1] * len(held)
    assert [window.alt for _, window in block] == [variant_window(reference, one, options.rule).alt for one in ALLELES]
