"""What cannot be shared is refused before anything is sent, in words."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.parallel import parallelise
from tests.sh2.parallel.cases import STRIPED


@pytest.fixture
def three() -> Iterator[None]:
    """The first of three processes, of which there are no others."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("methods", "text", "hint"),
    [
        (
            {"convolution": "a2a"},
            "method a2a: the 8 filter groups of `blocks.0.mixer` cannot be shared out to 3 ranks",
            "use a number of ranks that divides them, or another method",
        ),
        (
            {"attention": "a2a"},
            "method a2a: the 8 heads of `blocks.3.mixer` cannot be shared out to 3 ranks",
            "use a number of ranks that divides them, or another method",
        ),
        (
            {"convolution": "p2p-fft"},
            "method p2p-fft needs a number of ranks that is a power of two, not 3",
            "the method state takes any",
        ),
        (
            {"convolution": "p2p_fft"},
            "unknown method of context parallelism for convolutions `p2p_fft`",
            "use state, a2a, a2a-pipelined, p2p, p2p-overlapped, p2p-fft",
        ),
        (
            {"attention": "rings"},
            "unknown method of context parallelism for attention `rings`",
            "use ring, a2a",
        ),
        ({"sharding": "striped"}, "unknown sharding `striped`", "use contiguous, zigzag"),
    ],
)
def test_methods_that_cannot_be(methods: dict[str, str], text: str, hint: str) -> None:
    model = StripedHyena2(STRIPED)
    with pytest.raises(Sh2Error) as caught:
        parallelise(model, **methods)
    assert (str(caught.value), caught.value.__notes__) == (text, [hint])
    model(torch.zeros(1, 5, dtype=torch.int64))  # still whole


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_heads": 6, "width": 36, "se_groups": 9, "mr_groups": 9, "queries_per_kv_head": 3}, "2 key-value heads"),
        ({"layout": "L"}, "32 channels"),
        ({"layout": "M"}, "16 filter groups"),
    ],
)
def test_shares_that_are_not_whole(change: dict[str, object], text: str) -> None:
    with pytest.raises(
        Sh2Error, match=rf"^method a2a: the {text} of `blocks\.\d\.mixer` cannot be shared out to 3 ranks"
    ):
        parallelise(StripedHyena2(replace(STRIPED, **change)), convolution="a2a-pipelined", attention="a2a")


@pytest.mark.usefixtures("three")
def test_what_a_shard_cannot_be_given() -> None:
    model = StripedHyena2(STRIPED)
    ids = torch.zeros(1, 30, dtype=torch.int64)
    _, state = model(ids)
    parallelise(model)
    with pytest.raises(Sh2Error, match=r"^a context-parallel model runs whole sequences; it cannot continue a state$"):
        model(ids, state)
    with pytest.raises(Sh2Error, match=r"^context parallelism knows no document starts within a sequence\n"):
        model(ids, document_starts_BL=torch.zeros(1, 30, dtype=torch.bool))
    with pytest.raises(Sh2Error, match=r"^the model is context-parallel already$"):
        parallelise(model)


@pytest.mark.usefixtures("three")
def test_a_shard_of_two_uneven_pieces() -> None:
    model = StripedHyena2(STRIPED)
    parallelise(model, sharding="zigzag")
    with pytest.raises(Sh2Error, match=r"^51 tokens are no shard: they cannot be cut into two equal pieces\n"):
        model(torch.zeros(1, 51, dtype=torch.int64))


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("method", ["state", "p2p", "p2p-overlapped"])
def test_a_piece_shorter_than_its_filter_looks_back(method: str) -> None:
    model = StripedHyena2(STRIPED)
    parallelise(model, convolution=method)
    with pytest.raises(Sh2Error) as caught:
        model(torch.zeros(1, 20, dtype=torch.int64))
    assert str(caught.value) == "the sequence is cut into pieces of 20 tokens, and a filter looks back over 21"
    assert caught.value.__notes__ == ["use longer sequences, fewer ranks, or the method a2a"]


def test_no_processes() -> None:
    with pytest.raises(Sh2Error, match=r"^there are no processes to share sequences\n") as caught:
        parallelise(StripedHyena2(STRIPED))
    assert "torchrun" in caught.value.__notes__[0]


def test_one_process_leaves_the_model_as_it_is() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        model = StripedHyena2(STRIPED)
        ids = torch.arange(40)[None]
        want, _ = model(ids)
        context = parallelise(model, sharding="zigzag", convolution="a2a", attention="a2a")
        got, state = model(context.shard(ids))
        assert torch.equal(got, want)
        assert len(state) == 4
    finally:
        dist.destroy_process_group()
