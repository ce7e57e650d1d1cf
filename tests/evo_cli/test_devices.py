"""`--device` with several devices: what it means, what is refused, and the same bytes as one device."""

import random
from pathlib import Path

import pytest
import torch

from evo_cli.checkup import device_for
from evo_cli.inference import BackendName, Precision, load_model, resolve_device, resolve_devices
from sh2.errors import Sh2Error
from sh2.presets import preset
from tests.evo_cli.cli import evo


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many GPUs, as far as counting them goes."""
    count: int = request.param
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    return count


@pytest.mark.parametrize(
    ("gpus", "text", "want"),
    [
        (0, "auto", ["cpu"]),
        (0, "cpu,cpu", ["cpu", "cpu"]),
        (0, "cpu+cpu", ["cpu+cpu"]),
        (3, "auto", ["cuda"]),
        (3, "all", ["cuda:0", "cuda:1", "cuda:2"]),
        (1, "all", ["cuda:0"]),
        (3, "cuda:0,cuda:2", ["cuda:0", "cuda:2"]),
        (3, "cuda:0, cuda:2", ["cuda:0", "cuda:2"]),
        (3, "cuda:0+cuda:1", ["cuda:0+cuda:1"]),
        (4, "cuda:0+cuda:1,cuda:2+cuda:3", ["cuda:0+cuda:1", "cuda:2+cuda:3"]),
        (3, "cuda:2+cpu", ["cuda:2+cpu"]),
        (3, "cuda:0+cpu,cuda:1+cpu", ["cuda:0+cpu", "cuda:1+cpu"]),
    ],
    indirect=["gpus"],
)
def test_devices_are_resolved(gpus: int, text: str, want: list[str]) -> None:
    assert resolve_devices(text) == want


@pytest.mark.parametrize(
    ("gpus", "text", "error"),
    [
        (0, "all", "there is no GPU for `--device all`"),
        (0, "cuda:0,cuda:1", "there is no device `cuda:0`: torch sees 0 GPUs"),
        (2, "cuda:0,cuda:2", "there is no device `cuda:2`: torch sees 2 GPUs"),
        (2, "cuda:0,cuda", "`--device cuda:0,cuda` names a GPU twice"),
        (2, "cuda:0+cuda:1,cuda:1", r"`--device cuda:0\+cuda:1,cuda:1` names a GPU twice"),
        (2, "cuda:0+cuda:0", r"`cuda:0\+cuda:0` names a GPU twice"),
        (2, "cuda:0,cpu", "`--device cuda:0,cpu` mixes GPUs and the CPU, which round differently"),
        (2, "cuda:0,", "unknown device ``"),
        (2, "cuda:0,all", "unknown device `all`"),
        (2, "meta", "unknown device `meta`"),
        (2, "meta,meta", "unknown device `meta`"),
    ],
    indirect=["gpus"],
)
def test_devices_that_are_not_there_or_make_no_sense_are_refused(gpus: int, text: str, error: str) -> None:
    with pytest.raises(Sh2Error, match=error):
        resolve_devices(text)


GIB = 2**30


@pytest.mark.parametrize(
    ("name", "gpus", "host", "want"),
    [
        ("evo2_7b", [], 64 * GIB, "cpu"),
        ("evo2_40b", [], 64 * GIB, None),
        ("evo2_7b", [24 * GIB], 64 * GIB, "cuda:0"),
        ("evo2_7b", [12 * GIB] * 2, 64 * GIB, "cuda:0+cuda:1"),
        ("evo2_40b", [80 * GIB], 128 * GIB, "cuda:0+cpu"),
        ("evo2_40b", [80 * GIB] * 4, 128 * GIB, "cuda:0+cuda:1"),
        ("evo2_40b", [24 * GIB], 32 * GIB, None),
    ],
)
def test_doctor_knows_on_which_devices_a_model_goes(name: str, gpus: list[int], host: int, want: str | None) -> None:
    assert device_for(preset(name), gpus, host) == want


def test_scores_are_the_same_bytes_on_several_devices(tmp_path: Path, model_folder: Path) -> None:
    rng = random.Random(0)
    records = tmp_path / "records.fa"
    texts = ["".join(rng.choices("ACGT", k=rng.randint(1, 90))) for _ in range(40)]
    records.write_text("".join(f">record{number}\n{text}\n" for number, text in enumerate(texts)))
    one, two = (evo("score", records, "--model", model_folder, "--device", device) for device in ("cpu", "cpu,cpu+cpu"))
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert one.stdout == two.stdout
    assert one.stdout.count("\n") == 41
    # of two copies, the first alone talks
    assert "2 copies of the model, on cpu, cpu+cpu" in two.stderr
    assert two.stderr.count("0.1M parameters, float32, on cpu") == 1
    assert two.stderr.count("precision: fp32") == 1


def test_a_command_for_one_device_refuses_several() -> None:
    with pytest.raises(Sh2Error, match="unknown device `cpu,cpu`"):
        resolve_device("cpu,cpu")
    with pytest.raises(Sh2Error, match="this command runs one copy of the model, not one on each of `cpu,cpu`"):
        load_model("evo2_7b", "cpu,cpu", Precision.AUTO, BackendName.AUTO)
