"""Dynamic evaluation: a model that goes on learning from what it has read, as compressors do.

Every token is predicted with weights that have seen those before it and no other: a window's new tokens are scored by
the same pass whose gradient then moves the weights (Krause et al. 2018, with Adam for their rule).
"""

# B batch, L length, V vocabulary

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.reading.scoring import log_probs_of
from sh2.tokens import EOD, Tokens, as_ids

_BETAS = (0.9, 0.99)
_CLIP = 1.0

Ids = NDArray[np.int64]


def dynamic_log_probs(
    model: StripedHyena2,
    tokens: Tokens,
    *,
    context: int,
    stride: int | None = None,
    lr: float,
    mirror: Callable[[Ids], Ids] | None = None,
    autocast: torch.dtype | None = None,
    among: Tokens | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float32]:
    """Return the log-probability of every token, the first after an EOD, learning on the way; the model is changed.

    Windows are those of `sh2.reading.perplexity.sliding_log_probs`. After its new tokens are scored, a window moves the
    weights by one step of Adam on all of its tokens.

    Args:
        context: tokens that a window predicts.
        stride: new tokens of a window; half the context by default.
        lr: learning rate; with 0 nothing is learned.
        mirror: gives another sequence to learn from at each step, such as the reverse complement of what was read.
        autocast: dtype of the passes over float32 weights; None is float32.
        among: A tokens of which to return each one's log-probability at every place, float32 [L, A].
        progress: called with the number of tokens that were newly scored.

    Returns:
        float32 [L], natural logarithms.

    Raises:
        Sh2Error: the sequence is empty, a setting is out of range, the weights are not float32, or learning diverged.
    """
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise Sh2Error(f"the stride must lie in 1..{context}, the context, not {stride}")
    if not 0 <= lr < 1:
        raise Sh2Error(f"the learning rate must lie in 0..1, not {lr}")
    ids = as_ids(tokens, model.config.vocab_size)
    if not ids.size:
        raise Sh2Error("the sequence is empty: there is nothing to score")
    weight = model.embedding.weight
    if weight.dtype is not torch.float32:
        raise Sh2Error(f"dynamic evaluation needs float32 weights, not {weight.dtype}").hint("load it with fp32")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=_BETAS, fused=True)
    ids = np.concatenate([[EOD], ids])
    among_A = None if among is None else torch.from_numpy(as_ids(among, model.config.vocab_size)).to(weight.device)
    log_probs = np.empty((ids.size - 1, *(() if among_A is None else among_A.shape)), dtype=np.float32)
    for begin, end in windows(len(log_probs), context, stride):
        window = ids[max(0, end - context) : end + 1]
        rows = [window] if mirror is None else [window, mirror(window)]
        ids_BL = torch.from_numpy(np.stack(rows)).to(weight.device)
        with torch.autocast(weight.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            logits_BLV, _ = model(ids_BL[:, :-1])
        new = slice(begin - end, None)
        with torch.no_grad():
            tokens = ids_BL[:1, 1:][:, new] if among_A is None else among_A
            log_probs[begin:end] = log_probs_of(logits_BLV[:1, new], tokens)[0].cpu().numpy()
        if not np.isfinite(log_probs[begin:end]).all():
            raise Sh2Error(f"learning diverged before token {begin} with learning rate {lr:g}").hint("take a lower one")
        if lr:
            loss = F.cross_entropy(logits_BLV.float().flatten(0, 1), ids_BL[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress(end - begin)
    return log_probs


def windows(count: int, context: int, stride: int) -> Iterator[tuple[int, int]]:
    """The stretches of `count` tokens that are new in each window: the whole of the first one, then `stride` each."""
    begin = 0
    while begin < count:
        end = min(count, begin + (stride if begin else context))
        yield begin, end
        begin = end
