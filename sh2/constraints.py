"""What rows may not write next, given what they wrote: forbidden motifs, repeated k-mers; and the motif they end at.

Knows tokens only: nothing of logits, models or sampling.
"""

# B rows, V vocabulary, M forbidden motifs, K tokens looked back at, T tokens to write

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sh2.errors import Sh2Error

_NOTHING = -1  # before the first token of a row
_ANYTHING = -2  # before the first letter of a motif


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
    """What written tokens must keep to. Motifs are of A, C, G and T, whose case never counts.

    Raises:
        Sh2Error: a motif is empty or has other letters, or k is below 1.
    """

    forbid: Sequence[str] = ()  # motifs that no token may complete, those that the prompt began included
    no_repeat: int | None = None  # no k-mer of this length is written twice
    stop_at: str | None = None  # a row that has written this motif ends

    def __post_init__(self) -> None:
        if isinstance(self.forbid, str):
            raise Sh2Error(f"forbid must be a list of motifs, not the text `{self.forbid}`").hint(
                f'put it into a list: `["{self.forbid}"]`'
            )
        stops = [] if self.stop_at is None else [self.stop_at]
        for name, motif in [*(("forbid", motif) for motif in self.forbid), *(("stop_at", motif) for motif in stops)]:
            if not motif or set(motif.upper()) - set("ACGT"):
                raise Sh2Error(f"a motif of {name} must be of A, C, G and T, one or more, not `{motif}`")
        if self.no_repeat is not None and self.no_repeat < 1:
            raise Sh2Error(f"no_repeat must be at least 1, not {self.no_repeat}")


class History:
    """What the rows of a batch have written, as far as constraints ask for it; it lives on the device."""

    def __init__(
        self,
        constraints: Constraints,
        prompts: Sequence[NDArray[np.int64]],
        *,
        length: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        """Begin after the prompts, one a row; at most `length` tokens will be written."""
        self.count = 0  # tokens that each row has written
        self.no_repeat = constraints.no_repeat
        upper_V = torch.arange(vocab_size)
        for letter in b"acgt":
            upper_V[upper_V == letter] = ord(chr(letter).upper())
        forbidden = [_letters(motif) for motif in constraints.forbid]
        stop = _letters(constraints.stop_at or "")
        K = max([len(stop), *(len(motif) - 1 for motif in forbidden)])
        recent_BK = torch.full((len(prompts), K), _NOTHING)
        for row, prompt in enumerate(prompts):
            tail = upper_V[torch.from_numpy(prompt[max(0, len(prompt) - K) :])]
            recent_BK[row, K - len(tail) :] = tail
        begins_MK = torch.full((len(forbidden), K), _ANYTHING)
        for number, motif in enumerate(forbidden):
            begins_MK[number, K + 1 - len(motif) :] = torch.tensor(motif[:-1], dtype=torch.int64)
        lasts_M = torch.tensor([motif[-1] for motif in forbidden], dtype=torch.int64)
        self.upper_V = upper_V.to(device)
        self.recent_BK = recent_BK.to(device)
        self.begins_MK = begins_MK.to(device)
        self.completes_MV = (lasts_M[:, None] == upper_V).float().to(device)
        self.stop = torch.tensor(stop, dtype=torch.int64, device=device)
        T = length if self.no_repeat else 0
        self.written_BT = torch.zeros(len(prompts), T, dtype=torch.int64, device=device)
        # how many tokens before each written one equal those before the next, counted backwards
        self.shared_BT = torch.zeros(len(prompts), T, dtype=torch.int32, device=device)

    def banned(self) -> Tensor | None:
        """True for the tokens that may not be written next, bool banned_BV; None if the constraints forbid nothing."""
        if not self.no_repeat and not self.begins_MK.shape[0]:
            return None
        seen_BMK = (self.recent_BK[:, None] == self.begins_MK) | (self.begins_MK == _ANYTHING)
        banned_BV = seen_BMK.all(dim=-1).float() @ self.completes_MV
        if self.no_repeat:
            repeats_BT = self.shared_BT[:, : self.count] >= self.no_repeat - 1
            banned_BV = banned_BV.scatter_add(1, self.written_BT[:, : self.count], repeats_BT.float())
        return banned_BV[:, self.upper_V] > 0

    def write(self, ids_B: Tensor) -> None:
        """Take in a new token of every row."""
        ids_B1 = self.upper_V[ids_B][:, None]
        self.recent_BK = torch.cat([self.recent_BK, ids_B1], dim=1)[:, 1:]
        if self.no_repeat:
            old = slice(0, self.count)
            grown_BT = torch.where(self.written_BT[:, old] == ids_B1, self.shared_BT[:, old] + 1, 0)
            self.written_BT[:, self.count] = ids_B1[:, 0]
            self.shared_BT[:, 1 : self.count + 1] = grown_BT
        self.count += 1

    def ended(self) -> Tensor:
        """True for the rows whose last tokens, written by themselves, are the motif to stop at: bool [B]."""
        length = len(self.stop)
        if not length or self.count < length:
            return torch.zeros(len(self.recent_BK), dtype=torch.bool, device=self.stop.device)
        return (self.recent_BK[:, -length:] == self.stop).all(dim=-1)

    def select(self, rows: Tensor) -> Self:
        """Go on with these rows, int64 [B']; one may come more than once."""
        self.recent_BK = self.recent_BK[rows]
        self.written_BT, self.shared_BT = self.written_BT[rows], self.shared_BT[rows]
        return self


def _letters(motif: str) -> list[int]:
    return list(motif.upper().encode())
