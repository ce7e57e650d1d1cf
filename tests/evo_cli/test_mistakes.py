"""What a careless user, a full disk or a scheduler does to a command: one line, the right exit code, nothing lost."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from data.errors import DataError
from data.prepare import PrepareOptions, prepare
from evo_cli.mistakes import describe
from evo_cli.outputs.stream import check_outputs, open_output
from sh2.errors import Sh2Error
from tests.evo_cli.cli import evo


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "a.fa"
    path.write_text(">a\nACGTACGT\n")
    return path


def start(*arguments: object, code: str | None = None, **settings: object) -> "subprocess.Popen[bytes]":
    """Run `evo`, or some Python, with streams of the test's choice."""
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "evo_cli", *map(str, arguments)]
    environment = {**os.environ, **settings.pop("environment", {})}  # type: ignore[dict-item]
    return subprocess.Popen(command, env=environment, **{"stderr": subprocess.PIPE, **settings})  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("none/x.tsv", "none/x.tsv: cannot be written: there is no folder none"),
        ("a.fa/x.tsv", "a.fa/x.tsv: cannot be written: there is no folder a.fa"),
        (".", ".: is a folder, not a file to write"),
        ("./a.fa", "a.fa: is an output and an input too"),
        ("x" * 300, f"{'x' * 300}: file name too long"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_model_is_looked_for(
    fasta: Path, output: str, message: str
) -> None:
    result = evo("score", "a.fa", "--model", "no_model", "-o", output, cwd=fasta.parent)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[0] == f"error: {message}"
    assert fasta.read_text().startswith(">a")


def test_an_output_may_not_be_given_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.tsv: is an output and another output too"):
        check_outputs([tmp_path / "x.tsv", tmp_path / "x.tsv"], [])
    check_outputs([Path("-"), Path("-"), None], ["-"])


def test_a_pipe_or_a_device_is_never_replaced(tmp_path: Path, fasta: Path, model_folder: Path) -> None:
    """For root, `/dev/null` would become a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for words in (
        ("prepare", fasta, "-o", pipe),
        ("eval", "recall", "-m", model_folder, "--needle", 9, "--cue", 3, "--lengths", 12, "--plot", pipe),
        ("convert", model_folder, pipe),
        ("embed", fasta, "-m", model_folder, "-o", pipe),
    ):
        result = evo(*words)
        assert (result.returncode, "Traceback" in result.stderr) == (1, False), result.stderr
        assert pipe.is_fifo()


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    check_outputs([pipe], [])
    with open_output(pipe) as stream:
        stream.write("rows")
    reader.join(timeout=20)
    assert read == ["rows"]
    assert pipe.is_fifo()


def test_a_link_is_written_through_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    with open_output(tmp_path / "link") as stream:
        stream.write("rows")
    assert (tmp_path / "real").read_text() == "rows"
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(ValueError, match="half-way"), open_output(tmp_path / "other"):
        raise ValueError("half-way")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_dash_is_stdout(fasta: Path, model_folder: Path) -> None:
    result = evo("score", fasta, "--model", model_folder, "-o", "-", cwd=fasta.parent)
    assert result.stdout.startswith("record\tlength\t")
    assert [path.name for path in fasta.parent.iterdir()] == ["a.fa"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="the system has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        process = start("models", stdout=full)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.decode().splitlines() == [
        "error: cannot write the output: no space left on device",
        "hint: make room, or write to another disk",
    ]


def test_closed_streams_are_said_or_done_without(fasta: Path, model_folder: Path) -> None:
    process = start("prepare", "-", "-o", fasta.parent / "s.h5", preexec_fn=lambda: os.close(0))
    assert process.communicate(timeout=60)[1].decode().startswith("error: standard input: is closed\n")
    process = start("score", fasta, "-m", model_folder, preexec_fn=lambda: os.close(1))
    assert "error: standard output is closed\n" in process.communicate(timeout=60)[1].decode()


def test_a_reader_that_leaves_early_ends_a_run_without_end(model_folder: Path) -> None:
    words = ("generate", "-m", model_folder, "-p", "A", "-n", 3, "--samples", 10**9)
    with start(*words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b">sample_1 ")
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(timeout=60) == 0


def test_names_are_utf_8_in_any_locale(fasta: Path, model_folder: Path) -> None:
    fasta.write_text(">größe\nACGT\n", encoding="utf-8")
    process = start(
        *("score", fasta, "-m", model_folder), stdout=subprocess.PIPE, environment={"PYTHONIOENCODING": "ascii"}
    )
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stdout.decode().splitlines()[1].startswith("größe\t4\t")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-p", "A", "-t", "inf"], "must be 0, or lie in 1e-6..1e6"),
        (["-p", "A", "-t", "1e-300"], "must be 0, or lie in 1e-6..1e6"),
        (["-p", "A", "--seed", str(2**63)], "must lie in -2**63..2**63 - 1"),
        (["-p", "A\n>C"], "must be printable ASCII, without line ends"),
        (["-p", "é"], "must be printable ASCII, without line ends"),
    ],
)
def test_settings_that_mean_nothing_are_wrong_command_lines(flags: list[str], message: str) -> None:
    result = evo("generate", "-m", "no_model", *flags)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_typed_prompt_is_upper_cased_but_for_its_tags(model_folder: Path) -> None:
    result = evo("generate", "-m", model_folder, "-p", "|d__Bacteria|acgu|n", "-n", 1, "--include-prompt")
    assert result.stdout.splitlines()[1].startswith("|d__Bacteria|ACGT|N")


@pytest.mark.parametrize("device", ["mps", "meta", "banana"])
def test_only_cpu_and_cuda_are_devices(fasta: Path, model_folder: Path, device: str) -> None:
    result = evo("score", fasta, "-m", model_folder, "--device", device)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [f"error: unknown device `{device}`", "hint: use auto, cpu, cuda or cuda:N"]


def test_a_split_without_bases_and_an_order_out_of_range(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "n.fa").write_text(">n\n" + "N" * 300 + "\n")
    store = prepare([tmp_path / "n.fa"], tmp_path / "n.h5", PrepareOptions()).output
    for words in (["markov", store], ["perplexity", store, "-m", model_folder]):
        result = evo("eval", *words, "--split", "train")
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {store}: the train split holds no A, C, G or T\n")
    (tmp_path / "a.fa").write_text(">a\n" + "ACGTTGCA" * 300 + "\n")
    store = prepare([tmp_path / "a.fa"], tmp_path / "a.h5", PrepareOptions()).output
    result = evo("eval", "markov", store, "--order", 13)
    assert (result.returncode, result.stdout) == (2, "")
    assert "must be 0 to 12, not 13" in result.stderr


def test_variants_on_other_contigs_are_pointed_out(fasta: Path, model_folder: Path) -> None:
    vcf = fasta.parent / "v.vcf"
    vcf.write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\nchr1\t1\t.\tA\tC\n")
    result = evo("score", vcf, "-r", fasta, "-m", model_folder)
    assert result.returncode == 0
    assert f"warning: no allele lies on a contig of {fasta}: it has `a` ..., the first allele `chr1`" in result.stderr


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried ...\nmore"), "out of memory: CUDA out of memory. Tried ..."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."), "out of memory: DefaultCPUAllocator: can't"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "cannot write the output: disk quota exceeded"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "xx"), "xx: file name too long"),
        (Sh2Error("no"), "no"),
    ],
)
def test_what_the_user_can_mend_is_a_sentence(error: Exception, sentence: str) -> None:
    described = describe(error)
    assert described is not None
    assert described[0].startswith(sentence)


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), OSError(errno.EIO, "x"), KeyError("x")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    assert describe(error) is None


LOST = {
    "callback": "reference = weakref.ref(thing, lambda _: signal.raise_signal(number)); del thing",
    "swallowed": "exec('try: signal.raise_signal(number)\\nexcept BaseException: pass')",
}


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 1)])
@pytest.mark.parametrize("way", LOST)
def test_a_signal_that_gets_lost_is_raised_again_but_not_into_the_clean_up(name: str, code: int, way: str) -> None:
    program = f"""
import signal, sys, time, weakref
from evo_cli.signals import SIGNALS
class Thing: pass
SIGNALS.watch()
thing, number = Thing(), signal.{name}
try:
    {LOST[way]}
    time.sleep(20)
finally:
    for _ in range(5): time.sleep(0.1)
    sys.stdout.write("cleaned up")
    SIGNALS.settle()
"""
    process = start(code=program, stdout=subprocess.PIPE)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (code, b"cleaned up")
    assert b"ignored" not in stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_waits_for_the_end_of_an_import(name: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(f"import signal\nsignal.raise_signal(signal.{name})\nwhole = True\n")
    program = f"""
import sys, time
from evo_cli.signals import SIGNALS
sys.path.append({str(tmp_path)!r})
SIGNALS.watch()
try:
    import slow
    time.sleep(20)
except BaseException as error:
    SIGNALS.settle()
    print(slow.whole, isinstance(error, KeyboardInterrupt))
"""
    process = start(code=program, stdout=subprocess.PIPE)
    assert process.communicate(timeout=60)[0].split() == [b"True", str(name == "SIGINT").encode()]


def test_ctrl_c_in_a_string_of_code_keeps_the_exit_code(tmp_path: Path) -> None:
    """Of a module, as `python -m evo_cli` is: scripts keep it anyway."""
    (tmp_path / "program.py").write_text("""
import signal, sys
from evo_cli.signals import INTERRUPTED, SIGNALS
SIGNALS.watch()
try:
    exec("signal.raise_signal(signal.SIGINT)")
except KeyboardInterrupt:
    SIGNALS.settle()
    sys.exit(INTERRUPTED)
""")
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run([sys.executable, "-m", "program"], env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert done.returncode == 130
