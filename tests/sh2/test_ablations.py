"""The ablations: the paper's layouts, the same parameters, and nothing else changed."""

from dataclasses import asdict, replace

import pytest
import torch

from sh2.ablations import ABLATIONS, ablate
from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.presets import PRESETS, TRAINABLE
from sh2.train.config import model_from_table

# evo2_training, section 5: the layouts of the 7B ablations, attention always at 3, 10, 17, 24 and 31
PAPER = {
    "se-mr-li": "SML*SMLSML*SMLSML*SMLSML*SMLSML*",
    "se-se-li": "SSL*SSLSSL*SSLSSL*SSLSSL*SSLSSL*",
    "li-li-li": "LLL*LLLLLL*LLLLLL*LLLLLL*LLLLLL*",
    "all-se": "SSS*SSSSSS*SSSSSS*SSSSSS*SSSSSS*",
    "all-mr": "MMM*MMMMMM*MMMMMM*MMMMMM*MMMMMM*",
    "attention": "*" * 32,
}


def parameters(config: ModelConfig) -> int:
    """Counted on a model, not from the shapes."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in StripedHyena2(config).parameters())


@pytest.mark.parametrize("name", PAPER)
def test_layouts_are_the_paper_s(name):
    assert ablate(PRESETS["evo2_7b_base"], name).layout == PAPER[name]


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("preset", ["debug", "nano", "25m", "100m", "350m", "1b"])
def test_every_ablation_has_the_parameters_of_its_shape(preset, name):
    config = TRAINABLE[preset]
    # nano has few layers and wide groups: no width and depth come nearer
    allowed = 0.012 if (preset, name) == ("nano", "se-feed-forward") else 0.01

    assert parameters(ablate(config, name)) == pytest.approx(parameters(config), rel=allowed)


@pytest.mark.parametrize("name", [*PAPER, "groups-of-1", "groups-of-4", "groups-of-64"])
def test_nothing_changes_but_what_the_name_says_and_the_feed_forward_width(name):
    before, after = asdict(TRAINABLE["25m"]), asdict(ablate(TRAINABLE["25m"], name))

    changed = {key for key in before if before[key] != after[key]} - {"mlp_width"}

    assert changed <= ({"layout"} if name in PAPER else {"se_groups", "mr_groups"})
    assert after["mlp_width"] % 8 == 0


def test_the_shape_itself_is_its_first_ablation():
    assert all(ablate(config, "se-mr-li") == config for config in TRAINABLE.values())


@pytest.mark.parametrize("preset", TRAINABLE)
def test_hyena_se_feed_forward_keeps_heads_groups_and_stripes(preset):
    before, after = TRAINABLE[preset], ablate(TRAINABLE[preset], "se-feed-forward")

    assert after.num_heads == before.num_heads
    assert after.width // after.se_groups == after.width // after.mr_groups == 16
    assert after.num_layers > before.num_layers
    assert after.layout.startswith(before.layout)
    assert after.layout == (before.layout * 3)[: after.num_layers]


def test_the_smallest_ablations_run():
    ids = torch.zeros(1, 20, dtype=torch.int64)

    for name in ABLATIONS:
        assert StripedHyena2(ablate(TRAINABLE["debug"], name))(ids)[0].isfinite().all()


def test_a_table_names_a_preset_and_an_ablation():
    config = model_from_table({"preset": "debug", "ablation": "all-mr", "mr_taps": 64})

    assert (config.layout, config.mr_taps) == ("MMM*", 64)


def test_what_is_no_ablation_is_refused():
    with pytest.raises(Sh2Error, match="unknown ablation `se-mr-ll`") as error:
        ablate(TRAINABLE["debug"], "se-mr-ll")
    assert error.value.__notes__ == ["did you mean `se-mr-li`?"]
    with pytest.raises(Sh2Error, match="the width 48 has no filter groups of 64 channels"):
        ablate(replace(TRAINABLE["debug"], width=48, se_groups=3, mr_groups=3), "groups-of-64")
