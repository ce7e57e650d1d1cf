"""One model a device and jobs handed out to them: results come in the order of the jobs, whatever ran where.

A process a device, each with one job at a time, and in this process a thread for each: it hands a job over and waits
for what comes back. A pipe has one writer at either end, so a process that is killed leaves no lock behind, and its
thread reads the end of the file and knows which job it was. (An executor of `concurrent.futures` gives all three up.)
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.fp8 import precision_of
from sh2.model import StripedHyena2

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int], None]
Work = Callable[[StripedHyena2, Job, Progress], Result]

_AHEAD = 4  # jobs a device that are taken before the oldest result is fetched, at most
_PATIENCE = 5.0  # seconds for a process that closed its pipe to end


class Replicas:
    """A model on each of several devices, ready to work through jobs.

    config: the model's. precision: in which numbers it runs, as `sh2.fp8.precision_of` says. devices: where it is.
    """

    config: ModelConfig
    precision: str

    def __init__(self, load: Callable[[str], StripedHyena2], devices: list[str]) -> None:
        """Load the model on every device: on a single one in this process, on several in a process each.

        What the processes say on stderr is heard from the first alone.

        Args:
            load: loads the model on a device; for several devices it must be picklable, and a script that is run as
                the main program must keep what it does under `if __name__ == "__main__"`.
            devices: as `sh2.load` takes them, at least one; one may come twice.

        Raises:
            Exception: what `load` raises; of several devices, the first one's.
            Sh2Error: the process of a device died, or no device is given.
        """
        if not devices:
            raise Sh2Error("replicas need at least one device")
        self.devices = tuple(devices)
        self._model: StripedHyena2 | None = None
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        if len(devices) == 1:
            self._model = load(devices[0])
            self.config, self.precision = _describe(self._model, None, _ignore)
            return
        workers = [_Worker(load, device, quiet=number > 0) for number, device in enumerate(devices)]
        # whoever drops the replicas ends the processes; so does the end of this process, as they are its daemons
        weakref.finalize(self, _end, workers, self._tasks)
        for worker in workers:
            self.config, self.precision = worker.loaded()
        for worker in workers:
            threading.Thread(target=_hand_out, args=(worker, self._tasks), daemon=True).start()

    def map(
        self,
        work: Callable[[StripedHyena2, Job, Progress], Result],
        jobs: Iterable[Job],
        progress: Progress = lambda _: None,
    ) -> Iterator[Result]:
        """Run `work(model, job, progress)` for every job; yield the results in the order of the jobs.

        Args:
            work: does one job, and calls progress with what it has done since the last call. For several devices it
                must be picklable (a function of a module, or a `functools.partial` of one), as must jobs and results.
            jobs: taken one by one as there is room for them, so that there may be any number.
            progress: called in this process, with what any device has done.

        Raises:
            Exception: what a job, or taking one from `jobs`, raises; after the results of all jobs before it.
            Sh2Error: the process of a device died.
        """
        if self._model is not None:
            for job in jobs:
                yield work(self._model, job, progress)
            return
        call = _Call(work)
        try:
            yield from self._in_order(call, iter(jobs), progress)
        finally:
            call.left.set()

    def _in_order(self, call: "_Call[Job, Result]", jobs: Iterator[Job], progress: Progress) -> Iterator[Result]:
        finished: dict[int, _Done | _Failed] = {}
        taken, ended = 0, False
        for number in count():
            while not ended and taken < number + _AHEAD * len(self.devices):
                try:
                    self._tasks.put(_Task(call, taken, next(jobs)))
                except StopIteration:
                    ended = True
                    break
                except Exception as error:  # whatever it is, it must not overtake the results before it
                    finished[taken], ended = _Failed(error), True
                taken += 1
            if number == taken:
                return
            while number not in finished:
                place, answer = call.answers.get()
                if isinstance(answer, int):
                    progress(answer)
                else:
                    finished[place] = answer
            yield finished.pop(number).value()


@dataclass(frozen=True, slots=True)
class _Done:
    result: Any

    def value(self) -> Any:
        return self.result


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception
    trace: str = ""  # of the process where it was raised

    def value(self) -> Any:
        if self.trace:
            raise self.error from _Trace(self.trace)
        raise self.error


class _Trace(Exception):  # noqa: N818 - it is no error: it shows where in a process one was raised
    """The traceback of another process, as the cause of an exception that came from there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@dataclass(frozen=True)
class _Call(Generic[Job, Result]):
    """One call of `map`."""

    work: Callable[[StripedHyena2, Job, Progress], Result]
    answers: "queue.SimpleQueue[tuple[int, int | _Done | _Failed]]" = field(default_factory=queue.SimpleQueue)
    left: threading.Event = field(default_factory=threading.Event)  # nobody waits for results any more


@dataclass(frozen=True, slots=True)
class _Task:
    call: _Call[Any, Any]
    number: int
    job: Any


class _Worker:
    """The process of one device, seen from this one."""

    def __init__(self, load: Callable[[str], StripedHyena2], device: str, *, quiet: bool) -> None:
        self.device = device
        context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
        self._connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, load, device, quiet), name=f"evo {device}", daemon=True
        )
        # Ctrl-C is for this process, which ends the others: they inherit that it is held back. The tracker, which the
        # first of them would start, lets it through again
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def loaded(self) -> tuple[ModelConfig, str]:
        """Wait for the model; what `_describe` says of it."""
        described: tuple[ModelConfig, str] = self._answer("while it loaded the model", _ignore).value()
        return described

    def run(self, task: _Task) -> _Done | _Failed:
        """Do a job there; its progress goes to whoever waits for it."""
        try:
            self._connection.send((task.call.work, task.job))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died before: so says the answer
        except Exception as error:  # what cannot be pickled
            return _Failed(error)
        return self._answer(f"in job {task.number + 1}", lambda done: task.call.answers.put((task.number, done)))

    def _answer(self, when: str, progress: Progress) -> _Done | _Failed:
        try:
            while isinstance(answer := self._connection.recv(), int):
                progress(answer)
        except (EOFError, ConnectionResetError):
            return _Failed(self._death(when))
        except Exception as error:  # what cannot be unpickled
            return _Failed(error)
        return answer

    def _death(self, when: str) -> Sh2Error:
        self.process.join(_PATIENCE)
        code = self.process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        error = Sh2Error(f"the process of device `{self.device}` died {when}: {how}")
        if code == -signal.SIGKILL:
            error.hint("memory of the machine may have run out: use fewer devices at once, or ask for smaller batches")
        return error


def _hand_out(worker: _Worker, tasks: "queue.SimpleQueue[_Task | None]") -> None:
    """A worker's thread: give it job after job."""
    while (task := tasks.get()) is not None:
        if not task.call.left.is_set():
            task.call.answers.put((task.number, worker.run(task)))
        del task  # a job is as large as its sequences: none is kept while the thread waits for the next


def _end(workers: list[_Worker], tasks: "queue.SimpleQueue[_Task | None]") -> None:
    for worker in workers:
        worker.process.kill()
        tasks.put(None)


def _ignore(_: int) -> None:
    pass


def _describe(model: StripedHyena2, _job: None, _progress: Progress) -> tuple[ModelConfig, str]:
    return model.config, precision_of(model)


# below: in the process of a device


def _serve(connection: Connection, load: Callable[[str], StripedHyena2], device: str, quiet: bool) -> None:
    """Load the model, describe it, and do jobs until nobody sends any."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if quiet:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
    try:
        model = load(device)
    except Exception as error:  # it is raised in the other process
        connection.send(_failed(error))
        return
    _do(connection, model, _describe, None)
    while True:
        try:
            work, job = connection.recv()
        except EOFError:
            return
        except Exception as error:  # what cannot be unpickled
            connection.send(_failed(error))
            continue
        _do(connection, model, work, job)


def _do(connection: Connection, model: StripedHyena2, work: Work[Any, Any], job: Any) -> None:
    try:
        connection.send(_Done(work(model, job, lambda done: connection.send(int(done)))))
    except BrokenPipeError:
        sys.exit()
    except Exception as error:  # it is raised in the other process
        connection.send(_failed(error))


def _failed(error: Exception) -> _Failed:
    """An exception as it can be sent; one that does not survive pickling as its text."""
    trace = "".join(traceback.format_exception(error))
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # whatever pickling makes of a foreign exception
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return _Failed(error, trace)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, even if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
