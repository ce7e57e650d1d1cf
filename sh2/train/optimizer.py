"""AdamW whose decay is decided by what a parameter is. Knows the names of the model's parameters, not its layers."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

import torch
from torch import Tensor, nn

from sh2.checkpoint.tensors import LazyTensor
from sh2.errors import Sh2Error
from sh2.parallel.shares import local
from sh2.train.config import TrainConfig

Take = Callable[[str, LazyTensor], Tensor]


class Role(StrEnum):
    """What a parameter does in the model."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    NORM = "norm"
    BIAS = "bias"
    TAPS = "taps"
    FEATURIZER_TAPS = "featurizer_taps"
    SKIP = "skip"
    RESIDUES = "residues"
    POLE_SHIFT = "pole_shift"
    ADAPTER = "adapter"


DECAYED = frozenset({Role.LINEAR})

_ROLE_OF_ENDING = {
    "embedding.weight": Role.EMBEDDING,
    "unembedding.weight": Role.LINEAR,
    "input.weight": Role.LINEAR,
    "output.weight": Role.LINEAR,
    "gate.weight": Role.LINEAR,
    "up.weight": Role.LINEAR,
    "down.weight": Role.LINEAR,
    "scale": Role.NORM,
    "bias": Role.BIAS,
    "featurizer_bias": Role.BIAS,
    "taps": Role.TAPS,
    "featurizer_taps": Role.FEATURIZER_TAPS,
    "skip": Role.SKIP,
    "residues": Role.RESIDUES,
    "pole_shift": Role.POLE_SHIFT,
    "adapter.down": Role.ADAPTER,
    "adapter.up": Role.ADAPTER,
}


def role_of(name: str) -> Role:
    """Return the role of the parameter with this dotted name.

    Raises:
        Sh2Error: the name ends in nothing known; a new kind of parameter must say whether it decays.
    """
    parts = name.split(".")
    for ending in (".".join(parts[-2:]), parts[-1]):
        if ending in _ROLE_OF_ENDING:
            return _ROLE_OF_ENDING[ending]
    raise Sh2Error(f"parameter `{name}` has no role: it is not known whether it decays")


def decay_groups(model: nn.Module) -> dict[Role, dict[str, nn.Parameter]]:
    """Return every trained parameter once, by role and then by name, in the model's order.

    Raises:
        Sh2Error: a parameter has no role.
    """
    groups: dict[Role, dict[str, nn.Parameter]] = defaultdict(dict)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[role_of(name)][name] = parameter
    return dict(groups)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return a fused AdamW with one named group a role; only the roles in `DECAYED` have weight decay.

    Where processes share some parameters of a role, and all have others, these are two groups.
    """
    groups = [
        {
            "name": role.value,
            "params": alike,
            "weight_decay": config.weight_decay if role in DECAYED else 0.0,
        }
        for role, parameters in decay_groups(model).items()
        for alike in _by_class(parameters.values())
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _by_class(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """What one fused step can take together: no step takes whole tensors with shares."""
    classes: dict[type, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        classes[type(parameter)].append(parameter)
    return list(classes.values())


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Return the optimizer's state by parameter name: `NAME/step`, `NAME/exp_avg`, `NAME/exp_avg_sq`."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    tensors: Mapping[str, LazyTensor],
    take: Take = lambda _, whole: whole.read(),
) -> None:
    """Put back what `optimizer_tensors` returned.

    Args:
        take: gives this process's part of a whole tensor.

    Raises:
        Sh2Error: a tensor belongs to no parameter, or its shape is another.
    """
    parameters = dict(model.named_parameters())
    for key, lazy in tensors.items():
        name, _, field = key.rpartition("/")
        if name not in parameters:
            raise Sh2Error(f"the optimizer state has `{name}`, which the model has not")
        parameter = parameters[name]
        value = take(key, lazy)
        if field == "step":
            optimizer.state[parameter][field] = value.to(parameter.device, copy=True)
            continue
        moment = torch.zeros_like(parameter, requires_grad=False)
        if value.shape != local(moment).shape:
            raise Sh2Error(f"the optimizer state of `{name}` is {list(value.shape)}, not {list(parameter.shape)}")
        local(moment).copy_(value)
        optimizer.state[parameter][field] = moment
