"""Checkpoints of many processes: all of them write and check, any other number goes on, to the byte."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sh2.checkpoint.safetensors_file import read_safetensors
from sh2.train.checkpoints import Checkpoints
from sh2.train.files import owners
from tests.sh2.parallel.cases import in_processes
from tests.sh2.parallel.saving import SHARD_BYTES, dies, find_newest, hand_on, hand_on_alone
from tests.sh2.parallel.training import Case, train

STEP = "step_00000002"
GIANT = 5_000_000_000


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one process, of one file each, as it has always been."""
    folder = tmp_path_factory.mktemp("single")
    train(Case(parallel="dp", resumes="run", stops_after=2), folder, None)
    return folder / "run" / "checkpoints"


@pytest.fixture(scope="module")
def shards(single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in many files."""
    folder = tmp_path_factory.mktemp("shards") / "checkpoints"
    hand_on_alone(Case(parallel="dp"), single, folder, SHARD_BYTES)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_checkpoint_handed_on_by_any_number_of_processes_is_the_same_to_the_byte(
    single: Path, shards: Path, tmp_path: Path
) -> None:
    """4 -> 2 -> 1 -> 2, each way to share the model at least once; a share that is wrong, or not read, would differ."""
    want = contents(shards)
    assert {name.split("/")[-1].rsplit("-of-")[0] for name in want} >= {"model-00001", "optimizer-00001", "config.json"}
    steps = [(4, "dp=2,tp=2"), (2, "cp=2"), (1, "dp"), (2, "tp=2")]
    before = single
    for number, (ranks, parallel) in enumerate(steps):
        after = tmp_path / str(number)
        if ranks == 1:
            hand_on_alone(Case(parallel=parallel), before, after, SHARD_BYTES)
        else:
            in_processes(ranks, hand_on, Case(parallel=parallel), before, after, SHARD_BYTES, folder=tmp_path)
            (tmp_path / f"{ranks} ranks").unlink(missing_ok=True)
        assert contents(after) == want, (ranks, parallel)
        before = after
    in_processes(2, hand_on, Case(parallel="dp=2"), before, tmp_path / "one", GIANT, folder=tmp_path)
    assert contents(tmp_path / "one") == contents(single)

    for number, ranks in ((0, 4), (1, 2), (3, 2)):
        done = [json.loads((tmp_path / f"{number}.{rank}.json").read_text()) for rank in range(ranks)]
        written = [name for one in done for name in one["written"]]
        assert sorted(written) == sorted(Path(name).name for name in want if name.endswith(".safetensors"))
        sizes = {Path(name).name: len(content) for name, content in want.items()}
        loads = [sum(sizes[name] for name in one["written"]) for one in done]
        assert max(loads) - min(loads) <= max(sizes.values()), loads
        hashed = sorted(name for one in done for name in one["hashed"])
        checked = contents(single) if number == 0 else want
        assert hashed == sorted(Path(name).name for name in checked if not name.endswith("trainer.json"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated": ("model/model-00002-of-*", lambda path: path.write_bytes(path.read_bytes()[:-5]), "does not match"),
    "flipped": ("optimizer-00003-of-*", flip, "does not match its checksum"),
    "missing": ("optimizer-00001-of-*", Path.unlink, "is missing"),
    "index": ("optimizer.safetensors.index.json", flip, "does not match its checksum"),
    "trainer": ("trainer.json", flip, "is missing or changed"),
}


def test_damage_is_found_by_whoever_looks_and_told_with_the_file_by_the_first(shards: Path, tmp_path: Path) -> None:
    folders = [shutil.copytree(shards, tmp_path / name) for name in (*DAMAGE, "whole")]
    damaged = {}
    for name, (pattern, damage, _) in DAMAGE.items():
        [path] = (tmp_path / name / STEP).glob(pattern)
        damage(path)
        damaged[name] = str(path.relative_to(tmp_path / name / STEP))
    in_processes(2, find_newest, Case(parallel="dp=2"), folders, folder=tmp_path)

    for name, (_, _, reason) in DAMAGE.items():
        (step, notes), other = (json.loads((tmp_path / name / f"{rank}.json").read_text()) for rank in (0, 1))
        assert other == [None, []]
        assert step is None
        [note] = notes
        assert f"{STEP} is damaged: {damaged[name]} {reason}" in note
        assert (tmp_path / name / f"{STEP}.damaged").is_dir()
    assert [json.loads((tmp_path / "whole" / f"{rank}.json").read_text()) for rank in (0, 1)] == [[2, []]] * 2


@pytest.mark.parametrize(
    ("victim", "at"),
    [(0, "write_safetensors"), (1, "write_safetensors"), (1, "file_sha256"), (0, "describe_model"), (0, "write_json")],
)
def test_a_kill_of_any_process_leaves_the_last_complete_checkpoint(
    victim: int, at: str, single: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(single, tmp_path / "checkpoints")
    with pytest.raises(AssertionError):
        in_processes(2, dies, Case(parallel="dp=2"), run, victim, at, folder=tmp_path)

    assert (tmp_path / "died").exists()
    with Checkpoints(run, keep_last=1) as found:
        found.clean()
        progress = found.newest(pytest.fail)
    assert progress is not None
    assert contents(run) == contents(single)


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 8))
def test_files_are_shared_out_evenly(sizes: list[int], processes: int) -> None:
    owner = owners({str(number): size for number, size in enumerate(sizes)}, processes)

    loads = [sum(size for number, size in enumerate(sizes) if owner[str(number)] == rank) for rank in range(processes)]
    assert sum(loads) == sum(sizes)
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_a_slice_of_a_file_is_what_was_written_there(shards: Path) -> None:
    [path] = (shards / STEP / "model").glob("model-00003-of-*")
    matrices = [lazy for lazy in read_safetensors(path).values() if len(lazy.shape) == 2]
    assert matrices
    for lazy in matrices:
        for slices in ((slice(1, 3), slice(2, 5)), (slice(2, 4),), (slice(0, 0),)):
            assert torch.equal(lazy.part(slices), lazy.read()[slices])
