"""Keys and values in FP8: what is kept, how far it is from the numbers, and that states go on, fork and join."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sh2
from sh2 import state as states
from sh2.checkpoint import save_model
from sh2.errors import Sh2Error
from sh2.mixers import AttentionState
from sh2.mixers.cache import Entries, capacity, reserved
from sh2.model import StripedHyena2
from sh2.planning.accounting import kv_cache_bytes, weight_bytes
from sh2.presets import preset
from sh2.reading.chunks import chunks
from sh2.state import ModelState, expect
from tests.kernels.definitions import relative_error
from tests.sh2.models import CONFIGS, TINY, attention, tiny


def packed(name: str = "striped") -> StripedHyena2:
    return tiny(name).use_kv_dtype("fp8")


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def in_pieces(model: StripedHyena2, ids_BL: Tensor, cuts: Sequence[int]) -> tuple[Tensor, ModelState]:
    outputs, state = [], None
    for piece in ids_BL.tensor_split(list(cuts), dim=1):
        logits, state = model(piece, state)
        outputs.append(logits)
    assert state is not None
    return torch.cat(outputs, dim=1), state


def attention_states(state: ModelState) -> list[AttentionState]:
    return [block.mixer for block in state if isinstance(block.mixer, AttentionState)]


@given(st.lists(st.floats(-(2.0**30), 2.0**30, width=32), min_size=1, max_size=9), st.integers(-60, 60))
def test_a_number_keeps_three_bits_beside_the_largest_of_its_head(numbers: list[float], power: int) -> None:
    x = torch.tensor(numbers, dtype=torch.float64) * 2.0**power
    x_BLJC = x.float()[None, None, None]
    entries = Entries(x_BLJC, x_BLJC).as_kept(packed=True)
    assert entries.keys_BSJC.dtype is torch.uint8
    back = entries.numbers()[0][0, 0, 0].double()
    unit = max(float(x.float().abs().max()) / 448, 1e-38)
    # four bits with the leading one, rounded to nearest; below the smallest normal number of E4M3, steps of 2^-9
    allowed = torch.maximum(x.abs() / 16, torch.tensor(unit * 2**-10, dtype=torch.float64)) * (1 + 1e-6)
    assert ((back - x).abs() <= allowed).all()


def test_memory_halves() -> None:
    config = replace(TINY, width=256, num_heads=2, layout="**")
    sizes = []
    for kv_dtype in ("auto", "fp8"):
        model = StripedHyena2(config).bfloat16().use_kv_dtype(kv_dtype)
        with torch.inference_mode():
            _, state = in_pieces(model, ids(1, 600), [300])
        caches = [part.cache for part in attention_states(state)]
        sizes.append(sum(t.nbytes for cache in caches if cache is not None for t in cache.memory.tensors()))
    # 128 channels: 256 bytes, or 128 and a float32
    assert sizes[1] / sizes[0] == (128 + 4) / 256


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_outputs_are_close_to_those_of_numbers(name: str) -> None:
    ids_BL = ids(2, 300)
    want = tiny(name)(ids_BL)[0]
    error = relative_error(packed(name)(ids_BL)[0], want)
    assert 1e-6 < error < 0.03


@pytest.mark.parametrize("cuts", [[1], [128, 129], list(range(1, 140))])
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_where_a_sequence_is_cut_changes_nothing(name: str, cuts: list[int]) -> None:
    model, ids_BL = packed(name), ids(2, 140)
    assert relative_error(in_pieces(model, ids_BL, cuts)[0], model(ids_BL)[0]) < 1e-5


@torch.inference_mode()
def test_what_is_kept_of_a_row_does_not_depend_on_the_others() -> None:
    layer = attention()
    layer.kv_dtype = tiny().use_kv_dtype("fp8").blocks[3].mixer.kv_dtype
    x_BLD = torch.randn(2, 30, TINY.width)
    x_BLD[1] *= 100
    _, both = layer(x_BLD)
    _, alone = layer(x_BLD[:1])
    for one, other in zip(alone.entries.tensors(), both.entries.tensors(), strict=True):
        torch.testing.assert_close(one, other[:1], rtol=1e-6, atol=0)


@torch.inference_mode()
def test_states_fork_join_and_start_anew() -> None:
    model = packed("any order")
    prompts = [ids(1, 40, seed=1), ids(1, 70, seed=2)]
    following = ids(3, 9, seed=3)
    joined = states.join([model(prompt)[1] for prompt in prompts])
    forked = states.select(joined, torch.tensor([1, 0, 1]))
    got, after = in_pieces_from(model, following, forked)
    for row, source in enumerate([1, 0, 1]):
        alone, _ = model(torch.cat([prompts[source], following[row : row + 1]], dim=1))
        assert relative_error(got[row], alone[0, -9:]) < 1e-5
    anew = states.reset(after, torch.tensor([False, True, False]))
    fresh, _ = in_pieces_from(model, following, anew)
    assert relative_error(fresh[1], model(following[1:2])[0][0]) < 1e-5
    again, _ = model(following[:1], states.select(joined, torch.tensor([1])))
    assert relative_error(again[0], got[0]) < 1e-5


def in_pieces_from(model: StripedHyena2, ids_BL: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
    first, state = model(ids_BL[:, :1], state)
    rest, state = model(ids_BL[:, 1:], state)
    return torch.cat([first, rest], dim=1), state


@pytest.mark.parametrize("first", ["auto", "fp8"])
@torch.inference_mode()
def test_the_choice_may_change_between_pieces(first: str) -> None:
    model, ids_BL = tiny("attention only"), ids(1, 50)
    want = model(ids_BL)[0]
    _, state = model.use_kv_dtype(first)(ids_BL[:, :30])
    got, state = model.use_kv_dtype("auto" if first == "fp8" else "fp8")(ids_BL[:, 30:], state)
    assert relative_error(got, want[:, 30:]) < 0.03
    assert {part.entries.packed for part in attention_states(state)} == {first == "auto"}


def test_while_gradients_are_kept_numbers_are() -> None:
    gradients = []
    for kv_dtype in ("auto", "fp8"):
        model = tiny("attention only").use_kv_dtype(kv_dtype)
        model(ids(1, 20))[0].square().mean().backward()
        gradients.append(model.blocks[0].mixer.input.weight.grad)
    assert torch.equal(gradients[0], gradients[1])


def test_generation_goes_on_from_what_is_kept() -> None:
    model = packed()
    prompts, settings = ["ACGTACGT", "G"], {"length": 6, "temperature": 0, "stop_at_eod": False}
    for prompt, one in zip(prompts, sh2.generate(model, prompts, **settings), strict=True):
        tokens = list(prompt.encode())
        with torch.inference_mode():
            for _ in range(6):
                tokens.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
        assert one.ids.tolist() == tokens[len(prompt) :]
    beams = sh2.beam_search(model, ["ACGT"], width=2, length=3, alphabet="ACGT")
    assert len(beams[0]) == 2


def test_an_unknown_choice_is_refused_and_no_file_keeps_one(tmp_path: Path) -> None:
    with pytest.raises(Sh2Error, match="unknown kv_dtype `fp4`") as caught:
        tiny().use_kv_dtype("fp4")
    assert caught.value.__notes__ == ["use auto, fp8"]
    for kv_dtype in ("auto", "fp8"):
        save_model(tiny().use_kv_dtype(kv_dtype), tmp_path / kv_dtype)
    one, other = ({file.name: file.read_bytes() for file in (tmp_path / n).iterdir()} for n in ("auto", "fp8"))
    assert one == other


@torch.inference_mode()
def test_memory_for_a_sequence_of_known_length_is_taken_once() -> None:
    model, ids_BL = packed("any order"), ids(1, 700)
    places, outputs = [], []
    for _, x_BLD, state in chunks(model, ids_BL, most=100):
        outputs.append(x_BLD)
        places.append([part.keys_BSJC.data_ptr() for part in attention_states(state)])
        rooms = {part.cache.memory.keys_BSJC.shape[1] for part in attention_states(state) if part.cache is not None}
        assert rooms == {reserved(700)} == {1792}
    assert len(places) == 7
    assert all(place == places[0] for place in places)
    assert relative_error(torch.cat(outputs, dim=1), model.hidden(ids_BL)[0]) < 1e-5
    # and what comes after it goes on in there
    after = expect(state, 1000)
    assert [part.keys_BSJC.data_ptr() for part in attention_states(after)] == places[0]


@pytest.mark.parametrize(("tokens", "gib"), [(1_048_576, 131), (524_288, 79)])
def test_the_7b_fits_with_keys_and_values_in_bfloat16(tokens: int, gib: int) -> None:
    """A million tokens on an H200, half of them on an H100: first read, then grown layer by layer to write more."""
    config = preset("evo2_7b")
    read = kv_cache_bytes(config, reserved(tokens), "bf16")
    written = kv_cache_bytes(config, capacity(tokens), "bf16")
    a_layer = written // config.layout.count("*")
    assert weight_bytes(config, "bf16") + max(read, written + a_layer) < 0.92 * gib * 2**30
