"""The self-test: what is right passes, and each way of being wrong fails its own check with its cause."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sh2
from sh2.checkpoint import save_model
from sh2.model import StripedHyena2
from sh2.reading.selftest import Check, selftest
from sh2.state import ModelState
from tests.sh2.models import CONFIGS, TINY

SEQUENCE = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", dtype=np.uint8), 600).tobytes()


def checks(model: StripedHyena2, **options: object) -> dict[str, Check]:
    return {one.name: one for one in selftest(model.eval(), SEQUENCE, SEQUENCE[::-1], **{"name": "tiny", **options})}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_agrees_with_itself(name: str) -> None:
    found = checks(StripedHyena2(CONFIGS[name]))
    for check in ("finite", "pieces", "steps", "forks", "strands"):
        assert found[check].passed, found[check]
    assert found["pieces"].value < 1e-4
    for check in ("kernels", "rounding", "fp8", "published_loss"):
        assert found[check].passed is None
        assert found[check].note
    assert found["bits_per_base"].passed is False
    assert found["bits_per_base"].note.startswith("the model looks untrained")


def test_bits_and_accuracy_are_those_of_the_predictions() -> None:
    model = StripedHyena2(TINY)

    def always_a(x_BLD: Tensor) -> Tensor:
        logits_BLV = torch.full((*x_BLD.shape[:2], 512), -1e4)
        logits_BLV[..., list(b"ACGT")] = torch.tensor([0.4, 0.2, 0.2, 0.2]).log()
        return logits_BLV

    model.logits = always_a  # type: ignore[method-assign]
    found = checks(model)
    share = SEQUENCE[1:].count(b"A") / (len(SEQUENCE) - 1)
    assert found["accuracy"].value == pytest.approx(share)
    assert found["bits_per_base"].value == pytest.approx(-share * np.log2(0.4) - (1 - share) * np.log2(0.2), rel=1e-6)
    assert found["bits_per_base"].passed


def forget(model: StripedHyena2) -> None:
    hidden = model.hidden

    def forgetful(ids: Tensor, state: ModelState | None = None, **rest: object) -> tuple[Tensor, ModelState]:
        return hidden(ids, None if ids.shape[1] == 129 else state)

    model.hidden = forgetful  # type: ignore[method-assign, assignment]


def stumble(model: StripedHyena2) -> None:
    step = model.step
    model.step = lambda ids, state: (step(ids, state)[0].roll(1, dims=-1), state)  # type: ignore[method-assign]


def mix_rows(model: StripedHyena2) -> None:
    logits = model.logits
    model.logits = lambda x: logits(x + 0.1 * x.roll(1, dims=0))  # type: ignore[method-assign]


def overflow(model: StripedHyena2) -> None:
    model.norm.scale.data[3] = float("inf")


@pytest.mark.parametrize(
    ("spoil", "check", "note"),
    [
        (forget, "pieces", "states are not carried on right"),
        (stumble, "steps", "decoding differs from reading"),
        (mix_rows, "forks", "a row depends on its batch mates"),
        (overflow, "finite", "logits that are NaN or infinite"),
    ],
)
def test_what_is_wrong_fails_its_check(spoil: Callable[[StripedHyena2], None], check: str, note: str) -> None:
    model = StripedHyena2(TINY)
    spoil(model)
    failed = {name: one for name, one in checks(model).items() if one.passed is False and name != "bits_per_base"}
    assert list(failed) == [check]
    assert failed[check].note.startswith(note)


def test_fp8_must_be_in_effect_where_a_model_was_trained_with_it() -> None:
    model = StripedHyena2(replace(TINY, fp8_input_projections=True)).use_precision("fp8-emulated")
    found = checks(model)["fp8"]
    assert found.passed
    assert found.value > 1e-3
    assert model.blocks[0].mixer.input.precision == "fp8-emulated"
    found = checks(model.use_precision("fp32"))["fp8"]
    assert found.passed is False
    assert found.note == "FP8 is not in effect, and the model was trained with it: run with --precision auto"


def test_bf16_is_held_to_the_same_weights_in_fp32() -> None:
    model = StripedHyena2(TINY).bfloat16()
    ids = torch.from_numpy(np.frombuffer(SEQUENCE, dtype=np.uint8).astype(np.int64))[None]
    found = checks(model)["rounding"]
    with torch.inference_mode():
        got, want = model(ids)[0].float(), StripedHyena2(TINY).bfloat16().float()(ids)[0]
    assert found.value == pytest.approx(float((got - want).norm() / want.norm()), rel=1e-4)
    assert found.passed


def test_published_values_need_their_prompts() -> None:
    model = StripedHyena2(TINY)
    found = checks(model, name="evo2_1b_base")["published_loss"]
    assert found.passed is None
    assert "published: loss 0.50195, accuracy 79.56%" in found.note
    found = checks(model, name="evo2_1b_base", prompts=[b"ACGTACGT", b"GGGTTTAC"])
    assert found["published_loss"].passed is False
    assert found["published_loss"].allowed == "0.50195 +- 0.02"
    assert found["published_loss"].value > 4
    assert found["published_accuracy"].passed is False


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_kernels_are_held_to_plain_torch(dtype: torch.dtype) -> None:
    found = checks(StripedHyena2(replace(TINY, width=128)).to("cuda", dtype))
    assert found["kernels"].passed
    assert all(one.passed is not False for name, one in found.items() if name != "bits_per_base")


def test_weights_in_fp8_are_no_reason_to_fail(tmp_path: Path) -> None:
    save_model(StripedHyena2(replace(TINY, fp8_input_projections=True)), tmp_path / "model")
    packed = sh2.load(tmp_path / "model", fp8_weights=True).use_precision("auto")
    assert checks(packed)["fp8"].passed
