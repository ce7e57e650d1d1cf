"""One table in all its formats, and in parts: read back by other libraries, cell by cell."""

import gzip
import json
from itertools import chain, count
from pathlib import Path
from typing import Any

import pysam
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from pysam import bcftools

from data.errors import DataError
from evo_cli.outputs.maker import choose_maker
from evo_cli.outputs.merge import merge_parts
from evo_cli.outputs.shards import Shard, interleave
from tests.evo_cli.cli import rows
from tests.evo_cli.scoring import OTHER_MODEL, sequences, variants, write_genome, write_vcf

TEXTS = {"chrom", "id", "ref", "alt", "status", "normalised"}
WHOLE_NUMBERS = {"pos", "window_start", "window_length", "offset"}


@pytest.fixture(scope="module")
def vcf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variants")
    return write_vcf(folder / "v.vcf", write_genome(folder, 900))


@pytest.fixture(scope="module")
def table(vcf: Path) -> list[dict[str, str]]:
    output = vcf.with_name("whole.tsv")
    variants(vcf, output)
    return rows(output.read_text())


def test_gzip_holds_the_same_bytes(vcf: Path, table: list[dict[str, str]], tmp_path: Path) -> None:
    variants(vcf, tmp_path / "o.tsv.gz")
    assert rows(gzip.decompress((tmp_path / "o.tsv.gz").read_bytes()).decode()) == table


def test_parquet_has_types_and_nulls(vcf: Path, table: list[dict[str, str]], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    variants(vcf, tmp_path / "o.parquet")
    found = parquet.read_table(tmp_path / "o.parquet").to_pylist()
    assert len(found) == len(table)
    for row, want in zip(found, table, strict=True):
        assert list(row) == list(want)
        for name, value in row.items():
            if name in TEXTS:
                assert value == want[name]
            elif want[name] == "NA":
                assert value is None
            else:
                assert value == (int if name in WHOLE_NUMBERS else float)(want[name])


@pytest.mark.parametrize("suffix", [".vcf", ".vcf.gz", ".vcf.bgz", ".bcf"])
def test_vcf_says_in_info_what_the_rows_say(
    vcf: Path, table: list[dict[str, str]], tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"o{suffix}"
    variants(vcf, output)
    place = iter(table)
    with pysam.VariantFile(str(vcf)) as before, pysam.VariantFile(str(output)) as after:
        for old, new in zip(before, after, strict=True):
            assert str(new).split("\t")[:7] == str(old).split("\t")[:7]
            assert new.info["DP"] == old.info["DP"]
            own = [next(place) for _ in old.alts]
            for name in set(table[0]) - {"chrom", "pos", "id", "ref", "alt"}:
                for value, row in zip(new.info[f"EVO_{name.upper()}"], own, strict=True):
                    if row[name] == "NA":
                        assert value in (None, ".")
                    elif name in TEXTS:
                        assert value == row[name]
                    else:
                        assert value == pytest.approx(float(row[name]), rel=1e-6)
    assert next(place, None) is None


def test_odd_vcf_keeps_all_that_is_not_ours(tmp_path: Path) -> None:
    genome = write_genome(tmp_path, 60)
    ref = genome[29]
    others = [base for base in "ACGT" if base != ref]
    text = (
        "##fileformat=VCFv4.1\r\n##odd line without anything\r\n"
        "##INFO=<ID=EVO_DELTA,Number=1,Type=Integer,Description=x>\r\n"
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS 1\r\n"
        f"chr1\t30\ta;b\t{ref}\t{others[0]},{others[1]}\t12.50\tq10;s50\tEVO_DELTA=3;X=1,2;FLAG\tGT:AD\t0|1:3,4\r\n"
        "\r\n"
        f"chr1\t030\t.\t{ref}\t<DEL>\t.\t.\t.\tGT\t./.\r\n"
    )
    (tmp_path / "v.vcf").write_bytes(text.encode())
    variants(tmp_path / "v.vcf", tmp_path / "o.tsv")
    variants(tmp_path / "v.vcf", tmp_path / "o.vcf")
    first, second, _ = rows((tmp_path / "o.tsv").read_text())
    lines = (tmp_path / "o.vcf").read_bytes().decode().split("\r\n")
    assert lines[:2] == ["##fileformat=VCFv4.1", "##odd line without anything"]
    assert [line.split(",")[0] for line in lines[2:5]] == [
        "##INFO=<ID=EVO_STATUS", "##INFO=<ID=EVO_DELTA", "##INFO=<ID=EVO_DELTA_FWD"
    ]  # fmt: skip
    *_, header, scored, empty, unscored, end = lines
    assert header.endswith("INFO\tFORMAT\tS 1")
    assert scored.startswith(
        f"chr1\t30\ta;b\t{ref}\t{others[0]},{others[1]}\t12.50\tq10;s50\tX=1,2;FLAG;EVO_STATUS=ok,ok;"
    )
    assert f";EVO_DELTA={first['delta']},{second['delta']};" in scored
    assert scored.endswith("\tGT:AD\t0|1:3,4")
    assert empty == end == ""
    assert unscored.startswith(f"chr1\t030\t.\t{ref}\t<DEL>\t.\t.\tEVO_STATUS=symbolic;EVO_DELTA=.;")
    assert unscored.endswith("\tGT\t./.")
    # five columns are enough to score; INFO comes after those that belong before it
    (tmp_path / "w.vcf").write_text(f"#CHROM\tPOS\tID\tREF\tALT\nchr1\t30\t.\t{ref}\t{others[0]}\n")
    variants(tmp_path / "w.vcf", tmp_path / "p.vcf")
    *_, header, scored = (tmp_path / "p.vcf").read_text().splitlines()
    assert header == "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
    assert scored.startswith(f"chr1\t30\t.\t{ref}\t{others[0]}\t.\t.\tEVO_STATUS=ok;EVO_DELTA={first['delta']};")


def test_bcf_comes_and_goes(vcf: Path, table: list[dict[str, str]], tmp_path: Path) -> None:
    write_genome(tmp_path, 900)
    bcftools.view("--no-version", "-O", "b", "-o", str(tmp_path / "v.bcf"), str(vcf), catch_stdout=False)
    variants(tmp_path / "v.bcf", tmp_path / "o.tsv")
    assert rows((tmp_path / "o.tsv").read_text()) == table
    variants(tmp_path / "v.bcf", tmp_path / "o.vcf")
    variants(vcf, tmp_path / "p.vcf")
    ours, theirs = (
        [line for line in (tmp_path / name).read_text().splitlines() if line[0] != "#"] for name in ("o.vcf", "p.vcf")
    )
    assert ours == theirs


def test_formats_that_cannot_be_made_are_refused_before_any_work(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(DataError, match="VCF is written of variants that come from a VCF or BCF file"):
        sequences(tmp_path / "no.fa", tmp_path / "o.vcf.gz")
    monkeypatch.setattr("evo_cli.outputs.formats.find_spec", lambda _: None)
    with pytest.raises(DataError, match="Parquet needs the package pyarrow") as caught:
        sequences(tmp_path / "no.fa", tmp_path / "o.parquet")
    assert caught.value.__notes__ == ["pip install 'evo-sh2[parquet]'"]
    with pytest.raises(DataError, match="HDF5 is made from the table, so that must be a file"):
        sequences(tmp_path / "no.fa", None, per_base=tmp_path / "b.h5")
    assert choose_maker(tmp_path / "o.anything", variants=None) is None
    assert not list(tmp_path.iterdir())


@given(items=st.integers(0, 60), parts=st.integers(1, 7), unit=st.integers(1, 9))
def test_parts_put_together_are_the_whole(items: int, parts: int, unit: int) -> None:
    picked = [list(Shard(number, parts).pick(range(items), unit)) for number in range(1, parts + 1)]
    assert list(interleave([iter(one) for one in picked], unit)) == list(range(items))
    assert sorted(chain(*picked)) == list(range(items))


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/3/5", "1/ 3"])
def test_a_part_is_i_of_n(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="must be i/n with 1 <= i <= n, such as 3/10"):
        Shard.parse(text)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_merged_parts_are_the_bytes_of_the_whole(
    vcf: Path, table: list[dict[str, str]], tmp_path: Path, parts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{number}{suffix}" for number, suffix in enumerate((".tsv", ".parquet", ".tsv.gz")[:parts])]
    for number, path in enumerate(paths, 1):
        variants(vcf, path, shard=f"{number}/{parts}")
    merge_parts(paths[::-1], tmp_path / "m.tsv")
    assert (tmp_path / "m.tsv").read_bytes() == vcf.with_name("whole.tsv").read_bytes()
    assert f"{len(table)} rows of {parts} parts: " in capsys.readouterr().err
    merge_parts(paths, None)
    assert rows(capsys.readouterr().out) == table
    merge_parts(paths, tmp_path / "m.vcf")
    variants(vcf, tmp_path / "o.vcf")
    assert (tmp_path / "m.vcf").read_bytes() == (tmp_path / "o.vcf").read_bytes()
    about, whole = (
        json.loads(path.read_text()) for path in (tmp_path / "m.tsv.meta.json", vcf.with_name("whole.tsv.meta.json"))
    )
    for key in ("command", "model", "inputs", "options", "rows", "counts"):
        assert about[key] == whole[key]
    assert [run["part"] for run in about["runs"]] == list(range(1, parts + 1))


def test_parts_of_sequences_come_back_in_order(tmp_path: Path) -> None:
    genome = write_genome(tmp_path)
    fasta = tmp_path / "s.fa"
    fasta.write_text("".join(f">r{number}\n{genome[: 7 * number]}\n" for number in range(12)))
    sequences(fasta, tmp_path / "whole.tsv")
    paths = [tmp_path / f"{number}.tsv" for number in (1, 2, 3, 4, 5)]
    for number, path in enumerate(paths, 1):
        sequences(fasta, path, shard=f"{number}/5")
    merge_parts(paths, tmp_path / "m.tsv")
    whole, merged = (rows((tmp_path / name).read_text()) for name in ("whole.tsv", "m.tsv"))
    assert [row["record"] for row in merged] == [row["record"] for row in whole]
    for one, other in zip(merged, whole, strict=True):
        assert one["length"] == other["length"]
        if one["log_likelihood"] != "NA":
            assert float(one["log_likelihood"]) == pytest.approx(float(other["log_likelihood"]), rel=1e-5)


def test_what_is_no_whole_of_parts_is_refused(vcf: Path, table: list[dict[str, str]], tmp_path: Path) -> None:
    names = (tmp_path / f"{number}.tsv" for number in count(1))
    one, three, again, foreign = (next(names) for _ in range(4))
    variants(vcf, one, shard="1/3")
    variants(vcf, three, shard="3/3")
    variants(vcf, again, shard="3/3")
    variants(vcf, foreign, shard="2/3", open=lambda: OTHER_MODEL)
    cases = [
        ([one, three], "part 2 of 3 missing"),
        ([three], "parts 1, 2 of 3 missing"),
        ([one, three, again], r"2\.tsv and .*3\.tsv are both part 3"),
        ([one, foreign, three], r"1\.tsv and .*4\.tsv are of different runs: the model has other weights"),
        ([vcf.with_name("whole.tsv")], r"whole\.tsv: is a whole, not a part"),
        ([vcf], r"v\.vcf: has no metadata: .*v\.vcf\.meta\.json cannot be read"),
        ([tmp_path / "none.tsv"], r"none\.tsv: no such file"),
    ]
    for paths, message in cases:
        with pytest.raises(DataError, match=message):
            merge_parts(paths, tmp_path / "m.tsv")
    (tmp_path / "begun.tsv.partial").touch()
    with pytest.raises(DataError, match=r"begun\.tsv: is not finished"):
        merge_parts([tmp_path / "begun.tsv"], tmp_path / "m.tsv")
    one.write_text(one.read_text() + "more\n")
    with pytest.raises(DataError, match=r"1\.tsv: has changed since it was written"):
        merge_parts([one, three], tmp_path / "m.tsv")
    assert not (tmp_path / "m.tsv").exists()
