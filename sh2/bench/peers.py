"""Others' operators by name: for which of ours each stands, and what it needs to run."""

import importlib.util
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from sh2.bench.cases import Case, Contender, Operator, Problem
from sh2.bench.convolutions import (
    FFT_CHECK_LENGTH,
    cudnn_b2b,
    torch_conv1d,
    torch_conv1d_transposed,
    torch_fft,
    vtx_triton,
)
from sh2.bench.mixers import ATTENTION_CHECK_LENGTH, RECURRENT_CHECK_LENGTH, attention, linear, mamba2

_FIR = frozenset({Operator.HYENA_SE, Operator.HYENA_MR})


@dataclass(frozen=True, kw_only=True)
class Peer(Contender):
    """A contender of another project."""

    ops: frozenset[Operator] = frozenset(Operator)
    ours: bool = True  # computes our operator; if not, one measurement serves all three
    module: str = "torch"
    packages: tuple[str, ...] = ()
    gpu: bool = False  # runs on CUDA GPUs only

    def missing(self, case: Case) -> str | None:
        """Say what keeps this peer from running here; None if nothing known does."""
        if importlib.util.find_spec(self.module) is None:
            return f"not installed: pip install {shlex.join(self.packages)}"
        if (self.gpu or self.packages) and torch.device(case.device).type != "cuda":
            return "needs a CUDA GPU"
        return None


def _attention(name: str, backend: str, *, gpu: bool = False) -> Peer:
    return Peer(name=name, make=attention(backend), ours=False, check_length=ATTENTION_CHECK_LENGTH, gpu=gpu)


def _recurrent(name: str, make: Callable[[Case], Problem], module: str, package: str) -> Peer:
    return Peer(
        name=name, make=make, ours=False, check_length=RECURRENT_CHECK_LENGTH, module=module, packages=(package,)
    )


def _fla(name: str, make: Callable[[Case], Problem]) -> Peer:
    return _recurrent(name, make, "fla", "flash-linear-attention")


_CUDNN = "nvidia-cudnn-frontend>=1.32", "nvidia-cudnn-cu13>=9.24"

PEERS: tuple[Peer, ...] = (
    Peer(name="conv1d", make=torch_conv1d, ops=_FIR),
    Peer(name="conv1d_transposed", make=torch_conv1d_transposed, ops=_FIR),
    Peer(name="fft", make=torch_fft, ops=frozenset({Operator.HYENA_LI}), check_length=FFT_CHECK_LENGTH),
    _attention("sdpa_flash", "FLASH_ATTENTION"),
    _attention("sdpa_efficient", "EFFICIENT_ATTENTION", gpu=True),
    _attention("sdpa_cudnn", "CUDNN_ATTENTION", gpu=True),
    _attention("sdpa_math", "MATH"),
    _fla("deltanet", linear("delta_rule", beta=True)),
    _fla("gated_deltanet", linear("gated_delta_rule", decays=3, beta=True)),
    _fla("gla", linear("gla", decays=4)),
    _fla("simple_gla", linear("simple_gla", decays=3)),  # Mamba-2's recurrence, with keys a head
    _recurrent("mamba2", mamba2, "mamba_ssm", "mamba-ssm"),
    Peer(name="cudnn_b2b", make=cudnn_b2b, ops=_FIR, module="cudnn", packages=_CUDNN),
    # last: its 32-bit addresses do not reach a million tokens, and a crashed GPU spoils what follows
    Peer(name="vtx", make=vtx_triton, module="vortex", packages=("vtx",)),
)


def peer_versions() -> dict[str, str]:
    """The versions of the packages that peers come from, of those that are installed."""
    found = {}
    for name in sorted({"fla-core", *(package.split(">")[0] for peer in PEERS for package in peer.packages)}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
