"""`evo embed` as a user runs it: its files against vectors taken by hand, killed and gone on with, and misused."""

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import sh2
from data.errors import DataError
from data.sequence import reverse_complement
from evo_cli.embedding import files as embedding_files
from sh2.checkpoint import save_model
from tests.evo_cli.cli import rows
from tests.evo_cli.embeddings import content, embed
from tests.sh2.models import tiny

RECORDS = {
    "one": "ACGTACGTTTGACAGGATTACCA",
    "two": "GGGTTTACGACGTTGCATTAGCC",
    "long": "ACGTTGCATTAGCCGATACCGGATTTACAGGCATAGC" * 3,
    "three": "G",
}
LAYERS = "1,norm,blocks.2.mlp.l3"
BED = [("long", 3, 40, "exon", "+"), ("two", 0, 23, ".", "."), ("long", 30, 100, ".", "."), ("long", 3, 4, "x", "-")]


def vectors(text: str, pooling: str = "mean") -> NDArray[np.float32]:
    """What the library says of a sequence."""
    return sh2.embed(tiny(), [text], LAYERS.split(","), pooling=pooling)[0]


def reverse(text: str, pooling: str = "mean") -> NDArray[np.float32]:
    return vectors(reverse_complement(text.encode()).decode(), pooling)


def pooled(pooling: str, y_LND: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same pooling of vectors of bases, in reading direction."""
    wide = y_LND.astype(np.float64)
    return {
        "mean": lambda: wide.mean(0),
        "last": lambda: wide[-1],
        "max": lambda: wide.max(0),
        "second-half": lambda: wide[len(wide) // 2 :].mean(0),
    }[pooling]()


@pytest.fixture(autouse=True)
def _work_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "a.fa"
    path.write_text("".join(f">{name} words\n{text}\n" for name, text in RECORDS.items()))
    return path


@pytest.fixture
def bed(tmp_path: Path) -> Path:
    path = tmp_path / "a.bed"
    path.write_text("".join(f"{contig}\t{a}\t{b}\t{name}\t0\t{strand}\n" for contig, a, b, name, strand in BED))
    return path


def test_all_formats_hold_the_vectors_of_the_library(
    fasta: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/evo", "embed", "a.fa"])
    from pyarrow import parquet

    want = {name: vectors(text) for name, text in RECORDS.items()}
    for suffix in ("h5", "npy", "parquet"):
        result = embed(fasta, "-m", model_folder, "-o", f"o.{suffix}", "--layers", LAYERS)
        assert (result.exit_code, result.stdout) == (0, ""), result.stderr
        assert f"4 records, 158 bases: o.{suffix}" in result.stderr
    with h5py.File(fasta.parent / "o.h5") as file:
        assert list(file["embeddings"]) == list(RECORDS)
        assert list(file.attrs["layers"]) == ["blocks.1", "norm", "blocks.2.mlp"]
        facts = {name: file.attrs[name] for name in ("pooling", "strand", "dtype", "precision", "model")}
        assert facts == {
            "pooling": "mean", "strand": "forward", "dtype": "float32", "precision": "fp32", "model": str(model_folder),
        }  # fmt: skip
        assert file.attrs["command"] == "evo embed a.fa"
        assert json.loads(file.attrs["run"])["environment"]["torch"]
        assert (file["embeddings/one"].compression, file["embeddings/one"].dtype) == ("gzip", np.float32)
        for name, vector in want.items():
            np.testing.assert_allclose(file["embeddings"][name], vector, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.load(fasta.parent / "o.npy"), list(want.values()), rtol=1e-4, atol=1e-5)
    table = rows((fasta.parent / "o.npy.ids.tsv").read_text())
    assert [(row["first_row"], row["rows"], row["id"], row["end"]) for row in table] == [
        (str(number), "1", name, str(len(text))) for number, (name, text) in enumerate(RECORDS.items())
    ]
    assert json.loads((fasta.parent / "o.npy.meta.json").read_text())["layers"] == ["blocks.1", "norm", "blocks.2.mlp"]
    read = parquet.read_table(fasta.parent / "o.parquet")
    assert read["id"].to_pylist() == list(RECORDS)
    assert json.loads(read.schema.metadata[b"evo"])["pooling"] == "mean"
    for number, layer in enumerate(["blocks.1", "norm", "blocks.2.mlp"]):
        np.testing.assert_allclose(
            read[layer].to_pylist(), [vector[number] for vector in want.values()], rtol=1e-4, atol=1e-5
        )
    assert not list(fasta.parent.glob("*.partial"))


@pytest.mark.parametrize("combine", ["mean", "concat"])
def test_the_other_strand_is_read_backwards_and_counted_forwards(
    fasta: Path, bed: Path, model_folder: Path, combine: str
) -> None:
    words = (fasta, "-m", model_folder, "-l", LAYERS, "--strand", "both", "--combine", combine)

    def join(forward: NDArray[Any], backward: NDArray[Any]) -> NDArray[Any]:
        return (forward + backward) / 2 if combine == "mean" else np.concatenate([forward, backward], axis=-1)

    for pooling in ("last", "per-base"):
        result = embed(*words, "--pool", pooling, "-o", fasta.parent / "o.h5")
        assert result.exit_code == 0, result.stderr
        for name, vector in content(fasta.parent / "o.h5").items():
            text = RECORDS[name.removeprefix("embeddings/")]
            backward = reverse(text, pooling)
            want = join(vectors(text, pooling), backward[::-1] if pooling == "per-base" else backward)
            np.testing.assert_allclose(vector, want, rtol=1e-4, atol=1e-5)
    for pooling in ("mean", "second-half"):
        result = embed(*words, "--pool", pooling, "--bed", bed, "-o", fasta.parent / "o.h5")
        assert result.exit_code == 0, result.stderr
        found = content(fasta.parent / "o.h5")
        assert list(found) == ["embeddings/two", "embeddings/long", "intervals/two", "intervals/long"]
        for name in ("two", "long"):
            text = RECORDS[name]
            mine = [(a, b, label.encode(), strand.encode()) for contig, a, b, label, strand in BED if contig == name]
            assert found[f"intervals/{name}"] == mine
            for vector, (a, b, *_) in zip(found[f"embeddings/{name}"], mine, strict=True):
                forward, backward = vectors(text, "per-base"), reverse(text, "per-base")
                backward = backward[len(text) - b : len(text) - a]
                want = join(pooled(pooling, forward[a:b]), pooled(pooling, backward))
                np.testing.assert_allclose(vector, want, rtol=1e-4, atol=1e-5)


def test_bases_and_intervals_in_the_other_formats(fasta: Path, bed: Path, model_folder: Path) -> None:
    from pyarrow import parquet

    words = (fasta, "-m", model_folder, "-l", LAYERS, "--dtype", "float16")
    every = np.concatenate([vectors(text, "per-base") for text in RECORDS.values()])
    spans = np.stack([vectors(RECORDS[name], "per-base")[a:b].max(0) for name, a, b, *_ in BED])
    in_order = [1, 0, 2, 3]  # of the records, then of the BED file
    for suffix in ("npy", "parquet"):
        for flags in (["--pool", "per-base"], ["--bed", bed, "--pool", "max"]):
            result = embed(*words, *flags, "-o", fasta.parent / f"{flags[0][2:]}.{suffix}")
            assert result.exit_code == 0, result.stderr
    bases, intervals = (np.load(fasta.parent / f"{name}.npy") for name in ("pool", "bed"))
    assert (bases.dtype, intervals.dtype) == (np.float16, np.float16)
    np.testing.assert_allclose(bases, every, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(intervals, spans[in_order], rtol=2e-3, atol=1e-5)
    table = rows((fasta.parent / "pool.npy.ids.tsv").read_text())
    assert [(row["id"], row["first_row"], row["rows"]) for row in table[:3]] == [
        ("one", "0", "23"), ("two", "23", "23"), ("long", "46", "111"),
    ]  # fmt: skip
    table = rows((fasta.parent / "bed.npy.ids.tsv").read_text())
    assert [(row["id"], row["start"], row["end"], row["name"], row["strand"]) for row in table] == [
        tuple(map(str, BED[number])) for number in in_order
    ]
    read = parquet.read_table(fasta.parent / "pool.parquet")
    assert read["position"].to_pylist()[20:26] == [20, 21, 22, 0, 1, 2]
    np.testing.assert_array_equal(np.array(read["norm"].to_pylist(), np.float16), bases[:, 1])
    read = parquet.read_table(fasta.parent / "bed.parquet")
    assert read.select(["id", "start", "end", "name", "strand"]).to_pylist()[1] == dict(
        zip(("id", "start", "end", "name", "strand"), BED[0], strict=True)
    )
    np.testing.assert_array_equal(np.array(read["norm"].to_pylist(), np.float16), intervals[:, 1])


def test_what_has_no_vector_is_counted_and_ids_stay_apart(tmp_path: Path, model_folder: Path) -> None:
    fasta, bed = tmp_path / "a.fa", tmp_path / "a.bed"
    fasta.write_text(">x\nACGTNU\n>none\n>x\nacgtnu\n>A/1\nACG\n>A_1\nACGT\n>.\nA\n")
    bed.write_text("x\t0\t6\nx\t2\t7\nabsent\t0\t1\n")
    result = embed(fasta, "-m", model_folder, "-o", "o.h5")
    assert result.exit_code == 0
    for line in (
        "layer: blocks.3 (--layers chooses others)",
        "6 records, 20 bases: o.h5",
        "1 records hold lower-case (soft-masked) bases: read as upper case (--keep-case keeps them)",
        "warning: 1 records are empty and have no vector: `none`",
        "record `x` is embeddings/x.2",
        "record `A/1` is embeddings/A_1",
        "record `A_1` is embeddings/A_1.2",
        "warning: 4 ids stand under other names in o.h5: a name is there once, and `/` divides",
    ):
        assert line in result.stderr.splitlines()
    found = content(tmp_path / "o.h5")
    assert [name.removeprefix("embeddings/") for name in found] == ["x", "x.2", "A_1", "A_1.2", "_"]
    np.testing.assert_array_equal(found["embeddings/x"], found["embeddings/x.2"])
    embed(fasta, "-m", model_folder, "-o", "o.h5", "--keep-case")
    assert np.abs(content(tmp_path / "o.h5")["embeddings/x.2"] - found["embeddings/x"]).max() > 1e-3
    result = embed("a.fa", "-m", model_folder, "-o", "o.h5", "--bed", "a.bed")
    for line in (
        "warning: 2 intervals end behind their record and have no vector: `x:3-7 of 6 bp`, `x:3-7 of 6 bp`",
        "warning: 1 contigs of a.bed are not in a.fa: `absent`",
    ):
        assert line in result.stderr.splitlines()
    fasta.write_text(">none\n>nothing\n")
    assert embed(fasta, "-m", model_folder, "-o", "o.h5").exit_code == 0
    assert content(tmp_path / "o.h5") == {}
    result = embed("-", "-m", model_folder, "-o", "o.npy", stdin=">a\nACGT\n")
    assert (result.exit_code, np.load(tmp_path / "o.npy").shape) == (0, (1, 1, 32))


def test_a_value_beyond_float16_is_named(tmp_path: Path) -> None:
    model = tiny()
    model.embedding.weight.data[:] *= 1e9
    save_model(model, tmp_path / "m")
    words = ("-", "-m", tmp_path / "m", "-o", tmp_path / "o.h5", "-l", "blocks.0.mixer,0", "--pool", "max")
    result = embed(*words, "--dtype", "float16", stdin=">a\nA\n")
    assert result.exit_code == 1
    assert "error: record `a`: blocks.0 has a value of " in result.stderr
    assert "more than float16 can hold\nhint: use --dtype float32\n" in result.stderr
    assert not (tmp_path / "o.h5").exists()
    result = embed(*words, "--overwrite", stdin=">a\nA\n")
    assert result.exit_code == 0, result.stderr
    assert content(tmp_path / "o.h5")["embeddings/a"].max() > 65504


def test_layers_are_listed_from_the_configuration_alone(model_folder: Path) -> None:
    result = embed("--list-layers", "-m", model_folder)
    table = {row["name"]: row for row in rows(result.stdout)}
    assert (result.exit_code, len(table), list(table)[-1]) == (0, 4 * 5 + 1, "norm")
    assert table["blocks.3.mixer"]["kind"] == "attention"
    assert table["blocks.0.mlp"]["published"] == "blocks.0.mlp.l3,blocks.0.mlp"
    assert {row["width"] for row in table.values()} == {"32"}
    published = embed("--list-layers", "-m", "evo2_40b")
    assert "\nblocks.49.mlp\tgated_mlp\t8192\tblocks.49.mlp.l3,blocks.49.mlp\t" in published.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "give INPUT and -o OUTPUT, or --list-layers"),
        (["a.fa"], 2, "give INPUT and -o OUTPUT, or --list-layers"),
        (["a.fa", "-o", "o.h5", "--combine", "mean"], 2, "is for --strand both"),
        (["a.fa", "-o", "o.h5", "--bed", "a.bed", "--pool", "per-base"], 2, "has one vector an interval"),
        (["a.fa", "-o", "o.txt"], 1, "o.txt: embeddings are written to .h5, .hdf5, .npy, .parquet, not to .txt files"),
        (["a.fa", "-o", "o"], 1, "o: embeddings are written to .h5, .hdf5, .npy, .parquet, not to files without a"),
        (["a.fa", "-o", "x/o.h5"], 1, "x/o.h5: cannot be written: there is no folder x"),
        (["b.fa", "-o", "o.h5"], 1, "b.fa: cannot be read: No such file or directory"),
        (["a.fa", "-o", "o.h5", "-l", "4"], 1, "the model has no layer `4` to take embeddings from"),
        (["a.fa", "-o", "o.h5", "-l", "0,,1"], 1, "the model has no layer `` to take embeddings from"),
        (["a.bed", "-o", "o.h5"], 1, "a.bed: line 1: 'l' stands before the first '>' header"),
        (["a.fa", "-o", "o.h5", "--bed", "a.fa"], 1, "a.fa: line 1: "),
    ],
)
def test_mistakes_are_found_before_any_work(
    fasta: Path, bed: Path, model_folder: Path, words: list[str], code: int, message: str
) -> None:
    before = sorted(fasta.parent.iterdir())
    result = embed("-m", model_folder, *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "parameters" not in result.stderr  # the model is not loaded
    assert sorted(fasta.parent.iterdir()) == before


def test_parquet_without_pyarrow_says_what_to_install(fasta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_files, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="Parquet is written by pyarrow, which is not installed") as caught:
        embedding_files.format_of(fasta.with_suffix(".parquet"))
    assert caught.value.__notes__ == ["pip install 'evo-sh2[parquet]', or write .h5 or .npy"]
