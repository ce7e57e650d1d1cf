"""Whether a model computes what it should where it runs: against itself, and on sequences whose likelihood is known.

Knows nothing of DNA: the sequences are given.
"""

# B batch, L length, V vocabulary

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from sh2.fp8 import InputProjection, PackedInputProjection, Precision, precision_of
from sh2.mixers import Hyena
from sh2.model import StripedHyena2
from sh2.planning.accounting import weight_bytes
from sh2.reading.scoring import log_probs_of
from sh2.state import select
from sh2.tokens import as_ids

# mean loss in nats and accuracy over the prompts of the published code's own test
PUBLISHED_LOSSES = MappingProxyType(
    {
        "evo2_40b": (0.21594, 0.91673),
        "evo2_20b": (0.21667, 0.91666),
        "evo2_7b": (0.34766, 0.86346),
        "evo2_40b_base": (0.21497, 0.91741),
        "evo2_7b_base": (0.35205, 0.85921),
        "evo2_1b_base": (0.50195, 0.79556),
    }
)
_LOSS_ALLOWED, _ACCURACY_ALLOWED = 0.02, 0.01
# relative L2 error of logits between two ways to the same: rounding in another order, through all layers
_ALLOWED = MappingProxyType({"fp32": 1e-3, "bf16": 0.1, "fp8": 0.2, "fp8-emulated": 0.2})
_MOST_BITS, _UNTRAINED_BITS = 2.1, 4.0
_STRANDS_APART = 0.1  # bits
_PIECES = (1, 2, 3, 127, 128, 129, 1)
_STEPS = 16
_BUG = "this is a bug: please report it with the output of `evo doctor`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A result. passed is None where nothing could be checked: `note` says why, and of a failure the likely cause."""

    name: str
    value: float | None = None
    allowed: str = ""
    passed: bool | None = None
    note: str = ""


@torch.inference_mode()
def selftest(
    model: StripedHyena2, sequence: bytes, other_strand: bytes, *, name: str, prompts: Sequence[bytes] = ()
) -> Iterator[Check]:
    """Check a model, as it is loaded and where it runs.

    Args:
        sequence: real DNA, some 1,000 bases. other_strand: its reverse complement.
        name: of the model; that of a published one has published values. prompts: those that they belong to.
    """
    ids_BL = _to_ids(model, sequence)
    whole_BLV, _ = model(ids_BL)
    allowed = _ALLOWED.get(precision_of(model), 0.1)
    bad = float((~whole_BLV.isfinite()).double().mean())
    yield _at_most("finite", bad, 0.0, "logits that are NaN or infinite: the weights are damaged, or overflow here")
    if bad:
        return
    yield _at_most("pieces", _pieces(model, ids_BL, whole_BLV), allowed, f"states are not carried on right; {_BUG}")
    yield _at_most("steps", _steps(model, ids_BL, whole_BLV), allowed, f"decoding differs from reading; {_BUG}")
    yield _at_most("forks", _forks(model, ids_BL), allowed, f"a row depends on its batch mates; {_BUG}")
    yield _backends(model, ids_BL, whole_BLV, allowed)
    yield _rounding(model, ids_BL, whole_BLV)
    yield _fp8(model, ids_BL, whole_BLV)
    yield from _likelihood(model, ids_BL, _to_ids(model, other_strand), whole_BLV)
    yield from _published(model, name, prompts)


def _at_most(name: str, value: float, allowed: float, cause: str) -> Check:
    passed = value <= allowed
    return Check(name=name, value=value, allowed=f"<= {allowed:g}", passed=passed, note="" if passed else cause)


def _to_ids(model: StripedHyena2, sequence: bytes) -> Tensor:
    ids_L = torch.from_numpy(as_ids(sequence, model.config.vocab_size))
    return ids_L[None].to(model.embedding.weight.device)


def _difference(got: Tensor, want: Tensor) -> float:
    """The relative difference in the L2 norm."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def _pieces(model: StripedHyena2, ids_BL: Tensor, whole_BLV: Tensor) -> float:
    lengths = [*_PIECES, ids_BL.shape[1] - sum(_PIECES)]
    outputs, state = [], None
    for piece_BL in ids_BL.split([length for length in lengths if length > 0], dim=1):
        logits_BLV, state = model(piece_BL, state)
        outputs.append(logits_BLV)
    return _difference(torch.cat(outputs, dim=1), whole_BLV)


def _steps(model: StripedHyena2, ids_BL: Tensor, whole_BLV: Tensor) -> float:
    _, state = model(ids_BL[:, :-_STEPS])
    outputs = []
    for ids_B in ids_BL[:, -_STEPS:].unbind(dim=1):
        logits_BV, state = model.step(ids_B, state)
        outputs.append(logits_BV)
    return _difference(torch.stack(outputs, dim=1), whole_BLV[:, -_STEPS:])


def _forks(model: StripedHyena2, ids_BL: Tensor) -> float:
    """Three rows that leave one state in three ways, against each read alone."""
    cut = ids_BL.shape[1] // 2
    tails_BL = torch.cat([ids_BL[:, cut : cut + 40].roll(turn, dims=1) for turn in (0, 7, 19)])
    _, state = model(ids_BL[:, :cut])
    together_BLV, _ = model(tails_BL, select(state, torch.zeros(3, dtype=torch.int64, device=ids_BL.device)))
    alone = [model(torch.cat([ids_BL[:, :cut], tail[None]], dim=1))[0][:, cut:] for tail in tails_BL]
    return _difference(together_BLV, torch.cat(alone))


def _backends(model: StripedHyena2, ids_BL: Tensor, whole_BLV: Tensor, allowed: float) -> Check:
    mixers = [module for module in model.modules() if isinstance(module, Hyena)]
    if not ids_BL.is_cuda or not mixers or mixers[0].backend == "reference":
        return Check(name="kernels", note="plain torch runs the operators here: there is nothing to compare it with")
    before = mixers[0].backend
    model.use_backend("reference")
    try:
        plain_BLV, _ = model(ids_BL)
    finally:
        model.use_backend(before)
    cause = "the Triton kernels compute something else than plain torch: run with --backend reference, and report it"
    return _at_most("kernels", _difference(whole_BLV, plain_BLV), allowed, cause)


def _rounding(model: StripedHyena2, ids_BL: Tensor, whole_BLV: Tensor) -> Check:
    """The distance to the same weights in float32."""
    if precision_of(model) != "bf16":
        return Check(name="rounding", note=f"compares bf16 with fp32; the model runs in {precision_of(model)}")
    need = weight_bytes(model.config, "fp32")
    if ids_BL.is_cuda and torch.cuda.mem_get_info(ids_BL.device)[0] < 1.2 * need:
        return Check(name="rounding", note="there is no room for the model in float32 beside it")
    wide_BLV, _ = deepcopy(model).float()(ids_BL)
    return _at_most("rounding", _difference(whole_BLV, wide_BLV), 0.15, "bf16 is too coarse for it: --precision fp32")


def _fp8(model: StripedHyena2, ids_BL: Tensor, whole_BLV: Tensor) -> Check:
    """Whether FP8 projections are in effect where they should be."""
    layers = [module for module in model.modules() if isinstance(module, InputProjection | PackedInputProjection)]
    running = [layer.precision for layer in layers]
    if not any(running):
        if not model.config.fp8_input_projections:
            return Check(name="fp8", note="the model was not trained with FP8 projections, and runs without")
        note = "FP8 is not in effect, and the model was trained with it: run with --precision auto"
        return Check(name="fp8", value=0.0, allowed="> 0", passed=False, note=note)
    for layer in layers:
        layer.precision = None
    try:
        without_BLV, _ = model(ids_BL)
    finally:
        for layer, precision in zip(layers, running, strict=True):
            layer.precision = Precision(precision) if precision else None
    effect = _difference(whole_BLV, without_BLV)
    note = "" if effect > 0 else "FP8 projections give what others give: they are not in effect"
    return Check(name="fp8", value=effect, allowed="> 0", passed=effect > 0, note=note)


def _likelihood(model: StripedHyena2, ids_BL: Tensor, other_BL: Tensor, whole_BLV: Tensor) -> Iterator[Check]:
    loss, accuracy = _loss(whole_BLV, ids_BL)
    bits = loss / math.log(2)
    cause = "the model looks untrained" if bits > _UNTRAINED_BITS else "it predicts DNA worse than guessing"
    yield _at_most(
        "bits_per_base", bits, _MOST_BITS, f"{cause}: if it was trained, its weights or its configuration are wrong"
    )
    yield Check(name="accuracy", value=accuracy, note="next bases guessed right; for the record")
    other, _ = _loss(model(other_BL)[0], other_BL)
    cause = "it reads one strand much worse than the other: was it trained on one only?"
    yield _at_most("strands", abs(loss - other) / math.log(2), _STRANDS_APART, cause)


def _loss(logits_BLV: Tensor, ids_BL: Tensor) -> tuple[float, float]:
    """Mean loss in nats, and how often the likeliest token comes."""
    loss = -log_probs_of(logits_BLV[:, :-1], ids_BL[:, 1:]).double().mean()
    hits = (logits_BLV[:, :-1].argmax(dim=-1) == ids_BL[:, 1:]).double().mean()
    return float(loss), float(hits)


def _published(model: StripedHyena2, name: str, prompts: Sequence[bytes]) -> Iterator[Check]:
    """Loss and accuracy over the published prompts, each the mean over prompts."""
    values = PUBLISHED_LOSSES.get(name)
    if values is None or not prompts:
        note = "no values are published for this model" if values is None else _without_prompts(*values)
        yield Check(name="published_loss", note=note)
        return
    found = [_loss(model(ids_BL)[0], ids_BL) for ids_BL in (_to_ids(model, prompt) for prompt in prompts)]
    cause = "FP8 is not in effect, or other weights or other prompts" if model.config.fp8_input_projections else ""
    wanted: Callable[[int], float] = lambda place: sum(one[place] for one in found) / len(found)  # noqa: E731
    for label, place, allowed in (("loss", 0, _LOSS_ALLOWED), ("accuracy", 1, _ACCURACY_ALLOWED)):
        value = wanted(place)
        passed = abs(value - values[place]) <= allowed
        yield Check(
            name=f"published_{label}",
            value=value,
            allowed=f"{values[place]:g} +- {allowed:g}",
            passed=passed,
            note="" if passed else cause or "other weights or other prompts",
        )


def _without_prompts(loss: float, accuracy: float) -> str:
    return (
        f"published: loss {loss:g}, accuracy {accuracy:.2%}, over the prompts of the package evo2's own test,"
        " which are not part of this one: give them with --prompts"
    )
