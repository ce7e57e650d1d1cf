"""Small models that tests share."""

from dataclasses import replace

import torch

from sh2.config import DEFAULT_WINDOW, FeedForward, ModelConfig
from sh2.mixers.attention import Attention, rotary_frequencies
from sh2.model import StripedHyena2

TINY = ModelConfig(
    width=32, layout="SML*", num_heads=2, mlp_width=48, se_groups=4, mr_groups=8, mr_taps=20, mr_window=DEFAULT_WINDOW
)
CONFIGS = {
    "striped": TINY,
    "any order": replace(TINY, layout="*LMSS*L"),
    "grouped heads, biases, untied": replace(
        TINY, queries_per_kv_head=2, input_bias=True, featurizer_bias=True, tied_embeddings=False, se_skip=True
    ),
    "hyena_se feed-forward": replace(TINY, feed_forward=FeedForward.HYENA_SE),
    "interpolated, another base, long filters": replace(
        TINY, rotary_interpolation=8.0, rotary_base=1e6, mr_taps=130, mr_groups=1, se_groups=32, num_modes=4
    ),
    "attention only": replace(TINY, layout="**"),
}


def tiny(name: str = "striped", seed: int = 0) -> StripedHyena2:
    """A small model with random weights, in evaluation mode."""
    return StripedHyena2(CONFIGS[name], seed=seed).eval()


def attention() -> Attention:
    """A layer of TINY alone, with random weights."""
    torch.manual_seed(0)
    layer = Attention(TINY)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layer.inv_freq.copy_(rotary_frequencies(TINY))
    return layer
