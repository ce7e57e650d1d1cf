"""Savanna's training names to published names, with the derived filters computed on the way."""

# D width, G filter groups, K taps, N modes

import re
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from sh2.checkpoint.published import LONG_FILTER
from sh2.checkpoint.tensors import LazyTensor, Tensors
from sh2.config import MixerKind, ModelConfig
from sh2.errors import Sh2Error
from sh2.mixers.attention import rotary_frequencies

_FIRST_BLOCK = 2  # sequential.0 is the embedding, sequential.1 a reshape
_NAME = re.compile(r"(?:module\.)?sequential\.(\d+)\.(.+)")
_EVERYWHERE = {
    "input_layernorm.weight": "pre_norm.scale",
    "pre_mlp_layernorm.weight": "post_norm.scale",
    "mlp.w1.weight": "mlp.l1.weight",
    "mlp.w2.weight": "mlp.l2.weight",
    "mlp.w3.weight": "mlp.l3.weight",
}
_ATTENTION = {
    **_EVERYWHERE,
    "mixer.dense_projection.weight": "inner_mha_cls.Wqkv.weight",
    "mixer.dense_projection.bias": "inner_mha_cls.Wqkv.bias",
    "mixer.dense.weight": "inner_mha_cls.out_proj.weight",
    "mixer.dense.bias": "inner_mha_cls.out_proj.bias",
    "mixer.rotary_emb.inv_freq": "inner_mha_cls.rotary_emb.inv_freq",
}
_HYENA = {
    **_EVERYWHERE,
    "mixer.dense_projection.weight": "projections.weight",
    "mixer.dense_projection.bias": "projections.bias",
    "mixer.dense_projection._extra_state": "projections._extra_state",
    "mixer.hyena_proj_conv.short_conv_weight": "filter.short_filter_weight",
    "mixer.dense.weight": "out_filter_dense.weight",
    "mixer.dense.bias": "out_filter_dense.bias",
}
_FILTERS: dict[MixerKind, dict[str, str]] = {
    MixerKind.HYENA_SE: {"mixer.mixer.short_conv.short_conv_weight": "filter.h"},
    MixerKind.HYENA_MR: {"mixer.mixer.filter.h": "filter.h", "mixer.mixer.conv_bias": "filter.D"},
    MixerKind.HYENA_LI: {"mixer.mixer.filter.R": "filter.residues", "mixer.mixer.conv_bias": "filter.D"},
}
_NAMES = {MixerKind.ATTENTION: _ATTENTION} | {kind: _HYENA | names for kind, names in _FILTERS.items()}
# read together with another, or never read: norms that training allocates and does not use
_PARTNERS = {"mixer.mixer.filter.decay", "mixer.mixer.filter.gamma", "mixer.mixer.filter.p"}
_UNUSED = re.compile(r"(.*\.)?(_extra_state|filter\.t|filter\.h)|(post_attention_layernorm|outer_mlp_layernorm)\..*")


def savanna_names(names: Collection[str]) -> bool:
    """Whether these are the names of a Savanna checkpoint."""
    return any(_NAME.fullmatch(name) for name in names)


def published_names_of(names: Collection[str]) -> set[str]:
    """The published names that the tensors of a Savanna checkpoint will have."""
    blocks = _blocks(names)
    kinds = {block: _kind(parts) for block, parts in blocks.items()}
    return {
        f"blocks.{block}.{_NAMES[kinds[block]][part]}"
        for block, parts in blocks.items()
        for part in parts
        if part in _NAMES[kinds[block]]
    }


def savanna_to_published(tensors: Tensors, config: ModelConfig, label: str) -> dict[str, LazyTensor]:
    """Rename the tensors of a Savanna checkpoint and compute what training keeps in parts.

    Taps of Hyena-MR are multiplied by the decay window; poles of Hyena-LI are -exp(p + gamma), float32; rotary
    frequencies, where the file has none, come from the base.

    Raises:
        Sh2Error: a block is not of the kind that the configuration says, or half of a filter is missing.
    """
    by_place = {match.groups(): lazy for name, lazy in tensors.items() if (match := _NAME.fullmatch(name))}
    published = {name: lazy for name, lazy in tensors.items() if not _NAME.fullmatch(name)}
    blocks = _blocks(tensors)
    for block, parts in blocks.items():
        kind = _kind(parts)
        if block < config.num_layers and kind is not config.kinds[block]:
            raise Sh2Error(f"{label}: block {block} is of kind {kind}, the configuration says {config.kinds[block]}")
        held = {part: by_place[str(block + _FIRST_BLOCK), part] for part in parts}
        for part, lazy in _block(held, kind, config, f"{label}: block {block}").items():
            published[f"blocks.{block}.{part}"] = lazy
    for (place, part), lazy in by_place.items():
        if part == "word_embeddings.weight":
            published["embedding_layer.weight" if place == "0" else "unembed.weight"] = lazy
        elif part == "norm.weight":
            published["norm.scale"] = lazy
        elif int(place) - _FIRST_BLOCK not in blocks and not _UNUSED.fullmatch(part):
            published[f"sequential.{place}.{part}"] = lazy
    return published


def _blocks(names: Collection[str]) -> dict[int, list[str]]:
    """Parts of every block, by its number."""
    blocks: dict[int, list[str]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match and not match[2].startswith(("word_embeddings.", "norm.")) and int(match[1]) >= _FIRST_BLOCK:
            blocks.setdefault(int(match[1]) - _FIRST_BLOCK, []).append(match[2])
    return blocks


def _kind(parts: Collection[str]) -> MixerKind:
    if "mixer.mixer.short_conv.short_conv_weight" in parts:
        return MixerKind.HYENA_SE
    if "mixer.mixer.filter.p" in parts:
        return MixerKind.HYENA_LI
    return MixerKind.HYENA_MR if "mixer.mixer.filter.h" in parts else MixerKind.ATTENTION


def _block(parts: Mapping[str, LazyTensor], kind: MixerKind, config: ModelConfig, label: str) -> dict[str, LazyTensor]:
    names = _NAMES[kind]
    block = {names[part]: lazy for part, lazy in parts.items() if part in names}
    unknown = [part for part in parts if part not in names | dict.fromkeys(_PARTNERS) and not _UNUSED.fullmatch(part)]
    block |= {part: parts[part] for part in unknown}  # named as it is in the error about what is not expected
    if kind is MixerKind.ATTENTION:
        block.setdefault("inner_mha_cls.rotary_emb.inv_freq", LazyTensor.of(rotary_frequencies(config)))
        return block
    if "filter.short_filter_weight" in block:
        block["filter.short_filter_weight"] = block["filter.short_filter_weight"].map(_with_middle_axis)
    if kind is MixerKind.HYENA_MR:
        block["filter.h"] = _windowed(parts, config, label)
    if kind is MixerKind.HYENA_LI:
        shape = config.width, config.num_modes
        if "filter.residues" in block:
            block["filter.residues"] = block["filter.residues"].map(_as_matrix)
        block["filter.log_poles"] = _poles(parts, shape, label)
    return block


def _windowed(parts: Mapping[str, LazyTensor], config: ModelConfig, label: str) -> LazyTensor:
    """Taps [G, 1, K] under the decay window; training keeps both as long as its sequences."""
    K = config.mr_taps
    if K < LONG_FILTER:
        raise Sh2Error(
            f"{label}: Savanna's Hyena-MR with {K} taps has a skip, which the published code drops below 128"
        )
    h, decay = _both(parts, "mixer.mixer.filter.h", "mixer.mixer.filter.decay", label)
    return _combine(h, decay, lambda h_GT, decay_GT: (h_GT[:, :K] * decay_GT[:, :K]).unsqueeze(1), label)


def _poles(parts: Mapping[str, LazyTensor], shape: tuple[int, int], label: str) -> LazyTensor:
    """Logarithms of the poles [D, N, 1], float32."""
    p, gamma = _both(parts, "mixer.mixer.filter.p", "mixer.mixer.filter.gamma", label)

    def log_poles(p_DN: Tensor, gamma_DN: Tensor) -> Tensor:
        rate_DN = p_DN.float().reshape(shape).exp() * gamma_DN.float().reshape(shape).exp()
        return -rate_DN.unsqueeze(2)

    return _combine(p, gamma, log_poles, label)


def _both(parts: Mapping[str, LazyTensor], first: str, second: str, label: str) -> tuple[LazyTensor, LazyTensor]:
    for name in (first, second):
        if name not in parts:
            raise Sh2Error(f"{label} has no `{name}`")
    return parts[first], parts[second]


def _combine(
    first: LazyTensor, second: LazyTensor, function: Callable[[Tensor, Tensor], Tensor], label: str
) -> LazyTensor:
    empty = (torch.empty(lazy.shape, dtype=lazy.dtype, device="meta") for lazy in (first, second))
    try:
        after = function(*empty)
    except (RuntimeError, IndexError):
        raise Sh2Error(
            f"{label}: the two parts of its filter, {list(first.shape)} and {list(second.shape)},"
            " do not fit each other or the configuration"
        ) from None
    return LazyTensor(tuple(after.shape), after.dtype, lambda: function(first.read(), second.read()))


def _as_matrix(residues: Tensor) -> Tensor:
    return residues.flatten(1).float()


def _with_middle_axis(taps_EK: Tensor) -> Tensor:
    return taps_EK.unsqueeze(1) if taps_EK.ndim == 2 else taps_EK
