"""Freezing: which parameters a choice holds, and that they stay as they are."""

import pytest
import torch

from sh2.errors import Sh2Error
from sh2.train.config import TrainConfig
from sh2.train.freeze import freeze
from sh2.train.optimizer import build_optimizer
from tests.sh2.models import tiny

BY_NAME = {
    "embedding": ["embedding.weight", "unembedding.weight"],
    "filters": ["mixer.taps", "featurizer_taps", "skip", "residues", "pole_shift"],
    "norms": ["norm.scale"],
    "mixers": [".mixer."],
    "feed_forward": [".feed_forward."],
    "blocks.0.*": ["blocks.0."],
    "*.bias": [".bias"],
}


@pytest.mark.parametrize(("choice", "parts"), BY_NAME.items())
def test_a_choice_holds_what_its_name_says(choice, parts):
    model = tiny("grouped heads, biases, untied").requires_grad_(True)

    freeze(model, [choice])

    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if any(part in name for part in parts)}


def test_what_is_frozen_stays_to_the_bit_and_has_no_state():
    model = tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    freeze(model, ["mixers", "embedding"])
    optimizer = build_optimizer(model, TrainConfig(steps=1, lr=0.1))

    model(torch.arange(20)[None])[0].square().mean().backward()
    optimizer.step()

    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".mixer." not in name and "embedding" not in name}
    assert len(optimizer.state) == len(changed)


def test_a_choice_that_is_nothing_is_refused():
    with pytest.raises(Sh2Error, match="nothing of the model is called `convs`, so it cannot be frozen"):
        freeze(tiny(), ["convs"])


def test_something_must_be_left():
    with pytest.raises(Sh2Error, match=r"all of the model is frozen by norms, \*: nothing is left to train"):
        freeze(tiny(), ["norms", "*"])
