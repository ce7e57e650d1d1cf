"""Keys and values stay where they are while a sequence goes on, and a state may be continued as often as one likes."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from sh2.mixers.attention import Attention, AttentionState
from sh2.mixers.cache import capacity
from tests.sh2.models import TINY, attention

WIDTH = TINY.width


def inputs(length: int, seed: int = 1) -> Tensor:
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def through(layer: Attention, *pieces: Tensor, state: AttentionState | None = None) -> tuple[Tensor, AttentionState]:
    outputs = []
    for piece in pieces:
        y_BLD, state = layer(piece, state)
        outputs.append(y_BLD)
    assert state is not None
    return torch.cat(outputs, dim=1), state


@torch.inference_mode()
def test_keys_stay_in_place_until_the_cache_is_full() -> None:
    layer, x_BLD = attention(), inputs(700)
    _, state = through(layer, x_BLD[:, :300], x_BLD[:, 300:301])
    places = []
    for piece in x_BLD[:, 301:].split(1, dim=1):
        _, state = layer(piece, state)
        places.append((state.keys_BSJC.data_ptr(), state.values_BSJC.data_ptr()))
    # 301 tokens have room for 512, 513 for 768
    assert capacity(301) == 512
    assert len(set(places)) == 2
    assert len(set(places[: 512 - 301])) == 1


@pytest.mark.parametrize("cut", [[1], [300, 301], [128, 129, 400], list(range(1, 500, 50))])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_pieces_join_to_one_pass(cut: list[int], mode: Callable[[], AbstractContextManager[None]]) -> None:
    layer, x_BLD = attention(), inputs(500)
    with mode():
        want, _ = layer(x_BLD)
        got, _ = through(layer, *x_BLD.tensor_split(cut, dim=1))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_two_continuations_of_a_state_do_not_see_each_other() -> None:
    layer, shared = attention(), inputs(60)
    _, state = through(layer, shared[:, :40], shared[:, 40:])
    one, other = inputs(9, seed=2), inputs(9, seed=3)
    wants = [layer(torch.cat([shared, new], dim=1))[0][:, 60:] for new in (one, other)]
    # in turns: each goes on after the other has written
    first, first_state = through(layer, one[:, :4], state=state)
    second, second_state = through(layer, other[:, :4], state=state)
    first_rest, _ = through(layer, one[:, 4:], state=first_state)
    second_rest, _ = through(layer, other[:, 4:], state=second_state)
    for want, got in zip(wants, [(first, first_rest), (second, second_rest)], strict=True):
        torch.testing.assert_close(torch.cat(got, dim=1), want, rtol=1e-5, atol=1e-5)


def test_a_state_of_inference_mode_goes_on_outside_it() -> None:
    layer, x_BLD = attention(), inputs(90)
    with torch.inference_mode():
        _, state = through(layer, x_BLD[:, :50], x_BLD[:, 50:60])
    with torch.no_grad():
        want, _ = layer(x_BLD)
        got, _ = through(layer, x_BLD[:, 60:70], x_BLD[:, 70:], state=state)
    torch.testing.assert_close(got, want[:, 60:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_wider_dtype_is_not_rounded_into_a_narrow_cache() -> None:
    layer, x_BLD = attention(), inputs(30)
    _, state = through(layer, x_BLD[:, :10], x_BLD[:, 10:20])
    narrow = AttentionState(state.keys_BSJC.bfloat16(), state.values_BSJC.bfloat16())
    _, narrow = layer.bfloat16()(x_BLD[:, 20:21].bfloat16(), narrow)
    _, wide = layer.float()(x_BLD[:, 21:22], narrow)
    assert wide.keys_BSJC.dtype is torch.float32


@pytest.mark.parametrize("tokens", [1, 255, 256, 10_000, 1_048_576])
def test_a_cache_has_an_eighth_to_spare_and_no_more(tokens: int) -> None:
    assert tokens <= capacity(tokens) <= tokens * 9 / 8 + 256
