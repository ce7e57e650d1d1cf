"""How fast a device runs the blocks of a model: tried on the device that is here, or from figures of others."""

# B batch, L length, D width

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from sh2.bench.generate import time_decoding
from sh2.bench.models import random_model
from sh2.bench.timing import Ceilings, Stopwatch, host_bytes_per_second, measure_ceilings
from sh2.config import Lora, MixerKind, ModelConfig
from sh2.fp8 import Precision
from sh2.lora import add_adapters
from sh2.mixers.attention import attend
from sh2.model import StripedHyena2
from sh2.planning.accounting import Numbers, forward_flops, loaded_bytes
from sh2.reading.scoring import log_probs_of
from sh2.state import ModelState
from sh2.train.loss import loss_sums

_GPU_TRIAL_FLOPS, _CPU_TRIAL_FLOPS = 5e12, 8e9  # of a block on the tokens of a trial
_CACHED_BYTES, _MOST_BLOCKS = 2**26, 8
_WRITTEN = 32  # tokens, of which most are timed
_FEW = 64  # tokens, of which a piece takes little longer than of none
FORWARDS, FORWARDS_ADAPTED = 3, 2  # that a forward and its backward take: two for all gradients, one for the stream's
_ATTENTION_BOTH = 3.8  # cuDNN's forward and backward over its forward: 54.7 and 14.3 ms of 32,768 tokens on an H100
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Seconds that grow with the tokens: some whatever their number, and some for each."""

    fixed: float = 0.0
    a_token: float

    def at(self, tokens: int) -> float:
        """Seconds of so many tokens."""
        return self.fixed + self.a_token * tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """What a device takes for the parts of a model. Products of queries with keys are counted apart.

    forward: of a block, by its mixer; step: of a block, for one token of every row, without reading keys and values.
    ends: of embedding, last norm and log-probabilities; written: of what a step takes beside its blocks.
    """

    forward: Mapping[MixerKind, Line]
    step: Mapping[MixerKind, float]
    ends: Line
    written: float = 0.0
    attention_flops_per_second: float
    past_flops_per_second: float  # the same, of new tokens with those of earlier pieces
    copy_bytes_per_second: float  # read plus written
    host_bytes_per_second: float = math.inf  # from page-locked memory, where weights are streamed


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownDevice:
    """A device that need not be here, as it was measured elsewhere."""

    name: str
    memory_bytes: int
    ceilings: Ceilings
    attention_flops_per_second: float
    past_flops_per_second: float
    host_bytes_per_second: float
    floors: Mapping[MixerKind, float]  # time of an operator over that of copying its four tensors
    source: str


# One of each, torch 2.11, bf16: 8192^3 products of 723 to 731 TFLOP/s on the H100, of 727 to 763 on the H200; the
# operators at 32,768 x 4,096, as `evo bench ops` measured them; cuDNN's attention of 32 heads of 128, 8,192 tokens
# causally 0.89 ms on both, and 65,536 before them 13.56 and 14.13 ms. The host's link is an H200's.
KNOWN_DEVICES: Mapping[str, KnownDevice] = MappingProxyType(
    {
        "h100": KnownDevice(
            name="H100 80GB HBM3",
            memory_bytes=79 * 2**30,
            ceilings=Ceilings(copy_bytes_per_second=3.02e12, matmul_flops_per_second=725e12),
            attention_flops_per_second=619e12,
            past_flops_per_second=649e12,
            host_bytes_per_second=55e9,
            floors={MixerKind.HYENA_SE: 1.08, MixerKind.HYENA_MR: 1.26, MixerKind.HYENA_LI: 1.95},
            source="ceilings measured on one H100: 3.02 TB/s, 725 TFLOP/s in bf16; launches are not counted",
        ),
        "h200": KnownDevice(
            name="H200 141GB HBM3e",
            memory_bytes=139 * 2**30,
            ceilings=Ceilings(copy_bytes_per_second=4.26e12, matmul_flops_per_second=745e12),
            attention_flops_per_second=620e12,
            past_flops_per_second=622e12,
            host_bytes_per_second=55e9,
            floors={MixerKind.HYENA_SE: 1.10, MixerKind.HYENA_MR: 1.78, MixerKind.HYENA_LI: 2.54},
            source="ceilings measured on one H200: 4.26 TB/s, 745 TFLOP/s in bf16; launches are not counted",
        ),
    }
)


def speeds_of(
    device: KnownDevice, config: ModelConfig, numbers: Numbers, *, rows: int, training: bool, adapted: bool = False
) -> Speeds:
    """Derive a device's speeds from its ceilings: arithmetic at the rate of products, the rest at that of copies.

    Args:
        rows: of a step.
        training: whether a backward goes with the forward.
        adapted: whether no weight has a gradient, but adapters, whose own arithmetic is not counted.
    """
    copy, products = device.ceilings.copy_bytes_per_second, device.ceilings.matmul_flops_per_second
    times = (FORWARDS_ADAPTED if adapted else FORWARDS) if training else 1
    D, size = config.width, numbers.size
    forward: dict[MixerKind, Line] = {}
    step: dict[MixerKind, float] = {}
    for kind in set(config.kinds):
        one = replace(config, layout=kind.value)
        flops = forward_flops(one, 1)
        arithmetic = flops["projections"] + flops["feed_forward"]
        # two norms, each a pass over the stream, or with gradients seven over float32 too; two sums; the MLP's product
        norms = 2 * ((7 * 4 if training else 0) + 2 * size)
        traffic = float(D) * (norms + 6 * size) + 3 * config.mlp_width * size
        if kind is MixerKind.ATTENTION:
            traffic += 2 * D * 2 * size
        else:
            traffic += 4 * D * size * device.floors[kind]
        # weights in FP8 become numbers for every piece: read, written, and read and written with their units; the 40B's
        # took an H200 2.7 times as long as such copies would, 0.18 s
        fixed = 2.7 * (1 + 3 * size) * block_bytes(one, numbers) / copy if numbers.fp8_weights else 0.0
        forward[kind] = Line(fixed=fixed, a_token=times * (arithmetic / products + traffic / copy))
        step[kind] = max(block_bytes(one, numbers) / copy, rows * arithmetic / products)
    ends = 2 * D * config.vocab_size / products + config.vocab_size * 4 * 6 / copy
    return Speeds(
        forward=forward,
        step=step,
        ends=Line(a_token=times * ends),
        attention_flops_per_second=device.attention_flops_per_second / (_ATTENTION_BOTH if training else 1),
        past_flops_per_second=device.past_flops_per_second,
        copy_bytes_per_second=copy,
        host_bytes_per_second=device.host_bytes_per_second,
    )


def block_bytes(one: ModelConfig, numbers: Numbers) -> int:
    """What a step reads of a block's weights: of a configuration of one layer."""
    matrices = forward_flops(one, 1)
    weights = (matrices["projections"] + matrices["feed_forward"]) // 2
    if numbers.fp8_weights:
        return weights
    if numbers.projections == "fp8" and one.kinds[0] is not MixerKind.ATTENTION:
        weights -= 3 * one.width**2 // 2
    return weights * numbers.size


class Trial:
    """Runs single blocks of a model, with random weights, on the device that is here."""

    def __init__(
        self,
        config: ModelConfig,
        numbers: Numbers,
        *,
        device: str,
        backend: str,
        tokens: int,
        rows: int = 0,
        training: bool = False,
        lora: Lora | None = None,
        streamed: bool = False,
    ) -> None:
        """Prepare to try blocks.

        Args:
            tokens: of a piece, all rows together; fewer are tried where so many take more than a moment.
            rows: that are written together; 0 tries no steps. training: try a backward with the forward.
            lora: adapters that are trained, in place of the weights.
            streamed: try copies from the host's memory to a GPU.
        """
        self._config, self._numbers, self._device, self._backend = config, numbers, device, backend
        self._rows, self._training, self._lora, self._streamed = rows, training, lora, streamed
        self._stopwatch = Stopwatch(device, least=1)
        budget = _GPU_TRIAL_FLOPS if torch.device(device).type == "cuda" else _CPU_TRIAL_FLOPS
        costs = [_flops_of_a_token(config, kind) for kind in set(config.kinds)]
        most = int(budget / max(costs) / (3 if training else 1))
        self._tokens = max(2 * _FEW, 1 << max(0, min(tokens, most).bit_length() - 1))

    def run(self) -> Speeds:
        """Time every kind of block once."""
        forward: dict[MixerKind, Line] = {}
        step: dict[MixerKind, float] = {}
        written = 0.0
        attention = past = float("inf")
        for kind in dict.fromkeys(self._config.kinds):
            gc.collect()
            model = self._model(kind.value)
            if kind is MixerKind.ATTENTION:
                forward[kind], attention, past = self._attention(model)
            else:
                forward[kind] = self._line(self._seconds(model, _FEW), self._seconds(model, self._tokens))
            if self._rows:
                step[kind], written = self._steps(model, kind)
        return Speeds(
            forward=forward,
            step=step,
            ends=self._ends(model),
            written=written,
            attention_flops_per_second=attention,
            past_flops_per_second=past,
            copy_bytes_per_second=measure_ceilings(self._device, self._stopwatch).copy_bytes_per_second,
            host_bytes_per_second=(
                host_bytes_per_second(self._device, self._stopwatch) if self._streamed else math.inf
            ),
        )

    def _model(self, layout: str) -> StripedHyena2:
        # weights of a training run are float32 whatever it computes in
        dtype = torch.float32 if self._training else _DTYPES[self._numbers.dtype]
        config = replace(self._config, layout=layout)
        packed = self._numbers.fp8_weights
        model = random_model(config, device=self._device, dtype=dtype, fp8_weights=packed).use_backend(self._backend)
        if self._lora is not None:
            add_adapters(model, self._lora, seed=0)
            model.embedding.weight.requires_grad_()  # as of any block but the first, so has its input a gradient
        products = Precision.FP8_WEIGHTS if packed else self._numbers.projections
        return model.use_precision(products) if products else model

    def _ids(self, *shape: int) -> Tensor:
        return torch.randint(0, 256, shape, device=self._device)

    def _seconds(self, model: StripedHyena2, tokens: int, state: ModelState | None = None) -> float:
        """One row of tokens through the model's one block."""
        ids_BL = self._ids(1, tokens)
        return self._time(lambda: self._passed(model, ids_BL, state))

    def _passed(self, model: StripedHyena2, ids_BL: Tensor, state: ModelState | None) -> Tensor:
        if not self._training:
            return model.hidden(ids_BL, state)[0]
        with torch.autocast(ids_BL.device.type, torch.bfloat16, enabled=self._numbers.dtype == "bf16"):
            x_BLD = model.whole(ids_BL)
        x_BLD.backward(torch.ones_like(x_BLD))
        return x_BLD

    def _time(self, call: Callable[[], object]) -> float:
        with torch.set_grad_enabled(self._training):
            return self._stopwatch.time(lambda: call).seconds

    def _attention(self, model: StripedHyena2) -> tuple[Line, float, float]:
        """The line without the products of queries and keys, and the rates of these."""
        flops = forward_flops(model.config, self._tokens)["attention"]
        alone = self._products(self._tokens)
        line = self._line(self._seconds(model, _FEW), max(self._seconds(model, self._tokens) - alone, 0.1 * alone))
        if self._training:
            return line, flops / alone, flops / alone
        half = self._tokens // 2
        with torch.no_grad():
            _, state = model.hidden(self._ids(1, half))
        behind = max(self._seconds(model, half, state) - line.at(half), alone / 2)
        return line, flops / alone, forward_flops(model.config, half, half)["attention"] / behind

    def _products(self, tokens: int) -> float:
        """Causal attention alone."""
        config, dtype = self._config, _DTYPES[self._numbers.dtype]
        q, k, v = (
            torch.randn(
                1, tokens, heads, config.head_dim, device=self._device, dtype=dtype, requires_grad=self._training
            )
            for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        )

        def products() -> None:
            y = attend(q, k, v, None)
            if self._training:
                y.backward(torch.ones_like(y))

        return self._time(products)

    def _line(self, few: float, all_: float) -> Line:
        """Through the times of a few tokens and of all of them."""
        slope = max(all_ - few, 0.0) / (self._tokens - _FEW)
        return Line(fixed=max(few - slope * _FEW, 0.0), a_token=slope)

    def _steps(self, model: StripedHyena2, kind: MixerKind) -> tuple[float, float]:
        """A step of a block, which is what a model of several takes longer than one; and a step without any.

        Several are more than caches hold, or as many as a small model has: a step's time is that of reading weights.
        """
        block = loaded_bytes(model.config, self._numbers)
        more = min(_MOST_BLOCKS, 1 + max(1, _CACHED_BYTES // block))
        one, many = (
            time_decoding(tried, _FEW, rows=self._rows, tokens=_WRITTEN).step_seconds
            for tried in (model, self._model(more * kind.value))
        )
        block_seconds = max((many - one) / (more - 1), 0.05 * one)
        return block_seconds, max(one - block_seconds, 0.0)

    def _ends(self, model: StripedHyena2) -> Line:
        n = self._tokens
        shape = 1, n, self._config.width
        x_BLD = torch.randn(shape, device=self._device, dtype=model.embedding.weight.dtype)
        ids_BL, ones_BL = self._ids(1, n), torch.ones(1, n, device=self._device)

        def forward() -> None:
            model.embedding(ids_BL)
            log_probs_of(model.logits(x_BLD), ids_BL)

        def both() -> None:
            loss_sums(model.logits(x_BLD), ids_BL, ones_BL).weighted_nats.backward()

        return Line(a_token=self._time(both if self._training else forward) / n)


def _flops_of_a_token(config: ModelConfig, kind: MixerKind) -> int:
    return sum(forward_flops(replace(config, layout=kind.value), 1).values())
