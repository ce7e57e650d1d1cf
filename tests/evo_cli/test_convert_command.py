"""`evo convert` as a user meets it."""

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import sh2
from evo_cli.commands.convert import convert
from sh2.errors import Sh2Error
from tests.sh2.published_files import BASE, published_tensors


def run(*arguments: object) -> tuple[str, str]:
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(convert)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


@pytest.fixture
def published(tmp_path: Path) -> Path:
    save_file(published_tensors(BASE), tmp_path / "state_dict.safetensors")
    (tmp_path / "keys.json").write_text(json.dumps(BASE))
    return tmp_path / "state_dict.safetensors"


def test_there_and_back(tmp_path: Path, published: Path) -> None:
    stdout, stderr = run(published, tmp_path / "m", "--config", tmp_path / "keys.json")
    assert stdout == ""
    assert f"wrote {tmp_path}/m" in stderr
    assert sh2.load(tmp_path / "m").config.layout == "SML*"
    run(tmp_path / "m", tmp_path / "back.safetensors", "--to", "published")
    back = load_file(tmp_path / "back.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in published_tensors(BASE).items())
    assert (tmp_path / "back.yml").read_text().startswith("model_name:")


def test_without_a_configuration_it_says_what_to_do(tmp_path: Path, published: Path) -> None:
    with pytest.raises(Sh2Error, match=r"state_dict\.safetensors needs the configuration of its model") as caught:
        run(published, tmp_path / "m")
    assert "--config FILE" in caught.value.__notes__[0]
    assert not (tmp_path / "m").exists()


def test_a_configuration_with_an_unknown_key_is_named(tmp_path: Path, published: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps(BASE | {"colour": 1}))
    with pytest.raises(Sh2Error, match=r"keys\.json: unknown key `colour`"):
        run(published, tmp_path / "m", "--config", tmp_path / "keys.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.json", "state_dict.safetensors"]


def test_a_file_is_no_model_folder(tmp_path: Path, published: Path) -> None:
    with pytest.raises(Sh2Error, match=r"m\.pt is the name of a file") as caught:
        run(published, tmp_path / "m.pt", "--config", tmp_path / "keys.json")
    assert "--to published" in caught.value.__notes__[0]


def test_help_has_worked_examples() -> None:
    stdout, _ = run("--help")
    assert stdout.count("\n    evo convert ") == 5  # one a line, not rewrapped
