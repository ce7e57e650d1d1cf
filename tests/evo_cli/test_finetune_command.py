"""`evo finetune` and `evo predict` as people meet them: what they find, say, refuse and leave behind."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sh2
from evo_cli.finetuning.metrics import measure
from evo_cli.main import app
from sh2.checkpoint import save_model
from sh2.heads import load_head
from sh2.reading.embedding import embed
from tests.evo_cli.cli import evo as evo_process
from tests.evo_cli.cli import rows
from tests.sh2.models import tiny


def sequences(count, seed):
    """Random bases, in half of them a motif; and whether."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        bases = rng.choices("ACGT", k=rng.randrange(40, 60))
        if number % 2:
            place = rng.randrange(len(bases) - 16)
            bases[place : place + 16] = "TATAATTATAATTATA"
        found.append(("".join(bases), number % 2))
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, a table with classes, records and a table of measurements of them."""
    path = tmp_path_factory.mktemp("home")
    save_model(tiny(seed=1), path / "model")
    examples = sequences(120, 0)
    lines = "".join(f"{bases}\t{'motif' if has else 'none'}\n" for bases, has in examples)
    (path / "classes.tsv").write_text(f"sequence\tlabel\n{lines}")
    (path / "seqs.fa").write_text("".join(f">s{n}\n{bases.lower()}\n" for n, (bases, _) in enumerate(examples)))
    numbers = "".join(f"s{n}\t{100 * bases.count('G') / len(bases):.3f}\n" for n, (bases, _) in enumerate(examples))
    (path / "constant.tsv").write_text("".join(f"{bases}\t1.5\n" for bases, _ in examples))
    (path / "numbers.tsv").write_text(f"name\tlabel\n{numbers}")
    return path


@pytest.fixture
def evo(home, tmp_path, monkeypatch):
    for file in home.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, list(map(str, words)))


def error_of(result):
    """The exit code, the error and its hint, as one line each."""
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    return result.exit_code, *lines


def test_a_head_is_fitted_measured_and_used(evo, tmp_path):
    result = evo("finetune", "classes.tsv", "--model", "model", "-o", "run")

    assert result.exit_code == 0, result.stderr
    assert "data: 120 examples, 96 train, 12 valid, 12 test; classification: 2 classes (motif, none)" in result.stderr
    table = rows(result.stdout)
    assert [(row["split"], row["metric"]) for row in table] == [
        *(("valid", "accuracy"), ("valid", "auroc"), ("test", "accuracy"), ("test", "auroc"))
    ]
    assert float(table[3]["value"]) > 0.8
    assert float(table[3]["low"]) <= float(table[3]["value"]) <= float(table[3]["high"])
    assert (tmp_path / "run" / "metrics.tsv").read_text() == result.stdout
    assert not (tmp_path / "run" / "model").exists()
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    assert description["identity"]["options"]["layer"] == "blocks.3"

    predicted = rows(evo("predict", "seqs.fa", "--head", "run").stdout)
    assert [row["record"] for row in predicted] == [f"s{number}" for number in range(120)]
    right = [row["prediction"] == ("motif" if number % 2 else "none") for number, row in enumerate(predicted)]
    assert sum(right) > 100
    assert all(abs(float(row["p_motif"]) + float(row["p_none"]) - 1) < 1e-5 for row in predicted)


def test_a_prediction_is_the_head_s_of_the_embedding(evo, tmp_path):
    words = ["finetune", "seqs.fa", "--labels", "numbers.tsv", "--model", "model", "--layer", "1", "--pool", "max"]
    result = evo(*words, "-o", "run")
    assert result.exit_code == 0, result.stderr
    assert [row["metric"] for row in rows(result.stdout)] == ["spearman", "r2"] * 2

    predicted = rows(evo("predict", "seqs.fa", "--head", "run").stdout)

    head, name, _ = load_head(tmp_path / "run" / "head.safetensors")
    assert name == str(tmp_path / "model")
    texts = [line.upper() for line in (tmp_path / "seqs.fa").read_text().splitlines()[1::2]]
    vectors = embed(sh2.load("model"), texts, ["1"], pooling="max")
    wanted = head.outputs(torch.from_numpy(np.concatenate(vectors)))[:, 0]
    np.testing.assert_allclose([float(row["prediction"]) for row in predicted], wanted.numpy(), rtol=2e-5)


@pytest.mark.parametrize("train", ["adapters", "all"])
def test_a_model_is_trained_with_its_head(evo, tmp_path, train):
    words = ["finetune", "classes.tsv", "--model", "model", "--train", train, "--epochs", 2, "--lr", "1e-3"]
    result = evo(*words, "--lora-rank", 2, "-o", "run")

    assert result.exit_code == 0, result.stderr
    told = [line for line in result.stderr.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in told] == ["epoch 0", "epoch 1", "epoch 2"]
    losses = [float(line.rsplit(" ", 1)[1]) for line in told]
    assert f"kept: the model after epoch {losses.index(min(losses))}" in result.stderr
    assert (tmp_path / "run" / "adapter.safetensors").exists() == (train == "adapters")
    assert sh2.load("run/model").state_dict().keys() == sh2.load("model").state_dict().keys()
    # moved elsewhere, without the model it began from, it is still whole
    shutil.move("run", "moved")
    (tmp_path / "model").unlink()
    predicted = evo("predict", "seqs.fa", "--head", "moved")
    assert predicted.exit_code == 0, predicted.stderr
    assert "warning" not in predicted.stderr


def test_empty_records_are_passed_over_and_what_is_finished_is_left(evo, tmp_path):
    evo("finetune", "classes.tsv", "--model", "model", "-o", "run")
    (tmp_path / "some.fa").write_text(">a\nACGTACGT\n>empty\n>b\nTATAATTATAAT\n")

    result = evo("predict", "some.fa", "--head", "run", "-o", "out.tsv")

    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    table = rows((tmp_path / "out.tsv").read_text())
    assert [(row["record"], row["length"]) for row in table] == [("a", "8"), ("empty", "0"), ("b", "12")]
    assert {table[1][name] for name in ("prediction", "p_motif", "p_none")} == {"NA"}
    assert "3 records: 2 ok, 1 empty" in result.stderr
    assert "out.tsv is finished: nothing to do" in evo("predict", "some.fa", "--head", "run", "-o", "out.tsv").stderr


def test_another_model_is_pointed_out(evo, tmp_path):
    evo("finetune", "classes.tsv", "--model", "model", "-o", "run")
    save_model(tiny(seed=9), tmp_path / "other")

    result = evo("predict", "seqs.fa", "--head", "run", "--model", "other")

    assert "warning: the head was trained on other weights, or weights in other numbers, than those of other" in (
        result.stderr
    )


def test_the_same_command_gives_the_same_head(evo, tmp_path):
    words = ["finetune", "classes.tsv", "--model", "model", "--train", "adapters", "--epochs", 1]
    first, second = evo(*words, "-o", "one"), evo(*words, "-o", "two")

    assert first.stdout == second.stdout
    heads = [load_head(tmp_path / run / "head.safetensors")[0] for run in ("one", "two")]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert (tmp_path / "one/model/model.safetensors").read_bytes() == (
        tmp_path / "two/model/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["finetune", "none.tsv", "--model", "model"], "none.tsv", None),
        (["finetune", "classes.tsv", "--model", "nowhere"], "nowhere does not exist", "give a path"),
        (["finetune", "classes.tsv", "--model", "model", "--layer", "7"], "the model has no layer `7`", "there are"),
        (
            ["finetune", "seqs.fa", "--model", "model"],
            "seqs.fa: is FASTA, which holds no labels",
            "give a table of names",
        ),
        (
            ["finetune", "classes.tsv", "--model", "model", "--task", "regression"],
            "a label of a regression must be a number, not `none`",
            "give `--task classification`",
        ),
        (
            ["finetune", "classes.tsv", "--model", "model", "--valid", "0"],
            "no example is for valid, of 120",
            "give more, a larger share",
        ),
        (
            ["finetune", "classes.tsv", "--model", "model", "--train", "all", "--recompute", "some"],
            "train field `recompute` must be `none` or `selective` or `full` or `nested`, not 'some'",
            None,
        ),
        (
            ["finetune", "classes.tsv", "--model", "model", "--train", "all", "--lr", "-1"],
            "train field `lr` must be a number above 0, not -1.0",
            None,
        ),
        (
            ["finetune", "constant.tsv", "--model", "model", "--task", "regression"],
            "all 96 examples to train on have the label 1.5",
            None,
        ),
        (["predict", "seqs.fa", "--head", "model"], "model/head.safetensors cannot be read", None),
    ],
)
def test_a_mistake_is_one_line_and_a_way_out(evo, words, error, hint):
    result = evo(*words, *(["-o", "run"] if words[0] == "finetune" else []))

    code, message, *hints = error_of(result)
    assert code == 1, result.stderr
    assert error in message
    assert hint is None or hints[0].startswith(f"hint: {hint}")
    assert result.stdout == ""


def test_many_processes_are_told_that_one_does_it(evo, monkeypatch):
    for name, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    result = evo("finetune", "classes.tsv", "--model", "model", "-o", "run")
    assert error_of(result) == (
        1,
        "error: a head, and a model with it, are trained in one process",
        "hint: start without torchrun",
    )


def test_records_without_a_label_are_counted(evo, tmp_path):
    (tmp_path / "some.tsv").write_text("".join(f"s{n}\t{n % 2}\n" for n in range(90)))
    result = evo("finetune", "seqs.fa", "--labels", "some.tsv", "--model", "model", "-o", "run")
    assert result.exit_code == 0, result.stderr
    assert "warning: 30 of 120 records of seqs.fa have no label in some.tsv: `s90` first" in result.stderr


def test_a_folder_with_a_head_is_not_overwritten_unasked(evo):
    words = ["finetune", "classes.tsv", "--model", "model", "-o", "run"]
    assert evo(*words).exit_code == 0

    assert error_of(evo(*words)) == (
        1,
        "error: run already holds `head.safetensors`",
        "hint: give another folder with `-o`, or --overwrite",
    )
    assert evo(*words, "--overwrite").exit_code == 0


def test_metrics_of_numbers_that_are_known():
    """By hand: two of three right; AUROC of one positive above one of two negatives; R2 and ranks of a shifted line."""
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    of_classes = {one.metric: one for one in measure("test", logits, np.array([0.0, 1.0, 0.0]), classes=2, seed=0)}
    line = np.array([[1.0], [2.0], [3.0]])
    of_numbers = {one.metric: one for one in measure("test", line, np.array([2.0, 3.0, 4.0]), classes=0, seed=0)}

    assert of_classes["accuracy"].estimate.value == pytest.approx(2 / 3)
    assert of_classes["auroc"].estimate.value == pytest.approx(0.5)
    assert of_numbers["spearman"].estimate.value == pytest.approx(1.0)
    assert of_numbers["r2"].estimate.value == pytest.approx(1 - 3 / 2)


def test_processes_of_their_own_do_both(evo, tmp_path):
    tuned = evo_process("finetune", "classes.tsv", "--model", "model", "-o", "run", cwd=tmp_path)
    predicted = evo_process("predict", "-", "--head", "run", stdin=">a\nACGTACGTAC\n", cwd=tmp_path)

    assert (tuned.returncode, predicted.returncode) == (0, 0), tuned.stderr + predicted.stderr
    assert [row["record"] for row in rows(predicted.stdout)] == ["a"]
