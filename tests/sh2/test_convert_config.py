"""Published configurations and ours: keys, defaults, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sh2.checkpoint.layout import PublishedLayout
from sh2.checkpoint.published_config import from_published, read_published_config, to_published
from sh2.config import Activation, FeedForward, ModelConfig
from sh2.errors import Sh2Error
from sh2.presets import PUBLISHED
from tests.sh2.published_files import BASE


def config_of(changes: dict[str, Any], *names: str, drop: str = "") -> tuple[ModelConfig, PublishedLayout]:
    keys = {key: value for key, value in (BASE | changes).items() if key not in drop.split()}
    return from_published(keys, names)


@pytest.mark.parametrize(
    ("changes", "drop", "field", "value"),
    [
        ({}, "rotary_emb_base", "rotary_base", 1e6),
        ({}, "eps", "norm_eps", 1e-6),
        ({"eps": "1e-5"}, "", "norm_eps", 1e-5),  # YAML reads 1e-5 as text
        ({"rotary_emb_scaling_factor": 128}, "", "rotary_interpolation", 1.0),  # ignored without its flag
        (
            {"rotary_emb_scaling_factor": 128, "use_interpolated_rotary_pos_emb": True},
            "",
            "rotary_interpolation",
            128.0,
        ),
        ({}, "inner_mlp_size", "mlp_width", 64),
        ({"inner_size_multiple_of": 16, "model_parallel_size": 2}, "inner_mlp_size", "mlp_width", 64),
        ({"hidden_size": 96, "inner_size_multiple_of": 5}, "inner_mlp_size", "mlp_width", 260),
        ({}, "", "first_activation", Activation.GELU),
        ({}, "", "activation", Activation.IDENTITY),
        ({"mlp_activation": "silu"}, "evo2_style_activations", "activation", Activation.SILU),
        ({}, "evo2_style_activations mlp_activation", "first_activation", None),
        ({"hcm_filter_length": 127}, "", "mr_skip", False),
        ({"hcs_filter_length": 128}, "", "se_skip", True),
        ({"attn_layer_idxs": [1, 3], "hcl_layer_idxs": [0, 1, 2, 77]}, "", "layout", "L*L*"),
        ({}, "max_seqlen", "context", 8192),
        ({}, "hcs_filter_groups", "se_groups", 24),  # a filter a channel
        ({"hcm_filter_groups": None}, "", "mr_groups", 24),
        ({"compile": True, "padding_idx": None}, "", "num_modes", 5),
        ({}, "mha_out_proj_bias", "attention_output_bias", True),
        ({}, "vocab_size", "vocab_size", 512),
        ({"use_fp8_input_projections": True}, "", "fp8_input_projections", True),
        ({"use_laughing_hyena": True, "prefill_style": "recurrence"}, "", "num_modes", 5),
    ],
)
def test_keys_and_their_published_defaults(changes: dict[str, Any], drop: str, field: str, value: object) -> None:
    assert getattr(config_of(changes, drop=drop)[0], field) == value


def test_traps_of_absent_switches() -> None:
    switches = "interleave column_split column_split_hyena hyena_flip_x1x2"
    assert config_of({}, drop=switches)[1] == PublishedLayout(
        interleave=False, column_split=True, column_split_hyena=True, flip=False, hyena_input_bias=False
    )
    assert not config_of({"column_split_hyena": None})[1].column_split_hyena  # present and empty is no


def test_the_file_decides_where_published_code_has_no_default() -> None:
    absent = "tie_embeddings short_filter_bias hyena_out_proj_bias qkv_proj_bias"
    config, _ = config_of({}, drop=absent)
    assert (config.tied_embeddings, config.featurizer_bias, config.hyena_output_bias, config.input_bias) == (
        True, False, False, False,
    )  # fmt: skip
    names = ["unembed.weight", "blocks.0.filter.short_filter_bias", "blocks.0.out_filter_dense.bias"]
    config, layout = config_of({}, *names, "blocks.3.inner_mha_cls.Wqkv.bias", drop=absent)
    assert (config.tied_embeddings, config.featurizer_bias, config.hyena_output_bias, config.input_bias) == (
        False, True, True, True,
    )  # fmt: skip
    assert not layout.hyena_input_bias


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyena_mlp_len": 7, "zz": 1}, "unknown key `hyena_mlp_len`, `zz` in the published configuration"),
        ({"final_norm": False}, "`final_norm` is False: the published code cannot run"),
        ({"proj_groups": 2}, "`proj_groups` is 2 with `column_split` True"),
        ({"long_fir_threshold": 512}, "`long_fir_threshold` is set"),
        ({"smeared_gqa": True}, "`smeared_gqa` is True"),
        ({"mlp_activation": "relu"}, "`mlp_activation` must be gelu or silu, not 'relu'"),
        ({"num_layers": 5}, "block 4 is in none of `attn_layer_idxs`"),
        ({"hidden_size": None}, "`hidden_size` is missing from the published configuration"),
        ({"hidden_size": "wide"}, "`hidden_size` must be a number, not 'wide'"),
        ({"hidden_size": 24.5}, "`hidden_size` must be a whole number, not 24.5"),
        ({"interleave": "yes"}, "`interleave` must be True or False, not 'yes'"),
        ({"attn_layer_idxs": "3"}, "`attn_layer_idxs` must be a list of block numbers, not '3'"),
        ({"num_attention_heads": 5}, "width 24 is not a multiple of num_heads 5"),
        ({"hcm_filter_groups": 5}, "width 24 is not a multiple of mr_groups 5"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Sh2Error, match=message):
        config_of(changes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets_come_back(name: str) -> None:
    values = yaml.safe_load(yaml.safe_dump(to_published(PUBLISHED[name])))
    assert from_published(values, ())[0] == PUBLISHED[name]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feed_forward": FeedForward.HYENA_SE}, "no feed-forward layer hyena_se"),
        ({"mr_skip": False}, "needs a skip from 128 taps on; this model has mr_taps 128 with mr_skip False"),
        ({"mr_taps": 64}, "needs no skip below 128 taps; this model has mr_taps 64 with mr_skip True"),
        ({"se_skip": True}, "needs no skip below 128 taps; this model has se_taps 7 with se_skip True"),
        ({"activation": Activation.IDENTITY}, "no activations identity in block 0 and identity after it"),
        ({"first_activation": Activation.SILU}, "no activations silu in block 0 and gelu after it"),
    ],
)
def test_what_the_published_format_cannot_say_is_refused(fields: dict[str, Any], message: str) -> None:
    config = ModelConfig(width=24, layout="SM", num_heads=2, mlp_width=8, se_groups=2, mr_groups=2, **fields)
    with pytest.raises(Sh2Error, match=message):
        to_published(config)


def test_a_filter_that_no_block_has_is_no_reason_to_refuse() -> None:
    config = ModelConfig(width=24, layout="S", num_heads=2, mlp_width=8, se_groups=2, mr_groups=2, mr_skip=False)
    assert to_published(config)["evo2_style_activations"] is False


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "cannot be read"), ("- 1", "holds no table of keys"), (None, "does not exist")],
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "c.yml").write_text(text)
    with pytest.raises(Sh2Error, match=rf"configuration .*c\.yml {message}"):
        read_published_config(tmp_path / "c.yml")
