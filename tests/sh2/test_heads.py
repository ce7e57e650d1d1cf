"""Heads: exact fits against independent solutions, and what a file gives back."""

import numpy as np
import pytest
import torch

from sh2.errors import Sh2Error
from sh2.heads import Head, Targets, Task, _logistic, _ridge, fit_head, load_head, loss_of, save_head, task_of

RNG = np.random.default_rng(0)


def numbers(count, width=6):
    return torch.from_numpy(RNG.normal(size=(count, width)) * np.arange(1, width + 1) + 3)


def fitted(x, targets, valid=None, of_valid=None):
    return fit_head(
        x, targets, x if valid is None else valid, targets if of_valid is None else of_valid, layer="1", pooling="mean"
    )


def test_ridge_is_the_least_squares_solution_of_the_extended_system():
    """sqrt(N penalty) rows of the identity below X, as textbooks have it, solved by another routine."""
    x, penalty = numbers(50), 0.3
    x = x - x.mean(dim=0)
    y = torch.from_numpy(RNG.normal(size=50))

    weight, bias = _ridge(x, Targets(classes=(), values=y), penalty)

    extended = np.vstack([x.numpy(), np.sqrt(50 * penalty) * np.eye(6)])
    wanted = np.linalg.lstsq(extended, np.concatenate([y.numpy() - y.mean().item(), np.zeros(6)]), rcond=None)[0]
    np.testing.assert_allclose(weight[0].numpy(), wanted, atol=1e-10)
    assert bias.item() == pytest.approx(y.mean().item())


def test_logistic_regression_is_at_its_optimum():
    """The gradient by hand, X'(p - y)/N + penalty w, is zero there, and the biases' too."""
    x, penalty = numbers(80), 0.05
    x = (x - x.mean(dim=0)) / x.std(dim=0)
    classes = torch.from_numpy(RNG.integers(0, 3, 80))

    weight, bias = _logistic(x, Targets(classes=("a", "b", "c"), values=classes), penalty)

    probabilities = torch.softmax(x @ weight.T + bias, dim=1)
    residual = probabilities - torch.eye(3, dtype=torch.float64)[classes]
    assert (residual.T @ x / 80 + penalty * weight).abs().max() < 1e-5
    assert residual.mean(dim=0).abs().max() < 1e-5
    assert weight.abs().max() > 0.01


def test_a_line_is_found_whatever_the_units():
    x = numbers(200)
    y = x @ torch.tensor([1000.0, 0, 0, -5, 0, 0.1], dtype=torch.float64) + 7000

    head, loss = fitted(x.float(), Targets(classes=(), values=y))

    np.testing.assert_allclose(head.outputs(x)[:, 0].numpy(), y.numpy(), rtol=1e-3, atol=1)
    assert loss < 1e-3 * y.var().item()


def test_classes_that_lie_apart_are_told_apart():
    x = torch.cat([numbers(40), numbers(40) + 30])
    targets = Targets.of(["far"] * 40 + ["near"] * 40, Task.CLASSIFICATION)

    head, loss = fitted(x, targets)

    assert head.classes == ("far", "near")
    assert torch.equal(head.outputs(x).argmax(dim=1), targets.values)
    assert loss < 0.01


def test_the_penalty_is_chosen_by_validation():
    """With labels that are noise, the best is to say little: near the entropy of the classes, not far above it."""
    x, valid = numbers(30, 20), numbers(400, 20)
    train = Targets(classes=("a", "b"), values=torch.from_numpy(RNG.integers(0, 2, 30)))
    of_valid = Targets(classes=("a", "b"), values=torch.from_numpy(RNG.integers(0, 2, 400)))

    _, loss = fitted(x, train, valid, of_valid)

    assert loss < np.log(2) + 0.05


def test_channels_that_never_vary_count_for_nothing():
    x = torch.cat([numbers(50), torch.full((50, 1), 5.0, dtype=torch.float64)], dim=1)
    y = x[:, 0] * 2

    head, _ = fitted(x, Targets(classes=(), values=y))

    assert head.outputs(x).isfinite().all()
    assert head.weight[0, 6] == 0


def test_the_losses_are_those_of_their_definitions():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    classes = Targets(classes=("a", "b", "c"), values=torch.tensor([0, 1, 2, 0, 1]))
    values = Targets(classes=(), values=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64))

    nats = -torch.log(torch.softmax(logits.double(), 1)[torch.arange(5), classes.values]).mean()
    assert loss_of(logits, classes).item() == pytest.approx(nats.item(), rel=1e-6)
    assert loss_of(logits[:, :1], values).item() == pytest.approx(
        np.mean((logits[:, 0].numpy() - np.arange(1, 6)) ** 2), rel=1e-6
    )


def test_a_head_goes_into_a_file_and_back(tmp_path):
    head, _ = fitted(numbers(30), Targets.of(["x", "y", "x"] * 10, Task.CLASSIFICATION))
    save_head(head, tmp_path / "head.safetensors", model="run/model", weights="abc")

    again, model, weights = load_head(tmp_path / "head.safetensors")

    assert (model, weights) == ("run/model", "abc")
    for name in Head.__slots__:
        before, after = getattr(head, name), getattr(again, name)
        assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after


def test_what_is_no_head_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")

    with pytest.raises(Sh2Error, match=r"other\.safetensors holds no head"):
        load_head(tmp_path / "other.safetensors")
    with pytest.raises(Sh2Error, match=r"none\.safetensors cannot be read"):
        load_head(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (["0", "1"] * 20, Task.CLASSIFICATION),
        (["promoter", "other"] * 5, Task.CLASSIFICATION),
        (["0.5", "1"] * 20, Task.REGRESSION),
        ([str(number) for number in range(40)], Task.REGRESSION),
        (["1", "2", "x"], Task.CLASSIFICATION),
    ],
)
def test_the_task_is_told_from_the_labels(labels, task):
    assert task_of(labels) is task


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (["1", "x"], Task.REGRESSION, "a label of a regression must be a number, not `x`"),
        (["1", "nan"], Task.REGRESSION, "must be a number, not `nan`"),
        (["a", "a"], Task.CLASSIFICATION, "all labels are `a`: there is nothing to tell apart"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels, task, message):
    with pytest.raises(Sh2Error, match=message):
        Targets.of(labels, task)


def test_a_class_that_was_not_trained_on_is_refused():
    with pytest.raises(Sh2Error, match="no example to train on has the class `c`"):
        Targets.of(["a", "c"], Task.CLASSIFICATION, ("a", "b"))
