"""Where a model can be looked at, by our names, the published code's and numbers, and what is made of what is seen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sh2.config import FeedForward, MixerKind, ModelConfig
from sh2.errors import Sh2Error

NORM = "norm"
"""The last norm, behind all blocks."""


class Tap(StrEnum):
    """What is taken of a block."""

    RESIDUAL = "residual"
    MIXER = "mixer"
    MLP = "mlp"
    MIXER_NORM = "mixer_norm"
    MLP_NORM = "mlp_norm"


class Pooling(StrEnum):
    """What becomes of the outputs at the tokens of a sequence, or of a span of it."""

    MEAN = "mean"
    LAST = "last"  # the last token's, which has seen all before it
    MAX = "max"  # of each channel by itself
    SECOND_HALF = "second-half"  # the mean over the later half, whose tokens have all seen the earlier one
    PER_BASE = "per-base"  # all of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """A place in a model. All are as wide as the model."""

    name: str  # `blocks.28.mlp`
    module: str  # whose output it is
    published: tuple[str, ...]  # what the published code calls it
    kind: str  # of the layer, in words
    meaning: str


_MODULES = {
    Tap.RESIDUAL: "",
    Tap.MIXER: ".mixer",
    Tap.MLP: ".feed_forward",
    Tap.MIXER_NORM: ".mixer_norm",
    Tap.MLP_NORM: ".feed_forward_norm",
}
_PUBLISHED: dict[Tap, tuple[str, ...]] = {
    Tap.RESIDUAL: ("",),
    Tap.MLP: (".mlp.l3", ".mlp"),
    Tap.MIXER_NORM: (".pre_norm",),
    Tap.MLP_NORM: (".post_norm",),
}
_PUBLISHED_ATTENTION = (".inner_mha_cls", ".inner_mha_cls.out_proj")
_PUBLISHED_HYENA = (".out_filter_dense",)
_MEANINGS = {
    Tap.RESIDUAL: "the block's output: the residual stream after it",
    Tap.MIXER: "the mixer's output, before it is added to the residual stream",
    Tap.MLP: "the feed-forward layer's output, before it is added to the residual stream",
    Tap.MIXER_NORM: "the normed residual stream that the mixer reads",
    Tap.MLP_NORM: "the normed residual stream that the feed-forward layer reads",
}


def sites(config: ModelConfig) -> Iterator[Site]:
    """All sites of a model, first to last."""
    for layer in range(config.num_layers):
        yield from (_site(config, layer, tap) for tap in Tap)
    yield Site(
        name=NORM,
        module=NORM,
        published=(NORM,),
        kind="norm",
        meaning="the last norm's output, which the unembedding reads",
    )


def find_sites(config: ModelConfig, words: Sequence[str], tap: Tap = Tap.RESIDUAL) -> dict[str, str]:
    """Find sites by what users call them.

    Args:
        words: numbers of blocks, counted from 0, or `all` of them; `norm`; names such as `blocks.28.mixer`, or the
            published code's, such as `blocks.28.mlp.l3`.
        tap: what is taken of the blocks given by number.

    Returns:
        Names and the modules whose outputs they are, in the order of the words, each once.

    Raises:
        Sh2Error: nothing of that name is there.
    """
    by_name = {name: site for site in sites(config) for name in (*site.published, site.module, site.name)}
    found: dict[str, str] = {}
    for word in words:
        layers = range(config.num_layers) if word == "all" else [int(word)] if word.isdecimal() else []
        names = [_name(layer, tap) for layer in layers] or [word]
        for name in names:
            if name not in by_name:
                raise _unknown(config, word)
            found[by_name[name].name] = by_name[name].module
    if not found:
        raise Sh2Error("no layer is given").hint("give numbers of blocks, names, or `all`")
    return found


def _site(config: ModelConfig, layer: int, tap: Tap) -> Site:
    attention = config.kinds[layer] is MixerKind.ATTENTION
    published = _PUBLISHED.get(tap, _PUBLISHED_ATTENTION if attention else _PUBLISHED_HYENA)
    feed_forward = tap in (Tap.MLP, Tap.MLP_NORM)
    kind = config.feed_forward.value if feed_forward else config.kinds[layer].name.lower()
    if feed_forward and config.feed_forward is FeedForward.HYENA_SE:
        published = ()
    return Site(
        name=_name(layer, tap),
        module=f"blocks.{layer}{_MODULES[tap]}",
        published=tuple(f"blocks.{layer}{suffix}" for suffix in published),
        kind=kind,
        meaning=_MEANINGS[tap],
    )


def _name(layer: int, tap: Tap) -> str:
    return f"blocks.{layer}" if tap is Tap.RESIDUAL else f"blocks.{layer}.{tap}"


def _unknown(config: ModelConfig, word: str) -> Sh2Error:
    last = config.num_layers - 1
    return Sh2Error(f"the model has no layer `{word}` to take embeddings from").hint(
        f"there are blocks 0 to {last}, or `all`; `norm`; and by name, here of block {last}: "
        + ", ".join(_name(last, tap) for tap in Tap)
    )
