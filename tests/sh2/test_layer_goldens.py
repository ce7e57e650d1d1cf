"""Norm, MLP, rotary embedding and sampling against vectors computed by the published inference code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sh2.config import Activation
from sh2.generation.sampling import Sampling, keep_likeliest
from sh2.layers import GatedMLP, RMSNorm
from sh2.mixers.attention import rotate
from tests.kernels.definitions import relative_error

FOLDER = Path(__file__).parents[1] / "assets" / "goldens" / "ops"


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    return load_file(FOLDER / "ops.safetensors")


@pytest.fixture(scope="module")
def sampling_vectors() -> dict[str, Tensor]:
    return load_file(FOLDER / "sampling.safetensors")


@pytest.mark.parametrize(
    ("dtype", "name", "tolerance"), [(torch.float32, "fp32", 1e-6), (torch.bfloat16, "bf16", 6e-3)]
)
def test_the_norm(vectors: dict[str, Tensor], dtype: torch.dtype, name: str, tolerance: float) -> None:
    norm = RMSNorm(16, 1e-6)
    norm.scale.data.copy_(vectors["norm.scale"])
    y = norm.to(dtype)(vectors["norm.x"].to(dtype))
    assert y.dtype is dtype
    assert relative_error(y, vectors[f"norm.y.{name}"]) < tolerance


@pytest.mark.parametrize(("name", "activation"), [("mlp0", Activation.GELU), ("mlp1", Activation.IDENTITY)])
def test_the_mlp(vectors: dict[str, Tensor], name: str, activation: Activation) -> None:
    mlp = GatedMLP(16, 32, activation)
    for ours, theirs in (("gate", "l1"), ("up", "l2"), ("down", "l3")):
        getattr(mlp, ours).weight.data.copy_(vectors[f"{name}.{theirs}"])
    assert relative_error(mlp(vectors["norm.x"]), vectors[f"{name}.y"]) < 1e-6


@pytest.mark.parametrize("scale", [1, 32])
@pytest.mark.parametrize(
    ("dtype", "name", "tolerance"), [(torch.float32, "fp32", 1e-6), (torch.bfloat16, "bf16", 6e-3)]
)
def test_the_rotary_embedding(
    vectors: dict[str, Tensor], scale: int, dtype: torch.dtype, name: str, tolerance: float
) -> None:
    qkv = vectors["rope.qkv"].to(dtype)
    inv_freq = 1.0 / 10_000.0 ** (torch.arange(0, 16, 2) / 16)
    angles = ((torch.arange(13) + 5).float() / scale)[None, :, None, None] * inv_freq
    want = vectors[f"rope.scale{scale}.off5.{name}"]
    for part in (0, 1):
        assert relative_error(rotate(qkv[:, :, part], angles.cos(), angles.sin()), want[:, :, part]) < tolerance


@pytest.mark.parametrize(
    ("key", "sampling"),
    [
        ("topk1", Sampling(top_k=1)),
        ("topk4", Sampling(top_k=4)),
        ("topk50", Sampling(top_k=50)),
        ("topp0.1", Sampling(top_p=0.1)),
        ("topp0.5", Sampling(top_p=0.5)),
        ("topp0.9", Sampling(top_p=0.9)),
        ("topp0.999", Sampling(top_p=0.999)),
        ("topp1.0", Sampling(top_p=1.0)),
    ],
)
def test_the_filters_keep_the_published_tokens(
    sampling_vectors: dict[str, Tensor], key: str, sampling: Sampling
) -> None:
    kept = keep_likeliest(sampling_vectors["logits"], sampling)
    assert torch.equal(kept, sampling_vectors[key])


@pytest.mark.parametrize(
    ("key", "sampling"),
    [
        ("probs.k10.p0.8.t0.7", Sampling(top_k=10, top_p=0.8, temperature=0.7)),
        ("probs.k4.p1.0.t1.0", Sampling(top_k=4)),
        ("probs.k64.p0.5.t1.3", Sampling(top_k=64, top_p=0.5, temperature=1.3)),
    ],
)
def test_the_probabilities_are_the_published_ones(
    sampling_vectors: dict[str, Tensor], key: str, sampling: Sampling
) -> None:
    probs = keep_likeliest(sampling_vectors["logits"], sampling).softmax(dim=-1)
    torch.testing.assert_close(probs, sampling_vectors[key], rtol=1e-6, atol=1e-7)
