"""TrainConfig and the [model] table: what is accepted, what is refused and in which words."""

import pytest

from sh2.config import DecayWindow
from sh2.errors import Sh2Error
from sh2.presets import preset
from sh2.train.config import MAY_CHANGE, Precision, TrainConfig, check_unchanged, model_from_table


def test_plain_values_read_back_to_the_same_configuration():
    config = TrainConfig(steps=7, lr=3e-4, betas=(0.8, 0.9), precision=Precision.BF16, reset_documents=True)

    assert TrainConfig.from_dict(config.to_dict()) == config


def test_a_whole_number_may_stand_for_a_float():
    assert TrainConfig.from_dict({"steps": 1, "clip": 1}).clip == 1.0


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"steps": 5, "learning": 1.0}, "unknown train field `learning`", "known fields: steps, batch_size"),
        ({"steps": 5, "batchsize": 1}, "unknown train field `batchsize`", "did you mean `batch_size`?"),
        ({"lr": 1.0}, "train field `steps` is missing", "give `--steps`"),
        ({"steps": 5.0}, "train field `steps` must be a whole number, not 5.0", None),
        ({"steps": True}, "train field `steps` must be a whole number, not True", None),
        ({"steps": 5, "lr": "fast"}, "train field `lr` must be a number, not 'fast'", None),
        ({"steps": 5, "lr": True}, "train field `lr` must be a number, not True", None),
        ({"steps": 5, "reset_documents": 1}, "train field `reset_documents` must be true or false, not 1", None),
        ({"steps": 5, "device": 0}, "train field `device` must be text, not 0", None),
        ({"steps": 5, "betas": [0.9]}, "train field `betas` must be a pair of numbers, not [0.9]", None),
        ({"steps": 5, "precision": "fp8"}, "train field `precision` must be `bf16` or `fp32`, not 'fp8'", None),
        ({"steps": 0}, "train field `steps` must be at least 1, not 0", None),
        ({"steps": 5, "length": 1}, "train field `length` must be at least 2, not 1", None),
        ({"steps": 5, "lr": 0.0}, "train field `lr` must be a number above 0, not 0.0", None),
        ({"steps": 5, "lr": float("nan")}, "train field `lr` must be a number above 0, not nan", None),
        ({"steps": 5, "lr": float("inf")}, "train field `lr` must be a number above 0, not inf", None),
        ({"steps": 5, "weight_decay": float("inf")}, "train field `weight_decay` must be at least 0, not inf", None),
        ({"steps": 5, "threads": 1025}, "train field `threads` must be at most 1024, not 1025", None),
        ({"steps": 5, "warmup_fraction": 1.5}, "train field `warmup_fraction` must lie between 0 and 1, not 1.5", None),
        ({"steps": 5, "betas": [0.9, 1.0]}, "train field `betas` must lie in [0, 1), not [0.9, 1.0]", None),
        (
            {"steps": 5, "cp_sharding": "zig-zag"},
            "train field `cp_sharding` must be `contiguous` or `zigzag`, not 'zig-zag'",
            None,
        ),
        ({"steps": 5, "profile": 6}, "train field `profile` must be one of the 5 steps, not 6", None),
        (
            {"steps": 5, "lora_alpha": 8},
            "train fields `lora_alpha` and `lora_targets` are of adapters, and there are none",
            "give their rank",
        ),
        ({"steps": 5, "save_every": -1}, "train field `save_every` must be at least 0, not -1", None),
    ],
)
def test_a_wrong_value_is_refused(values, message, hint):
    with pytest.raises(Sh2Error) as caught:
        TrainConfig.from_dict(values)

    assert str(caught.value) == message
    assert hint is None or caught.value.__notes__[0].startswith(hint)


def test_a_model_is_not_trained_in_fp8_whatever_its_preset_was() -> None:
    assert preset("evo2_1b_base").fp8_input_projections
    assert not model_from_table({"preset": "evo2_1b_base"}).fp8_input_projections


def test_a_model_table_replaces_fields_of_a_preset():
    config = model_from_table({"preset": "nano", "layout": "SM", "mr_window": {"alpha_first": 1, "alpha_last": 2.0}})

    assert (config.layout, config.width) == ("SM", preset("nano").width)
    assert config.mr_window == DecayWindow(alpha_first=1.0, alpha_last=2.0)
    assert model_from_table(config.to_dict()) == config


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ({"preset": "nanoo"}, "unknown preset `nanoo`", "did you mean `nano`?"),
        ({"preset": 5}, "model field `preset` must be text, not 5", None),
        ({"preset": "nano", "widht": 64}, "unknown model field `widht`", "did you mean `width`?"),
        ({"preset": "nano", "width": "64"}, "model field `width` must be a whole number, not '64'", None),
        ({"preset": "nano", "input_bias": 1}, "model field `input_bias` must be true or false, not 1", None),
        ({"preset": "nano", "layout": 5}, "model field `layout` must be text, not 5", None),
        (
            {"preset": "nano", "activation": "relu"},
            "model field `activation` must be `gelu` or `silu` or `identity`, not 'relu'",
            None,
        ),
        (
            {"preset": "nano", "first_activation": "relu"},
            "first_activation must be one of gelu, silu, identity, not `relu`",
            None,
        ),
        (
            {"preset": "nano", "mr_window": {"alpha": 1}},
            "mr_window must be none, default, published or a table of alpha_first and alpha_last, not {'alpha': 1}",
            None,
        ),
    ],
)
def test_a_wrong_model_table_is_refused(table, message, hint):
    with pytest.raises(Sh2Error) as caught:
        model_from_table(table)

    assert str(caught.value) == message
    assert hint is None or caught.value.__notes__ == [hint]


@pytest.mark.parametrize("field", sorted(set(TrainConfig(steps=1).to_dict()) - MAY_CHANGE))
def test_a_field_that_matters_cannot_change_on_resume(field):
    saved = TrainConfig(steps=5).to_dict()

    with pytest.raises(Sh2Error, match=f"cannot resume with train field `{field}` changed from .* to 'other'"):
        check_unchanged("train", saved, {**saved, field: "other"})


def test_fields_that_do_not_matter_may_change_on_resume():
    saved = TrainConfig(steps=5).to_dict()

    check_unchanged("train", saved, {**saved, **dict.fromkeys(MAY_CHANGE, "other")})
