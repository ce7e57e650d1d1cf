"""Sampling continuations in jobs, so that every copy of a model has some; the samples come in order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from sh2.generation.generate import Generation, GenerationOptions, generate_jobs

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas
    from sh2.model import StripedHyena2

_BATCHES = 4  # of rows a job: slots fill up again within a job, and stand empty at its end
_TOKENS = 1 << 26  # that a job may write, unless a batch of rows does


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Some samples of some prompts that follow each other."""

    first: int  # the number of the first prompt
    prompts: tuple[bytes, ...]
    samples: tuple[tuple[int, int], ...]  # number of the prompt, counted from the first, and of the sample


def samples_of(
    replicas: "Replicas",
    prompts: Sequence[bytes],
    options: GenerationOptions,
    progress: Callable[[int], None],
) -> Iterator[Generation]:
    """Sample as `sh2.generation.generate.generate_each` does, on all copies of the model."""
    total = len(prompts) * options.samples
    count = max(options.max_rows, min(_BATCHES * options.max_rows, _TOKENS // options.length))
    count = max(1, min(count, -(-total // len(replicas.devices))))
    work = partial(run, options=options)
    for done in replicas.map(work, jobs(prompts, options.samples, count), progress):
        yield from done


def jobs(prompts: Sequence[bytes], samples: int, count: int) -> Iterator[Job]:
    """Cut the samples of prompts, in order, into jobs of so many."""
    pairs = ((prompt, sample) for prompt in range(len(prompts)) for sample in range(samples))
    while taken := list(islice(pairs, count)):
        first, last = taken[0][0], taken[-1][0]
        yield Job(
            first=first,
            prompts=tuple(prompts[first : last + 1]),
            samples=tuple((prompt - first, sample) for prompt, sample in taken),
        )


def run(
    model: "StripedHyena2", job: Job, progress: Callable[[int], None], *, options: GenerationOptions
) -> list[Generation]:
    """Do one job."""
    results = generate_jobs(model, job.prompts, job.samples, options, progress)
    return [replace(one, prompt=job.first + one.prompt) for one in results]
