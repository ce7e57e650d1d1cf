"""What a variant does to a contig, by editing text: an oracle for windows and scores that shares no code with them."""


def haplotypes(contig: str, pos: int, ref: str, alt: str) -> tuple[str, str]:
    """The contig before and after the change, upper-case. pos: 1-based, of the first letter of REF."""
    before = contig[: pos - 1]
    found, after = contig[pos - 1 : pos - 1 + len(ref)], contig[pos - 1 + len(ref) :]
    assert found.upper() == ref.upper(), f"REF {ref} is not {found}, which lies at {pos}"
    return contig.upper(), (before + alt + after).upper()


def window_haplotypes(contig: str, pos: int, ref: str, alt: str, start: int, length: int) -> tuple[str, str]:
    """Both haplotypes from base `start` (0-based) on, `length` bases of each: what a window holds that begins there."""
    old, new = haplotypes(contig, pos, ref, alt)
    return old[start : start + length], new[start : start + length]


def read_contigs(text: str) -> dict[str, str]:
    """The contigs of a FASTA text by the first word of their headers."""
    contigs: dict[str, str] = {}
    for block in text.lstrip().removeprefix(">").split("\n>"):
        header, _, sequence = block.partition("\n")
        contigs[header.split()[0]] = "".join(sequence.split())
    return contigs
