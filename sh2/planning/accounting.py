"""What a configuration costs: parameters, arithmetic and memory, computed from the shapes alone. Needs no torch."""

# B batch, L length, D width, I inner width of the MLP, V vocabulary, N modes

from dataclasses import dataclass, replace

from sh2.config import FeedForward, Lora, MixerKind, ModelConfig

_BYTES = {"fp32": 4, "bf16": 2}
SCAN = 64  # tokens of a chunk of Hyena-LI's scan in plain torch, and the least rows of a segment in Triton
LEAST_ROWS = 16  # of the matrices that filters are in plain torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """In which numbers a model runs.

    dtype: of weights and activations, `bf16` or `fp32`. projections: `fp8` or `fp8-emulated` where the hyena mixers'
    input projections run so. fused: Triton kernels run the hyena operators, not plain torch. fp8_weights: the weights
    of linear layers are kept in FP8 (sh2.packed).
    """

    dtype: str
    projections: str | None = None
    fused: bool = True
    fp8_weights: bool = False

    @property
    def size(self) -> int:
        """Bytes of a number of `dtype`."""
        return _BYTES[self.dtype]

    @property
    def name(self) -> str:
        """What `sh2.fp8.precision_of` calls them."""
        return "fp8-weights" if self.fp8_weights else self.projections or self.dtype


def count_parameters(config: ModelConfig) -> int:
    """Trainable parameters, a tied embedding counted once."""
    width = config.width
    total = config.vocab_size * width * (1 if config.tied_embeddings else 2) + width
    for kind in config.kinds:
        total += 2 * width + _mixer_parameters(config, kind)
        if config.feed_forward is FeedForward.HYENA_SE:
            total += _mixer_parameters(config, MixerKind.HYENA_SE)
        else:
            total += 3 * width * config.mlp_width
    return total


def count_adapters(config: ModelConfig, lora: Lora) -> int:
    """Trained parameters of adapters beside the linear layers of the blocks."""
    D, total = config.width, 0
    for kind in config.kinds:
        mixers = [kind, *([MixerKind.HYENA_SE] if config.feed_forward is FeedForward.HYENA_SE else [])]
        sizes = {"input": 0, "output": len(mixers) * 2 * D, "gate": 0, "up": 0, "down": 0}
        for one in mixers:
            attends = one is MixerKind.ATTENTION
            sizes["input"] += D + (D + 2 * config.num_kv_heads * config.head_dim if attends else 3 * D)
        if config.feed_forward is FeedForward.GATED_MLP:
            sizes |= dict.fromkeys(("gate", "up", "down"), D + config.mlp_width)
        total += lora.rank * sum(sizes[target] for target in lora.targets)
    return total


def _mixer_parameters(config: ModelConfig, kind: MixerKind) -> int:
    width = config.width
    if kind is MixerKind.ATTENTION:
        projected = width + 2 * config.num_kv_heads * config.head_dim
        bias = projected * config.input_bias + width * config.attention_output_bias
        return width * projected + width * width + bias
    projected = 3 * width
    shared = projected * width + width * width + projected * config.featurizer_taps
    shared += projected * (config.input_bias + config.featurizer_bias) + width * config.hyena_output_bias
    match kind:
        case MixerKind.HYENA_SE:
            return shared + config.se_groups * config.se_taps + width * config.se_skip
        case MixerKind.HYENA_MR:
            return shared + config.mr_groups * config.mr_taps + width * config.mr_skip
        case _:
            return shared + 2 * width * config.num_modes + width


def forward_flops(config: ModelConfig, length: int, past: int = 0) -> dict[str, int]:
    """Floating-point operations of a forward over one sequence, by operator: a multiply-add is two.

    Counted are matrix products, filters with their gates and skips, and attention as it is: causal, a token with itself
    and those before it. Not counted are norms, activations, rotations, softmax and sums of the stream, which cost
    memory traffic rather than arithmetic. The definitions are counted, not the products that an implementation takes in
    their place. A training step is three times a forward.

    Args:
        length: tokens that are run.
        past: tokens before them, whose state is there.

    Returns:
        `projections` (of the mixers, in and out), `featurizer`, `hyena_se`, `hyena_mr`, `hyena_li`, `attention`,
        `feed_forward` and `unembedding`.
    """
    D = config.width
    total = dict.fromkeys(("projections", "featurizer", "hyena_se", "hyena_mr", "hyena_li", "attention"), 0)
    for kind in config.kinds:
        for name, flops in _mixer_flops(config, kind).items():
            total[name] += length * flops
    if config.feed_forward is FeedForward.HYENA_SE:
        feed_forward = sum(_mixer_flops(config, MixerKind.HYENA_SE).values())
    else:
        feed_forward = 2 * 3 * D * config.mlp_width
    seen = length * past + length * (length + 1) // 2  # pairs of a query and a key
    return total | {
        "attention": 2 * 2 * D * seen * config.layout.count(MixerKind.ATTENTION),
        "feed_forward": length * config.num_layers * feed_forward,
        "unembedding": length * 2 * D * config.vocab_size,
    }


def _mixer_flops(config: ModelConfig, kind: MixerKind) -> dict[str, int]:
    """Operations of a mixer for one token, but for attention's products with keys and values."""
    D = config.width
    if kind is MixerKind.ATTENTION:
        return {"projections": 2 * D * (2 * D + 2 * config.num_kv_heads * config.head_dim)}
    shared = {"projections": 2 * D * 4 * D, "featurizer": 2 * config.featurizer_taps * 3 * D}
    gates = 2 * D
    match kind:
        case MixerKind.HYENA_SE:
            return shared | {"hyena_se": gates + 2 * D * (config.se_taps + config.se_skip)}
        case MixerKind.HYENA_MR:
            return shared | {"hyena_mr": gates + 2 * D * (config.mr_taps + config.mr_skip)}
        case _:  # a mode takes a multiply-add to move on, and one to be summed
            return shared | {"hyena_li": gates + 2 * D * (2 * config.num_modes + 1)}


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Memory of a loaded model's weights and buffers, in bytes, at `bf16` or `fp32`.

    Poles, residues and rotary frequencies are float32 at either.
    """
    poles = config.layout.count(MixerKind.HYENA_LI) * config.width * config.num_modes
    frequencies = config.layout.count(MixerKind.ATTENTION) * (config.head_dim // 2)
    return (count_parameters(config) - 2 * poles) * _BYTES[dtype] + 4 * (3 * poles + frequencies)


def projection_copies_bytes(config: ModelConfig, projections: str | None) -> int:
    """Memory of the weights that FP8 input projections keep beside the model's own, in bytes."""
    size = {None: 0, "fp8": 1, "fp8-emulated": 2}[projections]
    return size * 3 * config.width**2 * _hyena_mixers(config)


def _hyena_mixers(config: ModelConfig) -> int:
    hyena = config.num_layers - config.layout.count(MixerKind.ATTENTION)
    return hyena + config.num_layers * (config.feed_forward is FeedForward.HYENA_SE)


def loaded_bytes(config: ModelConfig, numbers: Numbers) -> int:
    """Memory of a model as it is kept for inference, in bytes: weights, buffers, and what FP8 products keep beside."""
    return ends_bytes(config, numbers) + sum(block_bytes(config, kind, numbers) for kind in config.kinds)


def ends_bytes(config: ModelConfig, numbers: Numbers) -> int:
    """What of that is no block's, but the embedding's, the last norm's and the unembedding's."""
    return numbers.size * config.width * (1 + config.vocab_size * (1 if config.tied_embeddings else 2))


def block_bytes(config: ModelConfig, kind: MixerKind, numbers: Numbers) -> int:
    """What of that is a block's with this mixer."""
    one = replace(config, layout=kind.value)
    size = weight_bytes(one, numbers.dtype) - ends_bytes(config, numbers)
    if not numbers.fp8_weights:
        return size + projection_copies_bytes(one, numbers.projections)
    for inputs, outputs in _linear_layers(one):
        size += inputs * outputs * (1 - numbers.size) + 4 * outputs  # codes, and a unit for each output
    return size + 4 * _hyena_mixers(one) * (numbers.projections is not None)  # their scales


def _linear_layers(one: ModelConfig) -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers of a configuration of one block."""
    D, hyena = one.width, _hyena_mixers(one)
    layers = [(D, 3 * D), (D, D)] * hyena
    if MixerKind.ATTENTION in one.kinds:
        layers += [(D, D + 2 * one.num_kv_heads * one.head_dim), (D, D)]
    if one.feed_forward is not FeedForward.HYENA_SE:
        layers += [(D, one.mlp_width), (D, one.mlp_width), (one.mlp_width, D)]
    return layers


def _largest_weight_bytes(config: ModelConfig, numbers: Numbers) -> int:
    """The largest weight that is kept in FP8, as the numbers that it is for the moment of its product."""
    if not numbers.fp8_weights:
        return 0
    layers = [layer for kind in set(config.kinds) for layer in _linear_layers(replace(config, layout=kind.value))]
    return numbers.size * max(inputs * outputs for inputs, outputs in layers)


def state_bytes(config: ModelConfig, dtype: str) -> int:
    """Memory of the filters' states of one sequence, in bytes: of any length the same."""
    kinds = list(config.kinds)
    if config.feed_forward is FeedForward.HYENA_SE:
        kinds += [MixerKind.HYENA_SE] * config.num_layers
    inner = {
        MixerKind.HYENA_SE: config.se_taps - 1,
        MixerKind.HYENA_MR: config.mr_taps - 1,
        MixerKind.HYENA_LI: config.num_modes,
    }
    featurizer = (config.featurizer_taps - 1) * 3 * config.width * _BYTES[dtype]
    return sum(featurizer + 4 * config.width * inner[kind] for kind in kinds if kind is not MixerKind.ATTENTION)


def kv_cache_bytes(config: ModelConfig, length: int, dtype: str) -> int:
    """Memory of the attention layers' keys and values for one sequence of `length` tokens, in bytes.

    Args:
        dtype: `bf16`, `fp32`, or `fp8`: a byte a number, and a float32 unit for each token and head.
    """
    heads = 2 * config.layout.count(MixerKind.ATTENTION) * config.num_kv_heads
    return length * heads * (config.head_dim + 4 if dtype == "fp8" else config.head_dim * _BYTES[dtype])


def activation_bytes(config: ModelConfig, tokens: int, numbers: Numbers, *, logits: bool = True) -> int:
    """Memory that the passage of tokens takes at most, in bytes, beside weights, states and what came before.

    Without gradients, tokens hold what the block holds that they are in: at the worst moment of the worst block, which
    may be a norm, a mixer or the feed-forward layer.

    Args:
        tokens: of all rows together.
        logits: whether log-probabilities are taken of all of them in the end.
    """
    D, stream = config.width, tokens * config.width * numbers.size
    norm = tokens * D * (8 if numbers.size == 4 else 12)  # two results in float32, and a copy of the input in it
    # the block's input and the stream with the mixer's output, which is there from the start where products add to it
    early = stream if numbers.fused else 0
    moments = [2 * stream + norm]
    moments += [2 * stream + early + _mixer_bytes(config, kind, tokens, numbers) for kind in set(config.kinds)]
    if config.feed_forward is FeedForward.HYENA_SE:
        moments.append(3 * stream + early + _mixer_bytes(config, MixerKind.HYENA_SE, tokens, numbers))
    else:
        moments.append(3 * stream + 3 * tokens * config.mlp_width * numbers.size)
    if logits:  # as they are, as float32, and exponentials of these
        wide = 4 if numbers.size < 4 else 0
        moments.append(stream + tokens * config.vocab_size * (numbers.size + wide + 4))
    return max(moments) + _largest_weight_bytes(config, numbers)


def _mixer_bytes(config: ModelConfig, kind: MixerKind, tokens: int, numbers: Numbers) -> int:
    """What a mixer holds, beside its input and the block's."""
    D, size = config.width, numbers.size
    if kind is MixerKind.ATTENTION:
        projected = (D + 2 * config.num_kv_heads * config.head_dim) * size
        # queries that are turned, and what the kernel turns or, in float32, a copy of the input or none and four halves
        turning = 3 * size if numbers.fused else 8 if size == 4 else 12
        return tokens * (projected + D * size + D * turning)
    # FP8 with a scale a token: the codes, the sums in float32, these scaled, and rounded
    quantised = D * (1 + 2 * 3 * 4 + 3 * size) if numbers.projections else 0
    modes = 4 * D * config.num_modes // SCAN  # states between chunks or segments
    if numbers.fused:
        return tokens * max(4 * D * size + (modes if kind is MixerKind.HYENA_LI else 0), quantised)
    # in float32: the projection, if that is another dtype, and padded; q, k, v; then the gated input
    featurizer = 3 * D * size + D * (24 if size == 4 else 36)
    gated = 3 * D * size + D * (12 + 4)
    if kind is MixerKind.HYENA_LI:
        inner = 3 * 4 * D + modes
    else:
        taps = config.se_taps if kind is MixerKind.HYENA_SE else config.mr_taps
        rows = max(taps, LEAST_ROWS)
        inner = 4 * D * (3 * rows + taps - 1) // rows
    return max(tokens * max(featurizer, quantised), tokens * (gated + inner) + matrix_bytes(config, kind))


def matrix_bytes(config: ModelConfig, kind: MixerKind) -> int:
    """The matrices that plain torch makes of a mixer's filters, whatever the length."""
    if kind is MixerKind.ATTENTION:
        return 0
    if kind is MixerKind.HYENA_LI:
        return 4 * config.width * SCAN * (SCAN + 3 * config.num_modes)
    se = kind is MixerKind.HYENA_SE
    groups, taps = (config.se_groups, config.se_taps) if se else (config.mr_groups, config.mr_taps)
    rows = max(taps, LEAST_ROWS)
    return 4 * groups * rows * (rows + taps - 1)


def training_bytes(config: ModelConfig) -> int:
    """Memory of weights, gradients and Adam's two moments in fp32, in bytes; activations come on top."""
    return 16 * count_parameters(config)
