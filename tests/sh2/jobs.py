"""Jobs for `Replicas`, in a module that their processes can import."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.reading.scoring import score
from tests.sh2.models import tiny

Progress = Callable[[int], None]


def load(device: str) -> StripedHyena2:
    sys.stderr.write(f"loading on {device}\n")
    return tiny().to(device)


def load_nothing(device: str) -> StripedHyena2:
    raise Sh2Error(f"there is no model on {device}").hint("make one")


def scored(model: StripedHyena2, sequences: list[str], progress: Progress) -> list[NDArray[np.float32]]:
    results = score(model, sequences, per_token=True, progress=lambda tokens: progress(np.int64(tokens)))
    return [one.log_probs for one in results if one.log_probs is not None]


def slow_if_even(_: StripedHyena2, number: int, progress: Progress) -> tuple[int, int]:
    """Finishes out of order: the process, and the number."""
    time.sleep(0.05 * (number % 2 == 0))
    progress(number)
    return os.getpid(), number


def fail_at_three(_: StripedHyena2, number: int, progress: Progress) -> int:
    if number == 3:
        raise Sh2Error("three is not a number to score").hint("leave it out")
    return number


def divide(_: StripedHyena2, number: int, progress: Progress) -> float:
    return 1 / number


class Odd(Exception):  # noqa: N818
    """Cannot be unpickled: it wants more than its text."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} is not {right}")


def raise_odd(_: StripedHyena2, number: int, progress: Progress) -> int:
    raise Odd(number, number + 1)


def big(_: StripedHyena2, job: bytes, progress: Progress) -> bytes:
    return job[::-1]


def die_at_two(_: StripedHyena2, number: int, progress: Progress) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def note_and_sleep(_: StripedHyena2, folder: Path, progress: Progress) -> None:
    """Leaves the name of its process in a folder, and works for an hour."""
    (folder / str(os.getpid())).touch()
    time.sleep(3600)
