"""Published configurations and ours: the keys of Vortex's YAML files, their defaults, and what we refuse.

A key that is absent has the default of the published code, traps included. Where that code has none and reads the
absence as "no" (biases, tied embeddings), the file's tensors say which it is: they were made by the same code.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from sh2.checkpoint.layout import PublishedLayout, canonical_layout
from sh2.checkpoint.published import LONG_FILTER
from sh2.config import Activation, FeedForward, MixerKind, ModelConfig, RotaryFrequencies
from sh2.errors import Sh2Error

# letters of the layout by the key that lists their blocks; a block in several lists is the first of them
_LISTS = {
    "attn_layer_idxs": MixerKind.ATTENTION,
    "hcl_layer_idxs": MixerKind.HYENA_LI,
    "hcm_layer_idxs": MixerKind.HYENA_MR,
    "hcs_layer_idxs": MixerKind.HYENA_SE,
}
_EFFECTIVE_KEYS = """
    vocab_size hidden_size num_layers num_attention_heads state_size eps hcs_filter_length hcm_filter_length
    hcs_filter_groups hcm_filter_groups short_filter_length short_filter_bias interleave column_split_hyena
    hyena_flip_x1x2 column_split proj_groups qkv_proj_bias mha_out_proj_bias hyena_out_proj_bias rotary_emb_base
    use_interpolated_rotary_pos_emb rotary_emb_scaling_factor inner_mlp_size inner_size_multiple_of
    model_parallel_size mlp_activation evo2_style_activations tie_embeddings final_norm use_fp8_input_projections
    max_seqlen long_fir_threshold smeared_gqa attn_layer_idxs hcl_layer_idxs hcm_layer_idxs hcs_layer_idxs"""
_IDLE_KEYS = """
    model_name num_filters hcl_filter_length hcl_filter_groups hyena_filter_groups prefill_style max_batch_size
    attn_block_dtype hyena_block_dtype mlp_dtype params_dtype depthwise_dtype use_hcs_kernel use_hcm_kernel
    use_hcl_kernel use_flash_attn use_flash_rmsnorm use_flash_depthwise use_flashfft use_flash_fft use_laughing_hyena
    inference_mode log_intermediate_values make_vocab_size_divisible_by mlp_init_method mlp_output_init_method
    pipe_parallel_size print_activations ground_truth_activations_path tokenizer_type low_mem_mode seqlen compile
    padding_idx process_group"""
_KNOWN = frozenset(_EFFECTIVE_KEYS.split()) | frozenset(_IDLE_KEYS.split())


def read_published_config(path: Path) -> dict[str, Any]:
    """Read a published configuration, YAML or JSON.

    Raises:
        Sh2Error: the file is missing, or neither, or not a table of keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise Sh2Error(f"configuration {path} does not exist") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Sh2Error(f"configuration {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise Sh2Error(f"configuration {path} holds no table of keys")
    return {str(key): value for key, value in values.items()}


def from_published(values: Mapping[str, Any], names: Collection[str]) -> tuple[ModelConfig, PublishedLayout]:
    """Translate a published configuration.

    Args:
        values: key to value, as read.
        names: the published names of the file's tensors.

    Raises:
        Sh2Error: a key is unknown or its value not allowed, or the published code cannot run the combination.
    """
    keys = _Keys(values)
    _refuse(keys)
    kinds = _kinds(keys)
    se_taps, mr_taps = keys.integer("hcs_filter_length", 7), keys.integer("hcm_filter_length", 128)
    attention_bias = keys.flag("qkv_proj_bias", default=_holds(names, ".Wqkv.bias"))
    hyena_bias = keys.flag("qkv_proj_bias", default=_holds(names, ".projections.bias"))
    activation, first_activation = _activations(keys)
    interpolated = keys.flag("use_interpolated_rotary_pos_emb", default=False)
    config = ModelConfig(
        width=keys.integer("hidden_size"),
        layout="".join(kinds),
        num_heads=keys.integer("num_attention_heads"),
        mlp_width=_mlp_width(keys),
        se_groups=_groups(keys, "hcs_filter_groups", MixerKind.HYENA_SE in kinds),
        mr_groups=_groups(keys, "hcm_filter_groups", MixerKind.HYENA_MR in kinds),
        vocab_size=keys.integer("vocab_size", 512),
        context=keys.integer("max_seqlen", 8192),
        featurizer_taps=keys.integer("short_filter_length", 3),
        se_taps=se_taps,
        se_skip=se_taps >= LONG_FILTER,
        mr_taps=mr_taps,
        mr_skip=mr_taps >= LONG_FILTER,
        num_modes=keys.integer("state_size", 16),
        queries_per_kv_head=keys.integer("proj_groups", 1),
        activation=activation,
        first_activation=first_activation,
        rotary_base=keys.number("rotary_emb_base", 1e6),
        rotary_interpolation=keys.number("rotary_emb_scaling_factor", 1.0) if interpolated else 1.0,
        rotary_frequencies=RotaryFrequencies.STORED,
        norm_eps=keys.number("eps", 1e-6),
        input_bias=attention_bias or hyena_bias,
        featurizer_bias=keys.flag("short_filter_bias", default=_holds(names, ".short_filter_bias")),
        hyena_output_bias=keys.flag("hyena_out_proj_bias", default=_holds(names, ".out_filter_dense.bias")),
        attention_output_bias=keys.flag("mha_out_proj_bias", default=True),
        tied_embeddings=keys.flag("tie_embeddings", default="unembed.weight" not in names),
        fp8_input_projections=keys.flag("use_fp8_input_projections", default=False),
    )
    return config, PublishedLayout(
        interleave=keys.flag("interleave", default=False),
        column_split_hyena=keys.flag("column_split_hyena", default=True),
        flip=keys.flag("hyena_flip_x1x2", default=False),
        column_split=keys.flag("column_split", default=True),
        hyena_input_bias=hyena_bias,
    )


def _refuse(keys: "_Keys") -> None:
    """Refuse keys nobody knows and what the published code cannot run."""
    if unknown := sorted(set(keys.values) - _KNOWN):
        raise Sh2Error(f"unknown key {', '.join(f'`{key}`' for key in unknown)} in the published configuration").hint(
            "give a configuration of a StripedHyena 2 model as Vortex reads it; take out keys that are no part of it"
        )
    if not keys.flag("final_norm", default=True):
        raise Sh2Error("`final_norm` is False: the published code cannot run a model without its last norm")
    if keys.flag("smeared_gqa", default=False):
        raise Sh2Error("`smeared_gqa` is True, which only prototypes of the published code knew")
    if keys.values.get("long_fir_threshold") is not None:
        raise Sh2Error(
            "`long_fir_threshold` is set: with it the published code applies the Hyena-LI filter wrongly"
        ).hint("take the key out: the convolution is then the exact one")
    if keys.integer("proj_groups", 1) > 1 and keys.flag("column_split", default=True):
        raise Sh2Error(
            f"`proj_groups` is {keys.integer('proj_groups')} with `column_split` True (the default): the published"
            " code cannot split grouped heads"
        ).hint("say `column_split: False` if the rows of Wqkv are all q, all k, all v")


def _kinds(keys: "_Keys") -> list[MixerKind]:
    lists = {kind: keys.indices(key) for key, kind in _LISTS.items()}
    kinds: list[MixerKind] = []
    for layer in range(keys.integer("num_layers")):
        held = [kind for kind, layers in lists.items() if layer in layers]
        if not held:
            raise Sh2Error(f"block {layer} is in none of {', '.join(f'`{key}`' for key in _LISTS)}")
        kinds.append(held[0])
    return kinds


def _groups(keys: "_Keys", key: str, used: bool) -> int:
    """Filter groups; without the key the published code gives every channel a filter of its own."""
    return keys.integer(key, keys.integer("hidden_size")) if used else 1


def _mlp_width(keys: "_Keys") -> int:
    multiple = keys.integer("inner_size_multiple_of", 64) * keys.integer("model_parallel_size", 1)
    return keys.integer("inner_mlp_size", -(-int(8 * keys.integer("hidden_size") / 3) // multiple) * multiple)


def _activations(keys: "_Keys") -> tuple[Activation, Activation | None]:
    """Every block's activation, and block 0's own."""
    value = keys.values.get("mlp_activation", "gelu")
    if value not in ("gelu", "silu"):
        raise Sh2Error(f"`mlp_activation` must be gelu or silu, not {value!r}")
    if keys.flag("evo2_style_activations", default=False):
        return Activation.IDENTITY, Activation(value)
    return Activation(value), None


def _holds(names: Collection[str], ending: str) -> bool:
    return any(name.endswith(ending) for name in names)


class _Keys:
    """Values by key, checked; YAML may give 1e-6 as text and a count as a float."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise Sh2Error(f"`{key}` is missing from the published configuration")
            return float(default)
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        except (TypeError, ValueError):
            raise Sh2Error(f"`{key}` must be a number, not {value!r}") from None

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if not value.is_integer():
            raise Sh2Error(f"`{key}` must be a whole number, not {value}")
        return int(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.values.get(key, default)
        if value is not None and value not in (True, False):  # 0 and 1 too
            raise Sh2Error(f"`{key}` must be True or False, not {value!r}")
        return bool(value)

    def indices(self, key: str) -> set[int]:
        value = self.values.get(key)
        if value is None:
            return set()
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise Sh2Error(f"`{key}` must be a list of block numbers, not {value!r}")
        return set(value)


def to_published(config: ModelConfig, layout: PublishedLayout | None = None) -> dict[str, Any]:
    """Write a configuration of ours with every key that the published code reads.

    Raises:
        Sh2Error: the published format cannot say this model; the message has the reason.
    """
    layout = layout or canonical_layout(config)
    activation, evo2_style = _published_activation(config)
    _check_expressible(config)
    lists = {key: [layer for layer, held in enumerate(config.kinds) if held is kind] for key, kind in _LISTS.items()}
    return {
        "model_name": "evo-sh2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_filters": config.width,
        **lists,
        "hcs_filter_length": config.se_taps,
        "hcs_filter_groups": config.se_groups,
        "hcm_filter_length": config.mr_taps,
        "hcm_filter_groups": config.mr_groups,
        "hcl_filter_groups": config.width,
        "hyena_filter_groups": 1,
        "num_layers": config.num_layers,
        "short_filter_length": config.featurizer_taps,
        "short_filter_bias": config.featurizer_bias,
        "num_attention_heads": config.num_heads,
        "proj_groups": config.queries_per_kv_head,
        "state_size": config.num_modes,
        "eps": config.norm_eps,
        "rotary_emb_base": config.rotary_base,
        "use_interpolated_rotary_pos_emb": config.rotary_interpolation != 1.0,
        "rotary_emb_scaling_factor": config.rotary_interpolation,
        "inner_mlp_size": config.mlp_width,
        "inner_size_multiple_of": 1,
        "mlp_activation": activation.value,
        "evo2_style_activations": evo2_style,
        "qkv_proj_bias": config.input_bias,
        "mha_out_proj_bias": config.attention_output_bias,
        "hyena_out_proj_bias": config.hyena_output_bias,
        "tie_embeddings": config.tied_embeddings,
        "interleave": layout.interleave,
        "column_split": layout.column_split,
        "column_split_hyena": layout.column_split_hyena,
        "hyena_flip_x1x2": layout.flip,
        "final_norm": True,
        "use_fp8_input_projections": config.fp8_input_projections,
        "max_seqlen": config.context,
        "max_batch_size": 1,
        "model_parallel_size": 1,
        "pipe_parallel_size": 1,
        "make_vocab_size_divisible_by": 8,
        "use_flash_attn": True,
        "use_flash_rmsnorm": False,
        "use_flash_depthwise": False,
        "use_flashfft": False,
        "use_laughing_hyena": False,
        "inference_mode": True,
        "prefill_style": "fft",
        "tokenizer_type": "CharLevelTokenizer",
        "log_intermediate_values": False,
        "print_activations": False,
    }


def _published_activation(config: ModelConfig) -> tuple[Activation, bool]:
    first, *rest = (config.activation_of(layer) for layer in range(config.num_layers))
    if first is not Activation.IDENTITY:
        if set(rest) <= {first}:
            return first, False
        if set(rest) == {Activation.IDENTITY}:
            return first, True
    raise Sh2Error(
        f"the published format has no activations {first.value} in block 0 and"
        f" {config.activation.value} after it: only gelu or silu, in all blocks or in block 0 before identity"
    )


def _check_expressible(config: ModelConfig) -> None:
    if config.feed_forward is not FeedForward.GATED_MLP:
        raise Sh2Error(f"the published format has no feed-forward layer {config.feed_forward.value}")
    filters = [
        (MixerKind.HYENA_SE, "se", config.se_taps, config.se_skip),
        (MixerKind.HYENA_MR, "mr", config.mr_taps, config.mr_skip),
    ]
    for kind, name, taps, skip in filters:
        if kind in config.kinds and skip != (taps >= LONG_FILTER):
            needs = f"a skip from {LONG_FILTER} taps on" if taps >= LONG_FILTER else f"no skip below {LONG_FILTER} taps"
            raise Sh2Error(
                f"the published format needs {needs}; this model has {name}_taps {taps} with {name}_skip {skip}"
            )
