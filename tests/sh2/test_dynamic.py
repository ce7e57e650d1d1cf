"""Dynamic evaluation: the scores of sliding windows while nothing is learned, and never a look ahead while it is."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sh2.errors import Sh2Error
from sh2.reading.dynamic import dynamic_log_probs, windows
from sh2.reading.perplexity import sliding_log_probs
from tests.sh2.models import tiny

IDS = np.random.default_rng(0).choice(list(b"ACGT"), size=300)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 200])
@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 16), (16, 1), (500, 250)])
def test_without_learning_it_is_the_sliding_windows_score(length: int, context: int, stride: int) -> None:
    seen: list[int] = []
    got = dynamic_log_probs(tiny(), IDS[:length], context=context, stride=stride, lr=0.0, progress=seen.append)
    want = sliding_log_probs(tiny(), IDS[:length], context=context, stride=stride)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert sum(seen) == length


def test_two_windows_by_hand() -> None:
    """The first window by the model as it is; the second by what one step of Adam on the first made of it."""
    got = dynamic_log_probs(tiny(), IDS[:24], context=16, stride=8, lr=1e-2)
    model, ids = tiny(), torch.tensor(np.concatenate([[0], IDS[:24]]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    nats = F.cross_entropy(model(ids[None, :16])[0][0], ids[1:17], reduction="none")
    np.testing.assert_allclose(got[:16], -nats.detach().numpy(), rtol=1e-4, atol=1e-5)
    nats.mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        nats = F.cross_entropy(model(ids[None, 8:24])[0][0], ids[9:25], reduction="none")
    np.testing.assert_allclose(got[16:], -nats[8:].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mirrored", [False, True])
def test_no_base_is_known_before_it_was_predicted(mirrored: bool) -> None:
    mirror = (lambda ids: ids[::-1].copy()) if mirrored else None
    changed = IDS.copy()
    changed[150:] = ord("A")
    one, other = (
        dynamic_log_probs(tiny(), ids, context=32, stride=16, lr=3e-3, mirror=mirror) for ids in (IDS, changed)
    )
    np.testing.assert_array_equal(one[:150], other[:150])
    assert abs(one[150:] - other[150:]).max() > 0.1


def test_it_learns_and_the_mirror_is_learned_from_too() -> None:
    repeated = np.tile(IDS[:30], 10)
    still = dynamic_log_probs(tiny(), repeated, context=32, lr=0.0)
    learned = dynamic_log_probs(tiny(), repeated, context=32, lr=3e-3)
    assert learned[-60:].mean() > still[-60:].mean() + 1
    # what comes second is the first half read backwards: only a model that learned from the mirror knows more of it
    twice = np.concatenate([np.tile(IDS[:30], 8), np.tile(IDS[29::-1], 2)])
    plain, mirrored = (
        dynamic_log_probs(tiny(), twice, context=32, lr=3e-3, mirror=mirror)
        for mirror in (None, lambda ids: ids[::-1].copy())
    )
    assert mirrored[240:].mean() > plain[240:].mean()


def test_windows_cover_every_token_once() -> None:
    assert list(windows(10, 4, 3)) == [(0, 4), (4, 7), (7, 10)]
    assert list(windows(3, 4, 3)) == [(0, 3)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stride": 17}, "the stride must lie in 1..16, the context, not 17"),
        ({"lr": 1.0}, "the learning rate must lie in 0..1, not 1.0"),
        ({"lr": -0.1}, "the learning rate must lie in 0..1, not -0.1"),
    ],
)
def test_settings_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(Sh2Error, match=message):
        dynamic_log_probs(tiny(), IDS, **{"context": 16, "lr": 0.0, **values})  # type: ignore[arg-type]
    with pytest.raises(Sh2Error, match="the sequence is empty"):
        dynamic_log_probs(tiny(), "", context=16, lr=0.0)
    with pytest.raises(Sh2Error, match=r"needs float32 weights, not torch\.bfloat16"):
        dynamic_log_probs(tiny().bfloat16(), IDS, context=16, lr=0.0)


def test_a_rate_that_is_too_high_is_named() -> None:
    model = tiny()
    with torch.no_grad():
        model.norm.scale.fill_(float("nan"))
    with pytest.raises(Sh2Error, match=r"learning diverged before token 0 with learning rate 0\.5"):
        dynamic_log_probs(model, IDS, context=16, lr=0.5)
