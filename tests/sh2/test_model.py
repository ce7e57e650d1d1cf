"""The model as one causal map: cut anywhere, continued, reset, joined."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sh2 import state as states
from sh2.errors import Sh2Error
from sh2.mixers import AttentionState
from sh2.model import StripedHyena2
from tests.kernels.definitions import relative_error
from tests.sh2.models import CONFIGS, TINY, tiny

SHORT_CUTS = [1, 2, 3, 7, 127, 128, 129]


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def in_pieces(model: StripedHyena2, ids_BL: Tensor, sizes: list[int]) -> Tensor:
    outputs, state = [], None
    for piece in ids_BL.split(sizes, dim=1):
        logits, state = model(piece, state)
        outputs.append(logits)
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_pieces_joined_equal_one_pass_with_gradients(name: str, data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 260), label="length")
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=6), label="cuts"))
    sizes = [stop - start for start, stop in itertools.pairwise([0, *cuts, length])]
    model = tiny(name)
    ids_BL = ids(2, length, seed=length)
    probe = torch.randn(2, length, 512, generator=torch.Generator().manual_seed(1))
    whole, joined = model(ids_BL)[0], in_pieces(model, ids_BL, sizes)
    assert relative_error(joined, whole) < 1e-5
    # in float32 the gradients of one pass are themselves up to 3e-5 from the true ones; poles and residues stay so
    model, probe = model.double(), probe.double()
    whole, joined = model(ids_BL)[0], in_pieces(model, ids_BL, sizes)
    parameters = list(model.parameters())
    whole_grads = torch.autograd.grad((whole * probe).sum(), parameters)
    joined_grads = torch.autograd.grad((joined * probe).sum(), parameters)
    for one, other in zip(joined_grads, whole_grads, strict=True):
        assert relative_error(one, other) < 1e-6


@pytest.mark.parametrize("piece", SHORT_CUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_of_every_size_equal_one_pass(name: str, piece: int) -> None:
    model, ids_BL = tiny(name), ids(2, 300)
    with torch.inference_mode():
        sizes = [piece] * (300 // piece) + ([300 % piece] if 300 % piece else [])
        assert relative_error(in_pieces(model, ids_BL, sizes), model(ids_BL)[0]) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = tiny(name)
    model(ids(2, 60))[0].float().logsumexp(-1).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", CONFIGS)
def test_no_logit_depends_on_a_later_token(name: str) -> None:
    model, ids_BL = tiny(name), ids(1, 90)
    changed = ids_BL.clone()
    changed[:, 50] = (changed[:, 50] + 1) % 256
    with torch.inference_mode():
        before, after = model(ids_BL)[0], model(changed)[0]
    assert relative_error(after[:, :50], before[:, :50]) < 1e-6
    assert relative_error(after[:, 50:], before[:, 50:]) > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_a_document_start_hides_everything_before_it(name: str) -> None:
    model, ids_BL = tiny(name), ids(3, 120)
    starts = torch.zeros(3, 120, dtype=torch.bool)
    starts[0, [0, 40, 41]] = True
    starts[1, 75] = True
    with torch.inference_mode():
        got, _ = model(ids_BL, document_starts_BL=starts)
        for row, pieces in ((0, [(0, 40), (40, 41), (41, 120)]), (1, [(0, 75), (75, 120)]), (2, [(0, 120)])):
            for start, stop in pieces:
                alone, _ = model(ids_BL[row : row + 1, start:stop])
                assert relative_error(got[row, start:stop], alone[0]) < 1e-5


def test_document_starts_are_of_the_ids() -> None:
    with pytest.raises(Sh2Error, match=r"document starts of shape \[1, 120\] are not of token ids \[3, 120\]"):
        tiny()(ids(3, 120), document_starts_BL=torch.zeros(1, 120, dtype=torch.bool))


def test_a_document_start_holds_when_the_sequence_goes_on_in_another_call() -> None:
    model, ids_BL = tiny(), ids(2, 80)
    starts = torch.zeros(2, 50, dtype=torch.bool)
    starts[1, 30] = True
    with torch.inference_mode():
        _, state = model(ids_BL[:, :50], document_starts_BL=starts)
        got, _ = model(ids_BL[:, 50:], state)
        alone, _ = model(ids_BL[1:, 30:])
        whole, _ = model(ids_BL[:1])
    assert relative_error(got[1], alone[0, 20:]) < 1e-5
    assert relative_error(got[0], whole[0, 50:]) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_joined_states_continue_each_row_as_it_would_alone(name: str) -> None:
    model = tiny(name)
    prompts = [ids(1, 3, seed=1), ids(2, 45, seed=2), ids(1, 1, seed=3)]
    following = ids(4, 9, seed=4)
    with torch.inference_mode():
        joined = states.join([model(prompt)[1] for prompt in prompts])
        got, joined = model(following[:, :4], joined)
        rest, _ = model(following[:, 4:], joined)
        got = torch.cat([got, rest], dim=1)
        row = 0
        for prompt in prompts:
            for one in prompt:
                alone, _ = model(torch.cat([one, following[row]])[None])
                assert relative_error(got[row], alone[0, -9:]) < 1e-5
                row += 1


def test_selected_rows_may_repeat() -> None:
    model, ids_BL = tiny(), ids(2, 30)
    following = ids(3, 5, seed=9)
    with torch.inference_mode():
        _, state = model(ids_BL)
        got, _ = model(following, states.select(state, torch.tensor([1, 0, 1])))
        for row, source in enumerate([1, 0, 1]):
            alone, _ = model(torch.cat([ids_BL[source], following[row]])[None])
            assert relative_error(got[row], alone[0, 30:]) < 1e-5


def test_a_state_can_be_continued_twice() -> None:
    model, ids_BL = tiny(), ids(1, 30)
    with torch.inference_mode():
        _, state = model(ids_BL)
        first, _ = model(ids(1, 7, seed=5), state)
        model(ids(1, 9, seed=6), state)
        again, _ = model(ids(1, 7, seed=5), state)
    assert torch.equal(first, again)


def test_casting_keeps_poles_and_frequencies_in_float32() -> None:
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frequencies = model.blocks[3].mixer.inv_freq.clone()
    model.to(torch.bfloat16)
    kept = ("log_poles", "pole_shift", "residues")
    for name, tensor in model.state_dict().items():
        if name.endswith(kept):
            assert torch.equal(tensor, before[name]), name
        else:
            assert tensor.dtype is torch.bfloat16, name
    assert torch.equal(model.blocks[3].mixer.inv_freq, frequencies)
    logits, _ = model(ids(1, 40))
    assert logits.dtype is torch.bfloat16
    assert relative_error(logits, tiny()(ids(1, 40))[0]) < 0.05


def test_weights_depend_on_the_seed_and_on_nothing_else() -> None:
    one, same, other = tiny(), tiny(), tiny(seed=1)
    changed = 0
    for (name, tensor), again, different in zip(
        one.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(tensor, again), name
        changed += not torch.equal(tensor, different)
    assert changed > 20
    assert all(tensor.isfinite().all() for tensor in one.state_dict().values())


def test_the_starting_loss_is_near_that_of_guessing_evenly() -> None:
    model = StripedHyena2(TINY)
    ids_BL = ids(4, 200)
    loss = torch.nn.functional.cross_entropy(model(ids_BL)[0][:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten())
    assert 5.8 < loss.item() < 7.2  # ln 512 is 6.24


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            torch.zeros(0, 3, dtype=torch.int64),
            r"token ids must be a tensor [batch, length] with neither empty, not [0, 3]",
        ),
        (
            torch.zeros(2, 0, dtype=torch.int64),
            r"token ids must be a tensor [batch, length] with neither empty, not [2, 0]",
        ),
        (torch.zeros(4, dtype=torch.int64), r"token ids must be a tensor [batch, length] with neither empty, not [4]"),
        ([[65, 67]], r"token ids must be a tensor [batch, length] with neither empty, not a list"),
        (torch.zeros(1, 4), "token ids must be whole numbers, not torch.float32"),
        (torch.zeros(1, 4, dtype=torch.bool), "token ids must be whole numbers, not torch.bool"),
        (torch.tensor([[65, 512]]), "token ids must lie in 0..511, not 65..512"),
        (torch.tensor([[-1, 65]]), "token ids must lie in 0..511, not -1..65"),
    ],
)
def test_what_are_no_token_ids_is_refused(wrong: Tensor, message: str) -> None:
    with pytest.raises(Sh2Error, match=re.escape(message)):
        tiny()(wrong)


def test_a_state_of_another_batch_is_refused() -> None:
    model = tiny()
    _, state = model(ids(2, 5))
    with pytest.raises(Sh2Error, match="the state belongs to 2 sequences, the token ids to 3"):
        model(ids(3, 1), state)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_ids_of_every_integer_type_are_the_same(dtype: torch.dtype) -> None:
    with torch.inference_mode():
        assert torch.equal(tiny()(ids(1, 9).to(dtype))[0], tiny()(ids(1, 9))[0])


def test_a_long_past_is_attended_to_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids_BL = tiny("attention only"), ids(2, 90)
    starts = torch.zeros(2, 90, dtype=torch.bool)
    starts[1, 20] = True
    with torch.inference_mode():
        want, want_documents = in_pieces(model, ids_BL, [30, 60]), model(ids_BL, document_starts_BL=starts)[0]
        monkeypatch.setattr("sh2.mixers.attention._MASK_ENTRIES", 700)
        assert relative_error(in_pieces(model, ids_BL, [30, 60]), want) < 1e-6
        assert relative_error(model(ids_BL, document_starts_BL=starts)[0], want_documents) < 1e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_a_float64_model_agrees_with_float32_to_its_rounding(name: str) -> None:
    ids_BL = ids(2, 140)
    with torch.inference_mode():
        assert relative_error(tiny(name)(ids_BL)[0], tiny(name).double()(ids_BL)[0]) < 2e-6


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_steps_in_place_are_a_pass_of_one_token_each(name: str) -> None:
    model = StripedHyena2(CONFIGS[name])
    ids_BL = torch.randint(0, 256, (3, 60), generator=torch.Generator().manual_seed(4))
    want_BLV, _ = model(ids_BL)
    _, before = model(ids_BL[:, :40])
    state = states.select(before, torch.arange(3))
    moving = [part for block in state for part in block.mixer if isinstance(part, Tensor)]
    got = []
    for ids_B in ids_BL[:, 40:].unbind(1):
        logits_BV, state = model.step(ids_B, state)
        got.append(logits_BV)
    torch.testing.assert_close(torch.stack(got, dim=1), want_BLV[:, 40:], rtol=1e-4, atol=1e-4)
    # the convolutions' states are the same memory as at the start; the state that was selected from still stands
    places = {part.data_ptr() for part in moving}
    convolutions = [block.mixer for block in state if not isinstance(block.mixer, AttentionState)]
    assert all(part.data_ptr() in places for mixer in convolutions for part in mixer)
    again_BLV, _ = model(ids_BL[:, 40:], before)
    torch.testing.assert_close(again_BLV, want_BLV[:, 40:], rtol=1e-4, atol=1e-4)
