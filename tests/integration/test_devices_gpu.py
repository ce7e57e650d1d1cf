"""On GPUs: copies of a model, a model over two GPUs, and one whose weights stream from the host's memory."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sh2
from sh2.checkpoint import loading, save_model
from sh2.config import ModelConfig
from sh2.devices.placement import HOST
from sh2.devices.replicas import Replicas
from sh2.devices.streaming import Ring
from sh2.model import StripedHyena2
from sh2.presets import preset
from tests.sh2 import jobs
from tests.sh2.models import TINY

pytestmark = pytest.mark.gpu
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

LONG = replace(TINY, layout="SML*SML*SM")
SMALL = replace(preset("25m"), layout="SML*SMLSML*SML")
TEXTS = ["ACGTACCA" * 40, "GATTACA" * 30]
# weights of 0.6 GB a block, so that copies take their time
WIDE = ModelConfig(
    width=4096, layout="SML*SMLSML", num_heads=32, mlp_width=11264, se_groups=256, mr_groups=256, mr_skip=True
)


@torch.inference_mode()
def results(model: StripedHyena2) -> tuple[list[Tensor], list[float], list[str]]:
    device = model.embedding.weight.device
    ids_BL = torch.randint(0, 256, (2, 700), generator=torch.Generator().manual_seed(1)).to(device)
    starts_BL = (torch.arange(700, device=device) % 97 == 5).expand(2, -1)
    first, state = model(ids_BL[:, :300])
    second, _ = model(ids_BL[:, 300:], state)
    documents, _ = model(ids_BL, document_starts_BL=starts_BL)
    assert first.device == second.device == device
    likelihoods = [one.log_likelihood for one in sh2.score(model, TEXTS, chunk=128)]
    texts = [one.text for one in sh2.generate(model, TEXTS, length=50, samples=3, alphabet="ACGT")]
    return [first.cpu(), second.cpu(), documents.cpu()], likelihoods, texts


def same(spread: StripedHyena2, whole: StripedHyena2) -> None:
    ours, theirs = results(spread), results(whole)
    assert all(torch.equal(left, right) for left, right in zip(ours[0], theirs[0], strict=True))
    assert ours[1:] == theirs[1:]


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("free", [0.5, 0.8])
def test_a_streamed_model_is_the_same_model(
    free: float, fp8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With free memory as if the GPU had room for a part of the weights alone."""
    config = replace(SMALL, fp8_input_projections=fp8)
    model = StripedHyena2(config, seed=1).bfloat16()
    save_model(model, tmp_path / "m")
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    monkeypatch.setattr(loading, "free_bytes", lambda _: int(1.5 * free * weights * (1.3 if fp8 else 1)))
    spread = sh2.load(tmp_path / "m", device="cuda:0+cpu")
    monkeypatch.undo()
    kept = {str(block.mixer_norm.scale.device) for block in spread.blocks}
    assert kept == {"cpu", "cuda:0"}
    whole = sh2.load(tmp_path / "m", device="cuda:0")
    same(spread, whole)
    if not fp8:  # as --precision bf16 does, which casts nothing here
        same(spread.use_precision("bf16"), whole)


@torch.inference_mode()
def test_copies_and_blocks_run_at_the_same_time() -> None:
    """A pass that takes as long as its copies hides most of them."""
    with torch.device("cuda"):
        model = StripedHyena2(WIDE).bfloat16()
    ids_BL = torch.randint(0, 256, (1, 65_536), device="cuda")

    def seconds(length: int) -> float:
        model.hidden(ids_BL[:, :length])
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(3):
            model.hidden(ids_BL[:, :length])
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / 3

    lengths = [4096, 8192, 16_384, 32_768, 65_536]
    resident = {length: seconds(length) for length in lengths}
    for block in model.blocks:
        block.to("cpu")
    Ring(list(model.blocks), torch.device("cuda:0"))
    copies = seconds(1)
    length = min(lengths, key=lambda length: abs(resident[length] - copies))
    streamed = seconds(length)
    figures = f"{length} tokens: {resident[length]:.3f} s resident, {copies:.3f} s of copies, {streamed:.3f} s streamed"
    print(figures)  # noqa: T201
    assert streamed < 1.15 * max(resident[length], copies), figures
    # a long pass hides them all
    assert seconds(65_536) < 1.1 * max(resident[65_536], copies), figures


@two_gpus
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_a_model_over_two_gpus_is_the_same_model_and_neither_holds_it_all(fp8: bool, tmp_path: Path) -> None:
    model = StripedHyena2(replace(SMALL, fp8_input_projections=fp8), seed=1).bfloat16()
    save_model(model, tmp_path / "m")
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    for device in range(2):
        torch.cuda.reset_peak_memory_stats(device)
    before = [torch.cuda.memory_allocated(device) for device in range(2)]
    spread = sh2.load(tmp_path / "m", device="cuda:0+cuda:1")
    peaks = [torch.cuda.max_memory_allocated(device) - before[device] for device in range(2)]
    assert max(peaks) < 0.65 * weights
    same(spread, sh2.load(tmp_path / "m", device="cuda:0"))


@pytest.mark.parametrize(
    "devices", [["cuda:0", "cuda:0"], pytest.param(["cuda:0", "cuda:1"], marks=two_gpus)], ids=["one GPU", "two GPUs"]
)
def test_copies_give_the_bytes_of_one(devices: list[str]) -> None:
    texts = [[text, text[:17]] for text in TEXTS * 6]
    want = list(Replicas(jobs.load, ["cuda:0"]).map(jobs.scored, texts))
    got = list(Replicas(jobs.load, devices).map(jobs.scored, texts))
    for ours, theirs in zip(got, want, strict=True):
        assert [row.tobytes() for row in ours] == [row.tobytes() for row in theirs]


def test_weights_that_wait_in_the_host_s_memory_are_page_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(StripedHyena2(LONG, seed=1), tmp_path / "m")
    monkeypatch.setattr(loading, "free_bytes", lambda _: 400_000)
    model = sh2.load(tmp_path / "m", device="cuda:0+cpu")
    waiting = [block for block in model.blocks if block.mixer_norm.scale.device == HOST]
    assert waiting
    assert all(parameter.is_pinned() for block in waiting for parameter in block.parameters())
    assert model.embedding.weight.is_cuda
