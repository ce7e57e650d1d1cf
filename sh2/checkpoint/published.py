"""Published tensors and ours: which is which, and what is done to the values on the way.

One table, walked either way. Moving rows, reversing taps and dropping axes of length 1 are exact, so a file that goes
there and back is the same to the bit.
"""

# D width, E = 3D projected channels, G filter groups, K taps, N modes, C channels a head

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sh2.checkpoint.fp8_state import read_scales, write_scales
from sh2.checkpoint.layout import PublishedLayout, attention_rows, canonical_layout, hyena_rows
from sh2.checkpoint.tensors import LazyTensor, Tensors, check_tensors, tensor_bytes
from sh2.config import MixerKind, ModelConfig, RotaryFrequencies
from sh2.mixers.attention import rotary_frequencies
from sh2.mixers.hyena import decay_window

# the published code makes of a filter this long a true convolution with a skip, and of a shorter one a correlation
# without, whatever the block is called
LONG_FILTER = 128
_IGNORED = re.compile(r"(.*\.)?_extra_state|(.*\.)?filter\.t")

log = logging.getLogger(__name__)

Transform = Callable[[Tensor], Tensor]


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """A tensor of ours and the published one that it is made of."""

    ours: str
    published: str
    shape: tuple[int, ...]  # of the published tensor
    to_ours: Transform = _same
    to_published: Transform = _same


def published_to_ours(
    tensors: Tensors, config: ModelConfig, layout: PublishedLayout, label: str
) -> dict[str, LazyTensor]:
    """Rename and reorder published tensors.

    Args:
        label: what the tensors came from, for errors.

    Raises:
        Sh2Error: a tensor is missing, extra or misshapen. Those that the published code ignores are dropped.
    """
    table = list(_table(config, layout))
    ignored = {name for name in tensors if _is_ignored(name, config)}
    found = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    check_tensors(found, {entry.published: entry.shape for entry in table}, label)
    ours: dict[str, LazyTensor] = {}
    for entry in table:
        lazy = found[entry.published]
        if entry.to_ours is not _same:  # what is as it was is copied as its file has it
            lazy = lazy.map(entry.to_ours)
        block, _, last = entry.ours.rpartition(".")
        if last == "log_poles":
            ours[f"{block}.pole_shift"] = _zeros(lazy.shape)
        if last in ("log_poles", "residues", "inv_freq"):
            lazy = lazy.map(Tensor.float)  # rounded ones stay rounded: the published code widens them too
        ours[entry.ours] = lazy
    if config.input_bias and not layout.hyena_input_bias:
        for layer, kind in enumerate(config.kinds):
            if kind is not MixerKind.ATTENTION:
                ours[f"blocks.{layer}.mixer.input.bias"] = _zeros((3 * config.width,), found["norm.scale"].dtype)
    return ours | _scales(tensors, config, label)


def ours_to_published(
    tensors: Tensors, config: ModelConfig, label: str, layout: PublishedLayout | None = None
) -> dict[str, LazyTensor]:
    """Rename and reorder our tensors; the decay window goes into the taps, the trained shift into the poles.

    Raises:
        Sh2Error: a tensor is missing, extra or misshapen.
    """
    table = list(_table(config, layout or canonical_layout(config)))
    folded = _fold(tensors, config)
    states = {
        _fp8_state(layer): LazyTensor.of(write_scales(folded.pop(name).read()))
        for layer in range(config.num_layers)
        if (name := _fp8_scales(layer)) in folded
    }
    check_tensors(folded, {entry.ours: _shape(entry.shape, entry.to_ours) for entry in table}, label)
    return {entry.published: folded[entry.ours].map(entry.to_published) for entry in table} | states


def _fp8_state(layer: int) -> str:
    return f"blocks.{layer}.projections._extra_state"


def _fp8_scales(layer: int) -> str:
    return f"blocks.{layer}.mixer.input.fp8_scales"


def _scales(tensors: Tensors, config: ModelConfig, label: str) -> dict[str, LazyTensor]:
    """The scales that training in FP8 left, of every hyena mixer that has them; a line if some are not understood."""
    scales: dict[str, LazyTensor] = {}
    faults: list[str] = []
    for layer, kind in enumerate(config.kinds):
        name = _fp8_state(layer)
        if name not in tensors or kind is MixerKind.ATTENTION or not config.fp8_input_projections:
            continue
        try:
            if (read := read_scales(tensor_bytes(tensors[name].read()).tobytes())) is not None:
                scales[_fp8_scales(layer)] = LazyTensor.of(torch.tensor(read, dtype=torch.float32))
        except ValueError as error:
            faults.append(f"`{name}`: {error}")
    if faults:
        log.warning(
            "%s: the FP8 scales of %d layers are not understood, theirs are taken from the values at hand (%s)",
            label,
            len(faults),
            faults[0],
        )
    return scales


def _fold(tensors: Tensors, config: ModelConfig) -> dict[str, LazyTensor]:
    folded = dict(tensors)
    for layer, kind in enumerate(config.kinds):
        mixer = f"blocks.{layer}.mixer"
        if kind is MixerKind.HYENA_LI and {f"{mixer}.log_poles", f"{mixer}.pole_shift"} <= tensors.keys():
            folded[f"{mixer}.log_poles"] = _shifted(folded[f"{mixer}.log_poles"], folded.pop(f"{mixer}.pole_shift"))
        if kind is MixerKind.HYENA_MR and config.mr_window is not None and f"{mixer}.taps" in tensors:
            window = decay_window(config.mr_window, config.mr_groups, config.mr_taps, torch.device("cpu"))
            folded[f"{mixer}.taps"] = folded[f"{mixer}.taps"].map(_times(window))
        if kind is MixerKind.ATTENTION and config.rotary_frequencies is RotaryFrequencies.BASE:
            folded[f"{mixer}.inv_freq"] = LazyTensor.of(rotary_frequencies(config))
    return folded


def _shifted(log_poles: LazyTensor, shift: LazyTensor) -> LazyTensor:
    return LazyTensor(log_poles.shape, log_poles.dtype, lambda: log_poles.read() * shift.read().exp())


def _times(window_GK: Tensor) -> Transform:
    return lambda taps_GK: (taps_GK.float() * window_GK.to(taps_GK.device)).to(taps_GK.dtype)


def _table(config: ModelConfig, layout: PublishedLayout) -> Iterator[_Entry]:
    """Every tensor that both have."""
    V, D, hidden = config.vocab_size, config.width, config.mlp_width
    yield _Entry(ours="embedding.weight", published="embedding_layer.weight", shape=(V, D))
    yield _Entry(ours="norm.scale", published="norm.scale", shape=(D,))
    if not config.tied_embeddings:
        yield _Entry(ours="unembedding.weight", published="unembed.weight", shape=(V, D))
    for layer, kind in enumerate(config.kinds):
        block = f"blocks.{layer}."
        names: list[tuple[str, str, tuple[int, ...]]] = [
            ("mixer_norm.scale", "pre_norm.scale", (D,)),
            ("feed_forward_norm.scale", "post_norm.scale", (D,)),
            ("feed_forward.gate.weight", "mlp.l1.weight", (hidden, D)),
            ("feed_forward.up.weight", "mlp.l2.weight", (hidden, D)),
            ("feed_forward.down.weight", "mlp.l3.weight", (D, hidden)),
        ]
        for ours, published, shape in names:
            yield _Entry(ours=block + ours, published=block + published, shape=shape)
        mixer = _attention(config, layout) if kind is MixerKind.ATTENTION else _hyena(config, layout, kind)
        for entry in mixer:
            yield replace(entry, ours=f"{block}mixer.{entry.ours}", published=block + entry.published)


def _attention(config: ModelConfig, layout: PublishedLayout) -> Iterator[_Entry]:
    D = config.width
    rows = attention_rows(config, layout)
    projected = len(rows)
    yield _moved("input.weight", "inner_mha_cls.Wqkv.weight", (projected, D), rows)
    if config.input_bias:
        yield _moved("input.bias", "inner_mha_cls.Wqkv.bias", (projected,), rows)
    yield _Entry(ours="output.weight", published="inner_mha_cls.out_proj.weight", shape=(D, D))
    if config.attention_output_bias:
        yield _Entry(ours="output.bias", published="inner_mha_cls.out_proj.bias", shape=(D,))
    yield _Entry(ours="inv_freq", published="inner_mha_cls.rotary_emb.inv_freq", shape=(config.head_dim // 2,))


def _hyena(config: ModelConfig, layout: PublishedLayout, kind: MixerKind) -> Iterator[_Entry]:
    D, K = config.width, config.featurizer_taps
    rows = hyena_rows(config, layout)
    yield _moved("input.weight", "projections.weight", (3 * D, D), rows)
    if config.input_bias and layout.hyena_input_bias:
        yield _moved("input.bias", "projections.bias", (3 * D,), rows)
    back = rows.argsort()
    yield _Entry(
        ours="featurizer_taps",
        published="filter.short_filter_weight",
        shape=(3 * D, 1, K),
        to_ours=lambda taps_E1K: _reversed(_picked(taps_E1K, rows)),
        to_published=lambda taps_EK: _unreversed(_picked(taps_EK, back)),
    )
    if config.featurizer_bias:
        yield _moved("featurizer_bias", "filter.short_filter_bias", (3 * D,), rows)
    yield _Entry(ours="output.weight", published="out_filter_dense.weight", shape=(D, D))
    if config.hyena_output_bias:
        yield _Entry(ours="output.bias", published="out_filter_dense.bias", shape=(D,))
    yield from _inner_filter(config, kind)


def _inner_filter(config: ModelConfig, kind: MixerKind) -> Iterator[_Entry]:
    D, N = config.width, config.num_modes
    if kind is MixerKind.HYENA_LI:
        yield _Entry(
            ours="log_poles",
            published="filter.log_poles",
            shape=(D, N, 1),
            to_ours=lambda poles_DN1: poles_DN1.squeeze(2),
            to_published=lambda poles_DN: poles_DN.unsqueeze(2),
        )
        yield _Entry(ours="residues", published="filter.residues", shape=(D, N))
        yield _Entry(ours="skip", published="filter.D", shape=(D,))
        return
    G, K = (config.se_groups, config.se_taps) if kind is MixerKind.HYENA_SE else (config.mr_groups, config.mr_taps)
    long = K >= LONG_FILTER
    yield _Entry(
        ours="taps",
        published="filter.h",
        shape=(G, 1, K),
        to_ours=(lambda taps_G1K: taps_G1K.squeeze(1)) if long else _reversed,
        to_published=(lambda taps_GK: taps_GK.unsqueeze(1)) if long else _unreversed,
    )
    if long:
        yield _Entry(ours="skip", published="filter.D", shape=(D,))


def _moved(ours: str, published: str, shape: tuple[int, ...], rows: Tensor) -> _Entry:
    """An entry whose rows are in another order."""
    back = rows.argsort()
    return _Entry(
        ours=ours,
        published=published,
        shape=shape,
        to_ours=lambda tensor: _picked(tensor, rows),
        to_published=lambda tensor: _picked(tensor, back),
    )


# of a tensor on meta, `tensor[rows]` and `flip` load sympy, which takes a third of a second
def _picked(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, rows)


def _flipped(taps: Tensor) -> Tensor:
    return taps.index_select(-1, torch.arange(taps.shape[-1] - 1, -1, -1))


def _reversed(taps_C1K: Tensor) -> Tensor:
    """From the last tap on the current token to the first on it, [C, K]."""
    return _flipped(taps_C1K.squeeze(1))


def _unreversed(taps_CK: Tensor) -> Tensor:
    return _flipped(taps_CK).unsqueeze(1)


def _shape(shape: tuple[int, ...], function: Transform) -> tuple[int, ...]:
    return tuple(function(torch.empty(shape, device="meta")).shape)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> LazyTensor:
    return LazyTensor(shape, dtype, lambda: torch.zeros(shape, dtype=dtype))


def _is_ignored(name: str, config: ModelConfig) -> bool:
    """Whether published code drops this tensor: a copy of tied embeddings, time axes, stale filters.

    FP8 state is no weight either: what is needed of it is read apart.
    """
    if name == "unembed.weight":
        return config.tied_embeddings
    stale = re.fullmatch(r"blocks\.(\d+)\.filter\.h", name)
    if stale and int(stale[1]) < config.num_layers:
        return config.kinds[int(stale[1])] is MixerKind.HYENA_LI
    return _IGNORED.fullmatch(name) is not None


def published_names(mapping: Mapping[str, object]) -> bool:
    """Whether these are the names of a published file."""
    return "embedding_layer.weight" in mapping
