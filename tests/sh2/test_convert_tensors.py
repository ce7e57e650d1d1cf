"""Published configurations and tensors to ours and back: every layout switch, to the bit."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sh2.checkpoint import Target, convert
from sh2.checkpoint.layout import PublishedLayout, attention_rows, hyena_rows
from sh2.checkpoint.published import ours_to_published, published_to_ours
from sh2.checkpoint.published_config import from_published, to_published
from sh2.checkpoint.source import open_model
from sh2.config import DecayWindow, ModelConfig, RotaryFrequencies
from sh2.errors import Sh2Error
from tests.sh2.published_files import BASE, assert_same, lazily, published_tensors, read


def to_ours(keys: dict[str, Any], tensors: dict[str, torch.Tensor]) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    config, layout = from_published(keys, tensors.keys())
    return config, read(published_to_ours(lazily(tensors), config, layout, "m.pt"))


_FLAGS = """interleave column_split_hyena hyena_flip_x1x2 column_split qkv_proj_bias mha_out_proj_bias
hyena_out_proj_bias short_filter_bias tie_embeddings"""
SWITCHES = st.fixed_dictionaries(
    {
        **dict.fromkeys(_FLAGS.split(), st.booleans()),
        "hcs_filter_length": st.sampled_from([1, 4, 7, 127, 128, 131]),
        "hcm_filter_length": st.sampled_from([3, 33, 127, 128, 200]),
        "hcs_filter_groups": st.sampled_from([1, 2, 24]),
        "hcm_filter_groups": st.sampled_from([1, 8, 24]),
        "short_filter_length": st.sampled_from([1, 3, 4]),
        "num_attention_heads": st.sampled_from([2, 6, 12]),
        "proj_groups": st.sampled_from([1, 2]),
    }
)


@settings(max_examples=60, deadline=None)
@given(SWITCHES, st.sampled_from([torch.float32, torch.bfloat16]))
def test_there_and_back_is_the_same_to_the_bit(switches: dict[str, Any], dtype: torch.dtype) -> None:
    keys = BASE | switches
    if keys["proj_groups"] > 1:
        keys["column_split"] = False
    tensors = published_tensors(keys)
    for name, tensor in tensors.items():
        if not name.endswith(("log_poles", "residues", "inv_freq")):
            tensors[name] = tensor.to(dtype)
    config, layout = from_published(keys, tensors.keys())
    ours = published_to_ours(lazily(tensors), config, layout, "m.pt")
    assert_same(read(ours_to_published(ours, config, "m", layout)), tensors)
    # through the layout of the Evo 2 files, as `--to published` writes it
    canonical = read(ours_to_published(ours, config, "m"))
    again_config, again = to_ours(to_published(config), canonical)
    assert again_config == config
    assert_same(again, read(ours))


@pytest.mark.parametrize(("interleave", "split", "flip"), list(itertools.product([True, False], repeat=3)))
def test_rows_of_the_projections(interleave: bool, split: bool, flip: bool) -> None:
    """Against the layout's description, row by row: which row of the file feeds which gate of which channel."""
    H, d = 3, 4
    D = H * d
    after: list[int] = list(range(3 * D))  # row of the file, by position after the first reordering
    if interleave:
        after = [3 * i + third for third in range(3) for i in range(D)]
    config = ModelConfig(width=D, layout="S", num_heads=H, mlp_width=4, se_groups=1, mr_groups=1)
    layout = PublishedLayout(interleave=interleave, column_split_hyena=split, flip=flip)
    rows = hyena_rows(config, layout).tolist()
    for role, channel in itertools.product(range(3), range(D)):
        there = {0: 1, 1: 0, 2: 2}[role] if flip else role
        head, j = divmod(channel, d)
        place = head * 3 * d + there * d + j if split else there * D + channel
        assert rows[role * D + channel] == after[place]


def test_rows_of_wqkv() -> None:
    H, d = 3, 4
    config = ModelConfig(width=H * d, layout="*", num_heads=H, mlp_width=4, se_groups=1, mr_groups=1)
    rows = attention_rows(config, PublishedLayout()).tolist()
    assert rows == [h * 3 * d + part * d + j for part in range(3) for h in range(H) for j in range(d)]
    assert attention_rows(config, PublishedLayout(column_split=False)).tolist() == list(range(3 * H * d))


def test_filters_are_stored_first_tap_on_the_current_token() -> None:
    tensors = published_tensors(BASE)
    _, ours = to_ours(BASE, tensors)
    h = {layer: tensors[f"blocks.{layer}.filter.h"][:, 0] for layer in (0, 1)}
    assert torch.equal(ours["blocks.0.mixer.taps"], h[0].flip(1))  # 7 taps: a correlation in the file
    assert torch.equal(ours["blocks.1.mixer.taps"], h[1])  # 128: a convolution already
    assert torch.equal(ours["blocks.1.mixer.skip"], tensors["blocks.1.filter.D"])
    assert torch.equal(ours["blocks.2.mixer.log_poles"], tensors["blocks.2.filter.log_poles"][..., 0])
    assert torch.equal(ours["blocks.2.mixer.pole_shift"], torch.zeros(24, 5))
    featurizer = tensors["blocks.0.filter.short_filter_weight"][:, 0]
    assert torch.equal(ours["blocks.0.mixer.featurizer_taps"][5], featurizer[15].flip(0))  # post-gate of channel 5


def test_poles_and_frequencies_are_float32_whatever_the_file_says() -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in published_tensors(BASE).items()}
    config, ours = to_ours(BASE, tensors)
    kept = {name.rsplit(".")[-1] for name, tensor in ours.items() if tensor.dtype == torch.float32}
    assert kept == {"log_poles", "pole_shift", "residues", "inv_freq"}
    # the published code loads them into a float32 buffer, so the values that a file rounded stay rounded
    assert config.rotary_frequencies is RotaryFrequencies.STORED
    rounded = tensors["blocks.3.inner_mha_cls.rotary_emb.inv_freq"]
    assert torch.equal(ours["blocks.3.mixer.inv_freq"], rounded.float())


@pytest.mark.parametrize(
    "extra",
    [
        "unembed.weight", "blocks.3.mixer.dense._extra_state", "blocks.0.projections._extra_state",
        "blocks.2.mixer.mixer.filter.t", "blocks.2.filter.t", "blocks.2.filter.h",
    ],
)  # fmt: skip
def test_what_published_code_ignores_is_ignored(extra: str) -> None:
    tensors = published_tensors(BASE)
    assert_same(to_ours(BASE, tensors | {extra: torch.zeros(3)})[1], to_ours(BASE, tensors)[1])


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def _with(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("norm.scale"), "m.pt does not fit its configuration: `norm.scale` is missing"),
        (_without("blocks.3.inner_mha_cls.rotary_emb.inv_freq"), "`blocks.3.inner_mha_cls.rotary_emb.inv_freq` is mis"),
        (_with("blocks.9.filter.h", 2), "`blocks.9.filter.h` is not expected"),
        (_with("blocks.0.filter.D", 24), "`blocks.0.filter.D` is not expected"),
        (_with("blocks.1.filter.h", 6, 1, 7), r"`blocks.1.filter.h` has shape \[6, 1, 7\], not \[6, 1, 128\]"),
        (_with("blocks.0.projections.bias", 72), "`blocks.0.projections.bias` is not expected"),
        (lambda tensors: [tensors.pop(name) for name in list(tensors)[2:]], r"is missing, .* and 3\d more$"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change: Callable[[dict[str, torch.Tensor]], object], message: str) -> None:
    tensors = published_tensors(BASE)
    change(tensors)
    with pytest.raises(Sh2Error, match=message):
        to_ours(BASE, tensors)


def test_an_untied_unembedding_is_required() -> None:
    with pytest.raises(Sh2Error, match=r"`unembed\.weight` is missing"):
        to_ours(BASE | {"tie_embeddings": False}, published_tensors(BASE))


def test_biases_of_attention_alone_become_zeros_in_hyena_blocks() -> None:
    tensors = published_tensors(BASE) | {"blocks.3.inner_mha_cls.Wqkv.bias": torch.ones(72)}
    _, ours = to_ours({key: value for key, value in BASE.items() if key != "qkv_proj_bias"}, tensors)
    assert [float(ours[f"blocks.{layer}.mixer.input.bias"].sum()) for layer in range(4)] == [0, 0, 0, 72]


def test_what_training_keeps_apart_is_folded() -> None:
    config, ours = to_ours(BASE, published_tensors(BASE))
    window = DecayWindow(alpha_first=0.01, alpha_last=1.0)
    config = ModelConfig.from_dict(
        config.to_dict()
        | {"mr_window": {"alpha_first": 0.01, "alpha_last": 1.0}, "rotary_frequencies": RotaryFrequencies.BASE}
    )
    del ours["blocks.3.mixer.inv_freq"]
    ours["blocks.2.mixer.pole_shift"] = torch.full((24, 5), 0.5)
    folded = read(ours_to_published(lazily(ours), config, "m"))
    poles = ours["blocks.2.mixer.log_poles"] * torch.tensor(0.5).exp()
    assert torch.allclose(folded["blocks.2.filter.log_poles"][..., 0], poles)
    for g, k in itertools.product(range(6), (0, 1, 50)):
        alpha = window.alpha_first * (window.alpha_last / window.alpha_first) ** (g / 5)
        expected = ours["blocks.1.mixer.taps"][g, k] * torch.tensor(-alpha * k, dtype=torch.float64).exp()
        assert float(folded["blocks.1.filter.h"][g, 0, k]) == pytest.approx(float(expected), rel=1e-5)
    assert folded["blocks.3.inner_mha_cls.rotary_emb.inv_freq"].shape == (6,)


@pytest.mark.parametrize("suffix", [".json", ".yml"])
@pytest.mark.parametrize("target", ["NAME.pt", "NAME.safetensors", "FOLDER"])
def test_files_to_a_folder_and_back(tmp_path: Path, suffix: str, target: str) -> None:
    save_file(published_tensors(BASE), tmp_path / "m.safetensors")
    config_file = tmp_path / f"other{suffix}"
    config_file.write_text(json.dumps(BASE) if suffix == ".json" else yaml.safe_dump(BASE))
    progress: list[tuple[int, int]] = []
    convert(tmp_path / "m.safetensors", tmp_path / "ours", config_file=config_file,
            progress=lambda done, total: progress.append((done, total)))  # fmt: skip
    assert progress[-1][0] == progress[-1][1] > 0
    back = convert(tmp_path / "ours", tmp_path / "back" / target, target=Target.PUBLISHED)
    assert back == tmp_path / "back" / (target if target != "FOLDER" else "FOLDER/model.pt")
    loaded = load_file(back) if back.suffix == ".safetensors" else torch.load(back, weights_only=True)
    assert_same(loaded, published_tensors(BASE))
    assert open_model(back if target != "FOLDER" else back.parent).config == open_model(tmp_path / "ours").config
