"""`evo plan` as a user meets it: the table, what fits, what is asked wrongly, and that no weights are read."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import evo_cli.planning
from evo_cli.main import app
from sh2.checkpoint import save_model
from sh2.model import StripedHyena2
from sh2.planning.speeds import KNOWN_DEVICES, Speeds, speeds_of
from tests.evo_cli.cli import rows
from tests.sh2.models import TINY


@pytest.fixture(autouse=True)
def _untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is here has the speeds of one that is not, without a trial."""

    class Known:
        def __init__(self, config, numbers, *, device, backend, tokens, rows, training, lora, streamed) -> None:  # type: ignore[no-untyped-def]
            assert (device, lora, streamed) == ("cpu", None, False)
            self.speeds = speeds_of(KNOWN_DEVICES["h100"], config, numbers, rows=rows, training=training)

        def run(self) -> Speeds:
            return self.speeds

    monkeypatch.setattr(evo_cli.planning, "Trial", Known)


def plan(*options: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, options)])


def values(result: Result) -> dict[str, str]:
    return {row["quantity"]: row["value"] for row in rows(result.stdout)}


def test_a_published_model_on_a_device_that_is_not_here() -> None:
    result = plan("-m", "evo2_7b", "-L", 8192, "--device", "h100")
    assert result.exit_code == 0, result.output
    found = values(result)
    assert found["weights"] == "12.264"
    assert found["fits"] == "yes"
    assert found["chunk"] == "8192"
    assert float(found["speed"]) == pytest.approx(8192 / float(found["time"]), rel=1e-3)
    parts = ("weights", "states", "cache", "activations", "runtime")
    assert sum(float(found[part]) for part in parts) == pytest.approx(float(found["total"]), abs=0.01)
    assert result.stderr.splitlines()[:2] == [
        "evo2_7b: 6,581.7M parameters, in bf16, on H100 80GB HBM3",
        "time: ceilings measured on one H100: 3.02 TB/s, 725 TFLOP/s in bf16; launches are not counted",
    ]


def test_what_does_not_fit_is_said_with_what_would() -> None:
    result = plan("-m", "evo2_7b", "-L", 1_000_000, "--device", "cpu", "--memory", 40)
    assert result.exit_code == 1
    found = values(result)
    assert (found["fits"], found["room"]) == ("no", "40.000")
    assert "time" not in found
    longest = int(found["longest"])
    assert f"error: score of 1,000,000 tokens, 1 at once, takes {float(found['total']):.1f} GiB of 40.0 GiB; " in (
        result.stderr
    )
    assert f"{longest:,} tokens would fit" in result.stderr
    assert plan("-m", "evo2_7b", "-L", longest, "--device", "cpu", "--memory", 40).exit_code == 0
    none = plan("-m", "evo2_40b", "-L", 1, "--device", "h100")
    assert none.exit_code == 1
    assert "no length fits" in none.stderr


def test_generation_tells_reading_from_writing_and_fp8_halves_the_cache() -> None:
    options = "-m", "evo2_7b", "-L", 102_000, "--task", "generate", "--prompt", 100_000, "--device", "h100"
    wide, narrow = values(plan(*options)), values(plan(*options, "--kv-dtype", "fp8"))
    assert float(wide["prefill"]) + float(wide["decoding"]) == pytest.approx(float(wide["time"]), rel=1e-3)
    assert float(wide["decoding_speed"]) == pytest.approx(2000 / float(wide["decoding"]), rel=1e-3)
    assert float(narrow["cache"]) < 0.6 * float(wide["cache"])
    assert float(narrow["decoding"]) < float(wide["decoding"])


def test_training_counts_the_optimizer() -> None:
    found = values(plan("-m", "nano", "-L", 1024, "-B", 8, "--task", "train", "--device", "cpu"))
    assert float(found["optimizer"]) == pytest.approx(2 * float(found["weights"]), rel=0.1)
    assert "chunk" not in found
    assert float(found["speed"]) == pytest.approx(8192 / float(found["time"]), rel=1e-3)


def test_a_folder_is_planned_by_its_configuration_alone(tmp_path: Path) -> None:
    save_model(StripedHyena2(replace(TINY, fp8_input_projections=True)), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    content = weights.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    weights.write_bytes(content[:header] + b"\xff" * (len(content) - header))  # no number of it is a number
    result = plan("-m", tmp_path / "model", "-L", 100, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'model'}: 0.1M parameters, in fp8-emulated and fp32, on cpu" in result.stderr
    assert "in bf16, on cpu" in plan("-m", tmp_path / "model", "-L", 1, "--device", "cpu", "--precision", "bf16").stderr


def test_no_time_is_said_of_what_was_not_measured() -> None:
    result = plan("-m", "evo2_7b", "-L", 100, "--device", "h100", "--precision", "fp32")
    assert result.exit_code == 0
    assert "time" not in values(result)
    assert "no time: what a H100 80GB HBM3 does in fp32 was not measured" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("-m", "evo2_7", "-L", 1), 1, "error: unknown preset `evo2_7` hint: did you mean `evo2_7b`?"),
        (
            ("-m", "absent/model", "-L", 1),
            1,
            "error: absent/model does not exist hint: give a model folder or a preset",
        ),
        (("-m", "debug", "-L", 0), 2, "--length"),
        (("-m", "debug", "-L", 1, "--task", "generate"), 2, "--prompt: must be below --length 1"),
        (("-m", "debug", "-L", 9, "--prompt", 3), 2, "--prompt: is for --task generate"),
        (("-m", "debug", "-L", 9, "--task", "generate", "--prompt", 9), 2, "--prompt: must be below --length 9"),
        (("-m", "debug", "-L", 9, "--memory", 0), 2, "--memory: must be above 0, not 0"),
        (("-m", "debug", "-L", 9, "--task", "train", "--precision", "fp8"), 2, "training runs in bf16 or fp32"),
        (("-m", "debug", "-L", 9, "--precision", "fp8", "--device", "cpu"), 1, "the device has no FP8 products"),
        (("-m", "debug", "-L", 9, "--device", "tpu"), 1, "error: unknown device `tpu`"),
        (("-m", __file__, "-L", 9), 1, "error: "),
    ],
)
def test_what_is_asked_wrongly_is_said(options: tuple[object, ...], code: int, says: str) -> None:
    result = plan(*options)
    assert result.exit_code == code
    assert says in " ".join(result.stderr.split())
    assert not result.stdout


def test_a_model_over_gpus_that_are_not_here_is_told_of_each() -> None:
    result = plan("-m", "evo2_40b", "-L", 8192, "--device", "h100+h100", "--precision", "bf16")
    assert result.exit_code == 0, result.output
    found = values(result)
    assert [found[f"blocks[cuda:{gpu}]"] for gpu in (0, 1)] == ["25", "25"]
    for gpu in (0, 1):
        parts = ("weights", "states", "cache", "activations", "runtime")
        total = sum(float(found[f"{part}[cuda:{gpu}]"]) for part in parts)
        assert total == pytest.approx(float(found[f"total[cuda:{gpu}]"]), abs=0.01)
    alone = values(plan("-m", "evo2_40b", "-L", 8192, "--device", "h100", "--precision", "bf16", "--memory", 200))
    weights = [float(found[f"weights[cuda:{gpu}]"]) for gpu in (0, 1)]
    assert sum(weights) == pytest.approx(float(alone["weights"]), abs=0.01)
    assert (found["fits"], found["time"]) == ("yes", alone["time"])
    assert result.stderr.startswith("evo2_40b: 41,117.6M parameters, in bf16, on h100+h100\n")


def test_a_model_streamed_from_the_host_is_told_of_both() -> None:
    found = values(result := plan("-m", "evo2_40b", "-L", 8192, "--device", "h100+cpu", "--precision", "bf16"))
    assert result.exit_code == 0, result.output
    assert (
        float(found["weights[cuda:0]"]) < 2 / 3 * 79 < 76 < float(found["weights[cuda:0]"]) + float(found["streamed"])
    )
    assert (found["weights[cpu]"], found["blocks[cpu]"]) == (found["streamed"], "0")
    # a token waits for the weights, thousands do not
    alone = values(plan("-m", "evo2_40b", "-L", 8192, "--device", "h100", "--precision", "bf16", "--memory", 200))
    assert found["time"] == alone["time"]
    writes = values(
        plan("-m", "evo2_40b", "-L", 101, "--task", "generate", "--device", "h100+cpu", "--precision", "bf16")
    )
    link = KNOWN_DEVICES["h100"].host_bytes_per_second
    assert float(writes["decoding"]) == pytest.approx(100 * float(writes["streamed"]) * 2**30 / link, rel=1e-3)


def test_weights_in_fp8_let_the_40b_fit_one_gpu() -> None:
    whole, packed = (
        plan("-m", "evo2_40b", "-L", 8192, "--device", "h100", "--precision", precision)
        for precision in ("auto", "fp8-weights")
    )
    assert (whole.exit_code, packed.exit_code) == (1, 0)
    assert values(packed)["weights"] == "38.336"
    assert "in fp8 and bf16, weights kept in FP8, on H100" in packed.stderr


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("-m", "evo2_40b", "--device", "h100+cuda:0"), "`h100+cuda:0` mixes devices that are here with others"),
        (("-m", "evo2_40b", "--device", "cuda:7+cuda:8"), "there is no device `cuda:7`"),
        (
            ("-m", "evo2_40b", "--device", "cpu+cpu", "--memory", 1),
            "takes 180.313 GiB of 1.000 on `cpu`; no",
        ),
        (("-m", "nano", "--device", "h100+h100", "--task", "train"), "training is not split over `h100+h100`"),
        (("-m", "evo2_40b", "--device", "h100+h100", "--memory", 30), "the model does not fit"),
    ],
)
def test_splits_that_cannot_be_are_refused(options: tuple[object, ...], error: str) -> None:
    result = plan(*options, "-L", 8192)
    assert result.exit_code == 1
    assert error in result.output + str(result.exception)
