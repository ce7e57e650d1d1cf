"""Published files made of random numbers, and comparing them."""

from typing import Any

import torch

from sh2.checkpoint.tensors import LazyTensor

BASE: dict[str, Any] = {
    "hidden_size": 24, "num_layers": 4, "num_attention_heads": 2, "vocab_size": 32, "inner_mlp_size": 20,
    "hcs_layer_idxs": [0], "hcm_layer_idxs": [1], "hcl_layer_idxs": [2], "attn_layer_idxs": [3],
    "hcs_filter_length": 7, "hcm_filter_length": 128, "hcs_filter_groups": 4, "hcm_filter_groups": 6,
    "short_filter_length": 3, "short_filter_bias": False, "state_size": 5, "eps": 1e-6,
    "interleave": True, "column_split": True, "column_split_hyena": False, "hyena_flip_x1x2": False,
    "qkv_proj_bias": False, "hyena_out_proj_bias": True, "mha_out_proj_bias": True, "tie_embeddings": True,
    "evo2_style_activations": True, "mlp_activation": "gelu", "rotary_emb_base": 10000, "proj_groups": 1,
}  # fmt: skip


def published_tensors(keys: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors with the names and shapes of a published file, written from its description."""
    generator = torch.Generator().manual_seed(seed)
    D, V, hidden = keys["hidden_size"], keys["vocab_size"], keys["inner_mlp_size"]

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {"embedding_layer.weight": some(V, D), "norm.scale": some(D)}
    if not keys["tie_embeddings"]:
        tensors["unembed.weight"] = some(V, D)
    for layer in range(keys["num_layers"]):
        P = f"blocks.{layer}."
        tensors |= {P + "pre_norm.scale": some(D), P + "post_norm.scale": some(D)}
        tensors |= {
            P + f"mlp.l{i}.weight": some(*shape) for i, shape in ((1, (hidden, D)), (2, (hidden, D)), (3, (D, hidden)))
        }
        if layer in keys["attn_layer_idxs"]:
            head = D // keys["num_attention_heads"]
            projected = D + 2 * D // keys["proj_groups"]
            A = P + "inner_mha_cls."
            tensors |= {A + "Wqkv.weight": some(projected, D), A + "out_proj.weight": some(D, D)}
            tensors |= {A + "Wqkv.bias": some(projected)} if keys["qkv_proj_bias"] else {}
            tensors |= {A + "out_proj.bias": some(D)} if keys["mha_out_proj_bias"] else {}
            tensors |= {A + "rotary_emb.inv_freq": some(head // 2)}
            continue
        tensors |= {P + "projections.weight": some(3 * D, D), P + "out_filter_dense.weight": some(D, D)}
        tensors |= {P + "projections.bias": some(3 * D)} if keys["qkv_proj_bias"] else {}
        tensors |= {P + "out_filter_dense.bias": some(D)} if keys["hyena_out_proj_bias"] else {}
        tensors |= {P + "filter.short_filter_weight": some(3 * D, 1, keys["short_filter_length"])}
        tensors |= {P + "filter.short_filter_bias": some(3 * D)} if keys["short_filter_bias"] else {}
        if layer in keys["hcl_layer_idxs"]:
            N = keys["state_size"]
            tensors |= {
                P + "filter.log_poles": -some(D, N, 1).abs(),
                P + "filter.residues": some(D, N),
                P + "filter.D": some(D),
            }
            continue
        kind = "hcm" if layer in keys["hcm_layer_idxs"] else "hcs"
        K = keys[f"{kind}_filter_length"]
        tensors |= {P + "filter.h": some(keys[f"{kind}_filter_groups"], 1, K)}
        tensors |= {P + "filter.D": some(D)} if K >= 128 else {}
    return tensors


def lazily(tensors: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}


def read(tensors: dict[str, LazyTensor]) -> dict[str, torch.Tensor]:
    return {name: lazy.read() for name, lazy in tensors.items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name]), name
