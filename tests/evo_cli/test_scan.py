"""`evo scan` as a user runs it, against scores and logits taken through other roads."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyBigWig
import pytest
import torch
from numpy.typing import NDArray

import sh2
from data.intervals import Interval
from evo_cli.scanning.plot import Picture, binned, plot_region
from sh2.reading.perplexity import sliding_log_probs
from tests.evo_cli.cli import evo

GENERATOR = np.random.default_rng(5)
CONTIGS = {
    "chr1": "".join(GENERATOR.choice(list("ACGT"), size=700)),
    "two|odd": "ACGTTGCANNNRYACGGTCAT",
    "one": "G",
}
COMPLEMENT = str.maketrans("ACGTRY", "TGCAYR")


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "genome.fa"
    masked = CONTIGS["chr1"][:100] + CONTIGS["chr1"][100:160].lower() + CONTIGS["chr1"][160:]
    path.write_text(f">chr1 the first\n{masked}\n>empty\n>two|odd\n{CONTIGS['two|odd']}\n>one\n{CONTIGS['one']}\n")
    return path


def read_bed_graph(path: Path) -> dict[str, NDArray[np.float64]]:
    """Values by contig, NaN where a line is missing."""
    values = {name: np.full(len(text), np.nan) for name, text in CONTIGS.items()}
    for line in path.read_text().splitlines():
        contig, start, end, value = line.split("\t")
        assert int(end) == int(start) + 1
        assert np.isnan(values[contig][int(start)])
        values[contig][int(start)] = float(value)
    return values


def predict(model: sh2.StripedHyena2, text: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities of A, C, G, T at every base but the first [L-1, 4], and of the base itself: numpy, float64."""
    ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(ids[None, :-1]))
    exponentials = np.exp(logits[0].double().numpy())
    probs = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probs[:, [65, 67, 71, 84]], probs[np.arange(len(ids) - 1), ids[1:]]


def test_both_strands_are_predicted_and_their_mean_is_written(tmp_path: Path, genome: Path, model_folder: Path) -> None:
    result = evo("scan", genome, "--model", model_folder, "-o", tmp_path / "out", "--strand", "both")
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert "60 bases are in lower case: scanned as upper case" in result.stderr
    tracks = {path.name[4:-9]: read_bed_graph(path) for path in tmp_path.glob("out.*.bedgraph")}
    assert len(tracks) == 6 * 3
    model = sh2.load(model_folder)
    for name, text in CONTIGS.items():
        values = {key: track[name] for key, track in tracks.items()}
        assert np.isnan(values["logprob.forward"][0])
        assert np.isnan(values["logprob.reverse"][-1])
        if len(text) > 1:
            (score,) = sh2.score(model, [text], per_token=True)
            np.testing.assert_allclose(values["logprob.forward"][1:], score.log_probs, atol=1e-5)
            (score,) = sh2.score(model, [text.translate(COMPLEMENT)[::-1]], per_token=True)
            assert score.log_probs is not None
            np.testing.assert_allclose(values["logprob.reverse"][:-1], score.log_probs[::-1], atol=1e-5)
            bases, own = predict(model, text)
            other_bases, _ = predict(model, text.translate(COMPLEMENT)[::-1])
            np.testing.assert_allclose(np.exp(values["logprob.forward"][1:]), own, rtol=1e-5)
            for column, base in enumerate("ACGT"):
                np.testing.assert_allclose(values[f"{base}.forward"][1:], bases[:, column], rtol=1e-5)
                # the model read the other strand, where this base's complement stands
                np.testing.assert_allclose(values[f"{base}.reverse"][:-1], other_bases[::-1, 3 - column], rtol=1e-5)
            shares = bases / bases.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(
                values["entropy.forward"][1:], -(shares * np.log2(shares)).sum(axis=1), atol=1e-5
            )
        for track in ("logprob", "entropy", *"ACGT"):
            mean = (values[f"{track}.forward"] + values[f"{track}.reverse"]) / 2
            np.testing.assert_allclose(values[f"{track}.mean"], mean, atol=1e-5)
    about = json.loads((tmp_path / "out.meta.json").read_text())
    assert about["command"] == "scan"
    assert about["contigs"] == {name: len(text) for name, text in CONTIGS.items()}
    assert sorted(about["outputs"]) == sorted(path.name for path in tmp_path.glob("out.*"))


def test_windows_documents_big_wig_regions_and_pictures(tmp_path: Path, genome: Path, model_folder: Path) -> None:
    common = ("scan", genome, "-m", model_folder, "--context", 64, "--prepend-eod", "--strand", "reverse")
    result = evo(
        *common, "-o", tmp_path / "big", "--format", "bigwig", "--tracks", "logprob,acgt", "--plot", "chr1:1-700",
        "--plot", "two|odd:2-20", "--regions", "logprob<-6.24", "--regions", "logprob>-6.1", "--smooth", 9,
        "--min-length", 12,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    model = sh2.load(model_folder)
    with pyBigWig.open(str(tmp_path / "big.logprob.reverse.bw")) as file:
        assert file.chroms() == {name: len(text) for name, text in CONTIGS.items()}
        for name, text in CONTIGS.items():
            turned = text.translate(COMPLEMENT)[::-1]
            want = sliding_log_probs(model, turned, context=64, prepend_eod=True)[::-1]
            got = file.values(name, 0, len(text), numpy=True)
            np.testing.assert_allclose(got, want, atol=1e-5)
            if name == "chr1":
                values = got.astype(np.float64)
    padded = np.array([values[max(0, place - 4) : place + 5].mean() for place in range(values.size)])
    inside = np.flatnonzero(padded < -6.24)
    lines = [line.split("\t") for line in (tmp_path / "big.regions.bed").read_text().splitlines()]
    starts = [int(line[1]) for line in lines if line[0] == "chr1"]
    assert starts == sorted(starts)
    assert {tuple(line[3:6]) for line in lines} == {("logprob<-6.24", "0", "-"), ("logprob>-6.1", "0", "-")}
    ours = [line for line in lines if line[0] == "chr1" and line[3] == "logprob<-6.24"]
    assert len(ours) > 1
    covered = {place for line in ours for place in range(int(line[1]), int(line[2]))}
    runs = np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1)
    assert covered == {int(place) for run in runs if run.size >= 12 for place in run}
    assert float(ours[0][6]) == pytest.approx(values[int(ours[0][1]) : int(ours[0][2])].mean(), abs=1e-4)
    assert sorted(path.name for path in tmp_path.glob("big.*")) == sorted([
        *(f"big.{track}.reverse.bw" for track in ("logprob", "A", "C", "G", "T")),
        "big.chr1_1-700.png", "big.two_odd_2-20.png", "big.meta.json", "big.regions.bed",
    ])  # fmt: skip
    for picture in tmp_path.glob("big.*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 10_000


def begin_and_kill(arguments: list[object], piece: Path) -> None:
    """Run `evo`, and end it with kill -9 as soon as a file is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "evo_cli", *map(str, arguments)], stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    try:
        for _ in range(3000):
            assert process.poll() is None, "it ended before the file was there"
            if piece.is_file():
                break
            time.sleep(0.02)
        assert piece.is_file()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_killed_scan_goes_on_after_the_last_contig(tmp_path: Path, model_folder: Path) -> None:
    genome, long = tmp_path / "genome.fa", "".join(GENERATOR.choice(list("ACGT"), size=6_000))
    genome.write_text(f">first\nACGTAC\n>second\n{long}\n")
    common = ["scan", genome, "-m", model_folder, "--tracks", "logprob"]
    out, piece = tmp_path / "out", tmp_path / "out.partial" / "0000000.forward.f32"
    begin_and_kill([*common, "-o", out], piece)
    assert not list(tmp_path.glob("out.*.bedgraph"))
    # what is in the piece now shows in the output only if the contig is not computed again
    np.full(6, -0.5, dtype="<f4").tofile(piece)
    refused = evo(*common, "-o", out, "--context", 4096)
    assert refused.returncode == 1
    assert "out.partial: was begun by another run: context was nothing and is 4096" in refused.stderr
    assert "--overwrite" in refused.stderr
    result = evo(*common, "-o", out)
    assert result.returncode == 0, result.stderr
    assert "1 of 2 contigs are there" in result.stderr
    lines = (tmp_path / "out.logprob.forward.bedgraph").read_text().splitlines()
    assert lines[:6] == [f"first\t{place}\t{place + 1}\t-0.5" for place in range(6)]
    assert not (tmp_path / "out.partial").exists()
    whole = evo(*common, "-o", tmp_path / "whole", "--device", "cpu,cpu")
    assert whole.returncode == 0, whole.stderr
    want = (tmp_path / "whole.logprob.forward.bedgraph").read_text().splitlines()
    assert [line for line in lines if line.startswith("second")] == want[5:]
    assert want[0].startswith("first\t1\t2\t-")


def test_overwrite_begins_anew(tmp_path: Path, genome: Path, model_folder: Path) -> None:
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / "run.json").write_text('{"command": "scan", "model": {"weights": "others"}}')
    (folder / "0000000.forward.f32").write_bytes(bytes(4 * 700))
    result = evo("scan", genome, "-m", model_folder, "-o", tmp_path / "out", "--overwrite", "--tracks", "entropy")
    assert result.returncode == 0, result.stderr
    assert np.nanmin(read_bed_graph(tmp_path / "out.entropy.forward.bedgraph")["chr1"]) > 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--tracks", "logprob,entropie"], 2, "there is no track 'entropie'; the tracks are logprob, entropy, acgt"),
        (["--tracks", ""], 2, "there is no track ''"),
        (["--regions", "entropy"], 2, "'entropy' is no rule for regions: it must be TRACK<NUMBER or TRACK>NUMBER"),
        (["--regions", "N<1"], 1, "the rule N<1 is for a track that is not computed"),
        (["--tracks", "acgt", "--regions", "entropy<1"], 1, "the tracks are A, C, G, T: --tracks chooses others"),
        (["--plot", "chr1"], 2, "region 'chr1' is not of the form contig:first-last"),
        (["--plot", "chr1:1-701"], 1, "chr1:1-701 cannot be drawn: contig 'chr1' has 700 bp"),
        (["--plot", "chr9:1-7"], 1, "chr9:1-7 cannot be drawn: contig 'chr9' is not in it"),
        (["-o", "none/out"], 1, "none/out.logprob.forward.bedgraph: cannot be written: there is no folder none"),
        (["-o", "."], 1, "is a folder, not what names of files begin with"),
        (["--context", "1"], 2, "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_is_said_before_the_model_is_loaded(
    tmp_path: Path, genome: Path, flags: list[str], code: int, message: str
) -> None:
    result = evo("scan", genome, "-m", "no_such_model", "-o", "out", *flags, cwd=tmp_path)
    told = re.sub(r"[\s│]+", " ", result.stderr)
    assert (result.returncode, message in told) == (code, True), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["genome.fa"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (">a\nACGT\n>b\nAC\n>a\nGG\n", "line 5: a second contig is named 'a'"),
        (">a\nACGT\n>\nAC\n", "line 3: a contig without a name has no place in a track"),
        (">a\n>b\n", "no contig has a base: there is nothing to scan"),
        (">a\nAC!T\n", "'!'"),
        ("", "is empty"),
    ],
)
def test_genomes_that_cannot_be_scanned_are_refused(tmp_path: Path, content: str, message: str) -> None:
    genome = tmp_path / "genome.fa"
    genome.write_text(content)
    result = evo("scan", genome, "-m", "no_such_model", "-o", tmp_path / "out")
    assert result.returncode == 1
    assert message in result.stderr
    assert "genome.fa" in result.stderr


def test_a_picture_bins_what_is_long() -> None:
    values = np.arange(10_001, dtype=np.float32)
    values[:7] = np.nan
    places, means = binned(lambda start, end: values[start:end], Interval("c", 0, 10_001))
    assert (places.size, means.size) == (2000, 2000)
    assert np.isnan(means[0])
    # the bin in which the values begin has the mean of those there are
    np.testing.assert_allclose(means[2:], places[2:] - 1, atol=0.51)
    places, means = binned(lambda start, end: values[start:end], Interval("c", 10, 13))
    np.testing.assert_array_equal(places, [11, 12, 13])
    np.testing.assert_array_equal(means, [10, 11, 12])


@pytest.mark.parametrize("tracks", [("logprob",), ("entropy",), tuple("ACGT"), ("logprob", "entropy", *"ACGT")])
@pytest.mark.parametrize("strands", [("forward",), ("forward", "reverse", "mean")])
@pytest.mark.parametrize("length", [1, 60, 5000])
def test_pictures_are_drawn_of_whatever_there_is(
    tmp_path: Path, tracks: tuple[str, ...], strands: tuple[str, ...], length: int
) -> None:
    values = np.full(length, 0.25, dtype=np.float32)
    values[0] = np.nan
    picture = Picture(
        interval=Interval("a$b_c", 0, length),
        tracks={(track, strand): lambda start, end: values[start:end] for track in tracks for strand in strands},
        sequence=b"ACgTN" * 12 if length == 60 else b"N",
        title="a$b_c^",
    )
    plot_region(tmp_path / "x.png", picture)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
