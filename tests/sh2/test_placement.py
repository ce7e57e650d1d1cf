"""Where blocks go: balanced cuts, what is streamed, and a model that is spread is the same model."""

from dataclasses import replace
from itertools import combinations_with_replacement, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sh2
from sh2.checkpoint import loading, save_model
from sh2.config import ModelConfig
from sh2.devices.placement import HOST, Placement, choose_streamed, follow, parse_devices, partition, place
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.presets import preset
from tests.sh2.models import TINY, tiny

LONG = replace(TINY, layout="SML*SML*SM")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("cpu", ["cpu"]),
        ("cuda", ["cuda"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:0+cuda:1", ["cuda:0", "cuda:1"]),
        ("cuda + cuda:1", ["cuda:0", "cuda:1"]),
        ("cuda:2+cpu", ["cuda:2", "cpu"]),
        ("cpu+cpu", ["cpu", "cpu"]),
    ],
)
def test_devices_are_read(text: str, want: list[str]) -> None:
    assert parse_devices(text) == tuple(map(torch.device, want))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("gpu", "unknown device `gpu`"),
        ("cuda:0+", "unknown device ``"),
        ("cuda:0+cuda:0", r"`cuda:0\+cuda:0` names a GPU twice"),
        ("cuda+cuda:0", r"`cuda\+cuda:0` names a GPU twice"),
        ("cpu+cuda:0", r"a model cannot be spread over `cpu\+cuda:0`"),
        ("cuda:0+cuda:1+cpu", r"a model cannot be spread over `cuda:0\+cuda:1\+cpu`"),
    ],
)
def test_devices_that_make_no_sense_are_refused(text: str, error: str) -> None:
    with pytest.raises(Sh2Error, match=error):
        parse_devices(text)


@given(
    costs=st.lists(st.integers(1, 50), min_size=1, max_size=7),
    first=st.integers(0, 60),
    capacities=st.lists(st.sampled_from([10, 24, 80]), min_size=1, max_size=4),
)
def test_no_cut_leaves_the_fullest_piece_emptier(costs: list[int], first: int, capacities: list[int]) -> None:
    def fullest(owners: tuple[int, ...]) -> float:
        held = [first, *[0] * (len(capacities) - 1)]
        for owner, cost in zip(owners, costs, strict=True):
            held[owner] += cost
        return max(one / capacity for one, capacity in zip(held, capacities, strict=True))

    owners = tuple(partition(costs, first, capacities))
    everyone = combinations_with_replacement(range(len(capacities)), len(costs))
    assert list(owners) == sorted(owners)
    assert fullest(owners) == min(map(fullest, everyone))


def weights_of(config: ModelConfig) -> tuple[list[int], int]:
    """Bytes of each block and of all else in bf16, counted from the model itself."""
    with torch.device("meta"):
        model = StripedHyena2(config).bfloat16()

    def size(module: nn.Module) -> int:
        return sum(tensor.nbytes for tensor in module.state_dict().values())

    blocks = [size(block) for block in model.blocks]
    return blocks, size(model) - sum(blocks)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["evo2_7b", "evo2_40b"])
def test_published_models_are_balanced_over_gpus(name: str, count: int) -> None:
    config = preset(name)
    sizes, rest = weights_of(config)
    devices = [torch.device("cuda", index) for index in range(count)]
    placement = place(config, sizes, rest, devices, [80 << 30] * count)
    assert placement.home == placement.blocks[0] == devices[0]
    assert placement.blocks[-1] == devices[-1]
    assert placement.streamed == ()
    cache = 4 * 131_072 * config.width  # keys and values, two bytes each, of an attention block
    held = dict.fromkeys(devices, 0)
    for kind, device, size in zip(config.kinds, placement.blocks, sizes, strict=True):
        held[device] += size + cache * (kind == "*")
    largest = max(sizes) + cache
    assert max(held.values()) - min(held.values()) < 2 * largest
    assert max(held.values()) < sum(held.values()) / count + largest
    assert placement.of("embedding.weight") == placement.of("norm.scale") == devices[0]
    assert placement.of(f"blocks.{config.num_layers - 1}.mixer.taps") == devices[-1]


def test_weights_that_do_not_fit_are_refused_with_the_numbers() -> None:
    config = preset("evo2_40b")
    sizes, rest = weights_of(config)
    with pytest.raises(Sh2Error, match=r"does not fit: 82\.\d GB of weights for `cuda:0`, which has 79\.0 GB free"):
        place(config, sizes, rest, [torch.device("cuda:0")], [79 * 10**9])
    with pytest.raises(Sh2Error, match=r"for `cuda:0`, which has 30\.0 GB free"):
        place(config, sizes, rest, [torch.device("cuda:0"), torch.device("cuda:1")], [30 * 10**9] * 2)
    with pytest.raises(Sh2Error, match=r"does not fit even block by block: two of them take 3\.\d GB"):
        place(config, sizes, rest, [torch.device("cuda:0"), HOST], [4 * 10**9, 1])


@pytest.mark.parametrize("gigabytes", [8, 24, 40, 79])
def test_a_gpu_backed_by_the_host_keeps_all_that_fits(gigabytes: int) -> None:
    config = preset("evo2_40b")
    sizes, rest = weights_of(config)
    gpu = torch.device("cuda:0")
    placement = place(config, sizes, rest, [gpu, HOST], [gigabytes * 10**9, 1])
    streamed = placement.streamed
    kept = sum(size for block, size in enumerate(sizes) if block not in streamed)
    room = gigabytes * 10**9 * 2 / 3
    assert kept + rest + 2 * max(sizes) <= room
    # one block more would not have fitted
    assert kept + rest + 3 * max(sizes) > room
    gaps = [later - earlier for earlier, later in pairwise(streamed)]
    assert max(gaps) - min(gaps) <= 1
    assert set(placement.blocks) == {gpu}
    assert placement.of(f"blocks.{streamed[0]}.mixer.output.weight") == HOST
    assert placement.of("norm.scale") == gpu


def test_nothing_is_streamed_that_fits() -> None:
    assert choose_streamed([10] * 8, 5, 85) == ()
    assert choose_streamed([10] * 8, 5, 84) == (1, 4, 6)
    assert choose_streamed([10] * 8, 5, 25) == tuple(range(8))


def test_activations_follow_the_blocks() -> None:
    class Block(nn.Module):
        def forward(self, x_BLD: Tensor, state: str, *, in_place: bool) -> tuple[Tensor, str]:
            seen.append((x_BLD.device.type, state, in_place))
            return x_BLD, state

    seen: list[tuple[str, str, bool]] = []
    blocks = nn.ModuleList(Block() for _ in range(3))
    meta = torch.device("meta")
    follow(blocks, Placement(home=HOST, blocks=(HOST, meta, meta)))
    x_BLD = torch.zeros(1, 2, 3)
    x_BLD, _ = blocks[1](blocks[0](x_BLD, "first", in_place=True)[0], "second", in_place=False)
    # nothing comes back from the meta device, but that it is asked for is seen
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        blocks[2](x_BLD, "third", in_place=False)
    assert seen == [("cpu", "first", True), ("meta", "second", False), ("meta", "third", False)]


@pytest.mark.parametrize("device", ["cpu+cpu", "cpu+cpu+cpu+cpu+cpu+cpu"])
@pytest.mark.parametrize("name", ["striped", "grouped heads, biases, untied"])
def test_a_model_cut_by_layers_is_the_same_model(name: str, device: str, tmp_path: Path) -> None:
    save_model(tiny(name), tmp_path / "m")
    same_results(sh2.load(tmp_path / "m"), sh2.load(tmp_path / "m", device=device))


def same_results(whole: StripedHyena2, spread: StripedHyena2) -> None:
    """Hold the two to the same bits: in pieces, over documents, from token to token."""
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(0, 256, (2, 40), generator=generator)
    starts_BL = torch.rand(2, 40, generator=generator) < 0.1
    texts = ["ACGTACCA", "GATTACA" * 9]
    results = []
    for model in (whole, spread):
        with torch.inference_mode():
            first, state = model(ids_BL[:, :25])
            second, _ = model(ids_BL[:, 25:], state)
            documents, _ = model(ids_BL, document_starts_BL=starts_BL)
        scores = sh2.score(model, texts, per_token=True, chunk=16)
        samples = sh2.generate(model, texts, length=12, samples=2, alphabet="ACGT")
        results.append((first, second, documents, scores, samples))
    for ours, theirs in zip(results[1][:3], results[0][:3], strict=True):
        assert torch.equal(ours, theirs)
    assert [one.log_likelihood for one in results[1][3]] == [one.log_likelihood for one in results[0][3]]
    assert [one.text for one in results[1][4]] == [one.text for one in results[0][4]]


@pytest.mark.parametrize("streamed", [(2,), (1, 4, 6), tuple(range(10))])
def test_a_streamed_model_is_the_same_model(
    streamed: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(StripedHyena2(LONG, seed=1), tmp_path / "m")
    whole = sh2.load(tmp_path / "m")
    monkeypatch.setattr(loading, "place", lambda *_: Placement(home=HOST, blocks=(HOST,) * 10, streamed=streamed))
    spread = sh2.load(tmp_path / "m", device="cpu")
    same_results(whole, spread)
    save_model(spread, tmp_path / "again")
    assert sh2.checkpoint.model_hash(tmp_path / "again") == sh2.checkpoint.model_hash(tmp_path / "m")
