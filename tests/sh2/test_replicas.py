"""Jobs over several processes: the results of one, in order, whatever happens to the processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest

from sh2.devices.replicas import Replicas
from sh2.errors import Sh2Error
from tests.sh2 import jobs
from tests.sh2.models import TINY


@pytest.fixture(scope="module")
def two() -> Replicas:
    return Replicas(jobs.load, ["cpu", "cpu"])


@pytest.fixture(scope="module")
def one() -> Replicas:
    return Replicas(jobs.load, ["cpu"])


def test_the_model_is_described_alike_wherever_it_is(one: Replicas, two: Replicas) -> None:
    assert one.config == two.config == TINY
    assert one.precision == two.precision == "fp32"
    assert (one.devices, two.devices) == (("cpu",), ("cpu", "cpu"))


def test_scores_are_those_of_one_device_to_the_bit_and_progress_is_all_of_it(one: Replicas, two: Replicas) -> None:
    rng = np.random.default_rng(0)
    blocks = [["".join(rng.choice(list("ACGT"), length)) for length in rng.integers(2, 90, size=3)] for _ in range(12)]
    advances: dict[str, list[int]] = {"one": [], "two": []}
    want = list(one.map(jobs.scored, blocks, advances["one"].append))
    got = list(two.map(jobs.scored, blocks, advances["two"].append))
    assert len(got) == len(blocks)
    for ours, theirs in zip(got, want, strict=True):
        assert [row.tobytes() for row in ours] == [row.tobytes() for row in theirs]
    assert sum(advances["two"]) == sum(advances["one"]) == sum(len(text) - 1 for block in blocks for text in block)


def test_results_come_in_the_order_of_the_jobs_from_both_processes(two: Replicas) -> None:
    results = list(two.map(jobs.slow_if_even, range(20)))
    assert [number for _, number in results] == list(range(20))
    processes = {process for process, _ in results}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_jobs_are_taken_as_there_is_room_for_them(two: Replicas) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        for number in count(1):
            taken = number
            yield number

    results = two.map(jobs.slow_if_even, endless())
    for fetched, (_, number) in enumerate(islice(results, 30), start=1):
        assert number == fetched
        assert taken <= fetched + 8


def test_a_map_that_was_left_does_not_disturb_the_next(two: Replicas) -> None:
    assert next(two.map(jobs.slow_if_even, count()))[1] == 0
    assert [number for _, number in two.map(jobs.slow_if_even, [5, 6, 7])] == [5, 6, 7]
    assert list(two.map(jobs.slow_if_even, [])) == []


def test_two_maps_can_be_read_in_turns(two: Replicas) -> None:
    pairs = zip(two.map(jobs.slow_if_even, range(9)), two.map(jobs.slow_if_even, range(10, 19)), strict=True)
    assert [(left[1], right[1]) for left, right in pairs] == [(number, number + 10) for number in range(9)]


def test_jobs_and_results_larger_than_a_pipe_pass(two: Replicas) -> None:
    blocks = [bytes([number]) * (1 << 21) + b"end" for number in range(6)]
    assert list(two.map(jobs.big, blocks)) == [block[::-1] for block in blocks]


@pytest.mark.parametrize("replicas", ["one", "two"])
def test_an_error_comes_as_it_is_after_the_results_before_it(replicas: str, request: pytest.FixtureRequest) -> None:
    results = request.getfixturevalue(replicas).map(jobs.fail_at_three, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Sh2Error, match=r"^three is not a number to score") as caught:
        next(results)
    assert caught.value.__notes__ == ["leave it out"]


@pytest.mark.parametrize("replicas", ["one", "two"])
def test_an_error_of_the_jobs_themselves_does_not_overtake_results(
    replicas: str, request: pytest.FixtureRequest
) -> None:
    def broken() -> Iterator[int]:
        yield from range(2)
        raise Sh2Error("line 3 is no number")

    results = request.getfixturevalue(replicas).map(jobs.slow_if_even, broken())
    assert [next(results)[1] for _ in range(2)] == [0, 1]
    with pytest.raises(Sh2Error, match=r"^line 3 is no number$"):
        next(results)


def test_a_bug_keeps_the_traceback_of_its_process(two: Replicas) -> None:
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        list(two.map(jobs.divide, [1, 0]))
    assert "return 1 / number" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match=r"^Odd: 1 is not 2$"):
        list(two.map(jobs.raise_odd, [1]))
    # what cannot be sent fails its job, and no other
    with pytest.raises(Exception, match="pickle"):
        list(two.map(jobs.big, [lambda: 0]))  # type: ignore[list-item]
    assert list(two.map(jobs.fail_at_three, range(3))) == [0, 1, 2]


def test_a_process_that_is_killed_is_named_with_its_job() -> None:
    replicas = Replicas(jobs.load, ["cpu", "cpu"])
    results = replicas.map(jobs.die_at_two, range(100))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(Sh2Error, match=r"^the process of device `cpu` died in job 3: killed by SIGKILL\n") as caught:
        next(results)
    assert "memory of the machine may have run out" in caught.value.__notes__[0]


def test_a_model_that_cannot_be_loaded_is_the_error_of_its_load() -> None:
    with pytest.raises(Sh2Error, match=r"^there is no model on cpu\n") as caught:
        Replicas(jobs.load_nothing, ["cpu", "cpu"])
    assert caught.value.__notes__ == ["make one"]
    with pytest.raises(Sh2Error, match="replicas need at least one device"):
        Replicas(jobs.load, [])


SCRIPT = """
import sys
from pathlib import Path
from sh2.devices.replicas import Replicas
from tests.sh2 import jobs

if __name__ == "__main__":
    replicas = Replicas(jobs.load, ["cpu", "cpu"])
    try:
        list(replicas.map(jobs.note_and_sleep, [Path(sys.argv[1])] * 100))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return "zombie" not in Path(f"/proc/{process}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_the_processes_end_with_the_one_that_started_them(number: signal.Signals, tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "processes"
    script.write_text(SCRIPT)
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, process_group=0) as process:
        while len(workers := [int(file.name) for file in folder.iterdir()]) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        if number is signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.kill()
        began = time.monotonic()
        _, talk = process.communicate(timeout=20)
        while any(map(alive, workers)):
            assert time.monotonic() < began + 10
            time.sleep(0.05)
    assert process.returncode == (130 if number is signal.SIGINT else -signal.SIGKILL)
    assert talk == "loading on cpu\n"  # of the first process alone
