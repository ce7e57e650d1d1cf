"""Savanna's training names: renamed, filters computed, what does not fit named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sh2.checkpoint.fp8_state import write_scales
from sh2.checkpoint.source import open_model
from sh2.errors import Sh2Error
from tests.sh2.published_files import BASE, assert_same, published_tensors, read

KEYS: dict[str, Any] = BASE | {"qkv_proj_bias": False}
COMMON = {
    "pre_norm.scale": "input_layernorm.weight",
    "post_norm.scale": "pre_mlp_layernorm.weight",
    "mlp.l1.weight": "mlp.w1.weight",
    "mlp.l2.weight": "mlp.w2.weight",
    "mlp.l3.weight": "mlp.w3.weight",
    "projections.weight": "mixer.dense_projection.weight",
    "inner_mha_cls.Wqkv.weight": "mixer.dense_projection.weight",
    "out_filter_dense.weight": "mixer.dense.weight",
    "out_filter_dense.bias": "mixer.dense.bias",
    "inner_mha_cls.out_proj.weight": "mixer.dense.weight",
    "inner_mha_cls.out_proj.bias": "mixer.dense.bias",
    "inner_mha_cls.rotary_emb.inv_freq": "mixer.rotary_emb.inv_freq",
    "filter.D": "mixer.mixer.conv_bias",
    "filter.residues": "mixer.mixer.filter.R",
}


def a_training_file(*, norm: int = 7) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A Savanna checkpoint, and the published file of the same model."""
    published = published_tensors(KEYS)
    savanna: dict[str, torch.Tensor] = {
        "sequential.0.word_embeddings.weight": published["embedding_layer.weight"],
        f"sequential.{norm}.norm.weight": published["norm.scale"],
    }
    for name, tensor in published.items():
        if not name.startswith("blocks."):
            continue
        _, number, part = name.split(".", 2)
        prefix = f"sequential.{int(number) + 2}."
        if part in COMMON:
            savanna[prefix + COMMON[part]] = tensor
        elif part == "filter.short_filter_weight":
            savanna[prefix + "mixer.hyena_proj_conv.short_conv_weight"] = tensor[:, 0].contiguous()
        elif part == "filter.h" and number == "0":
            savanna[prefix + "mixer.mixer.short_conv.short_conv_weight"] = tensor
    generator = torch.Generator().manual_seed(5)
    h, decay = torch.randn(6, 300, generator=generator), torch.rand(6, 300, generator=generator)
    p, gamma = torch.randn(24, 5, generator=generator), torch.randn(24, 5, generator=generator)
    savanna |= {"sequential.3.mixer.mixer.filter.h": h, "sequential.3.mixer.mixer.filter.decay": decay}
    savanna |= {"sequential.4.mixer.mixer.filter.p": p, "sequential.4.mixer.mixer.filter.gamma": gamma}
    published["blocks.1.filter.h"] = torch.stack([h[:, k] * decay[:, k] for k in range(128)], dim=1)[:, None]
    published["blocks.2.filter.log_poles"] = (-p.exp() * gamma.exp())[..., None]
    return savanna, published


def opened(folder: Path, tensors: dict[str, torch.Tensor], keys: dict[str, Any] = KEYS) -> dict[str, torch.Tensor]:
    import yaml

    save_file(tensors, folder / "w.safetensors")
    (folder / "w.yml").write_text(yaml.safe_dump(keys))
    return read(open_model(folder / "w.safetensors").tensors)


@pytest.mark.parametrize("norm", [6, 7])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_it_is_the_published_model(tmp_path: Path, norm: int, prefix: str) -> None:
    savanna, published = a_training_file(norm=norm)
    savanna |= {
        "sequential.4.mixer.mixer.filter.t": torch.zeros(1, 1, 300),
        "sequential.3.post_attention_layernorm.weight": torch.ones(24),
        "sequential.3.outer_mlp_layernorm.scale": torch.ones(24),
        "sequential.2.mixer.dense._extra_state": torch.zeros(3),
    }
    (tmp_path / "other").mkdir()
    expected = opened(tmp_path / "other", published)
    assert_same(opened(tmp_path, {prefix + name: tensor for name, tensor in savanna.items()}), expected)


def test_fp8_scales_are_kept(tmp_path: Path) -> None:
    savanna, _ = a_training_file()
    savanna["sequential.3.mixer.dense_projection._extra_state"] = write_scales(torch.tensor([3.0, 50.0]))
    found = opened(tmp_path, savanna, KEYS | {"use_fp8_input_projections": True})
    assert found["blocks.1.mixer.input.fp8_scales"].tolist() == [3.0, 50.0]


def test_rotary_frequencies_come_from_the_base_where_the_file_has_none(tmp_path: Path) -> None:
    savanna, _ = a_training_file()
    del savanna["sequential.5.mixer.rotary_emb.inv_freq"]
    found = opened(tmp_path, savanna)["blocks.3.mixer.inv_freq"]
    assert found.tolist() == pytest.approx([1e4 ** (-2 * j / 12) for j in range(6)], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "keys", "message"),
    [
        ({"sequential.3.mixer.mixer.filter.decay": None}, {}, r"block 1 has no `mixer\.mixer\.filter\.decay`"),
        ({"sequential.4.mixer.mixer.filter.gamma": None}, {}, r"block 2 has no `mixer\.mixer\.filter\.gamma`"),
        ({"sequential.4.mixer.mixer.filter.gamma": torch.zeros(7, 5)}, {}, r"\[24, 5\] and \[7, 5\], do not fit"),
        ({"sequential.7.norm.weight": None}, {}, r"`norm\.scale` is missing"),
        ({"sequential.3.mixer.odd": torch.zeros(1)}, {}, r"`blocks\.1\.mixer\.odd` is not expected"),
        ({"sequential.1.odd": torch.zeros(1)}, {}, r"`blocks\.-1\.odd`|`sequential\.1\.odd` is not expected"),
        ({"odd": torch.zeros(1)}, {}, "`odd` is not expected"),
        ({}, {"hcs_layer_idxs": [1], "hcm_layer_idxs": [0]}, "block 0 is of kind S, the configuration says M"),
        ({}, {"hcm_filter_length": 64}, "Hyena-MR with 64 taps has a skip"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], keys: dict[str, Any], message: str
) -> None:
    savanna, _ = a_training_file()
    tensors = {name: tensor for name, tensor in (savanna | changes).items() if tensor is not None}
    with pytest.raises(Sh2Error, match=message):
        opened(tmp_path, tensors, KEYS | keys)
