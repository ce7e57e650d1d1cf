"""Reading prompts: each once, those of one length together."""

# B prompts, L length, V vocabulary

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sh2.model import StripedHyena2
from sh2.reading.chunks import read
from sh2.reading.scoring import batches_of_equal_length
from sh2.state import ModelState, join, select
from sh2.tokens import EOD, to_batch


@torch.inference_mode()
def prefill(model: StripedHyena2, prompts: Sequence[NDArray[np.int64]], *, chunk: int) -> tuple[ModelState, Tensor]:
    """Run the prompts, equal ones once and equal lengths together; an empty one as an EOD.

    Returns:
        The state after each prompt, one row a prompt, and the logits_BV of what follows it.
    """
    places: dict[bytes, int] = {}
    states: list[ModelState] = []
    logits: list[Tensor] = []
    for keys, state, logits_BV in read_prompts(model, prompts, chunk=chunk):
        places |= {key: len(places) + row for row, key in enumerate(keys)}
        states.append(state)
        logits.append(logits_BV)
    rows = torch.tensor([places[key_of(prompt)] for prompt in prompts], device=model.embedding.weight.device)
    return select(states[0] if len(states) == 1 else join(states), rows), torch.cat(logits)[rows]


def key_of(prompt: NDArray[np.int64]) -> bytes:
    """What of a prompt the model reads."""
    return (prompt if prompt.size else np.array([EOD])).tobytes()


def read_prompts(
    model: StripedHyena2, prompts: Iterable[NDArray[np.int64]], *, chunk: int
) -> Iterator[tuple[list[bytes], ModelState, Tensor]]:
    """Run prompts as `prefill` does, the longest first.

    Yields:
        The keys of prompts that were run together, the state after them, and the logits_BV of what follows them.
    """
    rows = [np.frombuffer(key, dtype=np.int64) for key in dict.fromkeys(map(key_of, prompts))]
    rows.sort(key=len, reverse=True)
    # states of long prompts are large, and have to be put somewhere: of those a few chunks long, one at a time
    for members in batches_of_equal_length([len(row) for row in rows], max_tokens=8 * chunk, chunk=8 * chunk):
        ids_BL = to_batch([rows[member] for member in members], model.embedding.weight.device)
        last_BD, state = read(model, ids_BL, most=chunk)
        yield [rows[member].tobytes() for member in members], state, model.logits(last_BD)
