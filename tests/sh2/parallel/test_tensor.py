"""What a process holds of a model: shares that make the whole, and none that splits what belongs together."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sh2.checkpoint.tensors import LazyTensor
from sh2.config import DEFAULT_WINDOW, FeedForward, ModelConfig
from sh2.errors import Sh2Error
from sh2.mixers.hyena import decay_window
from sh2.model import StripedHyena2
from sh2.parallel.mesh import Parallel
from sh2.parallel.shares import shares_of
from sh2.parallel.tensor import Cut, check_shares, cuts_of, share_window
from tests.sh2.parallel.training import MODELS, STRIPED


@given(st.integers(1, 4), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 1))
def test_parts_of_a_cut_join_to_the_whole(ranks: int, sections: list[int], dim: int) -> None:
    lengths = tuple(section * ranks for section in sections)
    shape = [3, 3]
    shape[dim] = sum(lengths)
    whole, cut = torch.randn(shape), Cut(dim, lengths)

    parts = [cut.take(whole, rank, ranks) for rank in range(ranks)]

    assert torch.equal(cut.join(parts), whole)
    assert {part.shape for part in parts} == {parts[0].shape}


def is_matrix(name: str) -> bool:
    return name.startswith("blocks.") and name.endswith(".weight")


def in_parts(name: str, tensor: torch.Tensor) -> LazyTensor:
    """A stored tensor; a matrix of a block may not be read whole."""
    read = partial(pytest.fail, f"{name} is read whole") if is_matrix(name) else tensor.clone
    return LazyTensor(tuple(tensor.shape), tensor.dtype, read, tensor.__getitem__)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("parallel", [Parallel(dp=2, tp=2), Parallel(dp=3, cp=2), Parallel(cp=2, tp=4)])
def test_every_number_of_a_model_is_held_and_a_matrix_by_one_process(model: str, parallel: Parallel) -> None:
    whole = StripedHyena2(MODELS[model])
    numbers = {name: torch.arange(tensor.numel()).view_as(tensor) for name, tensor in whole.state_dict().items()}
    held: dict[str, list[torch.Tensor]] = {name: [] for name in numbers}
    for rank in range(parallel.processes):
        shares = shares_of(whole, cuts_of(whole), parallel, rank)
        for name, number in numbers.items():
            held[name].append(shares.take(name, in_parts(name, number)).flatten())

    for name, parts in held.items():
        once = is_matrix(name)
        assert torch.cat(parts).unique().numel() == numbers[name].numel(), name
        assert (torch.cat(parts).numel() == numbers[name].numel()) is once, name


@pytest.mark.parametrize(("groups", "ranks"), [(8, 2), (8, 8), (6, 3), (1, 1), (2, 2)])
def test_a_share_of_the_decay_windows_is_some_of_their_rows(groups: int, ranks: int) -> None:
    whole = decay_window(DEFAULT_WINDOW, groups, 20, torch.device("cpu"))

    parts = [
        decay_window(share_window(DEFAULT_WINDOW, groups // ranks, rank, ranks), groups // ranks, 20, whole.device)
        for rank in range(ranks)
    ]

    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "ranks", "message", "hint"),
    [
        (
            {"layout": "S"},
            8,
            "tp=8 would split one of the 4 Hyena-SE filter groups",
            "divides 4, or a model with another `se_groups`",
        ),
        ({"layout": "LM"}, 16, "tp=16 would split one of the 8 Hyena-MR filter groups", "`mr_groups`"),
        ({"layout": "L*", "queries_per_kv_head": 2}, 4, "tp=4 would split one of the 2 attention heads", "`num_heads`"),
        ({"layout": "L"}, 8, "tp=8 would split one of the 36 channels of the feed-forward layers", "`mlp_width`"),
        ({"layout": "L"}, 3, "tp=3 would split one of the 32 channels", "`width`"),
        (
            {"layout": "L", "feed_forward": FeedForward.HYENA_SE},
            8,
            "one of the 4 Hyena-SE filter groups",
            "`se_groups`",
        ),
    ],
)
def test_what_would_be_split_is_named(change: dict[str, object], ranks: int, message: str, hint: str) -> None:
    config: ModelConfig = replace(STRIPED, **change)

    with pytest.raises(Sh2Error) as caught:
        check_shares(config, ranks)

    assert message in str(caught.value)
    assert hint in caught.value.__notes__[0]


def test_layers_that_are_not_there_are_not_in_the_way() -> None:
    check_shares(replace(STRIPED, layout="L", se_groups=1, mr_groups=1, mlp_width=64), 16)
