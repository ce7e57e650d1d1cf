"""Outputs that survive being killed: whatever a killed run leaves, the next one ends with the bytes of one run."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data.errors import DataError
from data.variants import WindowRule
from evo_cli.outputs import partial
from evo_cli.scoring import sequences as sequence_scores
from evo_cli.scoring import variant_jobs
from sh2.errors import Sh2Error
from tests.evo_cli.cli import rows
from tests.evo_cli.scoring import OTHER_MODEL, SCORING, sequences, variants, write_genome, write_vcf

Work = Callable[..., Any]


@pytest.fixture(autouse=True)
def every_block_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_SECONDS", 0.0)


@pytest.fixture
def vcf(tmp_path: Path) -> Path:
    return write_vcf(tmp_path / "v.vcf", write_genome(tmp_path))


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    genome = write_genome(tmp_path)
    cuts = [0, 90, 100, 100, 101, 240, 400, 430, 470, 600]
    names = [f"r{number}" for number in range(len(cuts) - 1)]
    records = [f">{name}\n{genome[a:b]}\n" for name, a, b in zip(names, cuts, cuts[1:], strict=False)]
    path = tmp_path / "seqs.fa"
    path.write_text("".join(records))
    return path


class Watch:
    """Looks on while jobs are done: keeps what is on the disk at every one, and stops where it is told to.

    folder: where outputs go. snapshots: copies of it, one a job. items: alleles or records that were scored. stop: the
    number of the job, from 0, that is not done, and what is raised there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshots: list[Path] = []
        self.items = 0
        self.stop: tuple[int, BaseException] | None = None
        self._copies = count()

    def over(self, work: Work) -> Work:
        def watched(options: Any, model: Any, job: Any, progress: Any) -> Any:
            if self.stop is not None and len(self.snapshots) == self.stop[0]:
                raise self.stop[1]
            self.snapshots.append(self.folder.with_name(f"copy-{next(self._copies)}"))
            shutil.copytree(self.folder, self.snapshots[-1])
            self.items += len(job)
            return work(options, model, job, progress)

        return watched

    def begin(self, folder: Path) -> None:
        """Watch another folder, from the beginning."""
        self.folder, self.snapshots, self.items, self.stop = folder, [], 0, None


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch(tmp_path / "out")
    watch.folder.mkdir()
    for module, name in ((variant_jobs, "score_block"), (sequence_scores, "score_texts")):
        monkeypatch.setattr(module, name, watch.over(getattr(module, name)))
    return watch


def test_variants_go_on_from_whatever_was_on_the_disk(vcf: Path, watch: Watch) -> None:
    variants(vcf, watch.folder / "o.tsv")
    whole = (watch.folder / "o.tsv").read_bytes()
    assert whole.count(b"\n") == 1 + 280 + 2 * 28
    snapshots, items = watch.snapshots, watch.items
    assert len(snapshots) >= 5
    for number, folder in enumerate(snapshots):
        watch.begin(folder)
        variants(vcf, folder / "o.tsv")
        assert (folder / "o.tsv").read_bytes() == whole
        assert (watch.items < items) == (number > 0), "rows that were there were scored again"
        assert sorted(path.name for path in folder.iterdir()) == ["o.tsv", "o.tsv.meta.json"]


@pytest.mark.parametrize("bases", ["b.tsv", "b.h5"])
def test_sequences_and_their_bases_go_on_together(fasta: Path, watch: Watch, bases: str) -> None:
    sequences(fasta, watch.folder / "o.tsv", per_base=watch.folder / bases)
    whole = {path.name: path.read_bytes() for path in watch.folder.iterdir() if "meta" not in path.name}
    snapshots = watch.snapshots
    assert len(snapshots) >= 3
    for folder in snapshots:
        watch.begin(folder)
        sequences(fasta, folder / "o.tsv", per_base=folder / bases)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if "meta" not in path.name} == whole


def test_hdf5_of_bases_holds_what_the_rows_say(fasta: Path, tmp_path: Path) -> None:
    sequences(fasta, tmp_path / "o.tsv", per_base=tmp_path / "b.tsv")
    sequences(fasta, tmp_path / "p.tsv", per_base=tmp_path / "b.h5")
    text = rows((tmp_path / "b.tsv").read_text())
    with h5py.File(tmp_path / "b.h5") as file:
        names, start, log_prob = file["record"].asstr()[:], file["start"][:], file["log_prob"][:]
        first = file.attrs["first_position"]
    assert list(names) == [f"r{number}" for number in range(9)]
    for number, name in enumerate(names):
        own = [row for row in text if row["record"] == name]
        values = log_prob[start[number] : start[number + 1]]
        np.testing.assert_allclose(values, [float(row["log_prob"]) for row in own], atol=6e-7)
        assert [int(row["position"]) for row in own] == list(range(first, first + len(values)))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), Sh2Error("no memory")])
def test_an_interrupted_run_says_what_it_leaves(
    vcf: Path, watch: Watch, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    output = watch.folder / "o.tsv"
    watch.stop = 2, error
    with pytest.raises(type(error)):
        variants(vcf, output)
    left = json.loads((watch.folder / "o.tsv.partial.json").read_text())["rows"]
    assert left > 100
    assert f"o.tsv.partial: holds {left} rows; the same command goes on after them" in capsys.readouterr().err
    watch.stop = None
    variants(vcf, output)
    assert f"o.tsv: going on after {left} rows of an earlier run" in capsys.readouterr().err
    runs = json.loads((watch.folder / "o.tsv.meta.json").read_text())["runs"]
    assert [run["first_row"] for run in runs] == [1, left + 1]


def test_what_was_begun_otherwise_is_refused_and_says_what_differs(vcf: Path, watch: Watch) -> None:
    output = watch.folder / "o.tsv"
    watch.stop = 2, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        variants(vcf, output)
    watch.stop = None
    begun = r"o\.tsv\.partial: was begun by another run: "
    longer = replace(SCORING, rule=WindowRule(length=20))
    with pytest.raises(DataError, match=begun + "window was 16 and is 20") as caught:
        variants(vcf, output, request={"scoring": longer})
    assert caught.value.__notes__ == [
        "repeat the earlier command to go on with it, give another output, or begin anew with --overwrite"
    ]
    with pytest.raises(DataError, match=begun + "the model has other weights"):
        variants(vcf, output, open=lambda: OTHER_MODEL)
    with pytest.raises(DataError, match=begun + "shard was nothing and is .*'number': 1"):
        variants(vcf, output, shard="1/2")
    text = vcf.read_text()
    vcf.write_text(text.replace("id3\t", "id33\t"))
    with pytest.raises(DataError, match=begun + "the variants file has other content"):
        variants(vcf, output)
    vcf.rename(vcf.with_name("w.vcf")).write_text(text)
    variants(vcf.with_name("w.vcf"), output)  # moved, and the same
    whole = output.read_bytes()
    variants(vcf.with_name("w.vcf"), output, overwrite=True, open=lambda: OTHER_MODEL)
    assert output.read_bytes() != whole


def test_a_finished_output_is_left_alone_unless_it_is_another_run_s(
    vcf: Path, watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = watch.folder / "o.tsv"
    variants(vcf, output)
    whole, items = output.read_bytes(), watch.items
    capsys.readouterr()
    variants(vcf, output)
    assert watch.items == items
    assert "o.tsv is finished: nothing to do (--overwrite does it again)" in capsys.readouterr().err
    variants(vcf, output, overwrite=True)
    assert (output.read_bytes(), watch.items) == (whole, 2 * items)
    output.write_bytes(whole[:-1])  # touched by somebody
    variants(vcf, output)
    assert (output.read_bytes(), watch.items) == (whole, 3 * items)
    variants(vcf, output, open=lambda: OTHER_MODEL)
    assert output.read_bytes() != whole


def test_bad_input_leaves_nothing_and_damage_is_noticed(vcf: Path, watch: Watch) -> None:
    output = watch.folder / "o.tsv"
    text = vcf.read_text()
    vcf.write_text(text + "chr1\tx\t.\tA\tC\t.\t.\t.\n")
    with pytest.raises(DataError, match="POS must be a whole number"):
        variants(vcf, output)
    assert not list(watch.folder.iterdir())
    vcf.write_text(text)
    watch.begin(watch.folder)
    watch.stop = 2, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        variants(vcf, output)
    with (watch.folder / "o.tsv.partial").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match=r"o\.tsv\.partial: is not what the earlier run left: a part of it is missing"):
        variants(vcf, output)
    (watch.folder / "o.tsv.partial.json").write_text("{")
    with pytest.raises(DataError, match=r"o\.tsv\.partial\.json: cannot be read"):
        variants(vcf, output)


def test_two_runs_do_not_write_one_output(vcf: Path, tmp_path: Path) -> None:
    with (tmp_path / "o.tsv.partial").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"o\.tsv\.partial: another run is writing it"):
            variants(vcf, tmp_path / "o.tsv")


def test_a_run_that_is_killed_goes_on_from_the_command_line(tmp_path: Path, model_folder: Path) -> None:
    vcf = write_vcf(tmp_path / "v.vcf", write_genome(tmp_path, 1000), step=1)
    output, note = tmp_path / "o.tsv", tmp_path / "o.tsv.partial.json"
    arguments = ["score", vcf, "-r", tmp_path / "genome.fa", "-m", model_folder, "--window", 24, "-o", output]
    main = "import evo_cli.outputs.partial as p; p._SECONDS = 0.0; import evo_cli.main; evo_cli.main.main()"
    command = [sys.executable, "-c", main, *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not note.exists() and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    done = json.loads(note.read_text())["rows"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"going on after {done:,} rows" in result.stderr
    variants(vcf, tmp_path / "p.tsv", request={"scoring": replace(SCORING, rule=WindowRule(length=24))})
    assert output.read_bytes() == (tmp_path / "p.tsv").read_bytes()
