"""Layers joined with what stands around them: the same numbers in fewer launches, where that is all there is."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from kernels import few_rows
from sh2 import joined
from sh2.model import StripedHyena2
from sh2.state import select
from tests.kernels.definitions import relative_error
from tests.sh2.models import CONFIGS


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """As on a GPU, with the kernels' references in their place, counted."""
    counted: Counter[str] = Counter()
    monkeypatch.setattr(joined, "_few", few_rows)
    for name in ("linear_step", "gated_step"):

        def call(*args: object, name: str = name, run: object = getattr(joined, name), **kwargs: object) -> Tensor:
            counted[name] += 1
            y: Tensor = run(*args, **kwargs)  # type: ignore[operator]
            return y

        monkeypatch.setattr(joined, name, call)
    return counted


def ids(B: int, L: int) -> Tensor:
    return torch.randint(0, 256, (B, L), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def step_twice(model: StripedHyena2, ids_BL: Tensor) -> Tensor:
    """The logits of two steps after a pass over all but the last two tokens."""
    _, state = model(ids_BL[:, :-2])
    state = select(state, torch.arange(len(ids_BL), device=ids_BL.device))
    logits = []
    for ids_B in ids_BL[:, -2:].unbind(1):
        logits_BV, state = model.step(ids_B, state)
        logits.append(logits_BV)
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_joined_layers_give_the_logits_of_one_pass(name: str, calls: Counter[str]) -> None:
    model, ids_BL = StripedHyena2(CONFIGS[name]).eval(), ids(2, 33)
    with torch.inference_mode():
        want = model(ids_BL)[0][:, -2:]
    assert relative_error(step_twice(model, ids_BL), want) < 1e-5
    kinds = model.config.kinds
    hyena = sum(kind.value != "*" for kind in kinds)  # attention whose keys lie in no slots runs as a pass
    if model.config.feed_forward == "hyena_se":
        assert calls == {"linear_step": 2 * (2 * hyena + 2 * len(kinds))}
    else:
        assert calls == {"linear_step": 2 * (2 * hyena + len(kinds)), "gated_step": 2 * len(kinds)}


def test_more_rows_are_products(calls: Counter[str]) -> None:
    step_twice(StripedHyena2(CONFIGS["striped"]).eval(), ids(5, 9))
    assert not calls


@pytest.mark.parametrize("watched", ["blocks.0.mixer.input", "blocks.0.mixer_norm"])
def test_a_watched_layer_is_run_by_itself(watched: str, calls: Counter[str]) -> None:
    model, ids_BL = StripedHyena2(CONFIGS["striped"]).eval(), ids(1, 20)
    want, plain = step_twice(model, ids_BL), calls.copy()
    seen = []
    model.get_submodule(watched).register_forward_hook(lambda _, inputs, output: seen.append(output.shape[1]))
    assert torch.equal(step_twice(model, ids_BL), want)
    assert seen == [18, 1, 1]
    assert calls["linear_step"] == 2 * plain["linear_step"] - 2


def test_a_layer_in_fp8_is_run_by_itself(calls: Counter[str]) -> None:
    model, ids_BL = StripedHyena2(CONFIGS["striped"]).eval(), ids(1, 20)
    step_twice(model, ids_BL)
    plain = calls["linear_step"]
    model.use_precision("fp8-emulated")
    step_twice(model, ids_BL)
    hyena = sum(kind.value != "*" for kind in model.config.kinds)
    assert calls["linear_step"] == 2 * plain - 2 * hyena


@pytest.mark.parametrize("name", CONFIGS)
def test_sums_in_products_give_what_sums_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids_BL = StripedHyena2(CONFIGS[name]).eval(), ids(2, 33)
    with torch.inference_mode():
        want, want_state = model(ids_BL)
        seen = []
        monkeypatch.setattr(joined, "_summing", lambda x_BLD: True)
        hook = model.get_submodule("blocks.1").register_forward_hook(lambda _, inputs, output: seen.append(output[0]))
        logits, state = model(ids_BL[:, :20])
        kept = seen[0].clone()
        rest, state = model(ids_BL[:, 20:], state)
        hook.remove()
        assert torch.equal(seen[0], kept)  # what a block gave is nobody's to change
        assert relative_error(torch.cat([logits, rest], dim=1), want) < 1e-5
        for part, whole in zip(state, want_state, strict=True):
            assert relative_error(part.mixer[0], whole.mixer[0]) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_gpu_joined_layers_give_the_logits_of_one_pass(name: str, dtype: torch.dtype) -> None:
    model, ids_BL = StripedHyena2(CONFIGS[name]).eval().cuda().to(dtype), ids(3, 33).cuda()
    with torch.inference_mode():
        want = model(ids_BL)[0][:, -2:]
    assert relative_error(step_twice(model, ids_BL), want) < (1e-5 if dtype is torch.float32 else 0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_sums_in_products_give_what_sums_give(dtype: torch.dtype) -> None:
    model, ids_BL = StripedHyena2(CONFIGS["striped"]).eval().cuda().to(dtype), ids(2, 33).cuda()
    want = model(ids_BL)[0]
    with torch.inference_mode():
        assert relative_error(model(ids_BL)[0], want) < (1e-5 if dtype is torch.float32 else 0.02)
