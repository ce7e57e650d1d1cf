"""The page of the Python API: its examples run in order, what it asserts holds, what it names is there."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sh2.checkpoint import save_model
from tests.sh2.models import tiny

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "sh2" / "README.md"
SCRIPT = re.compile(r"# (\w+\.py)\n")


def blocks() -> list[tuple[int, str]]:
    """Every python block of the page, and the number of its first line."""
    text = PAGE.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in found]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the page is read: the repository's test data, and a model in run/."""
    save_model(tiny(), tmp_path / "run" / "model")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_the_examples_run_in_order_and_what_they_assert_holds(folder: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for line, code in blocks():
        if not SCRIPT.match(code):
            tree = ast.increment_lineno(ast.parse(code), line - 1)
            exec(compile(tree, str(PAGE), "exec"), names)


def test_the_script_runs_on_several_devices(folder: Path) -> None:
    (script,) = [code for _, code in blocks() if SCRIPT.match(code)]
    name = SCRIPT.match(script)
    assert name is not None
    (folder / name[1]).write_text(script)
    run = subprocess.run(
        [sys.executable, name[1]], cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert len(run.stdout.split()) == 4


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", PAGE.read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
