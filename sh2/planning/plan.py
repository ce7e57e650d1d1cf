"""What a task will take before it is started: memory and time, from a configuration alone. No weights are read."""

# B batch, L length

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum

from sh2.config import Lora, MixerKind, ModelConfig
from sh2.mixers.cache import reserved
from sh2.planning.accounting import (
    Numbers,
    activation_bytes,
    count_adapters,
    count_parameters,
    forward_flops,
    kv_cache_bytes,
    loaded_bytes,
    state_bytes,
    weight_bytes,
)
from sh2.planning.speeds import FORWARDS, FORWARDS_ADAPTED, Line, Speeds
from sh2.planning.training_memory import training_peak_bytes
from sh2.recompute import Recompute

CHUNK = 8192  # tokens of a row that are run at once, at most
_LEAST_CHUNK = 64
_SPARE = 65_536  # tokens of all rows that decoding makes room for ahead
_MASK_BYTES = 1 << 26
_LONGEST = 1 << 36


class Task(StrEnum):
    """What is done with a model."""

    SCORE = "score"  # log-probabilities of every token
    EMBED = "embed"  # outputs of layers, pooled
    GENERATE = "generate"
    TRAIN = "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A task of a certain size on a certain device.

    length: tokens of a sequence; of a window, in training. prompt: of these, how many are given, in generation.
    batch: sequences at once: records that share a batch, samples of one prompt, windows of a forward pass in training.
    accumulation, recompute, lora: in training, forward passes of an update, what their backwards make again, and the
    adapters that are trained in place of the weights.
    room: memory of the device, in bytes. gpu: whether it is a GPU, which sizes its pieces by the memory that is free.
    piece, held, streamed: tokens of a row that are run at once, memory of the weights, and bytes of weights that every
    pass copies from the host's memory, where these do not follow from one device alone (`sh2.planning.split`).
    """

    config: ModelConfig
    task: Task
    length: int
    batch: int = 1
    prompt: int = 1
    numbers: Numbers
    kv_dtype: str | None = None  # `fp8`, or None for the dtype of `numbers`
    accumulation: int = 1
    recompute: Recompute = Recompute.NONE
    lora: Lora | None = None
    room: int
    gpu: bool
    piece: int | None = None
    held: int | None = None
    streamed: int = 0

    @property
    def chunk(self) -> int:
        """Tokens of a row that are run at once, as `sh2.reading.chunks` chooses."""
        if self.piece is not None:
            return self.piece
        if not self.gpu:
            return CHUNK
        free = self.room - self.weights() - runtime_bytes(self.gpu)
        a_token = activation_bytes(self.config, 4096, replace(self.numbers, fp8_weights=False)) // 4096
        fitting = max(0, free) // 2 // (self.rows_read * a_token)
        return max(_LEAST_CHUNK, min(CHUNK, 1 << max(0, fitting.bit_length() - 1)))

    @property
    def trained(self) -> int:
        """Parameters that are trained, in training."""
        return count_parameters(self.config) if self.lora is None else count_adapters(self.config, self.lora)

    @property
    def rows_read(self) -> int:
        """Rows of a piece: the samples of a prompt share its reading."""
        return 1 if self.task is Task.GENERATE else self.batch

    def weights(self) -> int:
        """Memory of the weights, in bytes."""
        if self.held is not None:
            return self.held
        if self.task is Task.TRAIN:
            return weight_bytes(self.config, "fp32") + (0 if self.lora is None else 4 * self.trained)
        return loaded_bytes(self.config, self.numbers)

    def kv_bytes(self, tokens: int) -> int:
        """Keys and values of one row of so many tokens."""
        return kv_cache_bytes(self.config, tokens, self.kv_dtype or self.numbers.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Where the memory goes at the worst moment, in bytes."""

    weights: int
    optimizer: int = 0  # gradients and Adam's moments
    states: int = 0  # of filters
    cache: int = 0  # keys and values
    activations: int = 0
    runtime: int = 0  # what the GPU's own libraries take

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def runtime_bytes(gpu: bool) -> int:
    """What a GPU's context and libraries take before the first tensor, in bytes, or nearly so."""
    return 600 * 2**20 if gpu else 0


def predict_memory(plan: Plan) -> Memory:
    """Predict the most memory that a task takes."""
    if plan.task is Task.TRAIN:
        return _training_memory(plan)
    moments = _reading_moments(plan)
    if plan.task is Task.GENERATE:
        moments.append(_writing_memory(plan))
    return max(moments, key=lambda memory: memory.total)


def _reading_moments(plan: Plan) -> list[Memory]:
    """While the first piece is read, when its keys and values move to where all have room, and while the last is."""
    reading = plan.prompt if plan.task is Task.GENERATE else plan.length
    rows, piece = plan.rows_read, plan.rows_read * min(reading, plan.chunk)
    passing = activation_bytes(plan.config, piece, plan.numbers, logits=plan.task is Task.SCORE)
    passed = piece * plan.config.width * plan.numbers.size  # the output of a piece
    first, whole = (rows * size for size in _caches(plan, reading))
    moments = [(first, passing)]
    if reading > plan.chunk:
        moments += [(first + whole, passed), (whole, passing + passed + _looking_back(plan, reading))]
    return [
        Memory(
            weights=plan.weights(),
            states=rows * state_bytes(plan.config, plan.numbers.dtype),
            cache=cache,
            activations=activations + 8 * rows * reading,  # with the ids
            runtime=runtime_bytes(plan.gpu),
        )
        for cache, activations in moments
    ]


def _writing_memory(plan: Plan) -> Memory:
    """When the samples begin, beside the state of their prompt, or when they end."""
    first, whole = _caches(plan, plan.prompt)
    kept = whole if plan.prompt > plan.chunk else first
    begin = plan.batch * plan.kv_bytes(_decoding_room(plan)) + kept
    return Memory(
        weights=plan.weights(),
        states=(plan.batch + 1) * state_bytes(plan.config, plan.numbers.dtype),
        # a single sample goes on in the memory of its prompt
        cache=max(begin if plan.batch > 1 else kept, plan.batch * plan.kv_bytes(plan.length)),
        activations=activation_bytes(plan.config, plan.batch, plan.numbers),
        runtime=runtime_bytes(plan.gpu),
    )


def _training_memory(plan: Plan) -> Memory:
    adapted, tokens = plan.lora is not None, plan.batch * plan.length
    peak = training_peak_bytes(plan.config, tokens, plan.numbers, plan.recompute, adapted=adapted)
    return Memory(
        weights=plan.weights(),
        optimizer=8 * plan.trained,
        # from the second forward pass on, all gradients of weights are there beside activations
        activations=peak if plan.accumulation == 1 else peak + 4 * plan.trained,
        runtime=runtime_bytes(plan.gpu),
    )


def _caches(plan: Plan, length: int) -> tuple[int, int]:
    """Keys and values of a row after its first piece, and where all of its tokens have room."""
    config, first = plan.config, min(length, plan.chunk)
    if MixerKind.ATTENTION not in config.kinds:
        return 0, 0
    extra = 0
    if plan.kv_dtype is None:  # the first piece's values lie in its projection, which stays with them
        extra = (config.num_heads + config.num_kv_heads) * config.head_dim * plan.numbers.size
    layers = config.layout.count(MixerKind.ATTENTION)
    return plan.kv_bytes(first) + first * extra * layers, plan.kv_bytes(reserved(length))


def _looking_back(plan: Plan, length: int) -> int:
    """What a piece takes in one layer to see the tokens before it."""
    if MixerKind.ATTENTION not in plan.config.kinds:
        return 0
    rows, taken = plan.rows_read, 0
    if plan.kv_dtype == "fp8":  # keys and values in the model's dtype
        taken += 2 * rows * length * plan.config.num_kv_heads * plan.config.head_dim * plan.numbers.size
    if not plan.gpu:  # a mask, of the last whole piece or of the rest
        rest = length % plan.chunk
        whole = plan.chunk * (length - rest) if length - rest > plan.chunk else 0
        taken += min(_MASK_BYTES, max(whole, rest * length))
    return taken


def _decoding_room(plan: Plan) -> int:
    """Places that decoding begins with in every row."""
    ahead = plan.prompt + max(plan.prompt // 8, _SPARE // plan.batch)
    return max(plan.prompt, min(plan.length, ahead))


def fits(plan: Plan) -> bool:
    """Whether the task fits into its room."""
    return predict_memory(plan).total <= plan.room


def longest(plan: Plan, enough: Callable[[Plan], bool] = fits) -> int:
    """The longest sequence that fits, everything else the same; 0 if none does.

    In generation it is the prompt that grows, if there is more of it than of what is written.

    Args:
        enough: says whether a plan fits.
    """
    reads = plan.task is not Task.GENERATE or plan.prompt > plan.length // 2
    written = plan.length - plan.prompt

    def at(length: int) -> Plan:
        return replace(plan, length=length, prompt=max(1, length - written) if reads else min(plan.prompt, length))

    if not enough(at(1)):
        return 0
    low, high = 1, _LONGEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if enough(at(middle)) else (low, middle)
    return low


@dataclass(frozen=True, kw_only=True, slots=True)
class Duration:
    """Seconds of one batch: of reading, and in generation of writing. An update, in training."""

    reading: float
    writing: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.reading + self.writing


def predict_seconds(plan: Plan, speeds: Speeds) -> Duration:
    """Predict how long a batch takes, from how long a device takes for the parts of a model."""
    if plan.task is Task.GENERATE:
        return Duration(reading=_reading(plan, speeds, plan.prompt), writing=_writing(plan, speeds))
    seconds = _reading(plan, speeds, plan.length)
    if plan.task is Task.TRAIN:
        forwards = _forwards(plan)
        seconds *= plan.accumulation * (forwards + _FORWARDS_AGAIN[plan.recompute]) / forwards
        # and the optimizer: weight, gradient and two moments read, all but the gradient written
        seconds += 7 * 4 * plan.trained / speeds.copy_bytes_per_second
    return Duration(reading=seconds)


# norms and gates are little of one; the last product of a half is not made again
_FORWARDS_AGAIN = {Recompute.NONE: 0.0, Recompute.SELECTIVE: 0.1, Recompute.FULL: 1.0, Recompute.NESTED: 2.0}


def _forwards(plan: Plan) -> int:
    """Of how many forwards a forward with its backward has the arithmetic."""
    return FORWARDS if plan.lora is None else FORWARDS_ADAPTED


def _reading(plan: Plan, speeds: Speeds, length: int) -> float:
    rows = plan.rows_read
    chunk = length if plan.task is Task.TRAIN else plan.chunk
    whole, rest = divmod(length, chunk)
    pieces = [(whole, rows * chunk), (1 if rest else 0, rows * rest)]
    seconds = sum(count * _piece(plan, speeds, tokens) for count, tokens in pieces)
    own = whole * _attention_flops(plan, chunk) + _attention_flops(plan, rest)
    past = _attention_flops(plan, length) - own
    seconds += rows * (own / speeds.attention_flops_per_second + past / speeds.past_flops_per_second)
    # what is streamed is copied while the blocks run
    return max(seconds, (whole + bool(rest)) * _copying(plan, speeds))


def _copying(plan: Plan, speeds: Speeds) -> float:
    """Seconds of a pass that nothing but the copying of streamed weights would take."""
    return plan.streamed / speeds.host_bytes_per_second


def _piece(plan: Plan, speeds: Speeds, tokens: int) -> float:
    ends = speeds.ends if plan.task in (Task.SCORE, Task.TRAIN) else Line(a_token=0)
    return sum(speeds.forward[kind].at(tokens) for kind in plan.config.kinds) + ends.at(tokens)


def _attention_flops(plan: Plan, length: int) -> int:
    return forward_flops(plan.config, length)["attention"]


def _writing(plan: Plan, speeds: Speeds) -> float:
    """Steps: each reads the keys and values of all tokens so far."""
    steps = plan.length - plan.prompt
    mean = (plan.length + plan.prompt) / 2
    cache = plan.batch * plan.kv_bytes(1) * mean
    step = sum(speeds.step[kind] for kind in plan.config.kinds) + speeds.written
    return steps * max(step + cache / speeds.copy_bytes_per_second, _copying(plan, speeds))


def total_flops(plan: Plan) -> int:
    """Floating-point operations of a batch; of an update, in training, of which nothing is made again."""
    forward = plan.batch * sum(forward_flops(plan.config, plan.length).values())
    return _forwards(plan) * plan.accumulation * forward if plan.task is Task.TRAIN else forward
