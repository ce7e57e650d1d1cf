"""A model over several processes is the model in one: logits, loss and every gradient."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import hyena_li
from sh2.parallel.sharding import Shards
from sh2.sharing import Sharding
from tests.kernels import definitions
from tests.sh2.parallel.cases import (
    CONFIGS,
    Case,
    in_one_process,
    in_processes,
    modal_inputs,
    modal_kernels_in_many,
    over_data_and_context,
    run_cases,
)

METHODS = [
    ("state", "ring"),
    ("a2a", "a2a"),
    ("a2a-pipelined", "ring"),
    ("p2p", "a2a"),
    ("p2p-overlapped", "ring"),
    ("p2p-fft", "ring"),
]
OTHER = "grouped heads, biases, untied, hyena_se feed-forward"
CASES = [
    # every method, under both shardings
    *(
        Case(ranks=ranks, convolution=convolution, attention=attention, sharding=sharding)
        for ranks in (2, 4)
        for convolution, attention in METHODS
        for sharding in ("contiguous", "zigzag")
    ),
    # biases, heads that share keys and values, mixers for feed-forward layers
    *(
        Case(ranks=2, convolution=convolution, attention=attention, sharding=sharding, model=OTHER)
        for (convolution, attention), sharding in zip(METHODS, ["contiguous", "zigzag"] * 3, strict=True)
    ),
    *(Case(ranks=4, convolution=method, sharding="zigzag", model=OTHER) for method in ("state", "p2p-fft")),
    # no past to speak of, activations made again, a number of ranks that divides nothing
    *(Case(ranks=2, convolution=method, model="featurizers of one tap") for method in ("state", "p2p-overlapped")),
    *(Case(ranks=2, convolution=method, recompute=True) for method in ("state", "a2a-pipelined")),
    Case(ranks=2, convolution="state", sharding="zigzag", compiled=True),
    *(Case(ranks=3, convolution="state", sharding=sharding) for sharding in ("contiguous", "zigzag")),
    Case(ranks=3, convolution="p2p", sharding="zigzag", model=OTHER),
    # eight
    Case(ranks=8, convolution="state"),
    Case(ranks=8, convolution="state", sharding="zigzag"),
    Case(ranks=8, convolution="a2a", attention="a2a", sharding="zigzag"),
    Case(ranks=8, convolution="p2p-fft", attention="a2a"),
    Case(ranks=8, convolution="p2p-fft", sharding="zigzag"),
]


@cache
def alone(model: str, device: str) -> dict[str, Tensor]:
    return in_one_process(model, device)


def differences(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> list[str]:
    """What is off by more than a share of a tensor's largest number."""
    assert got.keys() == want.keys()
    found = []
    for name, tensor in want.items():
        largest = float(tensor.abs().max())
        assert largest > 0, f"{name} tells nothing"
        error = float((got[name] - tensor).abs().max()) / largest
        if not error <= tolerance:
            found.append(f"{name} {error:.1e}")
    return found


# all cases of a number of ranks in one start of processes
@pytest.mark.parametrize("ranks", sorted({case.ranks for case in CASES}))
def test_all_is_as_in_one_process(ranks: int, tmp_path: Path) -> None:
    cases = [case for case in CASES if case.ranks == ranks]
    in_processes(ranks, run_cases, cases, tmp_path, "cpu", folder=tmp_path)
    off = {
        str(case): found
        for case in cases
        if (found := differences(torch.load(tmp_path / f"{case}.pt"), alone(case.model, "cpu"), 1e-5))
    }
    assert off == {}


def test_with_fsdp_over_data_and_context(tmp_path: Path) -> None:
    in_processes(4, over_data_and_context, tmp_path, folder=tmp_path)
    want = {name: tensor for name, tensor in alone("striped", "cpu").items() if name not in ("logits", "loss")}
    assert differences(torch.load(tmp_path / "gradients.pt"), want, 1e-5) == []


def test_kernels_that_stop_halfway_for_the_modes(tmp_path: Path) -> None:
    *leaves, dy = modal_inputs()
    leaves = [tensor.requires_grad_() for tensor in leaves]
    y, _ = hyena_li(*leaves, None)
    want = [y, *torch.autograd.grad(y, leaves, dy)]
    in_processes(2, modal_kernels_in_many, tmp_path, folder=tmp_path)
    for sharding in Sharding:
        shards = Shards(rank=0, ranks=2, sharding=sharding)
        parts = [torch.load(tmp_path / f"{sharding} {rank}.pt") for rank in range(2)]
        y, dz, *filters = zip(*parts, strict=True)
        got = [shards.join(y), shards.join(dz), *map(sum, filters)]
        for one, other in zip(got, want, strict=True):
            assert definitions.relative_error(one, other) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("model", CONFIGS)
def test_two_gpus_are_as_one(model: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has fewer than two GPUs")
    every = [
        Case(ranks=2, convolution=convolution, attention=attention, sharding=sharding, model=model)
        for convolution, attention in METHODS
        for sharding in ("contiguous", "zigzag")
    ]
    cases = list(dict.fromkeys([*every, *(case for case in CASES if case.ranks == 2 and case.model == model)]))
    in_processes(2, run_cases, cases, tmp_path, "cuda", folder=tmp_path, device="cuda")
    off = {
        str(case): found
        for case in cases
        if (found := differences(torch.load(tmp_path / f"{case}.pt"), alone(model, "cuda"), 1e-4))
    }
    assert off == {}
