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
_LONGEST = 2**31 - 1  # k-mer: tokens alike are counted in 32 bits
_ANYTHING = -2  # before the first letter of a motif


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
    """What written tokens must keep to. Motifs are of A, C, G and T, whose case never counts.

    Raises:
        Sh2Error: a motif is empty or has other letters, or k is below 1 or beyond 32 bits.
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
        if self.no_repeat is not None and not 1 <= self.no_repeat <= _LONGEST:
            raise Sh2Error(f"no_repeat must lie in 1..{_LONGEST}, not {self.no_repeat}")


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
        """Begin after the prompts, one a row; a row writes at most `length` tokens."""
        self.no_repeat = constraints.no_repeat
        self.longest = 0  # tokens that a row has written, at most
        upper_V = torch.arange(vocab_size)
        for letter in b"acgt":
            upper_V[upper_V == letter] = ord(chr(letter).upper())
        forbidden = [_letters(motif) for motif in constraints.forbid]
        stop = _letters(constraints.stop_at or "")
        K = max([len(stop), *(len(motif) - 1 for motif in forbidden)])
        begins_MK = torch.full((len(forbidden), K), _ANYTHING)
        for number, motif in enumerate(forbidden):
            begins_MK[number, K + 1 - len(motif) :] = torch.tensor(motif[:-1], dtype=torch.int64)
        lasts_M = torch.tensor([motif[-1] for motif in forbidden], dtype=torch.int64)
        self._upper_V = upper_V  # where prompts are
        self.upper_V = upper_V.to(device)
        self.begins_MK = begins_MK.to(device)
        self.completes_MV = (lasts_M[:, None] == upper_V).float().to(device)
        self.stop = torch.tensor(stop, dtype=torch.int64, device=device)
        B, T = len(prompts), length if self.no_repeat else 0
        self.recent_BK = self._tails(prompts, K).to(device)
        self.counts_B = torch.zeros(B, dtype=torch.int64, device=device)
        self.written_BT = torch.zeros(B, T, dtype=torch.int64, device=device)
        # how many tokens before each written one equal those before the next, counted backwards
        self.shared_BT = torch.zeros(B, T, dtype=torch.int32, device=device)

    def start(self, rows: Sequence[int], prompts: Sequence[NDArray[np.int64]]) -> None:
        """Begin anew in some rows, after these prompts."""
        device = self.counts_B.device
        places = torch.tensor(rows, device=device)
        self.recent_BK[places] = self._tails(prompts, self.recent_BK.shape[1]).to(device)
        self.counts_B[places] = 0

    def _tails(self, prompts: Sequence[NDArray[np.int64]], K: int) -> Tensor:
        """The last K tokens of every prompt, upper-cased [B, K], on the CPU."""
        tails_BK = torch.full((len(prompts), K), _NOTHING)
        for row, prompt in enumerate(prompts):
            tail = self._upper_V[torch.from_numpy(prompt[max(0, len(prompt) - K) :])]
            tails_BK[row, K - len(tail) :] = tail
        return tails_BK

    def banned(self) -> Tensor | None:
        """True for the tokens that may not be written next, bool banned_BV; None if the constraints forbid nothing."""
        if not self.no_repeat and not self.begins_MK.shape[0]:
            return None
        seen_BMK = (self.recent_BK[:, None] == self.begins_MK) | (self.begins_MK == _ANYTHING)
        banned_BV = seen_BMK.all(dim=-1).float() @ self.completes_MV
        if self.no_repeat:
            old = slice(0, self.longest)
            repeats_BT = (self.shared_BT[:, old] >= self.no_repeat - 1) & self._there(self.longest)
            banned_BV = banned_BV.scatter_add(1, self.written_BT[:, old], repeats_BT.float())
        return banned_BV[:, self.upper_V] > 0

    def write(self, ids_B: Tensor) -> None:
        """Take in a new token of every row."""
        ids_B1 = self.upper_V[ids_B][:, None]
        self.recent_BK = torch.cat([self.recent_BK, ids_B1], dim=1)[:, 1:]
        if self.no_repeat:
            T = self.written_BT.shape[1]
            old, moved = slice(0, min(self.longest, T - 1)), slice(1, min(self.longest, T - 1) + 1)
            self.shared_BT[:, moved] = torch.where(self.written_BT[:, old] == ids_B1, self.shared_BT[:, old] + 1, 0)
            # a row that is done and goes on all the same writes over its last
            self.written_BT.scatter_(1, self.counts_B.clamp(max=T - 1)[:, None], ids_B1)
            self.longest = min(self.longest + 1, T)
        self.counts_B += 1

    def _there(self, length: int) -> Tensor:
        """Which of the first places hold a token that the row has written, bool [B, length]."""
        return torch.arange(length, device=self.counts_B.device) < self.counts_B[:, None]

    def ended(self) -> Tensor:
        """True for the rows whose last tokens, written by themselves, are the motif to stop at: bool [B]."""
        length = len(self.stop)
        if not length:
            return torch.zeros(len(self.recent_BK), dtype=torch.bool, device=self.stop.device)
        return (self.recent_BK[:, -length:] == self.stop).all(dim=-1) & (self.counts_B >= length)

    def select(self, rows: Tensor) -> Self:
        """Go on with these rows, int64 [B']; one may come more than once."""
        self.recent_BK, self.counts_B = self.recent_BK[rows], self.counts_B[rows]
        self.written_BT, self.shared_BT = self.written_BT[rows], self.shared_BT[rows]
        return self


def _letters(motif: str) -> list[int]:
    return list(motif.upper().encode())
