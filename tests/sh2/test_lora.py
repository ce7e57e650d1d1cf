"""Adapters: what they compute, what they train, and what a file of them gives back."""

from dataclasses import replace

import pytest
import torch

from sh2.checkpoint import convert, load, save_model
from sh2.checkpoint.adapters import load_adapters, save_adapters
from sh2.config import LINEAR_LAYERS, Lora, RotaryFrequencies
from sh2.errors import Sh2Error
from sh2.lora import adapters_of, add_adapters, has_adapters, merge_adapters
from sh2.model import StripedHyena2
from sh2.train.config import TrainConfig
from sh2.train.optimizer import build_optimizer
from tests.sh2.models import CONFIGS, tiny

IDS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
LORA = Lora(rank=3, alpha=6.0)


def adapted(name="striped", lora=LORA):
    """A model with adapters that do something."""
    model = tiny(name)
    add_adapters(model, lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    for _, adapter in adapters_of(model):
        adapter.up.data.normal_(0, 0.05, generator=generator)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapted_model_begins_as_the_model_it_was(name):
    model, plain = tiny(name), tiny(name)

    add_adapters(model, LORA, seed=1)

    assert torch.equal(model(IDS)[0], plain(IDS)[0])


@torch.no_grad()
def test_an_adapted_layer_adds_the_scaled_product_of_the_two_matrices():
    model, plain = adapted(), tiny()
    layer, before = model.blocks[1].mixer.output, plain.blocks[1].mixer.output
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))

    wanted = before(x).double() + 2.0 * x.double() @ layer.adapter.down.double().T @ layer.adapter.up.double().T

    torch.testing.assert_close(layer(x).double(), wanted, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_is_plain_and_computes_the_same(name, tmp_path):
    model = adapted(name)

    save_model(model, tmp_path / "model")

    assert has_adapters(model)
    merged = load(tmp_path / "model")
    assert merged.state_dict().keys() == tiny(name).state_dict().keys()
    torch.testing.assert_close(merged(IDS)[0], model(IDS)[0], atol=1e-5, rtol=1e-4)
    assert not torch.equal(merged(IDS)[0], tiny(name)(IDS)[0])


@torch.no_grad()
def test_merging_in_place_gives_what_is_saved(tmp_path):
    model = adapted()
    save_model(model, tmp_path / "model")

    merge_adapters(model)

    assert not has_adapters(model)
    saved = load(tmp_path / "model").state_dict()
    assert model.state_dict().keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(IDS)[0], load(tmp_path / "model")(IDS)[0])


def test_only_adapters_are_trained():
    model = adapted()
    adapters = {id(parameter) for _, adapter in adapters_of(model) for parameter in adapter.parameters()}

    groups = build_optimizer(model, TrainConfig(steps=1)).param_groups

    assert {id(parameter) for group in groups for parameter in group["params"]} == adapters
    assert [(group["name"], group["weight_decay"]) for group in groups] == [("adapter", 0.0)]
    layers = {name.rsplit(".", 1)[-1] for name, _ in adapters_of(model)}
    assert layers == set(LINEAR_LAYERS)


def test_the_gradient_reaches_both_matrices_and_nothing_else():
    model = adapted()

    model(IDS)[0].square().mean().backward()

    assert all(parameter.grad is None for name, parameter in model.named_parameters() if ".adapter." not in name)
    assert all(parameter.grad.any() for name, parameter in model.named_parameters() if ".adapter." in name)


@torch.no_grad()
def test_adapters_alone_go_into_a_file_and_back(tmp_path):
    model = adapted(lora=Lora(rank=2, alpha=1.0, targets=("gate", "output")))
    save_adapters(model, tmp_path / "adapter.safetensors")

    again = tiny()
    lora = load_adapters(again, tmp_path / "adapter.safetensors")

    assert lora == Lora(rank=2, alpha=1.0, targets=("gate", "output"))
    assert torch.equal(again(IDS)[0], model(IDS)[0])


def test_adapters_of_another_model_are_refused(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapters(adapted(), path)

    with pytest.raises(Sh2Error, match=r"adapters .*adapter\.safetensors were trained with other weights than this"):
        load_adapters(tiny(seed=5), path)
    save_model(tiny(), tmp_path / "model")
    with pytest.raises(Sh2Error, match=r"model\.safetensors holds no adapters"):
        load_adapters(tiny(), tmp_path / "model" / "model.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_is_merged_into_stored_weights_as_in_memory(tmp_path, dtype):
    save_model(tiny().to(dtype), tmp_path / "base")
    model = load(tmp_path / "base")
    add_adapters(model, LORA, seed=1)
    for _, adapter in adapters_of(model):
        adapter.up.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
    save_adapters(model, tmp_path / "adapter.safetensors")

    convert(tmp_path / "base", tmp_path / "merged", adapters=tmp_path / "adapter.safetensors")

    merge_adapters(model)
    found = load(tmp_path / "merged").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(Sh2Error, match="were trained with other weights than this model's"):
        convert(tmp_path / "merged", tmp_path / "twice", adapters=tmp_path / "adapter.safetensors")
    assert not (tmp_path / "twice").exists()


def test_a_published_file_s_own_frequencies_do_not_make_it_another_model(tmp_path):
    save_adapters(adapted(), tmp_path / "adapter.safetensors")
    stored = StripedHyena2(replace(CONFIGS["striped"], rotary_frequencies=RotaryFrequencies.STORED), seed=0)

    load_adapters(stored, tmp_path / "adapter.safetensors")

    assert has_adapters(stored)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0, "alpha": 1.0}, "adapters need a rank of at least 1 and an alpha above 0, not 0 and 1.0"),
        ({"rank": 1, "alpha": 0.0}, "an alpha above 0, not 1 and 0.0"),
        ({"rank": 1, "alpha": 1.0, "targets": ("query",)}, "unknown target `query` of adapters"),
        ({"rank": 1, "alpha": 1.0, "targets": ()}, "adapters have no targets"),
    ],
)
def test_impossible_adapters_are_refused(values, message):
    with pytest.raises(Sh2Error, match=message):
        Lora(**values)


def test_a_model_is_adapted_once_and_where_it_has_such_layers():
    with pytest.raises(Sh2Error, match="has adapters already"):
        add_adapters(adapted(), LORA, seed=0)
    with pytest.raises(Sh2Error, match="the model has no layer called gate or up"):
        add_adapters(tiny("hyena_se feed-forward"), Lora(rank=1, alpha=1.0, targets=("gate", "up")), seed=0)
