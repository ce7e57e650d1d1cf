"""Best-of-n and beam search, against doing it by hand."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch

import sh2
from sh2.errors import Sh2Error
from sh2.generation.generate import Generation, GenerationOptions
from sh2.generation.guidance import Score
from tests.sh2.models import CONFIGS, tiny

OPTIONS = GenerationOptions(length=12, alphabet="ACGT", stop_at_eod=False, temperature=2.0, seed=5)


def count_of_c(samples: Sequence[Generation]) -> list[float]:
    return [one.text.count("C") for one in samples]


def log_likelihood(model: sh2.StripedHyena2, prompt: str, text: str) -> float:
    """From one pass without a state, in float64 from the logits on."""
    with torch.inference_mode():
        logits = model(torch.tensor([list((prompt + text).encode())]))[0][0].double().log_softmax(dim=-1)
    places = range(len(prompt) - 1, len(prompt) + len(text) - 1)
    return math.fsum(float(logits[place, ord(letter)]) for place, letter in zip(places, text, strict=True))


def test_best_of_keeps_the_best_sample_of_each_prompt() -> None:
    prompts = ["ACGT", "G", "TTTTTT"]
    got = sh2.best_of(tiny(), prompts, n=9, score=count_of_c, options=OPTIONS)
    samples = sh2.generate(
        tiny(), prompts, samples=9, length=12, alphabet="ACGT", stop_at_eod=False, temperature=2.0, seed=5
    )
    for number, one in enumerate(got):
        of_prompt = [sample for sample in samples if sample.prompt == number]
        want = max(of_prompt, key=lambda sample: sample.text.count("C"))  # the first of equals
        assert (one.prompt, one.sample, one.text) == (number, want.sample, want.text)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("alphabet", "length"), [("ACGT", 3), ("GA", 5)])
def test_beams_as_many_as_there_are_sequences_are_all_of_them_likeliest_first(
    name: str, alphabet: str, length: int
) -> None:
    model, prompt = tiny(name), "GATTACA"
    everything = {"".join(letters) for letters in product(alphabet, repeat=length)}
    (beams,) = sh2.beam_search(model, [prompt], width=len(alphabet) ** length, length=length, alphabet=alphabet)
    assert {beam.text for beam in beams} == everything
    assert [beam.sample for beam in beams] == list(range(len(everything)))
    sums = [float(beam.log_probs.sum(dtype=np.float64)) for beam in beams]
    assert sums == sorted(sums, reverse=True)
    np.testing.assert_allclose(sums, [log_likelihood(model, prompt, beam.text) for beam in beams], atol=1e-4)


def by_hand(model: sh2.StripedHyena2, prompt: str, width: int, length: int, forbid: str) -> list[str]:
    """Beam search by scoring every extension from the start."""
    beams = [""]
    for _ in range(length):
        grown = [beam + letter for beam in beams for letter in "ACGT" if forbid not in prompt + beam + letter]
        beams = sorted(grown, key=lambda text: -log_likelihood(model, prompt, text))[:width]
    return beams


@pytest.mark.parametrize(("width", "forbid"), [(1, "TTTT"), (3, "TTTT"), (5, "A")])
def test_narrow_beams_are_those_by_hand(width: int, forbid: str) -> None:
    model, prompts = tiny(), ["ACG", "TTGACA"]
    if forbid == "A":
        prompts = ["CCG", "TTGC"]
    found = sh2.beam_search(model, prompts, width=width, length=6, alphabet="ACGT", forbid=[forbid], chunk=2)
    for prompt, beams in zip(prompts, found, strict=True):
        assert [beam.text for beam in beams] == by_hand(model, prompt, width, 6, forbid)


def guided_by_hand(model: sh2.StripedHyena2, prompt: str, width: int, length: int, every: int) -> list[str]:
    beams = [""]
    for start in range(0, length, every):
        step = min(every, length - start)
        grown = [beam + more for beam in beams for more in by_hand(model, prompt + beam, width, step, "N")]
        beams = sorted(grown, key=lambda text: (-text.count("C"), -log_likelihood(model, prompt, text)))[:width]
    return beams


@pytest.mark.parametrize(("width", "every"), [(2, 1), (3, 2), (3, 4), (2, 99)])
def test_guided_beams_are_those_by_hand(width: int, every: int) -> None:
    model = tiny()
    asked: list[int] = []

    def score(beams: Sequence[Generation]) -> list[float]:
        asked.append(len(beams))
        return count_of_c(beams)

    (beams,) = sh2.beam_search(model, ["ACG"], width=width, length=6, score=score, every=every, alphabet="ACGT")
    assert [beam.text for beam in beams] == guided_by_hand(model, "ACG", width, 6, every)
    assert len(asked) == math.ceil(6 / every)
    assert max(asked) <= width**2


def test_a_guide_that_sees_every_sequence_finds_the_best() -> None:
    def score(beams: Sequence[Generation]) -> list[float]:
        return [-abs(sum(map(ord, beam.text)) - 275) for beam in beams]

    (beams,) = sh2.beam_search(tiny(), ["A"], width=64, length=3, score=score, every=3, alphabet="ACGT")
    best = max(-abs(sum(map(ord, letters)) - 275) for letters in product("ACGT", repeat=3))
    assert score(beams)[0] == best


def test_constraints_hold_in_beams_and_may_leave_none() -> None:
    (few,) = sh2.beam_search(tiny(), ["A"], width=50, length=4, alphabet="ACGT", no_repeat=1)
    assert len({beam.text for beam in few}) == 24
    assert all(sorted(beam.text) == list("ACGT") for beam in few)
    assert sh2.beam_search(tiny(), ["A"], width=3, length=5, alphabet="ACGT", no_repeat=1, score=count_of_c) == [[]]


def test_an_empty_prompt_starts_a_document_and_every_token_is_allowed() -> None:
    empty, eod = sh2.beam_search(tiny(), ["", [0]], width=3, length=4)
    assert [beam.ids.tolist() for beam in empty] == [beam.ids.tolist() for beam in eod]
    (greedy,) = sh2.generate(tiny(), [""], length=4, temperature=0, stop_at_eod=False)
    ((beam,),) = sh2.beam_search(tiny(), [""], width=1, length=4)
    assert beam.ids.tolist() == greedy.ids.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"length": 0}, "length must be at least 1, not 0"),
        ({"every": -1}, "every must be at least 1, not -1"),
        ({"chunk": 0}, "chunk must be at least 1, not 0"),
        ({"alphabet": ""}, "the alphabet to sample from is empty"),
        ({"forbid": ["X"]}, "a motif of forbid must be of A, C, G and T, one or more, not `X`"),
        ({"score": lambda _: [1.0]}, "score must return one number a sequence: 2, not 1"),
        ({"score": lambda beams: [math.nan] * len(beams)}, "score must return numbers, not NaN"),
    ],
)
def test_bad_settings_and_bad_scores_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(Sh2Error, match=message):
        sh2.beam_search(tiny(), ["A"], **{"width": 2, "length": 3, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n", "score", "message"),
    [
        (0, count_of_c, "n must be at least 1, not 0"),
        (2, lambda _: [], "score must return one number a sequence: 2, not 0"),
    ],
)
def test_best_of_refuses_the_same(n: int, score: Score, message: str) -> None:
    with pytest.raises(Sh2Error, match=message):
        sh2.best_of(tiny(), ["A"], n=n, score=score, options=OPTIONS)
