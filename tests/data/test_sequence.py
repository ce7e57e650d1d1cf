"""The DNA alphabet: complement, case, membership."""

import numpy as np
from Bio.Seq import reverse_complement as oracle
from hypothesis import given
from hypothesis import strategies as st

from data.sequence import ALPHABET, IS_BASE, reverse_complement, to_upper_dna

DNA = "ACGTRYSWKMBDHVNacgtryswkmbdhvn"
dna = st.text(alphabet=DNA).map(str.encode)


@given(dna)
def test_reverse_complement_agrees_with_biopython(sequence: bytes) -> None:
    assert reverse_complement(sequence) == oracle(sequence.decode()).encode()


@given(dna)
def test_reverse_complement_is_its_own_inverse(sequence: bytes) -> None:
    assert reverse_complement(reverse_complement(sequence)) == sequence


def test_every_code_in_both_cases() -> None:
    assert reverse_complement(b"ACGTURYSWKMBDHVN") == b"NBDHVKMWSRYAACGT"
    assert reverse_complement(b"acgturyswkmbdhvn") == b"nbdhvkmwsryaacgt"


def test_other_bytes_stay() -> None:
    others = bytes(set(range(256)) - set(ALPHABET))
    assert reverse_complement(others) == others[::-1]


def test_arrays_are_reversed_along_the_last_axis() -> None:
    batch = np.frombuffer(b"AACGuuNr", dtype=np.uint8).reshape(2, 4)
    expected = np.frombuffer(b"CGTTyNaa", dtype=np.uint8).reshape(2, 4)
    assert np.array_equal(reverse_complement(batch), expected)
    assert reverse_complement(batch).dtype == np.uint8
    assert reverse_complement(np.zeros(0, dtype=np.uint8)).shape == (0,)


def test_to_upper_dna() -> None:
    assert to_upper_dna(b"acgtuUnRy-*1\x00") == b"ACGTTTNRY-*1\x00"
    assert to_upper_dna(np.frombuffer(b"acuU", dtype=np.uint8)).tobytes() == b"ACTT"


def members(table: np.ndarray) -> bytes:
    return bytes(np.flatnonzero(table).tolist())


def test_membership_tables() -> None:
    assert members(IS_BASE) == b"ACGTacgt"
