"""Configurations: checked once, read back, and the presets' sizes."""

import dataclasses
import re

import pytest
import torch

from sh2.config import (
    DEFAULT_WINDOW,
    PUBLISHED_WINDOW,
    Activation,
    DecayWindow,
    FeedForward,
    ModelConfig,
    RotaryFrequencies,
)
from sh2.errors import Sh2Error
from sh2.mixers.hyena import decay_window
from sh2.model import StripedHyena2
from sh2.planning.accounting import count_parameters, kv_cache_bytes
from sh2.presets import PRESETS, PUBLISHED, TRAINABLE, TRANSFORMERS, preset
from tests.sh2.models import CONFIGS, TINY

# billions of parameters, and where the attention layers are, as published
PUBLISHED_FACTS = {
    "evo2_1b_base": (1.108, [3, 10, 17, 24]),
    "evo2_7b_base": (6.481, [3, 10, 17, 24, 31]),
    "evo2_7b_262k": (6.481, [3, 10, 17, 24, 31]),
    "evo2_7b": (6.582, [3, 10, 17, 24, 31]),
    "evo2_20b": (19.739, [3, 10, 17]),
    "evo2_40b_base": (40.331, [3, 10, 17, 24, 31, 35, 42, 49]),
    "evo2_40b": (41.118, [3, 10, 17, 24, 31, 35, 42, 49]),
}


@pytest.mark.parametrize("name", PUBLISHED_FACTS)
def test_a_published_preset_has_the_published_size_and_layout(name: str) -> None:
    billions, attention = PUBLISHED_FACTS[name]
    config = preset(name)
    assert round(count_parameters(config) / 1e9, 3) == billions
    assert [layer for layer, kind in enumerate(config.layout) if kind == "*"] == attention
    assert config.activation_of(0) is Activation.GELU
    assert config.activation_of(1) is Activation.IDENTITY
    assert config.rotary_frequencies is RotaryFrequencies.STORED
    assert config.head_dim == 128


def test_the_presets_are_the_published_seven_ours_and_transformers() -> None:
    assert list(PUBLISHED) == list(PUBLISHED_FACTS)
    sizes = {name: count_parameters(config) for name, config in TRAINABLE.items()}
    assert sizes["debug"] == pytest.approx(1e6, rel=0.2)
    assert sizes["1b"] == pytest.approx(1.1e9, rel=0.05)
    assert list(sizes.values()) == sorted(sizes.values())
    for name in TRAINABLE:
        twin = TRANSFORMERS[f"{name}-transformer"]
        assert set(twin.layout) == {"*"}
        assert count_parameters(twin) == pytest.approx(sizes[name], rel=0.02)


@pytest.mark.parametrize("name", CONFIGS)
def test_counted_parameters_are_the_model_s(name: str) -> None:
    model = StripedHyena2(CONFIGS[name])
    assert count_parameters(CONFIGS[name]) == sum(parameter.numel() for parameter in model.parameters())


def test_the_kv_cache_counts_attention_layers_only() -> None:
    # 5 layers x keys and values x 4,096 channels x 2 bytes = 80 KiB a token
    assert kv_cache_bytes(preset("evo2_7b"), 1_048_576, "bf16") == 80 * 2**30


@pytest.mark.parametrize("config", [*CONFIGS.values(), *PRESETS.values()])
def test_a_configuration_survives_plain_values(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "SMX"}, "layout `SMX` may hold only S, M, L and *, at least one, not ['X']"),
        ({"layout": ""}, "layout `` may hold only S, M, L and *, at least one, not []"),
        ({"width": 30}, "width 30 is not a multiple of num_heads 4"),
        ({"num_heads": 32}, "a head has 1 channels; rotary embedding needs an even number"),
        ({"se_groups": 5}, "width 32 is not a multiple of se_groups 5"),
        ({"mr_taps": 0}, "mr_taps must be a whole number of at least 1, not 0"),
        ({"width": 32.0}, "width must be a whole number of at least 1, not 32.0"),
        ({"rotary_base": -1.0}, "rotary_base must be above 0, not -1.0"),
        ({"queries_per_kv_head": 3}, "num_heads 4 is not a multiple of queries_per_kv_head 3"),
        ({"activation": "relu"}, "activation must be one of gelu, silu, identity, not `relu`"),
        ({"widht": 3}, "unknown model field `widht`"),
        (
            {"mr_window": "strong"},
            "mr_window must be none, default, published or a table of alpha_first and alpha_last, not 'strong'",
        ),
        ({"mr_window": {"alpha_first": 0, "alpha_last": 1}}, "the decay window needs alpha_first > 0, not 0"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(changes: dict[str, object], message: str) -> None:
    values = dataclasses.replace(TINY, num_heads=4).to_dict() | changes
    with pytest.raises(Sh2Error, match=f"^{re.escape(message)}"):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("value", "window"),
    [
        ("none", None),
        ("default", DEFAULT_WINDOW),
        ("published", PUBLISHED_WINDOW),
        ({"alpha_first": 0.5, "alpha_last": 2.0}, DecayWindow(alpha_first=0.5, alpha_last=2.0)),
    ],
)
def test_a_window_has_a_name_or_two_rates(value: object, window: DecayWindow | None) -> None:
    assert ModelConfig.from_dict(TINY.to_dict() | {"mr_window": value}).mr_window == window


def test_a_missing_field_is_named() -> None:
    with pytest.raises(Sh2Error, match="model field `width` is missing"):
        ModelConfig.from_dict({key: value for key, value in TINY.to_dict().items() if key != "width"})


def test_an_unknown_preset_names_the_closest() -> None:
    with pytest.raises(Sh2Error, match="unknown preset `evo2_7`") as caught:
        preset("evo2_7")
    assert caught.value.__notes__ == ["did you mean `evo2_7b`?"]


def test_the_published_window_is_that_of_the_training_code() -> None:
    """alpha from 0.01 to 100 over 256 groups, on an axis from 0 to 1 over 8,192 positions."""
    window = decay_window(PUBLISHED_WINDOW, 256, 128, torch.device("cpu"))
    alpha = torch.logspace(-2, 2, 256, dtype=torch.float64)
    axis = torch.linspace(0, 1, 8192, dtype=torch.float64)[:128]
    torch.testing.assert_close(window.double(), torch.exp(-alpha[:, None] * axis), rtol=1e-6, atol=0)
    assert window[0, 127] == pytest.approx(0.99984, abs=1e-5)
    assert window[-1, 127] == pytest.approx(0.212, abs=1e-3)


def test_the_default_window_is_active_and_does_not_know_the_context() -> None:
    window = decay_window(DEFAULT_WINDOW, 8, 128, torch.device("cpu"))
    assert window[0, 127] > 0.85
    assert window[-1, 127] < 1e-12
    assert torch.equal(window[:, 0], torch.ones(8))
    assert DecayWindow(alpha_first=1e-3, alpha_last=0.3) == DEFAULT_WINDOW


def test_feed_forward_kinds_are_spelled_as_in_the_docs() -> None:
    assert [kind.value for kind in FeedForward] == ["gated_mlp", "hyena_se"]
