"""What a configuration costs: parameters and memory, computed from the shapes alone. Needs no torch."""

from sh2.config import FeedForward, MixerKind, ModelConfig

_BYTES = {"fp32": 4, "bf16": 2}


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


def weight_bytes(config: ModelConfig, precision: str) -> int:
    """Memory of the weights, in bytes, at `bf16` or `fp32`."""
    return count_parameters(config) * _BYTES[precision]


def kv_cache_bytes(config: ModelConfig, length: int, precision: str) -> int:
    """Memory of the attention layers' keys and values for one sequence of `length` tokens, in bytes."""
    layers = config.layout.count(MixerKind.ATTENTION)
    return 2 * layers * length * config.num_kv_heads * config.head_dim * _BYTES[precision]


def training_bytes(config: ModelConfig) -> int:
    """Memory of weights, gradients and Adam's two moments in fp32, in bytes; activations come on top."""
    return 4 * weight_bytes(config, "fp32")
