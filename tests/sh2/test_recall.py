"""Recall of a model that copies, of one that does not, and of rows put together by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.reading.recall import Needle, recall
from tests.sh2.models import tiny

ASKED = Needle(length=24, cue=8, trials=3, seed=5)


class Copying(torch.nn.Module):
    """Stands for a model: it expects what followed the last time that the eight tokens before came up."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = tiny().embedding
        self.seen: list[list[int]] = []

    def hidden(self, ids_BL: Tensor, state: tuple[()] | None = None) -> tuple[Tensor, tuple[()]]:
        rows = [[*(self.seen[row] if state is not None else []), *ids.tolist()] for row, ids in enumerate(ids_BL)]
        self.seen = rows
        x = torch.zeros(*ids_BL.shape, 512)
        for row, tokens in enumerate(rows):
            before = len(tokens) - ids_BL.shape[1]
            for place in range(before, len(tokens)):
                cue = tokens[max(0, place - 7) : place + 1]
                for earlier in range(place - 8, -1, -1):
                    if tokens[earlier : earlier + 8] == cue:
                        x[row, place - before, tokens[earlier + 8]] = 50.0
                        break
        return x, ()

    def logits(self, x_BLD: Tensor) -> Tensor:
        return x_BLD


@pytest.mark.parametrize("chunk", [7, 64, 8192])
def test_a_model_that_copies_recalls_at_every_depth(chunk: int) -> None:
    model = Copying()
    results = list(recall(model, lengths=[32, 150], depths=[0, 0.5, 1], needle=ASKED, chunk=chunk))  # type: ignore[arg-type]
    assert [(one.length, one.depth) for one in results] == [(n, d) for n in (32, 150) for d in (0, 0.5, 1)]
    for one in results:
        assert one.accuracy == 1.0
        assert one.log_prob == pytest.approx(0.0, abs=1e-3)
        assert one.log_prob_without < -1.0


def test_the_needle_lies_where_it_is_said_to() -> None:
    model = Copying()
    list(recall(model, lengths=[100], depths=[0, 0.25, 1], needle=Needle(length=24, cue=8, trials=1), chunk=8192))  # type: ignore[arg-type]
    *hidden, without = [bytes(row) for row in model.seen]
    needle = hidden[0][1:25]
    # 68 bases of hay; the last base that is asked for is never read
    assert [row.index(needle) for row in hidden] == [1, 1 + 17, 1 + 68]
    for row in [*hidden, without]:
        assert row[0] == 0
        assert len(row) == 1 + 100 + 16 - 1
        assert row.endswith(needle[:-1])
    assert needle not in without
    hay = [row[1:-23].replace(needle, b"") for row in hidden]
    assert hay[0] == hay[1] == hay[2] == without[1 : 1 + 68]


def by_hand(model: StripedHyena2, row: np.ndarray, asked: int) -> float:
    with torch.inference_mode():
        log_probs = model(torch.from_numpy(row)[None])[0][0].double().log_softmax(-1)
    places = range(len(row) - 1 - asked, len(row) - 1)
    return float(np.mean([log_probs[place, row[place + 1]] for place in places]))


@pytest.mark.parametrize(("chunk", "max_tokens"), [(8192, 65_536), (10, 65_536), (8192, 1)])
def test_numbers_do_not_depend_on_chunks_or_batches(chunk: int, max_tokens: int) -> None:
    model = tiny()
    hay = np.random.default_rng(9).choice(np.frombuffer(b"ACGT", np.uint8), 500).astype(np.int64)
    options = {"lengths": [60], "depths": [0.3], "needle": ASKED, "haystack": hay}
    (want,) = recall(model, **options)  # type: ignore[arg-type]
    (got,) = recall(model, **options, chunk=chunk, max_tokens=max_tokens)  # type: ignore[arg-type]
    assert got.log_prob == pytest.approx(want.log_prob, abs=1e-5)
    assert got.accuracy == want.accuracy
    from sh2.reading.recall import _rows

    rows = [list(_rows(60, [0.3], ASKED, hay, trial)) for trial in range(3)]
    assert want.log_prob == pytest.approx(np.mean([by_hand(model, row[0], 16) for row in rows]), abs=1e-5)
    assert want.log_prob_without == pytest.approx(np.mean([by_hand(model, row[1], 16) for row in rows]), abs=1e-5)
    assert all(bytes(row[1][1:53].tolist()) in bytes(hay.tolist()) for row in rows)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lengths": [31]}, "a length must be at least 32, the needle and its cue, not 31"),
        ({"depths": [1.5]}, r"a depth must lie in 0\.\.1, not 1\.5"),
        ({"haystack": np.zeros(40, dtype=np.int64)}, "the haystack has 40 bases, fewer than the length 50"),
    ],
)
def test_what_cannot_be_asked(values: dict[str, object], message: str) -> None:
    with pytest.raises(Sh2Error, match=message):
        list(recall(tiny(), **{"lengths": [50], "depths": [0.5], "needle": ASKED, **values}))  # type: ignore[arg-type]
    with pytest.raises(Sh2Error, match="the cue must be of 1 to 99 bases, fewer than the needle, not 100"):
        Needle(cue=100)
    with pytest.raises(Sh2Error, match="there must be at least 1 trial, not 0"):
        Needle(trials=0)
