"""`evo generate` as a user runs it."""

from pathlib import Path

import pytest

import sh2
from evo_cli.generating import jobs
from tests.evo_cli.cli import evo


def fasta(text: str) -> dict[str, str]:
    """Header to sequence."""
    records: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith(">"):
            header = line[1:]
            records[header] = ""
        else:
            records[header] += line
    return records


def test_the_interface_that_scripts_rely_on(model_folder: Path) -> None:
    result = evo(
        *("generate", "--model", model_folder, "--prompt", "ACGT", "--length", 90),
        *("--temperature", 0.7, "--seed", 5, "--samples", 3, "--no-stop-at-eod"),
    )
    assert result.returncode == 0, result.stderr
    records = fasta(result.stdout)
    assert [header.split()[0] for header in records] == ["sample_1", "sample_2", "sample_3"]
    want = sh2.generate(
        sh2.load(model_folder),
        ["ACGT"],
        length=90,
        temperature=0.7,
        seed=5,
        samples=3,
        alphabet="ACGT",
        stop_at_eod=False,
    )
    assert list(records.values()) == [bytes(one.ids.tolist()).decode() for one in want]
    for header in records:
        assert "length=90" in header
        assert "seed=5 temperature=0.7" in header
        assert "end=length" in header
    assert max(len(line) for line in result.stdout.splitlines() if not line.startswith(">")) == 80


def test_prompts_from_a_file_and_from_stdin_are_upper_cased_and_named(tmp_path: Path, model_folder: Path) -> None:
    text = ">p1 a prompt\nacgtacgt\n>p2\nG\n"
    path = tmp_path / "prompts.fa"
    path.write_text(text)
    common = ("generate", "-m", model_folder, "-n", 20, "-t", 0, "--include-prompt", "--no-stop-at-eod")
    from_file, from_stdin = evo(*common, "--prompts", path), evo(*common, "--prompts", "-", stdin=text)
    assert from_file.returncode == 0, from_file.stderr
    assert from_file.stdout == from_stdin.stdout
    records = fasta(from_file.stdout)
    assert [header.split()[0] for header in records] == ["p1_1", "p2_1"]
    assert next(iter(records.values())).startswith("ACGTACGT")
    alone = evo(*common, "--prompt", "ACGTACGT")
    assert next(iter(fasta(alone.stdout).values())) == next(iter(records.values()))


def test_an_output_file_appears_whole(tmp_path: Path, model_folder: Path) -> None:
    out = tmp_path / "new.fa"
    result = evo("generate", "-m", model_folder, "-p", "A", "-n", 10, "-o", out)
    assert (result.returncode, result.stdout) == (0, "")
    assert out.read_text().startswith(">sample_1 ")
    assert [path.name for path in tmp_path.iterdir()] == ["new.fa"]


def test_an_empty_prompt_starts_from_nothing(model_folder: Path) -> None:
    result = evo("generate", "-m", model_folder, "-p", "", "-n", 12, "--no-stop-at-eod")
    assert result.returncode == 0, result.stderr
    assert len(next(iter(fasta(result.stdout).values()))) == 12


def test_motifs_repeats_and_min_p_hold_and_the_header_says_so(model_folder: Path) -> None:
    result = evo(
        *("generate", "-m", model_folder, "-p", "GAATT", "-n", 60, "-k", 4, "--no-stop-at-eod", "--min-p", 0.05),
        *("--forbid", "gaattc,CC", "--no-repeat", 4, "--stop-at", "gta"),
    )
    assert result.returncode == 0, result.stderr
    want = sh2.generate(
        sh2.load(model_folder),
        ["GAATT"],
        length=60,
        samples=4,
        alphabet="ACGT",
        stop_at_eod=False,
        min_p=0.05,
        forbid=["GAATTC", "CC"],
        no_repeat=4,
        stop_at="GTA",
    )
    records = fasta(result.stdout)
    assert list(records.values()) == [one.text for one in want]
    for header, one in zip(records, want, strict=True):
        settings = "top_p=1 min_p=0.05 forbid=GAATTC,CC no_repeat=4 stop_at=GTA"
        assert header.endswith(f"{settings} end={one.end}")


def test_two_copies_of_the_model_write_what_one_writes(tmp_path: Path, model_folder: Path) -> None:
    path = tmp_path / "prompts.fa"
    path.write_text(">p1\nACGTACGT\n>p2\nG\n>p3\nTTTT\n")
    common = ("generate", "-m", model_folder, "--prompts", path, "-n", 15, "-k", 5)
    one, two = evo(*common, "--device", "cpu"), evo(*common, "--device", "cpu,cpu")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert one.stdout == two.stdout
    assert one.stdout.count(">") == 15


@pytest.mark.parametrize("count", [1, 4, 5, 7, 100])
def test_jobs_cut_the_samples_in_order(count: int) -> None:
    prompts = [b"A", b"CC", b"GGG"]
    cut = list(jobs(prompts, 5, count))
    assert all(len(job.samples) == count for job in cut[:-1])
    samples = [(job.first + prompt, sample, job.prompts[prompt]) for job in cut for prompt, sample in job.samples]
    assert samples == [(p, k, prompts[p]) for p in range(3) for k in range(5)]
    endless = jobs(prompts, 10**15, count)  # taken one by one
    assert next(endless).samples == tuple((0, sample) for sample in range(count))


def test_keys_and_values_in_fp8_are_said_in_the_header(model_folder: Path) -> None:
    result = evo(
        "generate", "-m", model_folder, "-p", "ACGT", "-n", 20, "-t", 0, "--no-stop-at-eod", "--kv-dtype", "fp8"
    )
    assert result.returncode == 0, result.stderr
    ((header, text),) = fasta(result.stdout).items()
    assert header.endswith("top_p=1 kv_dtype=fp8 end=length")
    model = sh2.load(model_folder).use_kv_dtype("fp8")
    (want,) = sh2.generate(model, ["ACGT"], length=20, temperature=0, alphabet="ACGT", stop_at_eod=False)
    assert text == want.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kv-dtype", "fp4"), "'fp4' is not one of 'auto', 'fp8'."),
        (
            ("--include-prompt", "--prompt", "AC>GT"),
            "Invalid value for --prompt: `>` begins a record of the FASTA that --include-prompt writes",
        ),
        (("--min-p", 1.5), "Invalid value for --min-p: must lie in 0..1, not 1.5"),
        (("--min-p", "nan"), "Invalid value for --min-p: must lie in 0..1, not nan"),
        (("--forbid", "GAATTC,GANTC"), "--forbid: a motif must be of A, C, G and T, one or more, not `GANTC`"),
        (("--forbid", "GAATTC,"), "--forbid: a motif must be of A, C, G and T, one or more, not ``"),
        (("--stop-at", "TA R"), "--stop-at: a motif must be of A, C, G and T, one or more, not `TA R`"),
        (("--no-repeat", 0), "'--no-repeat': Input should be greater than or equal to 1"),
        (("--no-repeat", 2**31), "'--no-repeat': Input should be less than or equal to 2147483647"),
        (("--length", 10**24), "Input should be less than or equal to 2147483647"),
    ],
)
def test_a_bad_setting_is_a_bad_command_line(arguments: tuple[object, ...], message: str) -> None:
    result = evo("generate", "-m", "nowhere", "-p", "A", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.replace("│", " ").split())
