"""How well a model predicts a long sequence, each token with a bounded context before it."""

import numpy as np
from numpy.typing import NDArray

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.scoring import batches_of_equal_length, token_log_probs
from sh2.tokens import EOD, Tokens, as_ids


def sliding_log_probs(
    model: StripedHyena2, tokens: Tokens, *, context: int, stride: int, max_tokens: int = 65_536
) -> NDArray[np.float32]:
    """Return the log-probability of every token of a document, read in windows that overlap.

    The document begins after an EOD. A window holds `context` tokens, and the next one begins `stride` later, so a
    token has at least `context - stride` others before it, unless it is nearer to the beginning than that.

    Returns:
        float32 [L], natural logarithms.

    Raises:
        Sh2Error: the document is empty, or the stride is not 1 to `context`.
    """
    if not 1 <= stride <= context:
        raise Sh2Error(f"the stride must lie in 1..{context}, the context, not {stride}")
    ids = as_ids(tokens, model.config.vocab_size)
    if not ids.size:
        raise Sh2Error("the document is empty: there is nothing to score")
    padded = np.concatenate([[EOD], ids])
    # every window's last prediction; the first window keeps all of its own, the others what is new
    ends = [min(context, ids.size), *range(context + stride, ids.size + stride, stride)]
    ends = [min(end, ids.size) for end in ends] if ids.size > context else ends[:1]
    rows = [padded[max(0, end - context) : end + 1] for end in ends]
    log_probs = np.empty(ids.size, dtype=np.float32)
    for members in batches_of_equal_length([len(row) for row in rows], max_tokens=max_tokens, chunk=context):
        scored = token_log_probs(model, [rows[member] for member in members])
        for member, row in zip(members, scored, strict=True):
            new = ends[member] - (ends[member - 1] if member else 0)
            log_probs[ends[member] - new : ends[member]] = row[-new:]
    return log_probs
