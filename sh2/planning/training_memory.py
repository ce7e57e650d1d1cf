"""What training takes beside weights and the optimizer's moments, computed from the shapes alone. Needs no torch.

A forward keeps tensors for its backward: all of them, or only those from which the others are made again. Weights are
float32; `bf16` is autocast, under which the stream between the blocks is bfloat16 too.
"""

# D width, I inner width of the MLP, V vocabulary

from sh2.config import Activation, FeedForward, MixerKind, ModelConfig
from sh2.planning.accounting import LEAST_ROWS, SCAN, Numbers, count_parameters, matrix_bytes
from sh2.recompute import LOGITS_PIECE, PIECE, Recompute, group_size


def saved_bytes(
    config: ModelConfig, tokens: int, numbers: Numbers, recompute: Recompute = Recompute.NONE, *, adapted: bool = False
) -> int:
    """Memory of what a forward keeps for its backward, in bytes.

    A norm keeps its input and, for the gradient of its scale, that over its root mean square, in float32, and its
    result; products keep their operands, operators their inputs, and in plain torch every step of theirs in float32.

    Args:
        adapted: nothing is trained but adapters, whose own outputs are too small to count.
    """
    D, size = config.width, numbers.size
    if recompute is Recompute.NESTED:
        total = -(-config.num_layers // group_size(config.num_layers)) * tokens * D * size
    else:
        total = sum(_kept(config, layer, tokens, numbers, recompute, adapted) for layer in range(config.num_layers))
    if tokens > LOGITS_PIECE:  # the last norm and the logits are made again
        return total + tokens * D * size
    return total + tokens * (_norm(config, numbers, adapted) + 4 * config.vocab_size)


def training_peak_bytes(
    config: ModelConfig, tokens: int, numbers: Numbers, recompute: Recompute = Recompute.NONE, *, adapted: bool = False
) -> int:
    """The most that a forward and its backward take, in bytes, with the gradients of the weights.

    Args:
        tokens: of a forward pass, all rows together.
        adapted: nothing is trained but adapters, whose gradients are too small to count.
    """
    parameters, layers, size = count_parameters(config), config.num_layers, numbers.size
    copies = 2 * parameters if size < 4 else 0  # of the weights, which autocast keeps as long as a forward lasts
    logits = 8 * config.vocab_size * min(tokens, LOGITS_PIECE)
    moments = [saved_bytes(config, tokens, numbers, recompute, adapted=adapted) + copies + logits]
    trained = 0 if adapted else parameters
    if recompute is Recompute.NONE:  # gradients of weights take the place of activations
        return max(*moments, 4 * trained)
    group = group_size(layers) if recompute is Recompute.NESTED else layers
    for layer in range(layers):
        first = layer - layer % group
        kept = sum(_kept(config, number, tokens, numbers, recompute, adapted) for number in range(first, layer + 1))
        kept += layer // group * tokens * config.width * size  # the inputs of the groups before
        gradients = 4 * trained * (2 * (layers - layer) - 1) // (2 * layers)
        again = _made_again(config, layer, tokens, numbers, recompute, adapted)
        moments.append(kept + again + gradients + copies // layers)
    return max(moments)


def _kept(config: ModelConfig, layer: int, tokens: int, numbers: Numbers, recompute: Recompute, adapted: bool) -> int:
    """What a block keeps, of a group that is not made again as a whole."""
    if recompute in (Recompute.FULL, Recompute.NESTED):
        return 2 * tokens * config.width * numbers.size  # the inputs of both halves
    if recompute is Recompute.SELECTIVE:
        return 2 * tokens * config.width * numbers.size + sum(_products(config, layer, tokens, numbers))
    return sum(_halves(config, layer, tokens, numbers, adapted))


def _made_again(
    config: ModelConfig, layer: int, tokens: int, numbers: Numbers, recompute: Recompute, adapted: bool
) -> int:
    """The most that a block's halves take while one is run again and differentiated, beside what was kept."""
    D, size = config.width, numbers.size
    mixer, feed_forward = _halves(config, layer, tokens, numbers, adapted)
    stream = tokens * D * size
    # gradients: of the projection and of what it was made of, beside that of the stream
    working = tokens * D * (8 if config.kinds[layer] is MixerKind.ATTENTION else 5 if numbers.fused else 12)
    if recompute is Recompute.SELECTIVE:
        kept_mixer, kept_feed_forward = _products(config, layer, tokens, numbers)
        return max(mixer - kept_mixer + working // 2, feed_forward - kept_feed_forward + stream) + stream
    if config.feed_forward is FeedForward.GATED_MLP:
        piece = min(tokens, PIECE)
        feed_forward = (feed_forward + 3 * tokens * config.mlp_width * size) * piece // tokens + stream
    return max(mixer + working, feed_forward + stream)


def _norm(config: ModelConfig, numbers: Numbers, adapted: bool) -> int:
    """What a norm keeps for one token."""
    return config.width * ((4 if adapted else 8) + numbers.size)


def _halves(config: ModelConfig, layer: int, tokens: int, numbers: Numbers, adapted: bool) -> tuple[int, int]:
    """All that the two halves of a block keep."""
    size, norm = numbers.size, _norm(config, numbers, adapted)
    kind = config.kinds[layer]
    mixer = tokens * (norm + _saved_of_mixer(config, kind, numbers))
    if not numbers.fused:
        mixer += matrix_bytes(config, kind)
    if config.feed_forward is FeedForward.HYENA_SE:
        inner = _saved_of_mixer(config, MixerKind.HYENA_SE, numbers)
    else:
        smooth = config.activation_of(layer) is not Activation.IDENTITY
        inner = (3 + smooth) * config.mlp_width * size
    return mixer, tokens * (norm + inner)


def _products(config: ModelConfig, layer: int, tokens: int, numbers: Numbers) -> tuple[int, int]:
    """What the two halves of a block keep under `selective`, beside their inputs."""
    if config.feed_forward is FeedForward.HYENA_SE:
        feed_forward = _products_of_mixer(config, MixerKind.HYENA_SE, numbers)
    else:
        feed_forward = 2 * config.mlp_width * numbers.size
    return tokens * _products_of_mixer(config, config.kinds[layer], numbers), tokens * feed_forward


def _products_of_mixer(config: ModelConfig, kind: MixerKind, numbers: Numbers) -> int:
    """The projection, and what the operator makes of it, or its products in plain torch, for one token."""
    D, size = config.width, numbers.size
    if kind is MixerKind.ATTENTION:
        return (D + 2 * config.num_kv_heads * config.head_dim) * size + D * size + 4 * config.num_heads
    modes = 4 * D * config.num_modes // SCAN if kind is MixerKind.HYENA_LI else 0
    if numbers.fused:
        return 4 * D * size + modes
    return 3 * D * size + modes + (8 if kind is MixerKind.HYENA_LI else 4) * D


def _saved_of_mixer(config: ModelConfig, kind: MixerKind, numbers: Numbers) -> int:
    """All that a mixer keeps for one token."""
    D, narrow = config.width, numbers.size < 4
    if kind is MixerKind.ATTENTION:  # and the angles, and the softmax's sums
        return D * (12 if narrow else 24) + 4 * config.head_dim + 4 * config.num_heads
    modes = 4 * D * config.num_modes // SCAN
    if numbers.fused:
        return D * (8 if narrow else 16) + (modes if kind is MixerKind.HYENA_LI else 0)
    if kind is MixerKind.HYENA_LI:
        return D * (46 if narrow else 48) + modes
    taps, skip = (config.se_taps, config.se_skip) if kind is MixerKind.HYENA_SE else (config.mr_taps, config.mr_skip)
    rows = max(taps, LEAST_ROWS)
    return D * ((30 if narrow else 32) + 4 * skip) + 4 * D * (rows + taps - 1) // rows
