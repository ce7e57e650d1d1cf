"""Time the scoring of SNVs of E. coli 536 on both strands, with random weights; print a line of JSON for each case.

python tests/benchmarks/variant_scores.py --model evo2_7b_base --device cuda

isolated: one alternative at each of some sites far from each other. alternatives: the three of each such site. dense:
every change of every base of a region, whose alleles share windows. Tokens are those that the model really read.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from data.reference import Reference
from data.variants import WindowRule
from data.vcf import Allele
from evo_cli.scoring.variant_jobs import score_groups
from evo_cli.scoring.variants import VariantOptions
from sh2.bench.models import random_model
from sh2.devices.replicas import Replicas
from sh2.model import StripedHyena2
from sh2.presets import preset

GENOME = Path(__file__).parents[1] / "assets" / "genomes" / "ecoli_536_NC_008253.fna.gz"
CASES = ("isolated", "alternatives", "dense")
_WARM_UP = 2  # sites


class Counted:
    """Counts the tokens and the pieces that a model reads."""

    def __init__(self, model: StripedHyena2) -> None:
        self.tokens = self.pieces = 0
        self._hidden: Any = model.hidden
        model.hidden = self._count  # type: ignore[assignment, method-assign]

    def _count(self, ids_BL: torch.Tensor, state: Any = None) -> Any:
        self.tokens += ids_BL.numel()
        self.pieces += 1
        return self._hidden(ids_BL, state)


def alleles_of(case: str, reference: Reference, sites: int, window: int) -> list[Allele]:
    """The alleles of so many sites: next to each other, or anywhere."""
    contig, length = next(iter(reference.contigs.items()))
    rng = random.Random(0)
    places = range(length // 2, length // 2 + sites) if case == "dense" else rng.sample(range(window, length), sites)
    alleles = []
    for at in places:
        base = reference.fetch(contig, at, at + 1).decode().upper()
        others = "ACGT".replace(base, "")
        alts: Iterable[str] = rng.choice(others) if case == "isolated" else others
        alleles += [Allele(chrom=contig, pos=at + 1, id=".", ref=base, alt=alt) for alt in alts]
    return alleles


def timed(
    case: str, model: StripedHyena2, reference: Reference, sites: int, options: VariantOptions
) -> dict[str, object]:
    """Score once, after a few sites that are not timed."""
    device = model.embedding.weight.device
    replicas = Replicas(lambda _: model, [str(device)])
    unit = 192 if options.rule.share == 1 else options.block

    def score(alleles: list[Allele]) -> float:
        start = time.perf_counter()
        groups = list(score_groups(replicas, iter(alleles), reference, options, unit=unit, done=0))
        assert all(one.score.delta is not None for group in groups for one in group)
        return time.perf_counter() - start

    score(alleles_of(case, reference, _WARM_UP, options.rule.length))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    alleles, counted = alleles_of(case, reference, sites, options.rule.length), Counted(model)
    seconds = score(alleles)
    del model.hidden  # type: ignore[method-assign]
    return {
        "what": f"{case} SNVs of E. coli 536, both strands",
        "window": options.rule.length,
        "share_window": options.rule.share,
        "suffix": options.suffix,
        "variants": len(alleles),
        "seconds": round(seconds, 2),
        "variants_per_h": round(3600 * len(alleles) / seconds),
        "tokens_per_s": round(counted.tokens / seconds),
        "tokens_a_variant": round(counted.tokens / len(alleles)),
        "pieces": counted.pieces,
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 1) if device.type == "cuda" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="evo2_7b_base", help="a preset")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--sites", type=int, default=48, help="of a case; two thirds of them with three alternatives")
    parser.add_argument("--window", type=int, default=8192)
    parser.add_argument("--share-window", type=int, default=512, help="of the dense case")
    parser.add_argument("--suffix", type=int)
    parser.add_argument("--max-tokens", type=int, default=65_536)
    chosen = parser.parse_args()
    gpu = torch.device(chosen.device).type == "cuda"
    model = random_model(preset(chosen.model), device=chosen.device, dtype=torch.bfloat16 if gpu else torch.float32)
    with Reference(GENOME) as reference:
        for case in chosen.cases.split(","):
            share = chosen.share_window if case == "dense" else 1
            options = VariantOptions(
                rule=WindowRule(length=chosen.window, share=share), suffix=chosen.suffix, max_tokens=chosen.max_tokens
            )
            sites = max(1, chosen.sites * 2 // 3) if case == "alternatives" else chosen.sites
            row = timed(case, model, reference, sites, options)
            about = {"model": chosen.model, "device": torch.cuda.get_device_name() if gpu else "cpu"}
            sys.stdout.write(json.dumps(row | about | {"torch": torch.__version__}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
