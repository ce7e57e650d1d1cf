"""What is timed: a case is an operator and a size, a problem is a case with its tensors. Knows no clock and no peer."""

# B batch, L length, D width, E = 3D projected channels, G filter groups, K taps, N modes

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

import kernels

SE_TAPS, MR_TAPS, FEATURIZER_TAPS, MODES = 7, 128, 3, 16
_CHECK_LENGTH = 2051  # odd, and more blocks than one of any kernel
_SEED = 1

Outputs = tuple[Tensor, ...]


class Operator(StrEnum):
    """The operators of a StripedHyena 2 block."""

    HYENA_SE = "hyena_se"
    HYENA_MR = "hyena_mr"
    HYENA_LI = "hyena_li"


class Dtype(StrEnum):
    """The dtype of activations and weights; poles and residues are float32 in any case."""

    BF16 = "bf16"
    FP32 = "fp32"

    @property
    def torch(self) -> torch.dtype:
        return torch.bfloat16 if self is Dtype.BF16 else torch.float32


@dataclass(frozen=True, kw_only=True)
class Case:
    """An operator and a size, on a device."""

    op: Operator
    batch: int
    length: int
    width: int
    channels_per_group: int
    dtype: Dtype
    device: str

    @property
    def tensor_bytes(self) -> int:
        """Bytes of one [B, L, D] tensor."""
        return self.batch * self.length * self.width * self.dtype.torch.itemsize

    def at(self, length: int) -> "Case":
        """The same at another length, at most the case's own."""
        return replace(self, length=min(length, self.length))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A function of tensors, its inputs, and the same function written plainly.

    `call` and `definition` take the inputs in order and return outputs, the timed one first; `definition` is called
    with float64 copies.
    """

    inputs: Mapping[str, Tensor]
    call: Callable[..., Outputs]
    definition: Callable[..., Outputs]
    differentiable: bool = True


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that can be timed at a case; `make` draws its inputs in the layout and dtype that it wants."""

    name: str
    make: Callable[[Case], Problem]
    check_length: int = _CHECK_LENGTH


class Draw:
    """Random tensors of a case's dtype on its device, the same every time; never zeros: they flatter a GPU's clock."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._generator = torch.Generator(case.device).manual_seed(_SEED)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers of a standard deviation."""
        tensor = torch.empty(shape, dtype=dtype or self.case.dtype.torch, device=self.case.device)
        return tensor.normal_(std=scale, generator=self._generator)

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """Uniform float32 numbers."""
        return torch.empty(shape, device=self.case.device).uniform_(low, high, generator=self._generator)

    def channels_first(self) -> Tensor:
        """A projection z [B, 3D, L]."""
        return self.normal(self.case.batch, 3 * self.case.width, self.case.length)

    def fir(self, *, groups: int, skip: bool) -> dict[str, Tensor]:
        """Featurizer taps, inner taps of the case's operator for a count of groups, and the skip if there is one."""
        taps = SE_TAPS if self.case.op is Operator.HYENA_SE else MR_TAPS
        return {
            "featurizer": self.featurizer(),
            "taps": self.normal(groups, taps, scale=taps**-0.5),
            **({"skip": self.normal(self.case.width)} if skip else {}),
        }

    def modal(self) -> dict[str, Tensor]:
        """Featurizer taps, poles from a memory of one token to one of 10,000, residues and skip."""
        return {
            "featurizer": self.featurizer(),
            "log_poles": -self.uniform(self.case.width, MODES, low=-9.2, high=0.7).exp(),
            "residues": self.normal(self.case.width, MODES, scale=1 / MODES, dtype=torch.float32),
            "skip": self.normal(self.case.width),
        }

    def featurizer(self) -> Tensor:
        """Featurizer taps [E, K]."""
        return self.normal(3 * self.case.width, FEATURIZER_TAPS, scale=FEATURIZER_TAPS**-0.5)


def own(backend: str) -> Contender:
    """Our operator, on a backend of `kernels.Backend`."""

    def make(case: Case) -> Problem:
        draw = Draw(case)
        if case.op is Operator.HYENA_LI:
            parameters = draw.modal()
        else:
            groups = case.width // case.channels_per_group
            parameters = draw.fir(groups=groups, skip=case.op is Operator.HYENA_MR)
        return Problem(
            inputs={"z": draw.normal(case.batch, case.length, 3 * case.width), **parameters},
            call=hyena(case.op, backend),
            definition=reference(case.op),
        )

    return Contender(name="evo", make=make)


def hyena(op: Operator, backend: str) -> Callable[..., Outputs]:
    """The operator as a function of z, featurizer, filter, skip and a state, returning y and the two new states."""
    chosen = kernels.Backend(backend)

    def call(z_BLE: Tensor, featurizer_EK: Tensor, *rest: Tensor, state: Outputs | None = None) -> Outputs:
        if op is Operator.HYENA_LI:
            log_poles_DN, residues_DN, skip_D = rest
            modal = kernels.ModalState(*state) if state else None
            y_BLD, new = kernels.hyena_li(
                z_BLE, featurizer_EK, None, log_poles_DN, residues_DN, skip_D, modal, backend=chosen
            )
            return (y_BLD, *new)
        taps_GK, skip = rest[0], rest[1] if len(rest) > 1 else None
        fir = kernels.FirState(*state) if state else None
        y_BLD, past = kernels.hyena_fir(z_BLE, featurizer_EK, None, taps_GK, skip, fir, backend=chosen)
        return (y_BLD, *past)

    return call


def reference(op: Operator) -> Callable[..., Outputs]:
    """The plain-torch operator; float64 for float64 inputs."""
    return hyena(op, "reference")
