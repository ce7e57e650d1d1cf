"""Which tokens of a sequence each rank holds: equal pieces, numbered in the order of the sequence.

Contiguous: rank r of N holds piece r of N. Zig-zag (paper section 4): rank r holds pieces r and 2N-1-r of 2N, so that
causal attention gives all ranks the same work. Knows nothing of processes: any rank can ask for any other.
"""

# B batch, L length, N ranks, P pieces a rank, C = N P pieces, l tokens a piece

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sh2.errors import Sh2Error
from sh2.sharing import Sharding


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """The pieces of a sequence, seen from one rank."""

    rank: int
    ranks: int
    sharding: Sharding = Sharding.CONTIGUOUS

    @property
    def per_rank(self) -> int:
        """Pieces that a rank holds, in the order of the sequence, one behind the other."""
        return 2 if self.sharding is Sharding.ZIGZAG else 1

    @property
    def count(self) -> int:
        """Pieces of the whole sequence."""
        return self.ranks * self.per_rank

    @property
    def mine(self) -> tuple[int, ...]:
        """The numbers of this rank's pieces."""
        return self.of(self.rank)

    def of(self, rank: int) -> tuple[int, ...]:
        """The numbers of a rank's pieces."""
        return (rank,) if self.sharding is Sharding.CONTIGUOUS else (rank, self.count - 1 - rank)

    def owner(self, piece: int) -> int:
        """The rank that holds a piece."""
        return piece if piece < self.ranks else self.count - 1 - piece

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """The places in the sequence of this rank's tokens, int64 [tokens]."""
        length = tokens // self.per_rank
        return torch.cat([torch.arange(length, device=device) + piece * length for piece in self.mine])

    def check(self, length: int) -> None:
        """Refuse a sequence of so many tokens that cannot be cut into equal pieces.

        Raises:
            Sh2Error: says of what it must be a multiple.
        """
        if length % self.count or not length:
            raise Sh2Error(
                f"a sequence of {length:,} tokens cannot be cut into {self.count} equal pieces, as {self.ranks} ranks"
                f" with {self.sharding} shards need"
            ).hint(f"use a length that is a multiple of {self.count}")

    def take(self, whole: Tensor, dim: int = 1) -> Tensor:
        """Return this rank's part of a whole sequence, along a dimension, as a copy.

        Raises:
            Sh2Error: the sequence cannot be cut into equal pieces.
        """
        self.check(whole.shape[dim])
        pieces = whole.chunk(self.count, dim)
        return torch.cat([pieces[piece] for piece in self.mine], dim)

    def join(self, parts: Sequence[Tensor], dim: int = 1) -> Tensor:
        """Put the parts of all ranks, in the order of ranks, together to the whole sequence."""
        pieces = [part.chunk(self.per_rank, dim) for part in parts]
        owners = map(self.owner, range(self.count))
        return torch.cat([pieces[owner][self.of(owner).index(piece)] for piece, owner in enumerate(owners)], dim)

    def in_order(self, x_NPB: Tensor) -> Tensor:
        """Bring the pieces of all ranks [N, P, ...] into the order of the sequence [C, ...]."""
        if self.sharding is Sharding.CONTIGUOUS:
            return x_NPB.flatten(0, 1)
        return torch.cat([x_NPB[:, 0], x_NPB[:, 1].flip(0)])

    def by_rank(self, x_CB: Tensor) -> Tensor:
        """What `in_order` did, undone."""
        if self.sharding is Sharding.CONTIGUOUS:
            return x_CB[:, None]
        first, second = x_CB.chunk(2)
        return torch.stack([first, second.flip(0)], dim=1)

    def rows(self, x_BLD: Tensor) -> Tensor:
        """See every piece as a sequence of its own: [B, P l, ...] as X = B P rows, [X, l, ...]."""
        return x_BLD.unflatten(1, (self.per_rank, -1)).flatten(0, 1)

    def unrows(self, x_XlD: Tensor) -> Tensor:
        """What `rows` did, undone."""
        return x_XlD.unflatten(0, (-1, self.per_rank)).flatten(1, 2)

    def by_piece(self, x_XlD: Tensor) -> Tensor:
        """Bring rows [B P, ...] into the shape [P, B, ...]."""
        return x_XlD.unflatten(0, (-1, self.per_rank)).transpose(0, 1)

    def by_row(self, x_PBlD: Tensor) -> Tensor:
        """What `by_piece` did, undone."""
        return x_PBlD.transpose(0, 1).flatten(0, 1)
