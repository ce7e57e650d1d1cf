"""`evo prepare` as a process: streams, exit codes, signals, memory."""

import gzip
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.store import TokenStore

COMMAND = [sys.executable, "-m", "evo_cli", "prepare"]


def evo(folder: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = dict(os.environ)
    return subprocess.run([*COMMAND, *arguments], cwd=folder, input=stdin, capture_output=True, env=environment)


def test_a_table_on_stdout_and_talk_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGTN\n>b\n\n>c\nac\n")
    done = evo(tmp_path, "a.fa", "-o", "s.h5", "--split-by", "record", "--valid", "0", "--min-length", "3")
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [
        "what\tcount", "records\t1", "bases\t5", "tokens\t6", "skipped_bases\t2", "skipped_bases_short\t2",
        "skipped_records_short\t1", "skipped_records_empty\t1", "masked_bases_ambiguous\t1", "lower_case_bases\t0",
        "converted_bases_u\t0", "train_segments\t1", "train_bases\t5", "valid_segments\t0", "valid_bases\t0",
        "test_segments\t0", "test_bases\t0",
    ]  # fmt: skip
    assert b"s.h5: written (sha256 " in done.stderr
    again = evo(tmp_path, "a.fa", "-o", "s.h5", "--split-by", "record", "--valid", "0", "--min-length", "3")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert b"s.h5: up to date, nothing to do" in again.stderr


def test_standard_input(tmp_path: Path) -> None:
    done = evo(tmp_path, "-", "-o", "s.h5", stdin=gzip.compress(b">a\nACGU\n"))
    assert done.returncode == 0, done.stderr
    with TokenStore(tmp_path / "s.h5") as store:
        assert store.tokens[:].tobytes() == b"ACGT\0"
        assert store.metadata["sources"][0]["path"] == "-"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bad.fa", "-o", "s.h5"], 1, "error: bad.fa: line 2: record 'p': 'L' is not DNA; allowed are ACGT, U and the"),
        (["none.fa", "-o", "s.h5"], 1, "error: none.fa: no such file or folder"),
        (["bad.fa", "-o", "bad.txt"], 1, "error: bad.txt: exists and is not a token store"),
        (["bad.fa", "-o", "-"], 1, "a token store cannot be written to standard output hint: name a file"),
        (["bad.fa"], 2, "--output"),
        (["bad.fa", "-o", "s.h5", "--valid", "2"], 2, "--valid"),
        (["bad.fa", "-o", "s.h5", "--valid", "0.6", "--test", "0.6"], 2, "together stay below 1"),
        (["bad.fa", "-o", "s.h5", "--split-by", "moon"], 2, "moon"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (tmp_path / "bad.fa").write_text(">p\nMLEF\n")
    (tmp_path / "bad.txt").write_text("precious")
    done = evo(tmp_path, *arguments)
    assert done.returncode == code
    assert message in " ".join(done.stderr.decode().split())
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""
    assert sorted(os.listdir(tmp_path)) == ["bad.fa", "bad.txt"]


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has begun to write and waits for more input."""
    environment = dict(os.environ)
    with subprocess.Popen(
        [*COMMAND, "-", "-o", "s.h5"], cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b">a\n" + b"ACGT" * 12_000_000)
        process.stdin.flush()
        until(lambda: any(path.stat().st_size > 1 << 20 for path in tmp_path.glob(".s.h5.*.partial")))
        yield process
        process.kill()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, waiting: subprocess.Popen[bytes], number: int, code: int
) -> None:
    waiting.send_signal(number)
    assert waiting.wait(60) == code
    assert waiting.stderr is not None
    assert b"Traceback" not in waiting.stderr.read()
    assert os.listdir(tmp_path) == []


def test_a_killed_run_is_cleaned_up_by_the_next_but_a_live_one_is_not(
    tmp_path: Path, waiting: subprocess.Popen[bytes]
) -> None:
    assert evo(tmp_path, "-", "-o", "s.h5", stdin=b">a\nACGT\n").returncode == 0
    left = [name for name in os.listdir(tmp_path) if name.endswith(".partial")]
    assert len(left) == 1, "the file of the run that lives stays"
    waiting.kill()
    waiting.wait(60)
    assert sorted(os.listdir(tmp_path)) == [*left, "s.h5"]
    assert evo(tmp_path, "-", "-o", "s.h5", stdin=b">a\nACGT\n").returncode == 0
    assert os.listdir(tmp_path) == ["s.h5"]


def test_a_record_on_one_long_line_takes_little_memory(tmp_path: Path) -> None:
    # not ru_maxrss: that remembers the memory of the process that started this one
    script = (
        "import re\n"
        "from pathlib import Path\n"
        "from data.prepare import PrepareOptions, prepare\n"
        "prepare([Path('-')], Path('s.h5'), PrepareOptions())\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b">one\n")
        for _ in range(250):
            process.stdin.write(b"ACGTTGCAcg" * 100_000)
        process.stdin.close()
        peak_kib = int(process.stdout.read())
    with TokenStore(tmp_path / "s.h5") as store:
        assert store.records.lengths.tolist() == [250_000_000]
    assert peak_kib < 300 << 10


@pytest.mark.parametrize("limit", [30_000, 1_000_000, 5_000_000])
def test_a_disk_that_is_full_is_one_line_whenever_it_fills_up(tmp_path: Path, limit: int) -> None:
    (tmp_path / "a.fa").write_bytes(b">a\n" + b"ACGTTGCA" * 1_200_000 + b"\n")
    done = subprocess.run(
        [*COMMAND, "a.fa", "-o", "s.h5"],
        cwd=tmp_path,
        capture_output=True,
        # files may grow no larger: for HDF5 the same as a full disk
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.decode().splitlines()[-1] == "error: s.h5: cannot be written: File too large"
    assert os.listdir(tmp_path) == ["a.fa"]
