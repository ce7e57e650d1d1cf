"""`evo bench train` and `evo bench data`: the tables, what is counted, and what runs out of memory."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from data.prepare import PrepareOptions, prepare
from evo_cli import bench_tables
from evo_cli.main import app
from sh2.bench import llama, timing
from sh2.bench import train as bench_train
from sh2.bench.timing import Ceilings
from sh2.bench.train import products_of
from sh2.model import StripedHyena2
from sh2.planning.accounting import forward_flops
from sh2.presets import preset
from sh2.train.config import Precision, TrainConfig
from sh2.train.loader import HostBatch
from tests.evo_cli.cli import rows
from tests.sh2.models import CONFIGS


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "is_installed", lambda: False)
    limits = Ceilings(copy_bytes_per_second=1e10, matmul_flops_per_second=1e12)
    monkeypatch.setattr(bench_train, "measure_ceilings", lambda device, stopwatch, dtype: limits)
    monkeypatch.setattr(bench_train, "_BUDGET_SECONDS", 0.0)
    monkeypatch.setattr(timing, "_CPU_BUDGET_SECONDS", 0.0)
    monkeypatch.setattr(bench_tables, "_DATA_SECONDS", 0.05)


def bench(*options: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, options)])


def train(*options: object) -> Result:
    return bench("train", "--device", "cpu", "--preset", "debug", "--batch", "2", *options)


def test_a_model_is_timed_beside_its_transformer(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    result = train("--lengths", "24,40", "--recompute", "full", "--accumulation", "2", "-o", path)
    assert result.exit_code == 0, result.output
    table = rows(result.stdout)
    assert [(row["model"], row["length"]) for row in table] == [
        ("debug", "24"),
        ("debug-transformer", "24"),
        ("debug", "40"),
        ("debug-transformer", "40"),
    ]
    assert {(row["precision"], row["compile"], row["recompute"], row["batch"]) for row in table} == {
        ("fp32", "False", "full", "4")
    }
    own, twin = (json.loads(line) for line in path.read_text().splitlines()[2:])
    for record, name in ((own, "debug"), (twin, "debug-transformer")):
        assert record["tokens_per_s"] == pytest.approx(4 * 40 / record["seconds"])
        flops = 3 * 4 * sum(forward_flops(preset(name), 40).values()) / record["seconds"]
        assert record["tflops"] == pytest.approx(flops / 1e12)
        assert record["mfu"] == pytest.approx(flops / 1e12)
        assert record["x_products"] > 0.5
    assert own["x_transformer"] == pytest.approx(own["tokens_per_s"] / twin["tokens_per_s"])
    assert twin["x_transformer"] is None
    assert own["machine"]["torch"] == torch.__version__
    assert own["accumulation"] == 2


def test_a_llama_of_that_size_runs_beside_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(llama, "is_installed", lambda: True)
    path = tmp_path / "train.jsonl"
    assert train("--lengths", "24", "--accumulation", "2", "-o", path).exit_code == 0
    _, twin, other = (json.loads(line) for line in path.read_text().splitlines())
    assert other["model"] == "llama (transformers)"
    assert (other["batch"], other["note"]) == (4, "")
    assert other["x_transformer"] == pytest.approx(other["tokens_per_s"] / twin["tokens_per_s"])
    assert other["tflops"] * other["seconds"] == pytest.approx(twin["tflops"] * twin["seconds"])
    for options in (("--alone",), ("--recompute", "full")):
        assert "llama" not in train("--lengths", "24", *options).stdout


def test_the_llama_has_the_transformer_s_matrices_and_learns() -> None:
    shape = preset("debug-transformer")
    torch.manual_seed(0)
    model = llama.make_llama(shape, 24, torch.device("cpu"))
    ours = sum(one.numel() for one in StripedHyena2(shape).parameters() if one.ndim == 2)
    theirs = {one.data_ptr(): one.numel() for one in model.parameters() if one.ndim == 2}
    assert sum(theirs.values()) == ours
    config = TrainConfig(steps=1, batch_size=2, length=24, precision=Precision.FP32)
    tokens = torch.randint(65, 85, (2, 25))
    batch = HostBatch(
        tokens=tokens,
        weights=torch.ones(2, 24),
        document_starts=torch.zeros(2, 25, dtype=torch.bool),
        weight=48.0,
    )
    update, losses = llama.make_update(model, config), []
    for _ in range(20):
        losses.append(model(input_ids=tokens, labels=tokens).loss.item())  # type: ignore[operator]
        update(batch)
    assert losses[-1] < losses[0] - 0.5


def test_one_may_be_left_out() -> None:
    (row,) = rows(train("--lengths", "16", "--alone").stdout)
    assert (row["model"], row["x_transformer"], row["note"]) == ("debug", "", "")


def test_a_lack_of_memory_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench_train.Updates

    def small(model: StripedHyena2, *rest: object) -> object:
        if set(model.config.layout) == {"*"}:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bench_train, "Updates", small)
    result = train("--lengths", "16")
    assert result.exit_code == 0, result.output
    own, twin = rows(result.stdout)
    assert (own["x_transformer"], own["note"]) == ("", "")
    assert (twin["tokens_per_s"], twin["note"]) == ("", "out of memory")


def test_what_breaks_has_no_figure_and_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_train, "build_optimizer", lambda model, config: 1 / 0)
    result = train("--lengths", "16", "--alone")
    assert result.exit_code == 1
    assert rows(result.stdout)[0]["note"] == "ZeroDivisionError: division by zero"
    assert "error: 1 of our rows failed the check and have no figure" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--lengths", "8k"), 2, "--lengths: `8k`: give whole numbers above 0, joined by commas"),
        (("--lengths", "1"), 1, "train field `length` must be at least 2, not 1"),
        (("--recompute", "all"), 1, "must be `none` or `selective` or `full` or `nested`, not 'all'"),
        (("--preset", "debugg"), 1, "unknown preset `debugg`"),
        (("--batch", "0"), 2, "--batch"),
    ],
)
def test_what_cannot_be_timed_is_said(options: tuple[str, ...], code: int, says: str) -> None:
    result = train(*options)
    assert result.exit_code == code, result.output
    assert says in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "grouped heads, biases, untied"])
@torch.no_grad()
def test_products_are_those_of_the_model(name: str) -> None:
    config = CONFIGS[name]
    taken: Counter[tuple[int, int]] = Counter()
    model = StripedHyena2(config)
    for part in model.modules():
        if isinstance(part, torch.nn.Linear):
            taken[part.in_features, part.out_features] += 1
    taken[config.width, config.vocab_size] += 1
    assert products_of(config) == taken


def test_windows_are_timed(tmp_path: Path) -> None:
    fasta, store = tmp_path / "bases.fa", tmp_path / "store.h5"
    fasta.write_text(">one\n" + "ACGT" * 2000 + "\n")
    prepare([fasta], store, PrepareOptions(), None)
    result = bench("data", store, "--lengths", "100,1000", "--batch", "3", "-o", tmp_path / "data.jsonl")
    assert result.exit_code == 0, result.output
    for row, length in zip(rows(result.stdout), (100, 1000), strict=True):
        assert int(row["length"]) == length
        made = int(row["windows"]) * length
        assert float(row["tokens_per_s"]) == pytest.approx(made / float(row["seconds"]), rel=1e-2)
        assert float(row["mb_per_s"]) == pytest.approx(float(row["tokens_per_s"]) / 1e6, rel=1e-2)
    assert json.loads((tmp_path / "data.jsonl").read_text().splitlines()[0])["store"] == str(store)


def test_no_store_is_said(tmp_path: Path) -> None:
    result = bench("data", tmp_path / "absent.h5")
    assert result.exit_code == 1
    assert "absent.h5: no such token store" in result.stderr
