"""The model in the box: there, small, as good as its card says, and taken where none is given; and how it is made."""

import gzip
import hashlib
import io
import json
from pathlib import Path

import pytest
from safetensors import safe_open

from data.errors import DataError
from evo_cli.box import MODEL, fetch
from tests.evo_cli.cli import evo

LIST = MODEL.parent / "corpus.tsv"
GENOMES = Path(__file__).parents[1] / "assets" / "genomes"
LAMBDA = GENOMES / "lambda_NC_001416.1.fa.gz"
PHIX = GENOMES / "phix174_NC_001422.gbk"
SEQUENCES = {"A.1": b"ACGTTGCA" * 30, "B.2": b"GGGTTT"}


def test_it_is_small_and_in_bfloat16() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 10_000_000
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys() if "mixer.input" in name}  # noqa: SIM118
    assert dtypes == {"BF16"}


def test_it_is_as_good_as_its_card_says_on_a_phage_it_never_saw() -> None:
    result = evo("eval", "perplexity", LAMBDA, "--model", MODEL, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    bits = result.stdout.splitlines()[1].split("\t")[-1]
    assert f"| phage lambda | {float(bits):.3f} |" in (MODEL / "README.md").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["score", PHIX],
        ["generate", "--prompt", "ACGTTGCA", "--length", 20, "--seed", 1],
    ],
)
def test_it_is_taken_where_no_model_is_given(words: list[object]) -> None:
    said = "no --model: the one in the box, "
    own, given = evo(*words, "--device", "cpu"), evo(*words, "--device", "cpu", "--model", MODEL)
    assert own.returncode == 0, own.stderr
    assert own.stderr.splitlines()[0].startswith(said)
    assert said not in given.stderr
    assert own.stdout == given.stdout != ""


def test_vectors_and_tracks_take_it_too(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGTTGCAACGT\n")
    for words in (["embed", "a.fa", "-o", "a.h5"], ["scan", "a.fa", "-o", "a"]):
        result = evo(*words, "--device", "cpu", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "the one in the box" in result.stderr


def test_the_list_of_what_it_was_trained_on_is_whole() -> None:
    listed = fetch.read_list(LIST)
    assert len(listed) == len({one.accession for one in listed}) == 153
    assert sum(one.bases for one in listed) == 54_706_812
    assert all(len(one.sha256) == 64 for one in listed)


@pytest.fixture
def ncbi(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """NCBI's answers, from a table, in another order than asked for; there is no network here."""
    table = dict(SEQUENCES)

    def efetch(*, db: str, id: str, rettype: str, retmode: str) -> io.StringIO:
        assert (db, rettype, retmode) == ("nuccore", "fasta", "text")
        known = [name for name in reversed(id.split(",")) if name in table]
        return io.StringIO("".join(f">{name} some title\n{table[name].decode()}\n\n" for name in known))

    monkeypatch.setattr(fetch.Entrez, "efetch", efetch)
    return table


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    rows = [f"{name}\t{len(bases)}\t{hashlib.sha256(bases).hexdigest()}\tit\n" for name, bases in SEQUENCES.items()]
    path = tmp_path / "list.tsv"
    path.write_text("accession\tbases\tsha256\tdescription\n" + "".join(rows))
    return path


@pytest.mark.parametrize("at_once", [1, 20])
def test_what_is_fetched_is_written_in_the_order_of_the_list(
    at_once: int, ncbi: dict[str, bytes], listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "AT_ONCE", at_once)
    fetch.main(listed, tmp_path / "new" / "out.fa.gz")
    text = gzip.decompress((tmp_path / "new" / "out.fa.gz").read_bytes()).decode()
    assert text == ">A.1\n" + "\n".join(["ACGTTGCA" * 10] * 3) + "\n>B.2\nGGGTTT\n"


@pytest.mark.parametrize("given", [b"GGGTTA", None])
def test_another_sequence_than_the_listed_one_is_refused(
    given: bytes | None, ncbi: dict[str, bytes], listed: Path, tmp_path: Path
) -> None:
    del ncbi["B.2"]
    if given is not None:
        ncbi["B.2"] = given
    with pytest.raises(DataError, match=r"B\.2: NCBI gave \d bases that are not the 6 of the list"):
        fetch.main(listed, tmp_path / "out.fa.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["list.tsv"]


def test_its_context_is_what_it_was_trained_on() -> None:
    assert json.loads((MODEL / "config.json").read_text())["model"]["context"] == 8192
