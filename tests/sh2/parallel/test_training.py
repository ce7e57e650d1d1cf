"""Training is the same whatever the processes: windows, lengths, channels and weights shared, stopped and gone on."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sh2.checkpoint.safetensors_file import read_safetensors
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.parallel.processes import Place
from sh2.train.config import TrainConfig
from sh2.train.copies import Copies
from sh2.train.together import Together
from tests.sh2.parallel.cases import in_processes
from tests.sh2.parallel.training import (
    MODELS,
    SETTINGS,
    STRIPED,
    Case,
    metrics,
    train,
    train_cases,
    train_cases_emulated,
    train_emulated,
)

OTHER = "biases, shared keys, untied, hyena_se feed-forward"
CASES = {
    2: [
        Case(parallel="dp=2"),
        Case(parallel="tp=2"),
        Case(parallel="tp=2", model=OTHER),
        Case(parallel="cp=2", cp_method="a2a", cp_attention="a2a", recompute="full"),
        Case(parallel="dp=2", model=OTHER, freeze=("mixers",)),
        Case(parallel="dp=2", lora_rank=2),
    ],
    4: [
        Case(parallel="dp=2,cp=2", cp_sharding="zigzag"),
        Case(parallel="dp=2,tp=2", model=OTHER),
        Case(parallel="cp=2,tp=2", cp_method="p2p-overlapped"),
        Case(parallel="dp=4"),
        Case(parallel="dp=4", model=OTHER, lora_rank=2),
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@cache
def alone(
    folder: Path,
    model: str,
    freeze: tuple[str, ...] = (),
    lora_rank: int = 0,
    precision: str = "fp32",
    device: str = "cpu",
) -> Path:
    case = Case(parallel="dp", model=model, freeze=freeze, lora_rank=lora_rank, precision=precision)
    train(case, folder / "alone", None, device)
    return folder / "alone" / case.name


def differences(run: Path, other: Path) -> dict[str, float]:
    """The largest difference of each number that both write at every step, as a share of it."""
    lines, others = metrics(run), metrics(other)
    assert [line.keys() for line in lines] == [line.keys() for line in others]
    assert len(lines) == SETTINGS["steps"]
    return {
        key: max(abs(a[key] / b[key] - 1) for a, b in zip(lines, others, strict=True) if key in a)
        for key in lines[-1]
        if key not in ("step", "tokens", "lr")
    }


@pytest.mark.parametrize("ranks", CASES)
def test_every_number_is_that_of_one_process(ranks: int, runs: Path) -> None:
    in_processes(ranks, train_cases, CASES[ranks], runs, "cpu", folder=runs)

    for case in CASES[ranks]:
        one = alone(runs, case.model, case.freeze, case.lora_rank)
        found = differences(runs / case.name, one)
        assert found.keys() == {"loss", "bits_per_base", "grad_norm", "valid_loss", "valid_bits_per_base"}
        assert max(found.values()) < 1e-5, (case, found)
        # and the first weights are the same bytes
        first, many = (run / "initial" / "model.safetensors" for run in (one, runs / case.name))
        assert many.read_bytes() == first.read_bytes(), case


def test_bf16_rounds_in_many_processes_as_in_one(tmp_path: Path) -> None:
    cases = [Case(parallel=parallel, precision="bf16") for parallel in ("dp=2", "cp=2", "tp=2")]
    in_processes(2, train_cases, cases, tmp_path, "cpu", folder=tmp_path)

    for case in cases:
        found = differences(tmp_path / case.name, alone(tmp_path, "striped", precision="bf16"))
        assert max(found.values()) < 0.02, (case, found)
    whole = read_safetensors(tmp_path / cases[0].name / "checkpoints" / "step_00000006" / "model" / "model.safetensors")
    assert {lazy.dtype for lazy in whole.values()} == {torch.float32}


def test_fp8_rounds_in_many_processes_as_in_one_but_for_the_scales_of_their_tokens(tmp_path: Path) -> None:
    """Each process scales its own tokens by their largest number."""
    cases = [Case(parallel=parallel, model=OTHER, fp8_linears=True, precision="bf16") for parallel in ("dp=2", "cp=2")]
    in_processes(2, train_cases_emulated, cases, tmp_path, folder=tmp_path)
    one = Case(parallel="dp", model=OTHER, fp8_linears=True, precision="bf16")
    train_emulated(one, tmp_path, None)

    for case in cases:
        found = differences(tmp_path / case.name, tmp_path / one.name)
        found.pop("grad_norm")  # of later steps: norms of so small a model are noise by then
        assert max(found.values()) < 0.03, (case, found)
        first, wanted = (metrics(tmp_path / name)[0]["grad_norm"] for name in (case.name, one.name))
        assert first == pytest.approx(wanted, rel=0.06)
    weights, whole = (
        read_safetensors(tmp_path / name / "model" / "model.safetensors") for name in (cases[0].name, one.name)
    )
    assert weights.keys() == whole.keys()
    assert {lazy.dtype for lazy in weights.values()} == {torch.float32}


def test_others_go_on_with_what_two_began(tmp_path: Path) -> None:
    """Two processes stop after two updates, four after two more, and one goes to the end."""
    first = Case(parallel="tp=2", resumes="run", stops_after=2)
    second = Case(parallel="cp=2,tp=2", cp_sharding="zigzag", resumes="run", stops_after=2)
    third = Case(parallel="dp", resumes="run")
    in_processes(2, train_cases, [first], tmp_path, "cpu", folder=tmp_path)
    in_processes(4, train_cases, [second], tmp_path, "cpu", folder=tmp_path)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4]
    train(third, tmp_path, None)

    want = alone(tmp_path, "striped")
    assert max(differences(tmp_path / "run", want).values()) < 1e-5
    for part in ("model/model.safetensors", "checkpoints/step_00000006/optimizer.safetensors"):
        tensors, wanted = (read_safetensors(run / part) for run in (tmp_path / "run", want))
        assert tensors.keys() == wanted.keys()
        for name, tensor in tensors.items():  # the first steps of Adam make much of gradients that are all but zero
            want_one = wanted[name].read()
            assert (tensor.read() - want_one).norm() <= 1e-3 * want_one.norm(), name
    sharding, parallel = json.loads((tmp_path / "run" / "notes.json").read_text())
    assert sharding.startswith("warning: the run began with cp_sharding zigzag and goes on with contiguous")
    assert parallel.startswith("warning: the run began with parallel dp=1,cp=2,tp=2 and goes on with dp=1,cp=1,tp=1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 3}, "the 3 windows of a forward pass cannot be shared equally by dp=2 processes"),
        ({"parallel": "cp=2", "reset_documents": True}, "cp=2 cannot cut windows whose documents are reset"),
        ({"parallel": "tp=2", "fp8_linears": True}, "FP8 linears are not cut over tp"),
        ({"parallel": "tp=2", "filter_statistics": 3}, "statistics of filters need whole filters, which tp cuts"),
        (
            {"parallel": "cp=2", "cp_sharding": "zigzag", "length": 98},
            "a sequence of 98 tokens cannot be cut into 4 equal pieces, as 2 ranks with zigzag shards need",
        ),
        ({"parallel": "dp=3"}, "parallel `dp=3` needs 3 processes; there are 2"),
    ],
)
def test_what_two_processes_cannot_do_is_refused(settings: dict[str, Any], message: str) -> None:
    place = Place(rank=0, ranks=2, local_rank=0, address="here", port=1)
    processes: Any = SimpleNamespace(place=place, leads=True)  # nothing has to be sent for that

    with pytest.raises(Sh2Error) as caught:
        Together(StripedHyena2(STRIPED), TrainConfig.from_dict({**SETTINGS, **settings}), processes)

    assert str(caught.value) == message
    assert caught.value.__notes__


def test_adapters_share_windows_alone_and_go_on_with_any_number(tmp_path: Path) -> None:
    place = Place(rank=0, ranks=2, local_rank=0, address="here", port=1)
    processes: Any = SimpleNamespace(place=place, leads=True)
    with pytest.raises(Sh2Error, match="adapters are trained with dp alone, not dp=1,cp=1,tp=2"):
        Copies(Case(parallel="tp=2", lora_rank=2).config(), processes)

    first = Case(parallel="dp=2", lora_rank=2, resumes="run", stops_after=3)
    in_processes(2, train_cases, [first], tmp_path, "cpu", folder=tmp_path)
    assert len(metrics(tmp_path / "run")) == 3
    train(Case(parallel="dp", lora_rank=2, resumes="run"), tmp_path, None)

    assert max(differences(tmp_path / "run", alone(tmp_path, "striped", lora_rank=2)).values()) < 1e-5
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_*6")
    assert (checkpoint / "adapter.safetensors").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_gpus_train_as_one(precision: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has fewer than two GPUs")
    cases = [
        Case(parallel=f"{way}=2", model=model, precision=precision) for way in ("dp", "cp", "tp") for model in MODELS
    ]
    cases.append(Case(parallel="dp=2", precision=precision, compile=True))
    in_processes(2, train_cases, cases, tmp_path, "cuda", folder=tmp_path, device="cuda")

    for case in cases:
        found = differences(tmp_path / case.name, alone(tmp_path, case.model, precision=precision, device="cuda"))
        assert max(found.values()) < {"fp32": 1e-4, "bf16": 0.03}[precision], (case, found)
