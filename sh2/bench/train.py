"""How fast a model trains: whole updates, of StripedHyena 2 and of Transformers of its size, ours and another's."""

# T tokens of all rows

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from sh2.bench import llama
from sh2.bench.attempt import Refusal, attempt
from sh2.bench.forward import random_ids
from sh2.bench.models import random_model
from sh2.bench.timing import Ceilings, Stopwatch, Timing, measure_ceilings
from sh2.config import FeedForward, MixerKind, ModelConfig
from sh2.planning.accounting import forward_flops
from sh2.train.compilation import compile_blocks, many_graphs
from sh2.train.config import Precision, TrainConfig
from sh2.train.fp8 import use_fp8_linears
from sh2.train.loader import HostBatch
from sh2.train.optimizer import build_optimizer
from sh2.train.team import ALONE
from sh2.train.update import Updates

_WARM_UP = 3  # updates: the first compiles and allocates the moments, the third records
_LEAST, _MOST = 3, 50  # updates that are timed
_BUDGET_SECONDS = 4.0
_LONG_SECONDS = 60.0  # of an update after which the next is timed at once


_Prepare = Callable[[ModelConfig, TrainConfig], Callable[[], object]]


@dataclass(frozen=True, kw_only=True)
class TrainRow:
    """One model at one length. A figure that is missing has its reason in `note`."""

    model: str
    length: int
    batch: int  # windows of an update
    seconds: float | None = None  # of an update
    tokens_per_s: float | None = None
    tflops: float | None = None  # arithmetic of the model, of a forward and its backward; nothing made again
    mfu: float | None = None  # part of the rate of a large matrix product in the same dtype
    x_products: float | None = None  # the time over that of the model's matrix products alone, of their own sizes
    peak_gib: float | None = None
    x_transformer: float | None = None  # how many times as fast as our Transformer
    note: str = ""
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """Windows of random bases."""

    tokens: NDArray[np.uint8]
    weights: NDArray[np.float32]
    document_starts: NDArray[np.bool_]


class TrainBench:
    """Times updates on one device: same code, same run, one model after the other."""

    def __init__(self, config: TrainConfig) -> None:
        """Measure the device's ceilings. config: of a run, of which the length is another in every row."""
        self._config = config
        self._device = torch.device(config.device)
        self._dtype = torch.bfloat16 if config.precision is Precision.BF16 else torch.float32
        self._stopwatch = Stopwatch(config.device)
        self.ceilings: Ceilings = measure_ceilings(config.device, self._stopwatch, self._dtype)

    def rows(self, name: str, model: ModelConfig, lengths: list[int], *, twin: bool, peer: bool) -> Iterator[TrainRow]:
        """Yield a row for every length.

        Args:
            twin: yield one of our Transformer of the model's size after it.
            peer: and one of the Llama of that size.
        """
        transformer = replace(model, layout="*" * model.num_layers)
        for length in lengths:
            own = self._row(name, model, length, self._own_updates)
            others = [self._row(f"{name}-transformer", transformer, length, self._own_updates)] if twin else []
            if peer:
                others.append(self._row(llama.NAME, transformer, length, self._llama_updates))
            base = others[0].tokens_per_s if twin else None
            for row in (own, *others):
                if base and row.tokens_per_s and row.model != f"{name}-transformer":
                    row = replace(row, x_transformer=row.tokens_per_s / base)
                yield row

    def _row(self, name: str, model: ModelConfig, length: int, prepare: _Prepare) -> TrainRow:
        config = replace(self._config, length=length)
        bare = TrainRow(model=name, length=length, batch=config.windows_per_step)
        gc.collect()
        done = attempt(lambda: self._time(partial(prepare, model, config)))
        torch._dynamo.reset()  # its graphs keep what they were made for
        gc.collect()
        if isinstance(done, Refusal):
            return replace(bare, note=done.text, failed=not done.lack_of_memory)
        alone = attempt(
            lambda: products_seconds(model, config.batch_size, length, self._stopwatch, self._device, self._dtype)
        )
        flops = 3 * config.windows_per_step * sum(forward_flops(model, length).values()) / done.seconds
        return replace(
            bare,
            seconds=done.seconds,
            tokens_per_s=config.windows_per_step * length / done.seconds,
            tflops=flops / 1e12,
            mfu=flops / self.ceilings.matmul_flops_per_second,
            x_products=None if isinstance(alone, Refusal) else done.seconds / (config.accumulation * alone),
            peak_gib=done.peak_bytes / 2**30 if done.peak_bytes else None,
        )

    def _own_updates(self, shape: ModelConfig, config: TrainConfig) -> Callable[[], object]:
        """A function that makes an update as `evo train` does."""
        model = random_model(shape, device=config.device, dtype=torch.float32).train()
        model.use_backend(config.backend).use_recompute(config.recompute)
        if config.fp8_linears:
            use_fp8_linears(model, self._device)
        if config.compile:
            compile_blocks(model)
        updates = Updates(model, build_optimizer(model, config), config, ALONE)
        return partial(updates.make, self._batch(config), lr=1e-4)

    def _llama_updates(self, shape: ModelConfig, config: TrainConfig) -> Callable[[], object]:
        """A function that makes an update of the Llama of a shape."""
        update = llama.make_update(llama.make_llama(shape, config.length, self._device), config)
        return partial(update, self._batch(config))

    def _batch(self, config: TrainConfig) -> HostBatch:
        return HostBatch.of(_random_windows(config), pinned=self._device.type == "cuda")

    def _time(self, prepare: Callable[[], Callable[[], object]]) -> Timing:
        """Time an update, and count the most memory that it takes."""
        gpu = self._device.type == "cuda"
        before = torch.cuda.memory_allocated(self._device) if gpu else 0
        make = prepare()
        with many_graphs():
            first = self._updates(1, make)
            if gpu:  # what is recorded is counted as it runs before that
                torch.cuda.reset_peak_memory_stats(self._device)
            if first < _LONG_SECONDS:
                self._updates(_WARM_UP - 1, make)
            seconds = self._updates(1, make)
            if seconds < _BUDGET_SECONDS:
                count = max(_LEAST, min(_MOST, int(_BUDGET_SECONDS / seconds)))
                seconds = self._updates(count, make) / count
        peak = torch.cuda.max_memory_allocated(self._device) - before if gpu else 0
        return Timing(seconds=seconds, peak_bytes=peak)

    def _updates(self, count: int, make: Callable[[], object]) -> float:
        """Seconds of so many updates, from a device at rest to a device at rest."""
        began = perf_counter()
        for _ in range(count):
            make()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter() - began


def _random_windows(config: TrainConfig) -> _Windows:
    rows, length = config.windows_per_step, config.length
    tokens = random_ids(rows * (length + 1)).astype(np.uint8).reshape(rows, length + 1)
    return _Windows(
        tokens=tokens, weights=np.ones((rows, length), np.float32), document_starts=np.zeros(tokens.shape, np.bool_)
    )


def products_of(config: ModelConfig) -> Counter[tuple[int, int]]:
    """How many matrices of each size (inputs, outputs) a token's activations are multiplied with."""
    D, products = config.width, Counter[tuple[int, int]]()
    for kind in config.kinds:
        kv = config.num_kv_heads * config.head_dim
        products[D, D + 2 * kv if kind is MixerKind.ATTENTION else 3 * D] += 1
        products[D, D] += 1
        if config.feed_forward is FeedForward.HYENA_SE:
            products[D, 3 * D] += 1
            products[D, D] += 1
        else:
            products[D, config.mlp_width] += 2
            products[config.mlp_width, D] += 1
    products[D, config.vocab_size] += 1
    return products


def products_seconds(
    config: ModelConfig, rows: int, length: int, stopwatch: Stopwatch, device: torch.device, dtype: torch.dtype
) -> float:
    """Time what no implementation of a model can leave out: matrix products, and attention, forward and backward."""
    seconds = 0.0
    for (inputs, outputs), count in products_of(config).items():
        x_TI = torch.randn(rows * length, inputs, device=device, dtype=dtype)
        weight_OI = torch.randn(outputs, inputs, device=device, dtype=dtype)
        dy_TO = torch.randn(rows * length, outputs, device=device, dtype=dtype)
        for left, right in ((x_TI, weight_OI.t()), (dy_TO, weight_OI), (dy_TO.t(), x_TI)):
            seconds += count * stopwatch.time(partial(partial, torch.matmul, left, right)).seconds
    if attentions := config.layout.count(MixerKind.ATTENTION):
        shape = rows, config.num_heads, length, config.head_dim
        q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
        dy = torch.randn(shape, device=device, dtype=dtype)

        def both() -> None:
            F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(dy)

        seconds += attentions * stopwatch.time(lambda: both).seconds
    return seconds
