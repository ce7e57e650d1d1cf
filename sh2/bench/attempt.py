"""Trying what may fail: a row of a table keeps the reason, and the table goes on."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from sh2.bench.check import CheckError

_LONGEST_REASON = 300  # characters

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why there is no figure."""

    text: str
    lack_of_memory: bool = False


def attempt(work: Callable[[], T]) -> T | Refusal:
    """Run a step of a row; whatever it raises is that row's, and the table goes on."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except CheckError as error:
        return Refusal(text=str(error))
    except Exception as error:  # a peer of any make may raise anything
        reason = " ".join(str(error).split())
        if isinstance(error, MemoryError) or "out of memory" in reason or "can't allocate memory" in reason:
            return Refusal(text="out of memory", lack_of_memory=True)
        return Refusal(text=f"{type(error).__name__}: {reason[:_LONGEST_REASON]}")
