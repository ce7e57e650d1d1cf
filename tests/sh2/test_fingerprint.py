"""Fingerprints: the same for the same weights wherever they come from, another for any other weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sh2
from sh2.checkpoint import save_model
from sh2.fingerprint import config_hash, weights_fingerprint
from tests.sh2.models import CONFIGS, TINY, tiny


def test_the_same_weights_have_one_fingerprint(tmp_path: Path) -> None:
    model = tiny()
    model.bfloat16()
    save_model(model, tmp_path / "m")
    prints = {weights_fingerprint(sh2.load(tmp_path / "m", dtype=dtype)) for dtype in (None, torch.float32)}
    assert prints == {weights_fingerprint(model)}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_step_of_training_changes_it(name: str) -> None:
    model = tiny(name)
    before = weights_fingerprint(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    logits, _ = model(torch.tensor([[65, 67, 71, 84] * 8]))
    logits.square().mean().backward()
    optimizer.step()
    assert weights_fingerprint(model) != before
    assert weights_fingerprint(tiny(name, seed=1)) != before


def test_every_tensor_counts_by_name_shape_and_place() -> None:
    model = tiny()
    before = weights_fingerprint(model)
    for parameter in model.parameters():
        with torch.no_grad():
            kept = parameter.clone()
            parameter += 1e-3
            assert weights_fingerprint(model) != before
            parameter.copy_(kept)
    assert weights_fingerprint(model) == before
    with torch.no_grad():
        weight = model.embedding.weight
        weight.copy_(weight.flip(0))
    assert weights_fingerprint(model) != before


def test_a_configuration_is_told_by_what_it_says() -> None:
    assert config_hash(TINY) == config_hash(replace(TINY)) != config_hash(replace(TINY, norm_eps=1e-5))
