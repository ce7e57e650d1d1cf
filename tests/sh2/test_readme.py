"""The page of the Python API: its examples run in order, what they assert holds, what the page names is there."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sh2.checkpoint import save_model
from sh2.model import StripedHyena2
from tests.sh2.models import TINY

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "sh2" / "README.md"
SCRIPT = re.compile(r"# (\w+\.py)\n")
TEXT = PAGE.read_text()
MODEL = StripedHyena2(replace(TINY, mr_taps=128))  # the published format has a skip from so many taps on


def blocks() -> list[tuple[int, str]]:
    """Every python block of the page, and the number of the line before it."""
    found = re.finditer(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [(TEXT.count("\n", 0, match.start(1)), match.group(1)) for match in found]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page takes for the repository: its test data, and a model in run/."""
    save_model(MODEL, tmp_path / "run" / "model")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(statement: ast.stmt, names: dict[str, Any]) -> Any:
    """Run a statement; the value of an expression."""
    if isinstance(statement, ast.Expr):
        return eval(compile(ast.Expression(statement.value), PAGE, "eval"), names)
    return exec(compile(ast.Module([statement], []), PAGE, "exec"), names)


def test_the_examples_of_the_front_page_run_in_order(folder: Path) -> None:
    save_model(MODEL, folder / "demo" / "run" / "model")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert names["logits"].shape == (1, 5, 512)
    for written in (names["best"].text, names["beams"][0].text):  # an untrained model may end a document early
        assert len(written) <= 40
        assert set(written) <= set("ACGT")


def test_the_examples_run_in_order_and_what_they_assert_holds() -> None:
    names: dict[str, Any] = {"__name__": "page"}
    shown = 0
    for before, code in blocks():
        if SCRIPT.match(code):
            continue
        for statement in ast.increment_lineno(ast.parse(code), before).body:
            value = run(statement, names)
            *_, comment = TEXT.splitlines()[(statement.end_lineno or 0) - 1].partition("  # ")
            if isinstance(statement, ast.Expr) and comment:
                # a trained model printed it: of an untrained one the kind is the same
                printed = eval(comment, {"torch": torch})
                assert type(value) is type(printed), ast.unparse(statement)
                shown += 1
    assert shown > 10


def test_the_script_runs_on_several_devices(folder: Path) -> None:
    ((name, script),) = [(match[1], code) for _, code in blocks() if (match := SCRIPT.match(code))]
    (folder / name).write_text(script)
    done = subprocess.run(
        [sys.executable, name], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert [0 < float(bits) < 20 for bits in done.stdout.split()] == [True] * 4


def test_what_the_page_names_is_there() -> None:
    paths = re.findall(r"`(tests/[\w/.]+)`", TEXT)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
