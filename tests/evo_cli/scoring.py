"""Scoring within the test's own process, with small blocks, so that a test can stop it anywhere."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.variants import WindowRule
from evo_cli.outputs.shards import Shard
from evo_cli.scoring.request import ScoreRequest
from evo_cli.scoring.sequence_table import SequenceRequest, score_sequences
from evo_cli.scoring.sequences import SequenceOptions
from evo_cli.scoring.variant_table import VariantRequest, score_variants
from evo_cli.scoring.variants import VariantOptions
from sh2.devices.replicas import Replicas
from tests.sh2.models import tiny

MODEL = Replicas(lambda _: tiny(), ["cpu"])
OTHER_MODEL = Replicas(lambda _: tiny(seed=1), ["cpu"])
SCORING = VariantOptions(rule=WindowRule(length=16))


def common(output: Path | None, *, shard: str | None = None, **changes: Any) -> ScoreRequest:
    """What both kinds of scoring are asked for."""
    request = ScoreRequest(
        model="tiny",
        backend="auto",
        open=lambda: MODEL,
        output=output,
        shard=None if shard is None else Shard.parse(shard),
        overwrite=False,
    )
    return replace(request, **changes)


def variants(vcf: Path, output: Path | None, **changes: Any) -> None:
    """Score a VCF on the genome beside it; `request` changes the VariantRequest, what is left the ScoreRequest."""
    request = VariantRequest(variants=str(vcf), reference=vcf.with_name("genome.fa"), scoring=SCORING)
    request = replace(request, **changes.pop("request", {}))
    score_variants(common(output, **changes), request)


def sequences(fasta: Path, output: Path | None, *, per_base: Path | None = None, **changes: Any) -> None:
    """Score a FASTA file in blocks of some 160 bases."""
    scoring = SequenceOptions(per_base=per_base is not None, max_tokens=10, **changes.pop("scoring", {}))
    request = SequenceRequest(sequences=str(fasta), per_base=per_base, scoring=scoring)
    score_sequences(common(output, **changes), request)


def write_genome(folder: Path, length: int = 600) -> str:
    """Write genome.fa with one contig, chr1, of random bases."""
    genome = "".join(random.Random(5).choices("ACGT", k=length))
    (folder / "genome.fa").write_text(f">chr1\n{genome}\n")
    return genome


def lines(genome: str, *, step: int = 2, chrom: str = "chr1") -> Iterator[str]:
    """Records of a VCF: SNVs, with other kinds among them, some of which cannot be scored."""
    for number, pos in enumerate(range(20, len(genome) - 20, step)):
        ref = genome[pos - 1]
        alt = "ACGT"["ACGT".index(ref) - 1]
        match number % 10:
            case 3:
                alt = f"{alt},{ref}GT,<DEL>"
            case 7:
                ref = genome[pos - 1 : pos + 2]
                alt = ref[0]
        yield f"{chrom}\t{pos}\tid{number}\t{ref}\t{alt}\t.\tPASS\tDP={number}"


def write_vcf(path: Path, genome: str, **kinds: Any) -> Path:
    """Write a VCF of `lines`."""
    header = (
        "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n##FILTER=<ID=PASS,Description=p>\n"
        '##INFO=<ID=DP,Number=1,Type=Integer,Description="depth">\n##ALT=<ID=DEL,Description="d">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    )
    path.write_text(header + "".join(f"{text}\n" for text in lines(genome, **kinds)))
    return path
