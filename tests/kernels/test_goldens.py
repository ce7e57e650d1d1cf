"""The operators against vectors computed by the published inference code: prefill, state, nine single steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kernels import channel_fir, hyena_fir, hyena_li
from tests.kernels.definitions import relative_error

FOLDER = Path(__file__).parents[1] / "assets" / "goldens" / "ops"
CASES = [f"{dtype}.L{length}" for dtype in ("fp32", "bf16") for length in (6, 64, 128, 150)]
# in bfloat16 the published code rounds after every operation, ours once
TOLERANCE = {"fp32": 2e-6, "bf16": 8e-3}
STEPS = 9


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    return load_file(FOLDER / "ops.safetensors")


def weights_of(vectors: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    """The case's weights in its dtype, taps turned to ours: tap 0 on the current token."""
    weights = {
        name.removeprefix("w."): tensor
        if case.startswith("fp32") or "poles" in name or "residues" in name
        else tensor.bfloat16()
        for name, tensor in vectors.items()
        if name.startswith("w.")
    }
    weights["short"] = weights["short"].squeeze(1).flip(-1)
    weights["hcs_h"] = weights["hcs_h"].squeeze(1).flip(-1)
    weights["hcm_h"] = weights["hcm_h"].squeeze(1)
    weights["log_poles"] = weights["log_poles"].squeeze(-1)
    return weights


def operators(weights: dict[str, Tensor]) -> dict[str, Callable[[Tensor, Any], tuple[Tensor, Any]]]:
    """The three inner operators, with a featurizer that does nothing: the vectors start after it."""
    none = torch.ones(weights["short"].shape[0], 1)
    return {
        "hcs": lambda z, state: hyena_fir(z, none, None, weights["hcs_h"], None, state),
        "hcm": lambda z, state: hyena_fir(z, none, None, weights["hcm_h"], weights["hcm_D"], state),
        "hcl": lambda z, state: hyena_li(
            z, none, None, weights["log_poles"], weights["residues"], weights["hcl_D"], state
        ),
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["hcs", "hcm", "hcl"])
def test_an_operator_gives_the_published_outputs_state_and_steps(
    vectors: dict[str, Tensor], case: str, kind: str
) -> None:
    operator = operators(weights_of(vectors, case))[kind]
    tolerance = TOLERANCE[case[:4]]
    z_BLE = vectors[f"{case}.z_pre"].mT
    length = z_BLE.shape[1] - STEPS
    y_BLD, state = operator(z_BLE[:, :length], None)
    want = vectors[f"{case}.{kind}.y"]
    assert relative_error(y_BLD, want if kind == "hcl" else want.mT) < tolerance

    want_state = vectors[f"{case}.{kind}.state"]
    got_state = state[1] if kind == "hcl" else state[1][:, -want_state.shape[-1] :].mT
    assert relative_error(got_state, want_state) < tolerance

    for step in range(STEPS):
        y_B1D, state = operator(z_BLE[:, length + step : length + step + 1], state)
        assert relative_error(y_B1D[:, 0], vectors[f"{case}.{kind}.steps"][..., step]) < tolerance


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["short", "short_b"])
def test_the_featurizer_gives_the_published_outputs_state_and_steps(
    vectors: dict[str, Tensor], case: str, name: str
) -> None:
    weights = weights_of(vectors, case)
    bias_E = weights["short_bias"].float() if name == "short_b" else 0.0
    u_BLE = vectors[f"{case}.u"].float()
    length = u_BLE.shape[1] - STEPS
    f_BLE, past = channel_fir(u_BLE[:, :length], weights["short"].float())
    assert relative_error(f_BLE + bias_E, vectors[f"{case}.{name}.z"].mT) < TOLERANCE[case[:4]]
    assert torch.equal(past.mT, vectors[f"{case}.{name}.state"].float())
    for step in range(STEPS):
        f_B1E, past = channel_fir(u_BLE[:, length + step : length + step + 1], weights["short"].float(), past)
        want = vectors[f"{case}.{name}.steps"][..., step]
        assert relative_error(f_B1E[:, 0] + bias_E, want) < TOLERANCE[case[:4]]


def test_the_long_filter_is_the_published_one(vectors: dict[str, Tensor]) -> None:
    weights = weights_of(vectors, "fp32")
    impulse_BLE = torch.zeros(1, 150, 48)
    impulse_BLE[:, 0, 16:] = 1.0
    impulse_BLE[..., :16] = 1.0
    skip = torch.zeros(16)
    y_BLD, _ = hyena_li(impulse_BLE, torch.ones(48, 1), None, weights["log_poles"], weights["residues"], skip)
    assert relative_error(y_BLD[0].mT, vectors["fp32.L150.hcl.filter"]) < 2e-6
