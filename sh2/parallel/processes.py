"""The processes of one run, as a launcher started them: torchrun, or srun of SLURM. Knows nothing of models.

A process learns its place from the environment; nothing is asked of the user. Both launchers start the same command
once for each GPU, or as often as asked on CPUs.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from sh2.errors import Sh2Error

Value = TypeVar("Value")
# one process may prepare data for hours while the others wait; if it dies they know at once
_PATIENCE = timedelta(days=1)
_MEETING = timedelta(minutes=10)
_FIRST_PORT, _PORTS = 20_000, 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a process stands among all of a run."""

    rank: int
    ranks: int
    local_rank: int  # among those of its machine
    address: str  # of the machine of rank 0
    port: int


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Read a process's place from its environment; None for one that is alone.

    Raises:
        Sh2Error: the launcher's variables make no sense.
    """
    try:
        if "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
            place = _of_torchrun(environment)
        elif (
            "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment
        ):  # a script's own step has no tasks
            place = _of_slurm(environment)
        else:
            return None
    except (KeyError, ValueError) as error:
        raise Sh2Error(f"the launcher's environment is not complete: {error} is missing or no number").hint(
            "start with `torchrun --nproc-per-node N -m evo_cli train ...`, or with srun"
        ) from None
    return place if place.ranks > 1 else None


def _of_torchrun(environment: Mapping[str, str]) -> Place:
    return Place(
        rank=int(environment["RANK"]),
        ranks=int(environment["WORLD_SIZE"]),
        local_rank=int(environment.get("LOCAL_RANK", environment["RANK"])),
        address=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
    )


def _of_slurm(environment: Mapping[str, str]) -> Place:
    job = int(environment.get("SLURM_JOB_ID", 0)) + int(environment.get("SLURM_STEP_ID", 0))
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    return Place(
        rank=int(environment["SLURM_PROCID"]),
        ranks=int(environment["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        address=environment.get("MASTER_ADDR") or first_host(nodes),
        port=int(environment.get("MASTER_PORT", _FIRST_PORT + job % _PORTS)),
    )


def first_host(nodes: str) -> str:
    """The first of SLURM's list of machines: `gpu007` of `gpu[007-009,012],login1`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^\[,]*)", nodes)
    if match is None:
        raise ValueError(f"`{nodes}`")
    return "".join(part or "" for part in match.groups())


class Processes:
    """All processes of a run, seen from one of them; they have met when it exists."""

    def __init__(self, place: Place, store: dist.Store) -> None:
        self.place = place
        self._store = store
        self._host = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self.files = dist.new_group(backend="gloo", timeout=_PATIENCE)  # for the thread that has to do with these

    @property
    def leads(self) -> bool:
        """Whether this is the one that talks and writes."""
        return self.place.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        flags = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._host)
        return bool(flags.item())

    def of_leader(self, make: Callable[[], Value]) -> Value:
        """What `make` returns in the leader; the others wait for it."""
        values = [make() if self.leads else None]
        dist.broadcast_object_list(values, src=0, group=self._host)
        return values[0]  # type: ignore[return-value]

    def every(self, value: Value) -> list[Value]:
        """What each process gives, by rank; asked by the one thread that has to do with files, while others work."""
        values: list[Value | None] = [None] * self.place.ranks
        dist.all_gather_object(values, value, group=self.files)
        return values  # type: ignore[return-value]

    def speaks(self) -> bool:
        """Whether this process is the first to say what went wrong; all are where the leader's is gone."""
        try:
            return self._store.add("spoken", 1) == 1
        except RuntimeError:
            return True


def lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    if isinstance(error, dist.DistNetworkError | dist.DistBackendError):
        return True
    return type(error) is RuntimeError and any(word in str(error) for word in ("gloo", "NCCL", "Connection closed"))


@contextmanager
def joined(place: Place, device: str) -> Iterator[Processes]:
    """Meet the other processes; leave them at the end. Tensors on GPUs travel by NCCL, those of the host by gloo.

    Args:
        device: `cuda` gives each process of a machine its own GPU; `cpu`.

    Raises:
        Sh2Error: the machine has fewer GPUs than processes, or the others cannot be reached.
    """
    if device == "cuda":
        take_gpu(place, torch.cuda.device_count())
    os.environ.update(MASTER_ADDR=place.address, MASTER_PORT=str(place.port))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        store, *_ = next(dist.rendezvous("env://", place.rank, place.ranks, timeout=_MEETING))
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.ranks)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        reason = str(error).split("\n")[0]
        raise Sh2Error(f"cannot meet the other processes at {place.address}:{place.port}: {reason}").hint(
            "set MASTER_ADDR to a name or address of the first machine that the others reach, or MASTER_PORT"
        ) from None
    yield Processes(place, store)
    dist.destroy_process_group()  # where something failed this would wait for processes that are gone


def take_gpu(place: Place, gpus: int) -> None:
    """Make a process's own GPU the current one: the only one it sees, or that of its number on the machine.

    Raises:
        Sh2Error: there is none left for it.
    """
    if gpus != 1 and place.local_rank >= gpus:
        raise Sh2Error(f"process {place.local_rank + 1} of this machine has no GPU of its own: there are {gpus}").hint(
            f"start at most {gpus} processes a machine, or use `--device cpu`"
        )
    torch.cuda.set_device(0 if gpus == 1 else place.local_rank)
    torch.cuda.init()  # or a mesh would choose once more
