"""What an update is made of: the learning rate, the loss, the decay groups, and that a batch may be split anyhow."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from sh2.checkpoint.tensors import LazyTensor
from sh2.config import FeedForward, ModelConfig
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.train.config import TrainConfig
from sh2.train.loader import HostBatch
from sh2.train.loss import loss_sums
from sh2.train.optimizer import Role, build_optimizer, decay_groups, optimizer_tensors, restore_optimizer, role_of
from sh2.train.schedule import learning_rate
from sh2.train.team import ALONE
from sh2.train.validation import validate
from sh2.train.windows import micro_batch_sums

TINY = ModelConfig(width=16, layout="SML*", num_heads=2, mlp_width=24, se_groups=2, mr_groups=2, mr_taps=8, num_modes=4)


@dataclass(frozen=True)
class Batch:
    tokens: np.ndarray
    weights: np.ndarray
    document_starts: np.ndarray


class RandomWindows:
    """Windows of random bases; half of the weights are 0.1, a tenth 0."""

    def __init__(self, length, windows=1000):
        self.length, self.windows = length, windows

    def __len__(self):
        return self.windows

    def batch(self, first, count):
        rows = [np.random.default_rng(first + row) for row in range(count)]
        tokens = np.stack([rng.choice(np.frombuffer(b"ACGT", np.uint8), self.length + 1) for rng in rows])
        weights = np.stack([rng.choice(np.float32([1, 0.1, 0]), self.length, p=[0.4, 0.5, 0.1]) for rng in rows])
        return Batch(tokens, weights, np.zeros(tokens.shape, bool))


def test_the_learning_rate_is_the_documented_one():
    config = TrainConfig(steps=100, lr=2.0, warmup_fraction=0.1, min_lr_fraction=0.25)

    assert [learning_rate(step, config) for step in (1, 5, 10)] == [0.2, 1.0, 2.0]
    assert learning_rate(55, config) == pytest.approx(2.0 * (0.25 + 0.75 / 2))
    assert learning_rate(100, config) == pytest.approx(0.5)
    assert learning_rate(11, config) == pytest.approx(2.0 * (0.25 + 0.75 * (1 + math.cos(math.pi / 90)) / 2))


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_learning_rate_may_only_rise_or_only_fall(fraction):
    config = TrainConfig(steps=4, lr=1.0, warmup_fraction=fraction)
    rates = [learning_rate(step, config) for step in range(1, 5)]

    assert rates == sorted(rates, reverse=not fraction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_sums_match_the_definition_in_float64(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator).to(dtype)
    targets = torch.randint(7, (2, 5), generator=generator)
    weights = torch.tensor([[1, 0.1, 0, 1, 0.1], [0, 0, 1, 1, 1]])

    sums = loss_sums(logits, targets, weights)

    nats = -logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert sums.weighted_nats.item() == pytest.approx((nats * weights.double()).sum().item(), rel=1e-6)
    assert sums.base_nats.item() == pytest.approx(nats[weights > 0].sum().item(), rel=1e-6)
    assert sums.bases.item() == 7


def test_every_parameter_is_in_one_group_and_only_matrices_of_linear_layers_decay():
    config = replace(TINY, input_bias=True, featurizer_bias=True, tied_embeddings=False, se_skip=True)
    model = StripedHyena2(config)
    names = {parameter: name for name, parameter in model.named_parameters()}

    groups = build_optimizer(model, TrainConfig(steps=1, weight_decay=0.3)).param_groups

    grouped = [names[parameter] for group in groups for parameter in group["params"]]
    decayed = {names[parameter] for group in groups if group["weight_decay"] for parameter in group["params"]}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert sorted(grouped) == sorted(names.values())
    assert decayed == linear
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
    assert {group["name"] for group in groups} == {role.value for role in Role} - {Role.ADAPTER}


def test_hyena_se_feed_forward_has_roles_too():
    model = StripedHyena2(replace(TINY, feed_forward=FeedForward.HYENA_SE))

    assert sum(len(group) for group in decay_groups(model).values()) == len(list(model.parameters()))


def test_a_parameter_of_unknown_role_is_refused():
    with pytest.raises(Sh2Error, match=r"parameter `blocks\.0\.mixer\.gain` has no role"):
        role_of("blocks.0.mixer.gain")


def test_the_optimizer_state_goes_back_by_name():
    model = StripedHyena2(TINY)
    optimizer = build_optimizer(model, TrainConfig(steps=1))
    model(torch.zeros(1, 4, dtype=torch.int64))[0].sum().backward()
    optimizer.step()
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()}
    other = build_optimizer(model, TrainConfig(steps=1))

    restore_optimizer(model, other, {name: LazyTensor.of(tensor) for name, tensor in tensors.items()})

    assert set(tensors) == {
        f"{name}/{key}" for name, _ in model.named_parameters() for key in ("step", "exp_avg", "exp_avg_sq")
    }
    restored = optimizer_tensors(model, other)
    assert all(torch.equal(tensor, restored[name]) for name, tensor in tensors.items())


def gradients(model, batch, config, rows):
    model.zero_grad()
    scale = 1 / batch.weight
    for part in rows:
        sums = micro_batch_sums(model, batch, part, config, ALONE)
        (sums.weighted_nats * scale).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_the_gradient_does_not_depend_on_the_split_into_micro_batches():
    model, batch = StripedHyena2(TINY), HostBatch.of(RandomWindows(24).batch(0, 8), pinned=False)
    config = TrainConfig(steps=1)

    whole = gradients(model, batch, config, [slice(0, 8)])
    split = gradients(model, batch, config, [slice(0, 1), slice(1, 3), slice(3, 7), slice(7, 8)])

    for one, other in zip(whole, split, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_validation_is_the_mean_over_all_windows_whatever_the_batch_size():
    model, source = StripedHyena2(TINY), RandomWindows(24, windows=7)
    batch = source.batch(0, 7)
    tokens = torch.from_numpy(batch.tokens).long()
    with torch.no_grad():
        nats = -model(tokens[:, :-1])[0].double().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    weights = torch.from_numpy(batch.weights).double()

    for batch_size in (1, 3, 7):
        config = TrainConfig(steps=1, batch_size=batch_size, valid_windows=100)
        validation = validate(model, source, config, ALONE)

        assert validation.loss == pytest.approx(((nats * weights).sum() / weights.sum()).item(), rel=1e-6)
        assert validation.bits_per_base == pytest.approx(nats[weights > 0].mean().item() / math.log(2), rel=1e-6)
