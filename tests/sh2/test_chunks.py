"""Pieces of the length that memory allows: a piece that does not fit is halved, and nothing else changes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import sh2
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.reading.chunks import affordable, bytes_a_token, chunks
from sh2.state import ModelState
from tests.sh2.models import CONFIGS

LENGTH = 700


@pytest.fixture
def model() -> StripedHyena2:
    return StripedHyena2(next(iter(CONFIGS.values())))


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 256, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def limit(monkeypatch: pytest.MonkeyPatch, model: StripedHyena2, most: int, after: int = 0) -> list[int]:
    """Let the model run out of memory above `most` tokens a row, after `after` calls; note what it was asked."""
    hidden, asked = model.hidden, []

    def limited(ids: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState]:
        asked.append(ids.shape[1])
        if len(asked) > after and ids.shape[1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(ids, state)

    monkeypatch.setattr(model, "hidden", limited)
    return asked


@pytest.mark.parametrize(
    ("most", "fits", "after", "asked"),
    [
        (1000, 1000, 0, [700]),
        (300, 1000, 0, [300, 300, 100]),
        (1000, 200, 0, [700, 350, 175, 175, 175, 175]),
        (256, 130, 1, [256, 256, 128, 128, 128, 60]),
    ],
)
@torch.inference_mode()
def test_a_piece_that_does_not_fit_is_halved_and_the_outputs_stay(
    model: StripedHyena2,
    ids: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    fits: int,
    after: int,
    asked: list[int],
) -> None:
    want, _ = model.hidden(ids)
    calls = limit(monkeypatch, model, fits, after)
    pieces = list(chunks(model, ids, most=most))
    assert calls == asked
    ends = [start + x_BLD.shape[1] for start, x_BLD, _ in pieces]
    assert [start for start, _, _ in pieces] == [0, *ends[:-1]]
    assert ends[-1] == LENGTH
    torch.testing.assert_close(torch.cat([x_BLD for _, x_BLD, _ in pieces], dim=1), want, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_state_goes_before(model: StripedHyena2, ids: Tensor) -> None:
    want, _ = model.hidden(ids)
    *_, (_, _, state) = chunks(model, ids[:, :123], most=50)
    parts = [x_BLD for _, x_BLD, _ in chunks(model, ids[:, 123:], most=200, state=state)]
    torch.testing.assert_close(torch.cat(parts, dim=1), want[:, 123:], rtol=1e-4, atol=1e-5)


def test_what_never_fits_is_one_sentence(model: StripedHyena2, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, model, 10, after=1)
    text = r"^out of memory: 2 sequences of 100 tokens at once do not fit after 100 tokens\n"
    with pytest.raises(Sh2Error, match=text):
        list(chunks(model, ids, most=100))


def test_scores_survive_a_lack_of_memory(model: StripedHyena2, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(ids.numpy())
    want = [one.log_likelihood for one in sh2.score(model, rows)]
    limit(monkeypatch, model, 128)
    assert [one.log_likelihood for one in sh2.score(model, rows)] == pytest.approx(want, rel=1e-5)


def test_a_cpu_affords_any_length_and_wider_models_cost_more(model: StripedHyena2) -> None:
    assert affordable(model, 1000) > 1 << 40
    wide = StripedHyena2(replace(model.config, width=256))
    assert bytes_a_token(model) < bytes_a_token(wide.bfloat16()) < bytes_a_token(wide.float())


@pytest.mark.gpu
def test_gpu_half_of_the_free_memory_is_affordable(model: StripedHyena2) -> None:
    model = model.cuda()
    free, _ = torch.cuda.mem_get_info()
    one, many = affordable(model, 1), affordable(model, 64)
    assert free / 8 < one * bytes_a_token(model) <= free
    assert one == 64 * many


def test_the_fullest_of_several_gpus_decides(model: StripedHyena2, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {0: 64 << 30, 1: 1 << 30}
    parameters = [SimpleNamespace(is_cuda=True, device=torch.device("cuda", number)) for number in (0, 1, 0)]
    monkeypatch.setattr(model, "parameters", lambda: parameters)
    monkeypatch.setattr("sh2.reading.chunks.free_bytes", lambda device: free[device.index])
    monkeypatch.setattr("sh2.reading.chunks.bytes_a_token", lambda _: 3000)
    # half of 1 GiB holds 89,478 tokens of two rows
    assert affordable(model, 2) == 65_536
