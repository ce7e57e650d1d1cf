"""How fast a model writes: batches of samples after contexts of given lengths, against the memory that a step reads."""

from dataclasses import dataclass, replace
from time import perf_counter

import torch

from sh2.bench.attempt import Refusal, attempt
from sh2.bench.forward import random_ids
from sh2.bench.timing import Ceilings, Stopwatch, measure_ceilings
from sh2.config import ModelConfig
from sh2.generation.generate import GenerationOptions, generate_each
from sh2.model import StripedHyena2
from sh2.planning.accounting import (
    Numbers,
    kv_cache_bytes,
    loaded_bytes,
    projection_copies_bytes,
    state_bytes,
    weight_bytes,
)

_WARM = 4  # steps that are not counted: kernels are compiled and the step is recorded in them


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What was measured of one batch."""

    reading_seconds: float  # until the first token is there
    step_seconds: float  # a token of every row
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class GenerateRow:
    """One batch after one context. A figure that is missing has its reason in `note`."""

    context: int
    batch: int
    tokens_per_s: float | None = None  # of all rows together
    ms_a_step: float | None = None
    limit_tokens_per_s: float | None = None  # if a step took as long as copying what it must read
    x_limit: float | None = None  # what of that was reached
    prefill_seconds: float | None = None
    peak_gib: float | None = None  # with the weights
    note: str = ""
    failed: bool = False


class GenerateBench:
    """Times a model on one device: samples of one random prompt, as `sh2.generation.generate` writes them."""

    def __init__(self, model: StripedHyena2, numbers: Numbers, *, tokens: int) -> None:
        """Measure the device's ceilings.

        Args:
            numbers: those of the model. tokens: that every sample writes; at least 8.
        """
        self._model, self._numbers, self._tokens = model, numbers, tokens
        device = str(model.embedding.weight.device)
        self.ceilings: Ceilings = measure_ceilings(device, Stopwatch(device), model.embedding.weight.dtype)

    def row(self, context: int, batch: int) -> GenerateRow:
        """Time a batch after a context. What goes wrong is the row's note."""
        bare = GenerateRow(context=context, batch=batch)
        found = attempt(lambda: time_decoding(self._model, context, rows=batch, tokens=self._tokens))
        if isinstance(found, Refusal):
            return replace(bare, note=found.text, failed=not found.lack_of_memory)
        must = step_bytes(self._model.config, self._numbers, tokens=context + self._tokens // 2, rows=batch)
        limit = self.ceilings.copy_bytes_per_second / must
        return replace(
            bare,
            tokens_per_s=batch / found.step_seconds,
            ms_a_step=found.step_seconds * 1e3,
            limit_tokens_per_s=batch * limit,
            x_limit=1 / found.step_seconds / limit,
            prefill_seconds=found.reading_seconds,
            peak_gib=found.peak_bytes / 2**30 if found.peak_bytes else None,
        )


def step_bytes(config: ModelConfig, numbers: Numbers, *, tokens: int, rows: int, kv_dtype: str | None = None) -> int:
    """What a step must move through memory: weights and keys and values in, the filters' states in and out.

    Args:
        tokens: that each row has seen.
    """
    weights = loaded_bytes(config, numbers) if numbers.fp8_weights else weight_bytes(config, numbers.dtype)
    if numbers.projections == "fp8" and not numbers.fp8_weights:  # in place of the others
        weights -= projection_copies_bytes(config, "fp8") * (numbers.size - 1)
    states = 2 * state_bytes(config, numbers.dtype)
    return weights + rows * (states + kv_cache_bytes(config, tokens, kv_dtype or numbers.dtype))


def time_decoding(model: StripedHyena2, context: int, *, rows: int, tokens: int) -> Decoding:
    """Write samples of one random prompt, and time the steps.

    Raises:
        ValueError: fewer samples than asked for run at once, because the memory holds no more.
    """
    gpu = model.embedding.weight.is_cuda
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    marks: list[float] = []
    written: list[int] = []

    def progress(count: int) -> None:
        marks.append(perf_counter())
        written.append(count)

    options = GenerationOptions(length=tokens, samples=rows, max_rows=rows, alphabet="ACGT", stop_at_eod=False)
    began = perf_counter()
    for _ in generate_each(model, [random_ids(context)], options, progress):
        pass
    if min(written) < rows:
        raise MemoryError(f"out of memory: {min(written)} of {rows} rows at once")
    # the last token is chosen without a step after it
    first, last = min(_WARM, tokens - 3), tokens - 2
    return Decoding(
        reading_seconds=marks[0] - began,
        step_seconds=(marks[last] - marks[first]) / (last - first),
        peak_bytes=torch.cuda.max_memory_allocated() if gpu else 0,
    )
