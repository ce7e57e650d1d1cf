"""Which processes there are and what each of them shares, read from a line and from a launcher's environment."""

import pytest

from sh2.errors import Sh2Error
from sh2.parallel.mesh import Parallel
from sh2.parallel.processes import Place, find_place, first_host, take_gpu


@pytest.mark.parametrize(
    ("text", "processes", "shape"),
    [
        ("dp", 1, (1, 1, 1)),
        ("", 8, (8, 1, 1)),
        ("dp", 8, (8, 1, 1)),
        ("tp=2", 8, (4, 1, 2)),
        ("tp=2,dp,cp=2", 8, (2, 2, 2)),
        ("dp=4, tp=2, cp=2", 16, (4, 2, 2)),
        ("cp=8", 8, (1, 8, 1)),
    ],
)
def test_dp_takes_what_is_left(text: str, processes: int, shape: tuple[int, int, int]) -> None:
    parallel = Parallel.parse(text, processes)

    assert (parallel.dp, parallel.cp, parallel.tp) == shape
    assert parallel.processes == processes
    assert Parallel.parse(str(parallel), processes) == parallel


@pytest.mark.parametrize(
    ("text", "processes", "message"),
    [
        ("pp=2", 2, "parallel `pp=2`: `pp=2` is not dp, cp or tp with a number of at least 1"),
        ("tp=0", 2, "parallel `tp=0`: `tp=0` is not dp, cp or tp with a number of at least 1"),
        ("tp=two", 2, "`tp=two` is not dp"),
        ("tp", 2, "`tp` is not dp, cp or tp with a number"),
        ("tp=2,tp=2", 4, "parallel `tp=2,tp=2` gives tp twice"),
        ("dp=4,tp=2", 4, "parallel `dp=4,tp=2` needs 8 processes; there are 4"),
        ("dp=2", 1, "parallel `dp=2` needs 2 processes; there is 1"),
        ("tp=2,cp=2", 6, "parallel `tp=2,cp=2` needs a multiple of 4 processes; there are 6"),
        ("tp=4", 2, "parallel `tp=4` needs a multiple of 4 processes; there are 2"),
    ],
)
def test_a_line_that_does_not_fit_is_refused(text: str, processes: int, message: str) -> None:
    with pytest.raises(Sh2Error) as caught:
        Parallel.parse(text, processes)

    assert str(caught.value).startswith(message) or message in str(caught.value)


TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "123"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "60007",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "gpu[007-009,012],login1",
}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        (TORCHRUN, Place(rank=5, ranks=8, local_rank=1, address="here", port=123)),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, None),
        (SLURM, Place(rank=5, ranks=8, local_rank=1, address="gpu007", port=20_009)),
        (SLURM | {"MASTER_ADDR": "a", "MASTER_PORT": "9"}, Place(rank=5, ranks=8, local_rank=1, address="a", port=9)),
        (SLURM | TORCHRUN, Place(rank=5, ranks=8, local_rank=1, address="here", port=123)),
        # a batch script itself, and one process of srun
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
    ],
)
def test_a_process_finds_its_place(environment: dict[str, str], place: Place | None) -> None:
    assert find_place(environment) == place


@pytest.mark.parametrize(
    ("broken", "what"),
    [({"MASTER_PORT": ""}, "invalid literal"), ({"RANK": "first"}, "'first'")],
)
def test_a_broken_environment_is_refused(broken: dict[str, str], what: str) -> None:
    with pytest.raises(Sh2Error, match="the launcher's environment is not complete") as caught:
        find_place(TORCHRUN | broken)

    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[007-009,012],login1", "gpu007"),
        ("gpu[3,5-9]", "gpu3"),
        ("a-b[01-02].cluster,c", "a-b01.cluster"),
    ],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_more_processes_than_gpus_are_refused() -> None:
    place = Place(rank=4, ranks=8, local_rank=4, address="here", port=1)

    with pytest.raises(Sh2Error, match="process 5 of this machine has no GPU of its own: there are 4") as caught:
        take_gpu(place, 4)
    assert caught.value.__notes__ == ["start at most 4 processes a machine, or use `--device cpu`"]
