"""Attention in parts: fused and plain agree, and their gradients are autograd's."""

import pytest
import torch
from torch.nn import functional as F

from sh2.parallel import rectangles
from sh2.parallel.ring import visible
from sh2.parallel.sharding import Shards
from sh2.sharing import Sharding


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_outputs_denominators_and_gradients(fused: bool, causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    dy = torch.randn_like(want)
    wanted = torch.autograd.grad(want, (q, k, v), dy)
    scores = (q @ k.mT) / 8**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf)
    with torch.no_grad():
        attend, backward = (
            (rectangles.attend, rectangles.attend_backward) if fused else (rectangles.plain, rectangles.plain_backward)
        )
        y, m = attend(q, k, v, causal=causal)
        gradients = backward(dy, q, k, v, y, m, causal=causal)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(m.double(), scores.logsumexp(-1), atol=1e-6, rtol=1e-6)
    for got, gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, gradient, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sharding", list(Sharding))
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_ranks_see_all_pairs_of_causal_attention_once(ranks: int, sharding: Sharding) -> None:
    length = 4
    shards = [Shards(rank=rank, ranks=ranks, sharding=sharding) for rank in range(ranks)]
    places = [one.positions(length, torch.device("cpu")) for one in shards]
    seen = torch.zeros(ranks * length, ranks * length, dtype=torch.int64)
    for one in shards:
        for other in range(ranks):
            if (part := visible(one, other, length)) is not None:
                queries, keys = places[one.rank][part.queries], places[other][part.keys]
                pairs = torch.ones(len(queries), len(keys), dtype=torch.int64)
                seen[queries[:, None], keys] += pairs.tril() if part.causal else pairs
    assert torch.equal(seen, torch.ones_like(seen).tril())
