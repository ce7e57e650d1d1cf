"""Choosing what runs the hyena operators: what is refused and in which words, and that no file keeps the choice."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels import Backend
from sh2.checkpoint import load, save_model
from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.mixers import Hyena
from sh2.model import StripedHyena2
from tests.sh2.models import CONFIGS, TINY, tiny


def backends(model: StripedHyena2) -> set[Backend]:
    return {module.backend for module in model.modules() if isinstance(module, Hyena)}


@pytest.mark.parametrize("name", ["striped", "hyena_se feed-forward"])
def test_every_hyena_mixer_takes_the_backend(name: str) -> None:
    model = StripedHyena2(CONFIGS[name])
    assert backends(model) == {Backend.AUTO}
    assert backends(model.use_backend("triton")) == {Backend.TRITON}
    assert backends(model.use_backend(Backend.REFERENCE)) == {Backend.REFERENCE}
    assert backends(StripedHyena2(CONFIGS[name])) == {Backend.AUTO}


def test_a_model_without_hyena_mixers_takes_any_backend() -> None:
    assert tiny("attention only").use_backend("triton")(torch.zeros(1, 2, dtype=torch.long))[0].shape == (1, 2, 512)


@torch.inference_mode()
def test_the_backend_runs_the_model() -> None:
    model, ids_BL = tiny(), torch.arange(65, 72)[None]
    torch.testing.assert_close(
        model.use_backend("triton")(ids_BL)[0], model.use_backend("reference")(ids_BL)[0], rtol=1e-4, atol=1e-5
    )


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(Sh2Error) as caught:
        tiny().use_backend("cuda")
    assert caught.value.args == ("unknown backend `cuda`",)
    assert caught.value.__notes__ == ["use auto, triton, reference"]


@pytest.mark.parametrize(
    ("config", "dtype", "sentence"),
    [
        (
            TINY,
            torch.float64,
            "hyena_fir: {} the dtype is torch.float64; the kernels take float32, bfloat16 and float16",
        ),
        (
            replace(TINY, mr_taps=300),
            torch.float32,
            "hyena_fir: {} 300 inner taps; the kernels take at most 256",
        ),
        (
            replace(TINY, num_modes=40),
            torch.float32,
            "hyena_li: {} there are 40 modes a channel; the kernels take at most 32",
        ),
    ],
)
def test_triton_is_refused_where_it_cannot_run(config: ModelConfig, dtype: torch.dtype, sentence: str) -> None:
    model = StripedHyena2(config).to(dtype)
    with pytest.raises(Sh2Error) as caught:
        model.use_backend("triton")
    assert caught.value.args == (sentence.format("the Triton kernels cannot run here:"),)
    assert caught.value.__notes__[0].startswith("the backend `auto` takes plain torch where the kernels cannot run")
    assert backends(model) == {Backend.AUTO}


def test_no_file_keeps_the_backend(tmp_path: Path) -> None:
    for backend in Backend:
        save_model(tiny().use_backend(backend), tmp_path / backend)
    written = [{file.name: file.read_bytes() for file in (tmp_path / backend).iterdir()} for backend in Backend]
    assert written[0] == written[1] == written[2]
    assert backends(load(tmp_path / "triton")) == {Backend.AUTO}
