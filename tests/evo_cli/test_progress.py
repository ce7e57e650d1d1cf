"""Progress without a terminal: plain lines on stderr, not too many, nothing on stdout."""

import io

import pytest

import evo_cli.progress
from evo_cli.progress import PlainBar, counter, duration, progress_bar


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    time = [100.0]
    monkeypatch.setattr(evo_cli.progress, "monotonic", lambda: time[0])
    return time


def test_a_line_tells_position_values_and_time_left(clock):
    stream = io.StringIO()
    bar = PlainBar("step", total=2000, start=1000, every_seconds=0, stream=stream)
    clock[0] += 60

    bar.update(1500, fields={"loss": "1.31", "bits/base": "1.89"})

    assert stream.getvalue() == "step 1,500/2,000 (75%), loss 1.31, bits/base 1.89, 01:00 left\n"


def test_lines_come_no_more_often_than_asked_and_at_the_end(clock):
    stream = io.StringIO()
    bar = PlainBar("preparing", total=None, every_seconds=10, stream=stream)

    for seconds, done in ((5, 1), (4, 2), (2, 3), (9, 4)):
        clock[0] += seconds
        bar.update(done, total=5)
    bar.update(5)

    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["3/5", "5/5"]


def test_a_bar_of_unknown_total_shows_the_count():
    stream = io.StringIO()
    PlainBar("reading", total=None, every_seconds=0, stream=stream).update(12345)

    assert stream.getvalue() == "reading 12,345\n"


def test_without_a_terminal_nothing_goes_to_stdout(capsys):
    with progress_bar("step", total=2, every_seconds=0) as bar:
        bar.update(2)
    with counter("generating", total=3, unit="bases") as advance:
        advance(1)
        advance(2)
    with counter("scan", total=9, start=4) as advance:
        advance(5)

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "step 2/2 (100%)\ngenerating bases 3/3 (100%)\nscan 9/9 (100%)\n"


def test_a_live_bar_draws_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("step", total=10) as bar:
        assert bar.live
        bar.update(5, fields={"loss": "1.31"})
        bar.note("step 5: [validation]")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step 5: [validation]" in captured.err
    assert "1.31" in captured.err


@pytest.mark.parametrize(("seconds", "text"), [(41.2, "00:41"), (725, "12:05"), (12000, "3:20:00")])
def test_a_duration_reads_like_a_clock(seconds, text):
    assert duration(seconds) == text
