"""The files of a run: records cut back for a resume, and the picture drawn from them."""

import json

import pytest

from sh2.errors import Sh2Error
from sh2.train.plot import plot_run
from sh2.train.records import JsonLines, StepRecord, keep_steps, read_lines


def record(step, **more):
    return (
        StepRecord(step=step, loss=1.3, bits_per_base=1.9, lr=0.1, grad_norm=1.0, tokens=step, **more).to_json() + "\n"
    )


def test_a_record_keeps_every_digit_and_leaves_out_what_was_not_measured():
    line = StepRecord(step=1, loss=0.1 + 0.2, bits_per_base=None, lr=1e-05, grad_norm=1.0, tokens=5).to_json()

    assert line == '{"step": 1, "loss": 0.30000000000000004, "lr": 1e-05, "grad_norm": 1.0, "tokens": 5}'


def test_lines_can_be_read_while_the_file_is_open(tmp_path):
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.append(['{"a": 1}', '{"a": 2}'])
    lines.append([])

    assert list(read_lines(tmp_path / "lines.jsonl")) == [{"a": 1}, {"a": 2}]
    lines.close()


def test_a_full_disk_is_an_error_in_words(tmp_path):
    (tmp_path / "lines.jsonl").symlink_to("/dev/full")
    lines = JsonLines(tmp_path / "lines.jsonl")

    with pytest.raises(Sh2Error, match=r"cannot write .*lines\.jsonl: No space left on device"):
        lines.append(["{}"])
    lines.close()


@pytest.mark.parametrize("tail", ["", record(4), record(4)[:20], record(4) + record(5) + "{"])
def test_a_file_is_cut_back_to_the_steps_of_the_checkpoint(tmp_path, tail):
    path, kept = tmp_path / "metrics.jsonl", record(1) + record(2, valid_loss=1.0) + record(3)
    path.write_text(kept + tail)

    keep_steps(path, 3)

    assert path.read_text() == kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (record(1) + record(2), "ends at step 2, but the checkpoint is of step 3"),
        (record(1) + record(3) + record(3), "line 2: not the record of step 2"),
        (record(1) + record(2) + record(3)[:-1], "line 3: not the record of step 3"),
    ],
)
def test_a_file_that_is_not_the_record_of_the_run_is_refused(tmp_path, content, message):
    (tmp_path / "metrics.jsonl").write_text(content)

    with pytest.raises(Sh2Error, match=message):
        keep_steps(tmp_path / "metrics.jsonl", 3)


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{}\n')

    with pytest.raises(Sh2Error, match=r"metrics\.jsonl, line 2: not JSON"):
        list(read_lines(tmp_path / "metrics.jsonl"))


@pytest.mark.parametrize("steps", [1, 30, 400])
def test_the_picture_is_a_png(tmp_path, steps):
    lines = [record(step, **({"valid_bits_per_base": 1.8} if step % 10 == 0 else {})) for step in range(1, steps + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))

    assert plot_run(tmp_path / "metrics.jsonl", tmp_path / "loss.png", title="run")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_records_there_is_no_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.0}) + "\n")

    assert not plot_run(tmp_path / "metrics.jsonl", tmp_path / "loss.png", title="run")
    assert not (tmp_path / "loss.png").exists()
