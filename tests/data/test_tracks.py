"""Tracks written and read back with other people's readers."""

import gzip
import resource
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyBigWig
import pysam
import pytest
from numpy.typing import NDArray

import data.tracks as module
from data.errors import DataError
from data.tracks import ReadTrack, TrackFormat, check_format, runs, write_track

# in no order, with a name that is a pattern, one without any value, and one of a single base
LENGTHS = {"chr2": 1000, "chr10": 257, "%s|odd": 64, "empty": 30, "one": 1}


def make_values(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    values = {name: generator.normal(size=length).astype(np.float32) * 3 for name, length in LENGTHS.items()}
    values["chr2"][[0, 500, 501, 999]] = np.nan
    values["chr10"][::3] = np.nan
    values["empty"][:] = np.nan
    return values


def reader(values: Mapping[str, NDArray[np.float32]]) -> ReadTrack:
    return lambda contig, start, end: values[contig][start:end]


@pytest.fixture(params=[1, 10, 100, 1 << 18])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "BLOCK", request.param)
    return int(request.param)


@pytest.mark.parametrize("form", [TrackFormat.BEDGRAPH, TrackFormat.BEDGRAPH_GZ])
def test_bed_graph_has_a_line_for_every_base_with_a_value(tmp_path: Path, block: int, form: TrackFormat) -> None:
    values, path, seen = make_values(), tmp_path / f"x{form.suffix}", []
    write_track(path, LENGTHS, reader(values), form, seen.append)
    content = path.read_bytes() if form is TrackFormat.BEDGRAPH else gzip.decompress(path.read_bytes())
    rows = [line.split("\t") for line in content.decode().splitlines()]
    want = [(name, place) for name, row in values.items() for place in np.flatnonzero(~np.isnan(row)).tolist()]
    assert [(row[0], int(row[1])) for row in rows] == want
    assert all(int(row[2]) == int(row[1]) + 1 for row in rows)
    np.testing.assert_allclose(
        [float(row[3]) for row in rows], [values[name][place] for name, place in want], rtol=1e-6
    )
    assert sum(seen) == sum(LENGTHS.values())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_bgzip_bed_graph_can_be_indexed(tmp_path: Path) -> None:
    values, path = make_values(), tmp_path / "x.bedgraph.gz"
    write_track(path, LENGTHS, reader(values), TrackFormat.BEDGRAPH_GZ)
    pysam.tabix_index(str(path), preset="bed")
    with pysam.TabixFile(str(path)) as index:
        (line,) = index.fetch("chr10", 100, 101)
    assert line.split("\t")[:3] == ["chr10", "100", "101"]
    assert float(line.split("\t")[3]) == pytest.approx(float(values["chr10"][100]), rel=1e-6)


def test_big_wig_holds_the_numbers_themselves(tmp_path: Path, block: int) -> None:
    values, path = make_values(), tmp_path / "x.bw"
    write_track(path, LENGTHS, reader(values), TrackFormat.BIGWIG)
    with pyBigWig.open(str(path)) as file:
        assert file.chroms() == LENGTHS
        assert list(file.chroms()) == sorted(LENGTHS)
        for name, row in values.items():
            np.testing.assert_array_equal(file.values(name, 0, LENGTHS[name], numpy=True), row)
        known = values["chr2"][200:300].astype(np.float64)
        assert file.stats("chr2", 200, 300, exact=True) == pytest.approx([known.mean()])
        header = file.header()
    every = np.concatenate([row[~np.isnan(row)] for row in values.values()]).astype(np.float64)
    assert header["nBasesCovered"] == every.size
    assert header["sumData"] == pytest.approx(every.sum(), abs=1)  # it is given without its fraction


def test_a_track_without_any_value_is_a_file_without_any(tmp_path: Path) -> None:
    nothing = {"a": np.full(5, np.nan, dtype=np.float32)}
    for form in TrackFormat:
        write_track(tmp_path / f"x{form.suffix}", {"a": 5}, reader(nothing), form)
    assert (tmp_path / "x.bedgraph").read_bytes() == b""
    assert gzip.decompress((tmp_path / "x.bedgraph.gz").read_bytes()) == b""
    with pyBigWig.open(str(tmp_path / "x.bw")) as file:
        assert file.chroms() == {"a": 5}


def test_what_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for form in TrackFormat:
        with pytest.raises(DataError, match=r"none/x.*: cannot be written: No such file or directory"):
            write_track(tmp_path / "none" / f"x{form.suffix}", {"a": 5}, reader({}), form)
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    check_format(TrackFormat.BEDGRAPH)
    with pytest.raises(DataError, match="bigWig files need the package pyBigWig, which is not installed") as caught:
        check_format(TrackFormat.BIGWIG)
    assert caught.value.__notes__ == ['pip install "evo-sh2[tracks]", or write bedGraph']


def test_a_disk_without_room_for_a_big_wig_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = make_values()
    usage = shutil.disk_usage(tmp_path)._replace(free=8000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"x.bw: may take 8,112 bytes, and the disk has 8,000"):
        write_track(tmp_path / "x.bw", LENGTHS, reader(values), TrackFormat.BIGWIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", [TrackFormat.BEDGRAPH, TrackFormat.BEDGRAPH_GZ])
def test_a_disk_that_fills_up_leaves_no_half_of_a_file(tmp_path: Path, form: TrackFormat) -> None:
    noise = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    received = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises((OSError, DataError), match=r"File too large|cannot be written: Error"):
            write_track(tmp_path / "x", {"a": noise.size}, lambda _, start, end: noise[start:end], form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, received)
    assert list(tmp_path.iterdir()) == []


def test_stretches() -> None:
    assert runs(np.array([], dtype=bool)) == []
    assert runs(np.array([1, 1, 0, 1, 0, 0, 1], dtype=bool)) == [(0, 2), (3, 4), (6, 7)]
    assert runs(np.array([0, 0], dtype=bool)) == []
