"""What the names of contigs stand for: `chr1`, `1`, `NC_000001.11` and `CM000663.2` are one chromosome of GRCh38.

Knows the accessions and lengths of the chromosomes of five assemblies of man and mouse (assembly reports of NCBI), and
no sequence. A name is matched with a contig by the first rule of `NameRule` that finds one; an assembly is never taken
for another: an accession stands for a contig that is called `chr1` or `1` only if the contig's length does not speak
against it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from enum import StrEnum

from data.errors import DataError

_MITOCHONDRION = ("chrM", "MT", "chrMT", "M")

# lengths in bp of chromosomes 1, 2, ..., X, Y
_LENGTHS: dict[str, tuple[int, ...]] = {
    "GRCh37": (
        249250621, 243199373, 198022430, 191154276, 180915260, 171115067, 159138663, 146364022, 141213431, 135534747,
        135006516, 133851895, 115169878, 107349540, 102531392, 90354753, 81195210, 78077248, 59128983, 63025520,
        48129895, 51304566, 155270560, 59373566,
    ),
    "GRCh38": (
        248956422, 242193529, 198295559, 190214555, 181538259, 170805979, 159345973, 145138636, 138394717, 133797422,
        135086622, 133275309, 114364328, 107043718, 101991189, 90338345, 83257441, 80373285, 58617616, 64444167,
        46709983, 50818468, 156040895, 57227415,
    ),
    "T2T-CHM13v2.0": (
        248387328, 242696752, 201105948, 193574945, 182045439, 172126628, 160567428, 146259331, 150617247, 134758134,
        135127769, 133324548, 113566686, 101161492, 99753195, 96330374, 84276897, 80542538, 61707364, 66210255,
        45090682, 51324926, 154259566, 62460029,
    ),
    "GRCm38": (
        195471971, 182113224, 160039680, 156508116, 151834684, 149736546, 145441459, 129401213, 124595110, 130694993,
        122082543, 120129022, 120421639, 124902244, 104043685, 98207768, 94987271, 90702639, 61431566, 171031299,
        91744698,
    ),
    "GRCm39": (
        195154279, 181755017, 159745316, 156860686, 151758149, 149588044, 144995196, 130127694, 124359700, 130530862,
        121973369, 120092757, 120883175, 125139656, 104073951, 98008968, 95294699, 90720763, 61420004, 169476592,
        91455967,
    ),
}  # fmt: skip
# versions of the RefSeq accessions NC_000001 to NC_000024; GRCh38 has the next ones
_GRCH37_VERSIONS = (10, 11, 11, 11, 9, 11, 13, 10, 11, 10, 9, 11, 10, 8, 9, 9, 10, 9, 9, 10, 8, 10, 10, 9)
# versions of NC_000067 to NC_000087; GRCm39 has the next ones
_GRCM38_VERSIONS = (6, 7, *(6,) * 17, 7, 7)


class NameRule(StrEnum):
    """Why a name stands for a contig; the first that finds one decides."""

    EXACT = "the same name"
    PREFIX = "with or without chr"
    MITOCHONDRION = "M is MT"
    ACCESSION = "accession and length"
    """An accession of the same chromosome and assembly, or a contig `chr1` or `1` of the length that it must have."""
    UNCHECKED = "accession only"
    """As ACCESSION, but the contig's length is that of no known assembly (a piece, say): it tells nothing."""


@dataclass(frozen=True, slots=True)
class NameMatch:
    """A name, the contig that it stands for, and the rule that says so."""

    name: str
    contig: str
    rule: NameRule


@dataclass(frozen=True, slots=True)
class _Chromosome:
    """What an accession names. assemblies: more than one share a mitochondrion."""

    name: str
    assemblies: frozenset[str]
    length: int

    def __str__(self) -> str:
        return f"chromosome {self.name} of {_and(self.assemblies)}"


def _accessions() -> dict[str, _Chromosome]:
    """Every accession, RefSeq's and GenBank's, of the five assemblies."""
    found: dict[str, _Chromosome] = {}
    for assembly, lengths in _LENGTHS.items():
        names = (*map(str, range(1, len(lengths) - 1)), "X", "Y")
        for index, (name, length) in enumerate(zip(names, lengths, strict=True)):
            chromosome = _Chromosome(name, frozenset([assembly]), length)
            found.update(dict.fromkeys(_accessions_of(assembly, index), chromosome))
    human, mouse = frozenset(["GRCh37", "GRCh38"]), frozenset(["GRCm38", "GRCm39"])
    found.update(dict.fromkeys(("NC_012920.1", "J01415.2"), _Chromosome("MT", human, 16569)))
    # chrM of UCSC's hg19 is an older sequence than GRCh37's MT
    found["NC_001807.4"] = _Chromosome("MT", frozenset(["GRCh37"]), 16571)
    found.update(dict.fromkeys(("NC_005089.1", "AY172335.1"), _Chromosome("MT", mouse, 16299)))
    return found


def _accessions_of(assembly: str, index: int) -> tuple[str, str]:
    match assembly:
        case "GRCh37" | "GRCh38":
            later = assembly == "GRCh38"
            return f"NC_{1 + index:06d}.{_GRCH37_VERSIONS[index] + later}", f"CM{663 + index:06d}.{1 + later}"
        case "GRCm38" | "GRCm39":
            later = assembly == "GRCm39"
            return f"NC_{67 + index:06d}.{_GRCM38_VERSIONS[index] + later}", f"CM{994 + index:06d}.{2 + later}"
        case _:
            genbank = "CP086569.2" if index == 23 else f"CP{68277 - index:06d}.2"
            return f"NC_{60925 + index:06d}.1", genbank


_ACCESSIONS = _accessions()


class ContigNames:
    """Finds the contig that a name stands for, and remembers which names were not the contig's own.

    contigs: length in bp of every contig by its name. source: where they are, for messages. renamed: what `match` found
    under another name, by that name. refused: sentences on names that are of another assembly than the contig, by name.
    """

    def __init__(self, contigs: Mapping[str, int], source: str) -> None:
        self._contigs = contigs
        self._source = source
        self.renamed: dict[str, NameMatch] = {}
        self.refused: dict[str, str] = {}
        self._assumed: frozenset[str] = frozenset()
        self._of_chromosome: defaultdict[str, list[str]] = defaultdict(list)
        for contig in contigs:
            known = _ACCESSIONS.get(contig)
            self._of_chromosome[known.name if known else _plain(contig)].append(contig)

    def match(self, name: str) -> NameMatch | None:
        """The contig that a name stands for and why, or None if it stands for none.

        Raises DataError when it could stand for several contigs, and when accessions of several assemblies were to
        stand for contigs whose lengths tell none of them.
        """
        if name in self._contigs:
            return NameMatch(name, name, NameRule.EXACT)
        found = self.renamed.get(name)
        if found is None and name not in self.refused:
            found = self._search(name)
            if found is not None:
                self.renamed[name] = found
        return found

    def _search(self, name: str) -> NameMatch | None:
        other = name.removeprefix("chr") if name.startswith("chr") else f"chr{name}"
        if other in self._contigs:
            return NameMatch(name, other, NameRule.PREFIX)
        if name in _MITOCHONDRION:
            spelled = [alias for alias in _MITOCHONDRION if alias in self._contigs]
            if spelled:
                return NameMatch(name, self._only(name, spelled), NameRule.MITOCHONDRION)
        known = _ACCESSIONS.get(name)
        contigs = self._of_chromosome.get(known.name if known else _plain(name), [])
        rules = {contig: self._rule(name, known, contig) for contig in contigs}
        for rule in (NameRule.ACCESSION, NameRule.UNCHECKED):
            fit = [contig for contig, found in rules.items() if found is rule]
            if fit:
                self.refused.pop(name, None)
                return self._assume(name, NameMatch(name, self._only(name, fit), rule))
        return None

    def _rule(self, name: str, known: _Chromosome | None, contig: str) -> NameRule | None:
        """Whether an accession on one side or both makes a name and a contig the same; None if not."""
        of_contig, length = _ACCESSIONS.get(contig), self._contigs[contig]
        if known and of_contig:
            if known.length == of_contig.length:  # no two assemblies' are equally long
                return NameRule.ACCESSION
            self.refused[name] = f"`{name}` is {known}, but `{contig}` of {self._source} is {of_contig}"
            return None
        accession = known or of_contig
        if accession is None:
            return None
        if length == accession.length:
            return NameRule.ACCESSION
        others = {str(one) for one in _ACCESSIONS.values() if (one.name, one.length) == (accession.name, length)}
        if others and known:
            self.refused[name] = (
                f"`{name}` is {known}, but `{contig}` of {self._source} has the length of {_and(others)}"
            )
            return None
        return NameRule.UNCHECKED

    def _only(self, name: str, contigs: list[str]) -> str:
        if len(contigs) > 1:
            listed = ", ".join(f"`{contig}`" for contig in contigs)
            raise DataError(f"contig `{name}` could be any of {listed} of {self._source}").hint(
                "give it the name that it has there, or take the other contigs out"
            )
        return contigs[0]

    def _assume(self, name: str, match: NameMatch) -> NameMatch:
        """Hold the names that no length speaks for to one assembly."""
        known = _ACCESSIONS.get(name)
        if match.rule is NameRule.UNCHECKED and known is not None:
            if self._assumed and not self._assumed & known.assemblies:
                raise DataError(f"contig `{name}` is {known}, but other names are of {_and(self._assumed)}").hint(
                    "one reference is of one assembly: split the file by assembly"
                )
            self._assumed = self._assumed & known.assemblies or known.assemblies
        return match

    def notes(self) -> list[str]:
        """Sentences for the user on how the names so far were matched; none if all were the contigs' own."""
        said = []
        unchecked = [match for match in self.renamed.values() if match.rule is NameRule.UNCHECKED]
        checked = [match for match in self.renamed.values() if match.rule is not NameRule.UNCHECKED]
        if checked:
            said.append(f"`{checked[0].name}` is `{checked[0].contig}` of {self._source}{_more(checked)}")
        if unchecked:
            name, contig = unchecked[0].name, unchecked[0].contig
            known = _ACCESSIONS.get(name) or _ACCESSIONS[contig]
            said.append(
                f"`{name}` is taken for `{contig}` of {self._source}{_more(unchecked)}, which has"
                f" {self._contigs[contig]:,} bp, not the {known.length:,} bp of {known}: check that they belong"
                " together"
            )
        if self.refused:
            said.append(f"{next(iter(self.refused.values()))}: not matched{_more(self.refused)}")
        return [f"contig names: {text}" for text in said]


def _more(found: Sized) -> str:
    return f" ({len(found) - 1} more)" if len(found) > 1 else ""


def _and(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))


def _plain(name: str) -> str:
    """The chromosome that a name without an accession says: `chr1` is 1, M is MT."""
    return "MT" if name in _MITOCHONDRION else name.removeprefix("chr")
