"""The byte tokenizer."""

import numpy as np
import pytest

from data.tokenizer import EOD, PAD, VOCAB_SIZE, decode, encode


def test_constants_are_the_published_ones() -> None:
    assert (EOD, PAD, VOCAB_SIZE) == (0, 1, 512)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("ACGTN", [65, 67, 71, 84, 78]),
        ("acgt", [97, 99, 103, 116]),
        (b"AC\x00\xff", [65, 67, 0, 255]),
        ("|d__É|", [124, 100, 95, 95, 0xC3, 0x89, 124]),
        ("", []),
    ],
)
def test_encode(text: str | bytes, ids: list[int]) -> None:
    tokens = encode(text)
    assert tokens.dtype == np.uint8
    assert tokens.tolist() == ids
    assert tokens.flags.writeable


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([65, 67, 71, 84], "ACGT"),
        ([EOD, PAD, 31, 32], "    "),
        ([127, 255, 256, 511, 512, 513, 9999], "\x7fÿĀǿȀȀȀ"),
        ([], ""),
    ],
)
def test_decode(ids: list[int], text: str) -> None:
    assert decode(ids) == text
    assert decode(np.array(ids, dtype=np.int64)) == text


def test_ascii_round_trip() -> None:
    text = "".join(map(chr, range(32, 128)))
    assert decode(encode(text)) == text
