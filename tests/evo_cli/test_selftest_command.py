"""`evo selftest`: the table, the exit code, and prompts that are no prompts."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import sh2.reading.selftest
from data.known import PHIX174
from data.reader import read_records
from evo_cli.main import app
from tests.evo_cli.cli import rows

GENOMES = Path(__file__).parents[1] / "assets" / "genomes"


def selftest(*options: object) -> Result:
    return CliRunner().invoke(app, ["selftest", "--device", "cpu", *map(str, options)])


def test_the_known_sequence_is_that_of_the_record() -> None:
    (record,) = read_records(GENOMES / "phix174_NC_001422.gbk")
    assert record.sequence.upper().startswith(PHIX174)
    assert len(PHIX174) == 1500


def test_a_model_of_random_weights_fails_by_its_likelihood_alone(model_folder: Path) -> None:
    result = selftest("-m", model_folder)
    assert result.exit_code == 1
    table = rows(result.stdout)
    assert [row["check"] for row in table if row["result"] == "fail"] == ["bits_per_base"]
    assert "the model looks untrained" in next(row["note"] for row in table if row["result"] == "fail")
    assert result.stderr.splitlines()[-2:] == ["error: 1 of 6 checks failed", "hint: `note` has the likely cause"]


def test_all_checks_passed_is_exit_0(model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sh2.reading.selftest, "_MOST_BITS", 20.0)
    prompts = tmp_path / "prompts.fa"
    prompts.write_text(">a\nacgtacgtacgt\n>b\nGGCC\n")
    result = selftest("-m", model_folder, "--prompts", prompts)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[-1] == "6 checks passed"
    assert {row["result"] for row in rows(result.stdout)} == {"pass", "none"}


def test_prompts_that_predict_nothing_are_named(model_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.fa"
    prompts.write_text(">long\nACGT\n>short\nA\n")
    result = selftest("-m", model_folder, "--prompts", prompts)
    assert result.exit_code == 1
    assert f"error: {prompts}: record `short` has 1 bases: too few to predict" in result.stderr
    assert not result.stdout
    missing = selftest("-m", model_folder, "--prompts", tmp_path / "absent.fa")
    assert missing.exit_code == 1
    assert "absent.fa: cannot be read" in missing.stderr
