"""The DNA alphabet as tables over bytes: which are bases, which are ambiguity codes, what the complement is.

Knows the IUPAC codes (NC-IUB 1984) in both cases; knows nothing of files, records or tokens other than bytes.
"""

from typing import overload

import numpy as np
import numpy.typing as npt

BASES = b"ACGTacgt"
"""True bases, both cases."""
URACIL = b"Uu"
AMBIGUITY_CODES = b"RYSWKMBDHVNryswkmbdhvn"
"""IUPAC codes that stand for two, three or four bases, both cases."""
ALPHABET = BASES + URACIL + AMBIGUITY_CODES
"""Every letter of a DNA or RNA sequence."""
ALLOWED_TEXT = "ACGT, U and the IUPAC codes RYSWKMBDHVN, in either case"
"""The alphabet in words, for messages."""


def _table(changes: dict[str, str]) -> bytes:
    """256 bytes: the identity with the changes, in both cases."""
    table = bytearray(range(256))
    for old, new in changes.items():
        table[ord(old)], table[ord(old.lower())] = ord(new), ord(new.lower())
    return bytes(table)


def _member(letters: bytes) -> npt.NDArray[np.bool_]:
    table = np.zeros(256, dtype=np.bool_)
    table[list(letters)] = True
    table.setflags(write=False)
    return table


COMPLEMENT = _table(dict(zip("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN", strict=True)))
"""256 bytes: complement of every code in its case, U to A; other bytes unchanged."""
UPPER_DNA = _table({"U": "T"}).upper()
"""256 bytes: upper case, U to T; bytes that are no ASCII letters unchanged."""
URACIL_TO_THYMINE = _table({"U": "T"})
"""256 bytes: U to T in its case; other bytes unchanged."""

IS_BASE = _member(BASES)
"""bool [256]: A, C, G, T in either case."""

BASE_CODES = np.full(256, 4, dtype=np.uint8)
"""uint8 [256]: 0 to 3 for A, C, G, T in either case, 4 for whatever is no base."""
for _code, _base in enumerate(b"ACGT"):
    BASE_CODES[_base] = BASE_CODES[_base + 32] = _code
BASE_CODES.setflags(write=False)

_COMPLEMENT_ARRAY = np.frombuffer(COMPLEMENT, dtype=np.uint8)
_UPPER_ARRAY = np.frombuffer(UPPER_DNA, dtype=np.uint8)


@overload
def reverse_complement(sequence: bytes) -> bytes: ...
@overload
def reverse_complement(sequence: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]: ...
def reverse_complement(sequence: bytes | npt.NDArray[np.uint8]) -> bytes | npt.NDArray[np.uint8]:
    """The other strand, read 5' to 3': bytes, or a uint8 array [..., L] reversed along its last axis (a copy).

    Codes keep their case; U becomes A; bytes that are no IUPAC codes stay what they are.
    """
    if isinstance(sequence, bytes):
        return sequence.translate(COMPLEMENT)[::-1]
    return _COMPLEMENT_ARRAY[sequence[..., ::-1]]


@overload
def to_upper_dna(sequence: bytes) -> bytes: ...
@overload
def to_upper_dna(sequence: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]: ...
def to_upper_dna(sequence: bytes | npt.NDArray[np.uint8]) -> bytes | npt.NDArray[np.uint8]:
    """Upper-cased with U as T: bytes, or a uint8 array of any shape (a copy). Other bytes stay what they are."""
    if isinstance(sequence, bytes):
        return sequence.translate(UPPER_DNA)
    return _UPPER_ARRAY[sequence]
