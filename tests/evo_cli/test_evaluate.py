"""`evo eval` as a user runs it, against the same figures taken through other roads."""

import math
from pathlib import Path

import numpy as np
import pytest

import sh2
from data.markov import markov_bits_per_base
from data.store import TokenStore
from sh2.reading.perplexity import sliding_log_probs
from tests.evo_cli.cli import evo, rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    fasta = folder / "genome.fa"
    bases = "".join(np.random.default_rng(1).choice(list("ACGT"), size=60_000))
    fasta.write_text(f">chr\n{bases[:20_000]}{bases[20_000:40_000].lower()}NNNN{bases[40_000:]}\n")
    path = folder / "genome.h5"
    assert evo("prepare", fasta, "-o", path, "--valid", 0.1, "--region-length", 2000).returncode == 0
    return path


def stretches(path: Path, split: str) -> list[np.ndarray]:
    with TokenStore(path) as opened:
        return [opened.read(int(segment["start"]), int(segment["end"])) for segment in opened.segments(split)]


def test_perplexity_counts_every_true_base_of_the_split_once(store: Path, model_folder: Path) -> None:
    result = evo("eval", "perplexity", store, "--model", model_folder, "--context", 64, "--stride", 32)
    assert result.returncode == 0, result.stderr
    (row,) = rows(result.stdout)
    model = sh2.load(model_folder)
    total, bases = 0.0, 0
    for stretch in stretches(store, "valid"):
        upper = np.frombuffer(stretch.tobytes().upper(), dtype=np.uint8)
        true = np.isin(upper, list(b"ACGT"))
        total -= float(sliding_log_probs(model, upper, context=64, stride=32)[true].sum())
        bases += int(true.sum())
    assert (row["split"], row["bases"], row["context"], row["stride"]) == ("valid", str(bases), "64", "32")
    assert float(row["bits_per_base"]) == pytest.approx(total / bases / math.log(2), abs=2e-4)


def test_markov_is_measured_on_the_same_bases(store: Path, tmp_path: Path) -> None:
    result = evo("eval", "markov", store, "--order", 2, "--order", 0, "--plot", tmp_path / "orders.png")
    assert (tmp_path / "orders.png").read_bytes().startswith(b"\x89PNG")
    table = rows(result.stdout)
    assert [row["model"] for row in table] == ["markov-2", "markov-0"]
    want = markov_bits_per_base(stretches(store, "train"), stretches(store, "valid"), 2)
    assert float(table[0]["bits_per_base"]) == pytest.approx(want, abs=1e-4)
    bases = sum(int(np.isin(stretch, list(b"ACGTacgt")).sum()) for stretch in stretches(store, "valid"))
    assert table[0]["bases"] == str(bases)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "holdout"], "holdout"),
        (["--split", "test"], "the test split is empty"),
    ],
)
def test_a_split_that_is_not_there_is_named(store: Path, arguments: list[str], message: str) -> None:
    result = evo("eval", "markov", store, *arguments)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "two.fa"
    path.write_text(f">a\n{GENOME[:250]}\n>b\n{GENOME[250:280].lower()}NN{GENOME[280:400]}\n>empty\n")
    return path


GENOME = "".join(np.random.default_rng(4).choice(list("ACGT"), size=400))


@pytest.mark.parametrize("learn", [[], ["--dynamic", "0.003", "--mirror"]])
def test_records_of_a_file_on_both_strands_with_a_picture(
    tmp_path: Path, fasta: Path, model_folder: Path, learn: list[str]
) -> None:
    picture = tmp_path / "bits.png"
    result = evo(
        *("eval", "perplexity", fasta, "--model", model_folder, "--context", 64, "--strand", "both"),
        *("--plot", picture, *learn),
    )
    assert result.returncode == 0, result.stderr
    table = rows(result.stdout)
    assert [(row["split"], row["strand"], row["bases"]) for row in table] == [
        ("all", "forward", "400"),
        ("all", "reverse", "400"),
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
    records = [GENOME[:250], GENOME[250:280] + "NN" + GENOME[280:400]]
    turned = [text[::-1].translate(str.maketrans("ACGT", "TGCA")) for text in reversed(records)]
    model = sh2.load(model_folder)
    for row, texts in zip(table, (records, turned), strict=True):
        bits = [-sliding_log_probs(model, text, context=64) / math.log(2) for text in texts]
        true = [np.array([base != "N" for base in text]) for text in texts]
        want = sum(one[mask].sum() for one, mask in zip(bits, true, strict=True)) / 400
        if learn:
            assert float(row["bits_per_base"]) < want - 1, "a model of 9 bits a base learns fast"
            assert row["dynamic"] == "0.003"
        else:
            assert float(row["bits_per_base"]) == pytest.approx(want, abs=2e-4)


@pytest.mark.parametrize("learn", [[], ["--dynamic", "0.003"]])
def test_a_memory_is_copied_from(tmp_path: Path, fasta: Path, model_folder: Path, learn: list[str]) -> None:
    related, other = tmp_path / "related.fa", tmp_path / "other.fa"
    turned = GENOME[::-1].translate(str.maketrans("ACGT", "TGCA"))
    related.write_text(f">x\n{turned[:200]}\n>y\n{turned[200:].lower()}\n")
    other.write_text(">x\n" + "".join(np.random.default_rng(5).choice(list("ACGT"), size=300)) + "\n")
    common = ("eval", "perplexity", fasta, "--model", model_folder, "--context", 64, "--strand", "both", *learn)
    results = [evo(*common, "--memory", other), evo(*common, "--memory", other, "--memory", related)]
    assert [result.returncode for result in results] == [0, 0], results[0].stderr
    without, with_it = (rows(result.stdout) for result in results)
    for less, more in zip(without, with_it, strict=True):
        assert (less["bases"], less["memory"], more["memory"]) == ("400", "300", "700")
        # 30 bases or more before it is seen, and what the network has to learn
        assert float(more["bits_per_base"]) < float(less["bits_per_base"]) - 0.5
    assert "100%" in results[1].stderr
    refused = evo(*common, "--memory", fasta)
    assert refused.returncode == 2
    assert f"{fasta} is what is measured: a copy of it is no prediction" in " ".join(refused.stderr.split())


def test_a_static_reader_learns_from_the_memory_alone(tmp_path: Path, fasta: Path, model_folder: Path) -> None:
    others = tmp_path / "others.fa"
    related = "".join(np.random.default_rng(6).choice(list("ACGT"), size=3000)) + GENOME
    others.write_text("".join(f">{number}\n{related}\n" for number in range(12)))
    common = (
        "eval",
        "perplexity",
        fasta,
        "--model",
        model_folder,
        "--context",
        64,
        "--memory",
        others,
        "--strand",
        "both",
    )
    result = evo(*common, "--static")
    assert result.returncode == 0, result.stderr
    assert "100%" in result.stderr
    learning, static = rows(evo(*common).stdout), rows(result.stdout)
    assert [row["static"] for row in [*learning, *static]] == ["no", "no", "yes", "yes"]
    assert all(float(row["bits_per_base"]) < 1 for row in static)
    (alone,) = rows(evo(*common[:-2], "--static", "--strand", "reverse").stdout)
    assert alone == static[1]


def test_the_strands_are_learned_apart(fasta: Path, model_folder: Path) -> None:
    common = ("eval", "perplexity", fasta, "--model", model_folder, "--context", 64, "--dynamic", "0.003")
    both = rows(evo(*common, "--strand", "both").stdout)
    (alone,) = rows(evo(*common, "--strand", "reverse").stdout)
    assert alone == both[1]


def test_markov_counts_on_another_file(tmp_path: Path, fasta: Path) -> None:
    other = tmp_path / "train.fa"
    other.write_text(f">x\n{GENOME[::-1]}\n")
    result = evo("eval", "markov", fasta, "--train", other, "--order", 2)
    (row,) = rows(result.stdout)
    tested = [np.frombuffer(text.encode(), np.uint8) for text in (GENOME[:250], GENOME[250:280] + "NN" + GENOME[280:])]
    want = markov_bits_per_base([np.frombuffer(GENOME[::-1].encode(), np.uint8)], tested, 2)
    assert (row["split"], row["bases"]) == ("all", "400")
    assert float(row["bits_per_base"]) == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["markov"], "has no train split: say what to count on"),
        (["perplexity", "-m", "x", "--mirror"], "goes with --dynamic"),
        (["perplexity", "-m", "x", "--dynamic", "1"], "must lie in 0..1, not 1"),
    ],
)
def test_options_that_do_not_fit(fasta: Path, words: list[str], message: str) -> None:
    result = evo("eval", words[0], fasta, *words[1:])
    assert result.returncode == 2
    assert message in result.stderr


def test_rna_is_read_as_dna(tmp_path: Path, model_folder: Path) -> None:
    dna, rna = tmp_path / "dna.fa", tmp_path / "rna.fa"
    dna.write_text(f">a\n{GENOME}\n")
    rna.write_text(f">a\n{GENOME.replace('T', 'U')}\n")
    words = ("--model", model_folder, "--context", 64, "--strand", "both")
    tables = [evo("eval", "perplexity", path, *words).stdout for path in (dna, rna)]
    assert tables[0] == tables[1]
    assert [row["bases"] for row in rows(tables[0])] == ["400", "400"]


def test_copies_of_what_is_measured_are_refused_or_told(
    tmp_path: Path, store: Path, fasta: Path, model_folder: Path
) -> None:
    refused = evo("eval", "perplexity", store, "--model", model_folder, "--split", "train", "--memory", store)
    assert (refused.returncode, "a copy of it is no prediction" in " ".join(refused.stderr.split())) == (2, True)
    copy = tmp_path / "copy.fa"
    copy.write_text(f">x\n{GENOME[:250][::-1].translate(str.maketrans('ACGT', 'TGCA'))}\n")
    told = evo("eval", "markov", fasta, "--train", copy, "--order", 1)
    assert told.returncode == 0
    assert "warning: 1 of 2 measured sequences are in --train too" in told.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--context", 64, "--stride", 65], "must be at most 64, the context, not 65"),
        (["--dynamic", 1e-3, "--precision", "bf16"], "--dynamic runs in fp32, not bf16"),
        (["--static"], "goes with --memory"),
        (["--static", "--memory", "x.fa", "--dynamic", 1e-3], "nothing is learned from what is read"),
    ],
)
def test_flags_that_do_not_go_together(fasta: Path, model_folder: Path, words: list[object], message: str) -> None:
    result = evo("eval", "perplexity", fasta, "--model", model_folder, *words)
    assert (result.returncode, message in " ".join(result.stderr.split())) == (2, True), result.stderr
