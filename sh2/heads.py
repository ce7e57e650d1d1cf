"""Heads: a class or a number read from a sequence's embedding, by one linear layer that is fitted exactly.

The embedding is what `sh2.embed` gives for one layer and pooling; its channels are brought to mean 0 and variance 1
first. What is fitted is convex (logistic or ridge regression), so neither a learning rate nor a seed decides anything.
Knows nothing of DNA.
"""

# N examples, D width, C outputs: classes, or 1

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from sh2.checkpoint.atomic import replacing
from sh2.checkpoint.safetensors_file import read_safetensors, write_safetensors
from sh2.checkpoint.tensors import LazyTensor
from sh2.errors import Sh2Error

_PENALTIES = tuple(10.0**power for power in range(-5, 3))
_TENSORS = ("mean", "scale", "weight", "bias")


class Task(StrEnum):
    """What a label is."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """Labels as numbers. classes: their names, sorted; none for regression. values: int64 classes or float64 [N]."""

    classes: tuple[str, ...]
    values: Tensor

    @classmethod
    def of(cls, labels: Sequence[str], task: Task, classes: Sequence[str] = ()) -> Self:
        """Read labels.

        Args:
            classes: those known already; none takes them from the labels.

        Raises:
            Sh2Error: a label is no number, or there are fewer than two classes, or one that is not known.
        """
        if task is Task.REGRESSION:
            return cls(classes=(), values=torch.tensor([_number(label) for label in labels], dtype=torch.float64))
        known = tuple(classes) or tuple(sorted(set(labels)))
        if len(known) < 2:
            raise Sh2Error(f"all labels are `{known[0]}`: there is nothing to tell apart")
        places = {name: place for place, name in enumerate(known)}
        if strange := next((label for label in labels if label not in places), None):
            raise Sh2Error(f"no example to train on has the class `{strange}`").hint(
                f"the classes are {', '.join(known)}"
            )
        return cls(classes=known, values=torch.tensor([places[label] for label in labels]))


def _number(label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise Sh2Error(f"a label of a regression must be a number, not `{label}`").hint(
            "give `--task classification` if labels are names"
        )
    return value


def task_of(labels: Sequence[str]) -> Task:
    """Numbers with a fraction are measured; names, and whole numbers, of which there are few, are classes."""
    try:
        values = {float(label) for label in labels}
    except ValueError:
        return Task.CLASSIFICATION
    few = len(values) <= max(2, len(labels) // 10)
    return Task.CLASSIFICATION if few and all(value.is_integer() for value in values) else Task.REGRESSION


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Head:
    """What reads a label from an embedding, and of which layer and pooling that is; tensors are float32."""

    task: Task
    classes: tuple[str, ...]
    layer: str
    pooling: str
    mean: Tensor  # [D]
    scale: Tensor  # [D]
    weight: Tensor  # [C, D]
    bias: Tensor  # [C]

    def outputs(self, x_ND: Tensor) -> Tensor:
        """Logits of the classes [N, C], or predicted numbers [N, 1], float32."""
        return F.linear((x_ND.float() - self.mean) / self.scale, self.weight, self.bias)


def fit_head(
    train_ND: Tensor, train: Targets, valid_ND: Tensor, valid: Targets, *, layer: str, pooling: str
) -> tuple[Head, float]:
    """Fit a head with each of several penalties; return the one with the least validation loss, and that loss.

    The loss is the mean negative log-likelihood in nats, or the mean squared error.
    """
    task = Task.CLASSIFICATION if train.classes else Task.REGRESSION
    mean, spread = train_ND.double().mean(dim=0), train_ND.double().std(dim=0, correction=0)
    scale = torch.where(spread > 1e-6 * spread.max(), spread, torch.ones_like(spread))
    x_ND = (train_ND.double() - mean) / scale
    fit = _logistic if train.classes else _ridge
    best: tuple[Head, float] | None = None
    for penalty in _PENALTIES:
        weight, bias = fit(x_ND, train, penalty)
        head = Head(
            task=task,
            classes=train.classes,
            layer=layer,
            pooling=pooling,
            mean=mean.float(),
            scale=scale.float(),
            weight=weight.float(),
            bias=bias.float(),
        )
        loss = loss_of(head.outputs(valid_ND), valid).item()
        if best is None or loss < best[1]:
            best = head, loss
    assert best is not None
    return best


def loss_of(outputs_NC: Tensor, targets: Targets) -> Tensor:
    """The mean negative log-likelihood of the classes in nats, or the mean squared error."""
    values = targets.values.to(outputs_NC.device)
    if targets.classes:
        return F.cross_entropy(outputs_NC.float(), values)
    return (outputs_NC[:, 0].double() - values).square().mean().float()


def _ridge(x_ND: Tensor, targets: Targets, penalty: float) -> tuple[Tensor, Tensor]:
    """Least squares with `penalty` times the squared weights added to the mean squared error."""
    middle = targets.values.mean()
    gram_DD = x_ND.T @ x_ND / len(x_ND) + penalty * torch.eye(x_ND.shape[1], dtype=x_ND.dtype)
    weight_D = torch.linalg.solve(gram_DD, x_ND.T @ (targets.values - middle) / len(x_ND))
    return weight_D[None], middle[None]


def _logistic(x_ND: Tensor, targets: Targets, penalty: float) -> tuple[Tensor, Tensor]:
    """The most likely weights, with `penalty` times half their squares added to the mean loss."""
    weight_CD = torch.zeros(len(targets.classes), x_ND.shape[1], dtype=x_ND.dtype, requires_grad=True)
    bias_C = torch.zeros(len(targets.classes), dtype=x_ND.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_CD, bias_C], max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x_ND, weight_CD, bias_C), targets.values)
        loss = loss + penalty / 2 * weight_CD.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight_CD.detach(), bias_C.detach()


def save_head(head: Head, path: Path, *, model: str, weights: str) -> None:
    """Write a head.

    Args:
        model: the name of the model whose embeddings it reads, and its `sh2.fingerprint.weights_fingerprint`.

    Raises:
        Sh2Error: the file cannot be written.
    """
    facts = {"task": head.task, "classes": head.classes, "layer": head.layer, "pooling": head.pooling}
    metadata = {"head": json.dumps(facts | {"model": model, "weights": weights})}
    tensors = {name: LazyTensor.of(getattr(head, name).contiguous()) for name in _TENSORS}
    with replacing(path) as partial:
        write_safetensors(partial, tensors, metadata)


def load_head(path: Path) -> tuple[Head, str, str]:
    """Read a head; also the name and the fingerprint of the model that it belongs to.

    Raises:
        Sh2Error: the file is missing, damaged or no head.
    """
    tensors = {name: lazy.read() for name, lazy in read_safetensors(path).items()}
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["head"])
        model, weights = facts.pop("model"), facts.pop("weights")
        values: dict[str, Any] = {**facts, "task": Task(facts["task"]), "classes": tuple(facts["classes"]), **tensors}
        return Head(**values), model, weights
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise Sh2Error(f"{path} holds no head").hint("give a folder that `evo finetune` wrote") from None
