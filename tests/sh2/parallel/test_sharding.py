"""Which tokens lie on which rank."""

import pytest
import torch

from sh2.errors import Sh2Error
from sh2.parallel import Sharding, Shards


def shards(ranks: int, sharding: str) -> list[Shards]:
    return [Shards(rank=rank, ranks=ranks, sharding=Sharding(sharding)) for rank in range(ranks)]


@pytest.mark.parametrize(
    ("sharding", "tokens"),
    [
        ("contiguous", [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]),
        ("zigzag", [[0, 1, 2, 9, 10, 11], [3, 4, 5, 6, 7, 8]]),
    ],
)
def test_two_ranks_hold_these_of_twelve_tokens(sharding: str, tokens: list[list[int]]) -> None:
    whole = torch.arange(12)[None]
    for one, want in zip(shards(2, sharding), tokens, strict=True):
        assert one.take(whole)[0].tolist() == want
        assert one.positions(6, torch.device("cpu")).tolist() == want


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("sharding", ["contiguous", "zigzag"])
def test_every_piece_has_one_owner_and_the_parts_join_to_the_whole(ranks: int, sharding: str) -> None:
    parts = shards(ranks, sharding)
    assert sorted(piece for one in parts for piece in one.mine) == list(range(parts[0].count))
    assert all(one.owner(piece) == one.rank for one in parts for piece in one.mine)
    whole = torch.randn(2, 12 * ranks, 3)
    for dim in (1, -2):
        assert torch.equal(parts[0].join([one.take(whole, dim) for one in parts], dim), whole)


def test_zigzag_gives_causal_attention_the_same_work_everywhere() -> None:
    pairs = {sum(int(place) + 1 for place in one.positions(8, torch.device("cpu"))) for one in shards(4, "zigzag")}
    assert len(pairs) == 1


@pytest.mark.parametrize("sharding", ["contiguous", "zigzag"])
def test_pieces_of_all_ranks_in_order_and_back(sharding: str) -> None:
    (first, *_) = shards(3, sharding)
    by_rank = torch.tensor([one.mine for one in shards(3, sharding)])
    assert first.in_order(by_rank).tolist() == list(range(first.count))
    assert torch.equal(first.by_rank(first.in_order(by_rank)), by_rank)


def test_pieces_as_rows_and_back() -> None:
    (first, _) = shards(2, "zigzag")
    x_BLD = torch.randn(3, 10, 4)
    rows = first.rows(x_BLD)
    assert torch.equal(rows[2 * 1 + 1], x_BLD[1, 5:])  # the second sequence's second piece
    assert torch.equal(first.by_piece(rows)[1, 2], x_BLD[2, 5:])
    assert torch.equal(first.by_row(first.by_piece(rows)), rows)
    assert torch.equal(first.unrows(rows), x_BLD)


@pytest.mark.parametrize(("sharding", "pieces"), [("contiguous", 4), ("zigzag", 8)])
def test_a_length_that_cannot_be_cut_is_refused(sharding: str, pieces: int) -> None:
    with pytest.raises(Sh2Error) as caught:
        shards(4, sharding)[1].take(torch.zeros(1, 8193))
    assert str(caught.value) == (
        f"a sequence of 8,193 tokens cannot be cut into {pieces} equal pieces, as 4 ranks with {sharding} shards need"
    )
    assert caught.value.__notes__ == [f"use a length that is a multiple of {pieces}"]
    with pytest.raises(Sh2Error, match=r"^a sequence of 0 tokens"):
        shards(4, sharding)[0].take(torch.zeros(1, 0))
