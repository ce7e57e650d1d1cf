"""Min-p and bans in choosing a token, against plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sh2.errors import Sh2Error
from sh2.generation.sampling import Sampling, choose, keep_likeliest

LOGITS = st.lists(st.floats(-12, 12, width=32), min_size=1, max_size=12)


@given(LOGITS, st.floats(0, 1), st.sampled_from([0.5, 1.0, 2.0]))
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(
    logits: list[float], min_p: float, temperature: float
) -> None:
    x = np.array(logits, dtype=np.float32) / np.float32(temperature)
    probs = np.exp(x.astype(np.float64) - x.max())
    near = np.abs(probs - min_p) < 1e-12  # where one exponential and another may differ in the last bit
    sampling = Sampling(min_p=min_p, temperature=temperature)
    kept = keep_likeliest(torch.tensor([logits]), sampling)[0].isfinite().numpy()
    assert (near | (kept == (probs >= min_p))).all()
    assert kept[x.argmax()]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, "ABCDE"),
        ({"min_p": 0.0}, "ABCDE"),
        ({"min_p": 0.2}, "ABCD"),
        ({"min_p": 0.3}, "AB"),
        ({"min_p": 0.6}, "A"),
        ({"min_p": 1.0}, "A"),
        ({"min_p": 0.2, "top_k": 2}, "AB"),
        ({"min_p": 0.2, "top_p": 0.7}, "AB"),
        ({"min_p": 0.3, "top_p": 0.99}, "AB"),
        ({"top_p": 1e-9}, "A"),  # 1 - 1e-9 is 1 in float32
        ({"min_p": 0.3, "temperature": 2.0}, "ABCD"),  # ratios 1, 0.71, 0.5, 0.5, 0.25
    ],
)
def test_min_p_beside_the_other_filters(settings: dict[str, float], kept: str) -> None:
    logits = torch.tensor([[0.45, 0.22, 0.115, 0.115, 0.03]]).log()
    finite = keep_likeliest(logits, Sampling(**settings)).isfinite()[0].tolist()  # type: ignore[arg-type]
    assert "".join(letter for letter, one in zip("ABCDE", finite, strict=True) if one) == kept


@given(LOGITS, st.data(), st.sampled_from([{}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}]))
def test_a_banned_token_is_never_chosen(logits: list[float], data: st.DataObject, settings: dict[str, float]) -> None:
    banned = data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)).filter(lambda b: not all(b)))
    uniforms = torch.tensor([0.0, 0.3, 0.7, 1 - 2**-53], dtype=torch.float64)
    sampling = Sampling(**settings)  # type: ignore[arg-type]
    ids = choose(torch.tensor([logits] * 4), sampling, uniforms, torch.tensor([banned] * 4))
    assert not any(banned[token] for token in ids.tolist())
    without = torch.tensor([logits] * 4).masked_fill(torch.tensor(banned), -torch.inf)
    assert ids.tolist() == choose(without, sampling, uniforms).tolist()


@pytest.mark.parametrize("min_p", [-0.1, 1.5, float("nan")])
def test_min_p_out_of_range_is_refused(min_p: float) -> None:
    with pytest.raises(Sh2Error, match=rf"min_p must lie in 0\.\.1, not {min_p}"):
        Sampling(min_p=min_p)
