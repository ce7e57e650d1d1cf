"""The configuration of a run: files and flags merged, refused, written and read back."""

from dataclasses import replace
from pathlib import Path

import pytest

from evo_cli.training.config import Flags, RunConfig, merge, read_tables
from sh2.errors import Sh2Error
from sh2.presets import preset

FILE = """
[model]
preset = "debug"
layout = "SM"
mr_window = { alpha_first = 0.5, alpha_last = 1 }

[train]
steps = 9
lr = 3e-4

[data]
inputs = ["a.fa", 'odd "name".fa']
valid = 0.25
split_by = "record"
"""

COMPLETE = "[train]\nsteps = 1\n[model]\npreset = 'nano'\n[data]\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    return path


def build(*paths, **flags):
    return RunConfig.from_tables(merge(*map(read_tables, paths), flags=Flags(**flags)))


def test_a_file_says_the_whole_run(file):
    run = build(file)

    assert (run.model.layout, run.model.width) == ("SM", preset("debug").width)
    assert (run.train.steps, run.train.lr, run.prepare.valid) == (9, 3e-4, 0.25)
    assert run.inputs == (Path("a.fa"), Path('odd "name".fa'))
    assert run.model.context == run.train.length


def test_what_is_written_reads_back_to_the_same_run(file, tmp_path):
    run = build(file)
    run = replace(run, prepare=replace(run.prepare, tags=Path("/data/tags.tsv")))
    (tmp_path / "written.toml").write_text(run.to_toml())

    assert build(tmp_path / "written.toml") == run


def test_flags_win_field_by_field_and_a_preset_wins_as_a_whole(file):
    run = build(file, model={"preset": "nano"}, train={"lr": 1.0}, inputs=[Path("/b.fa"), Path("-")])

    assert run.model == replace(preset("nano"), context=run.train.length)
    assert (run.train.steps, run.train.lr) == (9, 1.0)
    assert run.inputs == (Path("/b.fa"), Path("-"))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[train", "not TOML: ", None),
        ("[trian]\nsteps = 1", "unknown configuration field `trian`", "did you mean `train`?"),
        ("train = 5", "`train` must be a table, [train]", None),
        ("[model]\npreset = 'nano'", "train field `steps` is missing", "give `--steps`"),
        ("[train]\nsteps = 1", "no model is given", "give `--preset nano`"),
        ("[train]\nsteps = '1'", "train field `steps` must be a whole number, not '1'", None),
        ("[model]\npreset = 'nano'\nvocab_size = 4\n[train]\nsteps = 1", "`vocab_size` must be at least 256", None),
        (COMPLETE + "validd = 1", "unknown data field `validd`", "did you"),
        (COMPLETE + "force = true", "unknown data field `force`", None),
        (
            COMPLETE + "valid = 'x'",
            "data field `valid` must be a number",
            None,
        ),
        (COMPLETE + "split_by = 'x'", "data field `split_by` must be", None),
        (
            COMPLETE + "inputs = 'a'",
            "`inputs` must be a list of paths",
            None,
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message, hint):
    path = tmp_path / "run.toml"
    path.write_text(text)

    with pytest.raises(Sh2Error) as caught:
        build(path)

    assert message in str(caught.value)
    assert hint is None or caught.value.__notes__[0].startswith(hint)
