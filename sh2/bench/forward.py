"""How fast a model reads: sequences of given lengths, as scoring runs them, against the device's own limits."""

# B batch, L length

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sh2.bench.attempt import Refusal, attempt
from sh2.bench.timing import Ceilings, Stopwatch, Timing, measure_ceilings
from sh2.model import StripedHyena2
from sh2.planning.accounting import forward_flops
from sh2.reading.scoring import token_log_probs

_CHECKED = 2051  # tokens, odd
# relative L2 errors of logits between the two backends: a model of 32 layers in bf16 is 0.06 from its own float32 run
_TOLERANCE = {2: 0.15, 4: 1e-3}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ForwardRow:
    """One length. A figure that is missing has its reason in `note`."""

    length: int
    batch: int
    seconds: float | None = None
    tokens_per_s: float | None = None
    tflops: float | None = None
    x_matmul: float | None = None  # part of the rate of a large matrix product in the same dtype
    peak_gib: float | None = None  # with the weights
    plain_tokens_per_s: float | None = None  # with the operators in plain torch
    x_plain: float | None = None  # how many times as fast as that
    error: float | None = None  # relative difference of the logits to those with plain operators
    note: str = ""
    failed: bool = False


class ForwardBench:
    """Times a model on one device: log-probabilities of all tokens, in pieces that carry the state, as scoring does."""

    def __init__(self, model: StripedHyena2, *, batch: int, backend: str, plain: bool) -> None:
        """Measure the device's ceilings.

        Args:
            batch: sequences at once. backend: of the operators, as the model has it. plain: time plain torch beside it.
        """
        self._model, self._batch, self._backend, self._plain = model, batch, backend, plain
        weight = model.embedding.weight
        self._stopwatch = Stopwatch(str(weight.device))
        self.ceilings: Ceilings = measure_ceilings(str(weight.device), self._stopwatch, weight.dtype)
        self._tolerance = _TOLERANCE[min(4, weight.element_size())]

    def row(self, length: int) -> ForwardRow:
        """Check one length against plain operators, then time it. What goes wrong is the row's note."""
        bare = ForwardRow(length=length, batch=self._batch)
        error = attempt(lambda: self._difference(length)) if self._plain else None
        if isinstance(error, float) and not error <= self._tolerance:
            text = f"the logits are {error:.1e} from those with plain operators, over the {self._tolerance:g} allowed"
            return replace(bare, error=error, note=text, failed=True)
        own = attempt(lambda: self._time(length))
        if isinstance(own, Refusal):
            return replace(bare, note=own.text, failed=not own.lack_of_memory)
        tokens = self._batch * length
        flops = self._batch * sum(forward_flops(self._model.config, length).values()) / own.seconds
        row = replace(
            bare,
            seconds=own.seconds,
            tokens_per_s=tokens / own.seconds,
            tflops=flops / 1e12,
            x_matmul=flops / self.ceilings.matmul_flops_per_second,
            peak_gib=own.peak_bytes / 2**30 if own.peak_bytes else None,
        )
        if not self._plain:
            return row
        plain = attempt(lambda: self._on_plain(lambda: self._time(length)))
        if isinstance(plain, Refusal) or isinstance(error, Refusal):
            refused = plain if isinstance(plain, Refusal) else error
            return replace(row, note=f"plain: {refused.text}" if isinstance(refused, Refusal) else "")
        return replace(row, plain_tokens_per_s=tokens / plain.seconds, x_plain=plain.seconds / own.seconds, error=error)

    def _time(self, length: int) -> Timing:
        rows = [random_ids(length + 1)] * self._batch
        return self._stopwatch.time(lambda: lambda: token_log_probs(self._model, rows))

    @torch.inference_mode()
    def _difference(self, length: int) -> float:
        """How far the logits of the first tokens are from those with plain operators, relative, in the L2 norm."""
        ids_BL = torch.from_numpy(random_ids(min(length, _CHECKED)))[None].to(self._model.embedding.weight.device)
        own_BLV = self._model(ids_BL)[0].double()
        plain_BLV = self._on_plain(lambda: self._model(ids_BL)[0].double())
        return float((own_BLV - plain_BLV).norm() / plain_BLV.norm())

    def _on_plain(self, work: Callable[[], T]) -> T:
        self._model.use_backend("reference")
        try:
            return work()
        finally:
            self._model.use_backend(self._backend)


def random_ids(length: int) -> NDArray[np.int64]:
    """Random bases as token ids, always the same."""
    return np.random.default_rng(0).choice(np.frombuffer(b"ACGT", dtype=np.uint8), length).astype(np.int64)
