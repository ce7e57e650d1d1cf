"""A model that computes NaN gives an error to whoever asks, and no result."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sh2
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.reading.scan import scan
from tests.sh2.models import tiny

TEXT = b"ACGTTGCAACGGTCAT"


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: sh2.score(model, [TEXT]),
        lambda model: list(scan(model, TEXT)),
        lambda model: list(scan(model, TEXT, context=4)),
        lambda model: sh2.embed(model, [TEXT], layers=["norm"]),
        lambda model: sh2.generate(model, [TEXT], length=4),
    ],
)
def test_nan_is_no_result(ask: Callable[[StripedHyena2], Any]) -> None:
    model = tiny()
    ask(model)
    with torch.no_grad():
        model.embedding.weight[ord("A"), 3] = torch.nan
    with pytest.raises(Sh2Error, match="the model computes NaN") as raised:
        ask(model)
    assert "evo selftest" in raised.value.__notes__[0]
