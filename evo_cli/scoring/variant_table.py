"""`evo score` of variants: from a VCF or from regions to a table, resumable and in parts.

Knows which alleles are scored and what is said about them on stderr; the scores are evo_cli.scoring.variants' business.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.alignment import is_normalised
from data.bed import read_bed
from data.errors import DataError
from data.intervals import Interval
from data.reference import Reference
from data.saturation import Saturation, saturate
from data.variants import VariantStatus
from data.vcf import Allele, read_vcf
from evo_cli.inference import mark_of, say, warn
from evo_cli.outputs.maker import choose_maker
from evo_cli.outputs.metadata import Run, describe_run
from evo_cli.outputs.table import Output, Table, open_table
from evo_cli.progress import Bar, progress_bar
from evo_cli.scoring.request import ScoreRequest
from evo_cli.scoring.variant_jobs import BACKGROUND_COLUMNS, Compared, score_compared, score_groups
from evo_cli.scoring.variants import COLUMNS, VariantOptions, VariantScore

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas


class RefMismatch(StrEnum):
    """What becomes of an allele whose REF is not what the reference has."""

    SKIP = "skip"
    """Its row has no score."""
    FLAG = "flag"
    """It is scored as if the reference had it, and its row says so."""
    FAIL = "fail"
    """The run ends."""


FLAGGED = "ok_ref_mismatch"
"""The status of an allele that is scored although its REF is not what the reference has."""
_NORMALISED = "normalised"


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantRequest:
    """Which alleles are scored, and how.

    variants: VCF or BCF; None with regions. regions: BED or contig:first-last, of which every SNV is scored.
    background: matched random variants that each allele is compared with. plot: heat map of regions.
    """

    variants: str | None
    regions: str | None = None
    reference: Path
    scoring: VariantOptions = field(default_factory=VariantOptions)
    on_mismatch: RefMismatch = RefMismatch.SKIP
    background: int = 0
    plot: Path | None = None

    def options(self) -> dict[str, Any]:
        """What the numbers follow from, beside files and the model."""
        rule = self.scoring.rule
        return {
            "window": rule.length,
            "indel_mode": str(rule.indels),
            "max_indel": rule.max_indel,
            "share_window": rule.share,
            "strand": "both" if self.scoring.both_strands else "forward",
            "suffix": self.scoring.suffix,
            "reuse": self.scoring.reuse,
            "max_tokens": self.scoring.max_tokens,
            "on_ref_mismatch": str(self.on_mismatch),
            "background": self.background,
            "regions": None if self.regions is None or Path(self.regions).is_file() else self.regions,
        }


def score_variants(common: ScoreRequest, request: VariantRequest) -> None:
    """Write one row an allele, and say on stderr how many were scored and why the others were not."""
    maker = choose_maker(common.output, variants=request.variants)
    reference = Reference(request.reference)
    if reference.note:
        say(reference.note)
    alleles = _alleles(request, reference)
    # a file that cannot be read is found before the model takes its time
    head = list(islice(alleles, 1))
    replicas = common.open()
    unit = _unit(request.scoring)
    run = _describe(common, request, replicas, unit)
    mark = mark_of(replicas.config, replicas.precision)
    with open_table([Output(path=common.output, maker=maker)], run, mark=mark, overwrite=common.overwrite) as table:
        if table is not None:
            own = common.pick(chain(head, alleles), unit)
            for _ in islice(own, table.rows):  # done by an earlier run
                pass
            with progress_bar("score", start=table.rows) as bar:
                writer = _Writer(request, reference, table, bar)
                score = partial(score_groups, unit=unit, done=table.rows)
                if request.background:
                    score = partial(score_compared, count=request.background)
                writer.write(score(replicas, own, reference, request.scoring, progress=writer.read))
    if table is not None:
        table.tell_counts("alleles")
        _tell_names(reference, table, head)
        if isinstance(alleles, Saturation) and alleles.skipped:
            say(f"{alleles.skipped:,} bases of the regions are not A, C, G or T, and have no changes")
    if request.plot is not None and common.output is not None:
        from evo_cli.scoring.saturation_plot import plot_saturation

        plot_saturation(common.output, request.plot)


def _alleles(request: VariantRequest, reference: Reference) -> Iterator[Allele]:
    if request.regions is None:
        return read_vcf(Path(str(request.variants)))
    alleles = saturate(reference, read_regions(request.regions))
    if request.plot is not None:
        from evo_cli.scoring.saturation_plot import MOST_BASES

        if alleles.bases > MOST_BASES:
            raise DataError(f"{request.plot}: a picture shows at most {MOST_BASES:,} bp, not {alleles.bases:,}").hint(
                "leave --plot out, or take smaller regions"
            )
    return alleles


def read_regions(text: str) -> list[Interval]:
    """The regions of a BED file, or the one that is written contig:first-last.

    Raises:
        DataError: it is neither.
    """
    if Path(text).is_file() or text == "-":
        return [region.interval for region in read_bed(text)]
    try:
        return [Interval.parse(text)]
    except DataError as error:
        raise DataError(f"{text}: is no file, and no region: {error}") from error


def _unit(scoring: VariantOptions) -> int:
    """Alleles that belong together in a part of the work: whole stretches, where these share a window."""
    return 192 if scoring.rule.share == 1 else scoring.block


def _describe(common: ScoreRequest, request: VariantRequest, replicas: "Replicas", unit: int) -> Run:
    regions = request.regions if request.regions is not None and Path(request.regions).is_file() else None
    return describe_run(
        "score variants" if request.regions is None else "score saturation",
        replicas,
        model=common.model,
        backend=common.backend,
        inputs={"variants": request.variants, "regions": regions, "reference": request.reference},
        options=request.options() | common.options(unit),
    )


class _Writer:
    """Turns scores into rows, and shows how many there are."""

    def __init__(self, request: VariantRequest, reference: Reference, table: Table, bar: Bar) -> None:
        self._reference, self._table, self._bar = reference, table, bar
        self._read = 0
        self._on_mismatch = request.on_mismatch
        self._compared = bool(request.background)
        table.begin([*COLUMNS, _NORMALISED, *(BACKGROUND_COLUMNS if self._compared else ())])

    def write(self, blocks: Iterable[list[Compared]]) -> None:
        for block in blocks:
            for one in block:
                status = self._status(one.score)
                cells = list(one.score.row())
                cells[COLUMNS.index("status")] = status
                columns = [*cells, self._normalised(one.score), *(one.row() if self._compared else ())]
                self._table.write(columns, status)
            self._table.end_block()
            self._show()

    def read(self, bases: int) -> None:
        """Show that so many bases more were read, for blocks that are not written yet."""
        self._read += bases
        self._show()

    def _show(self) -> None:
        counts = self._table.counts
        scored, read = counts["ok"] + counts[FLAGGED], self._read
        self._bar.update(self._table.rows, fields={"scored": f"{scored:,}", "bases read": f"{read:,}"})

    def _status(self, score: VariantScore) -> str:
        allele = score.allele
        if score.status is VariantStatus.REF_MISMATCH and self._on_mismatch is RefMismatch.FAIL:
            raise DataError(
                f"{allele.chrom}:{allele.pos} {allele.ref}>{allele.alt}: REF is not what {self._reference.path} has"
                f" there, {self._has(allele)}"
            ).hint(
                "is it the same assembly? --on-ref-mismatch skip leaves such alleles without a score, flag marks them"
            )
        flagged = self._on_mismatch is RefMismatch.FLAG and score.status is VariantStatus.OK
        if flagged and self._has(allele) != allele.ref.upper():
            return FLAGGED
        return str(score.status)

    def _has(self, allele: Allele) -> str:
        contig = self._reference.resolve(allele.chrom)
        assert contig is not None
        return self._reference.fetch(contig, allele.pos - 1, allele.pos - 1 + len(allele.ref)).decode().upper()

    def _normalised(self, score: VariantScore) -> str:
        contig = self._reference.resolve(score.allele.chrom)
        if contig is None or score.status is not VariantStatus.OK:
            return "NA"
        return "yes" if is_normalised(self._reference, contig, score.allele) else "no"


def _tell_names(reference: Reference, table: Table, head: list[Allele]) -> None:
    for note in reference.names.notes():
        say(note)
    if head and table.rows and table.counts["missing_contig"] == table.rows:
        names = ", ".join(f"`{name}`" for name in islice(reference.contigs, 3))
        warn(f"no allele lies on a contig of {reference.path}: it has {names} ..., the first allele `{head[0].chrom}`")
