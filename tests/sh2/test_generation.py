"""Generation against one pass without a state, whatever the batch; the settings do what they say."""

from collections import Counter

import numpy as np
import pytest
import torch

import sh2
from sh2.errors import Sh2Error
from sh2.generation.generate import GenerationOptions, generate_each
from sh2.generation.sampling import Sampling, choose
from tests.sh2.models import CONFIGS, tiny

PROMPTS = ["A", "ACGTACGTACGT", "GATTACA" * 20, "CC", "T"]


def greedy_without_state(model: sh2.StripedHyena2, prompt: str, length: int) -> list[int]:
    tokens = list(prompt.encode())
    with torch.inference_mode():
        for _ in range(length):
            tokens.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_a_full_pass_each_from_one_base_on(name: str) -> None:
    model = tiny(name)
    results = sh2.generate(model, PROMPTS, length=12, temperature=0, stop_at_eod=False)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.ids.tolist() == greedy_without_state(model, prompt, 12)


@pytest.mark.parametrize("chunk", [1, 3, 8192])
def test_prompts_of_different_lengths_give_together_what_they_give_alone(chunk: int) -> None:
    model = tiny()
    settings = {"length": 30, "temperature": 0.9, "top_k": 20, "seed": 3, "samples": 2}
    together = sh2.generate(model, PROMPTS, **settings, chunk=chunk)
    assert [(one.prompt, one.sample) for one in together] == [(p, s) for p in range(5) for s in range(2)]
    for number, prompt in enumerate(PROMPTS):
        alone = sh2.generate(model, [prompt], **settings)
        for one, other in zip(together[2 * number : 2 * number + 2], alone, strict=True):
            assert one.ids.tolist() == other.ids.tolist()
            np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-4)


def test_rows_beyond_the_largest_batch_give_the_same_tokens() -> None:
    model = tiny()
    few = sh2.generate(model, PROMPTS, length=10, samples=3, max_rows=2)
    many = sh2.generate(model, PROMPTS, length=10, samples=3)
    assert [one.ids.tolist() for one in few] == [one.ids.tolist() for one in many]


def test_prompts_samples_and_seeds_change_the_tokens() -> None:
    model = tiny()
    results = sh2.generate(model, ["ACGT", "ACGA"], length=20, samples=3)
    results += sh2.generate(model, ["ACGT"], length=20, seed=1)
    assert len({tuple(one.ids) for one in results}) == 7


def test_log_probabilities_are_the_model_s_before_temperature_and_filters() -> None:
    model = tiny()
    (result,) = sh2.generate(model, ["GATTACA"], length=15, temperature=0.3, top_k=5, alphabet="ACGT", seed=2)
    tokens = [*b"GATTACA", *result.ids]
    (score,) = sh2.score(model, [tokens], per_token=True)
    assert score.log_probs is not None
    np.testing.assert_allclose(result.log_probs, score.log_probs[6:], rtol=1e-4, atol=1e-5)


def test_the_alphabet_holds() -> None:
    results = sh2.generate(tiny(), ["ACGT"], length=200, alphabet="ACGT", stop_at_eod=False, samples=4)
    assert {int(token) for one in results for token in one.ids} == set(b"ACGT")


def test_an_eod_really_stops_a_sample_and_the_others_go_on() -> None:
    model = tiny()
    # with EOD and four bases to choose from, evenly, a sample of 60 stops early almost surely
    results = sh2.generate(model, PROMPTS, length=60, alphabet="ACGT", samples=4, temperature=5.0)
    stopped = [one for one in results if one.end == "eod"]
    assert len(stopped) > 10
    for one in results:
        assert 0 not in one.ids
        assert len(one.ids) == len(one.log_probs)
        assert len(one.ids) == 60 or one.end == "eod"
        alone = sh2.generate(
            model, [PROMPTS[one.prompt]], length=60, alphabet="ACGT", samples=one.sample + 1, temperature=5.0
        )
        assert one.ids.tolist() == alone[-1].ids.tolist()


def test_an_empty_prompt_starts_a_document() -> None:
    model = tiny()
    (empty,) = sh2.generate(model, [""], length=8, temperature=0, stop_at_eod=False)
    (eod,) = sh2.generate(model, [[0]], length=8, temperature=0, stop_at_eod=False)
    assert empty.ids.tolist() == eod.ids.tolist()


def test_sampling_follows_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0])
    logits = probs.log().expand(20_000, 5)
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = Counter(choose(logits, Sampling(), uniforms).tolist())
    assert counts[4] == 0
    for token, prob in enumerate(probs.tolist()[:4]):
        assert counts[token] / 20_000 == pytest.approx(prob, abs=0.015)
    edges = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert choose(logits[:2], Sampling(), edges).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length must be at least 1, not 0"),
        ({"length": 1, "samples": 0}, "samples must be at least 1, not 0"),
        ({"length": 1, "temperature": -1}, r"temperature must be 0, or lie in 1e-06\.\.1e\+06, not -1"),
        ({"length": 1, "temperature": float("inf")}, r"temperature must be 0, or lie in 1e-06\.\.1e\+06, not inf"),
        ({"length": 1, "temperature": 1e-9}, r"temperature must be 0, or lie in 1e-06\.\.1e\+06, not 1e-09"),
        ({"length": 1, "seed": 2**63}, "seed must lie in -9223372036854775808..9223372036854775807, not"),
        ({"length": 1, "chunk": 0}, "chunk must be at least 1, not 0"),
        ({"length": 1, "alphabet": ""}, "the alphabet to sample from is empty"),
        ({"length": 1, "top_k": -2}, r"top_k must be 0 \(all\) or above, not -2"),
        ({"length": 1, "top_p": 0}, "top_p must lie above 0 and up to 1, not 0"),
        ({"length": 1, "alphabet": "", "stop_at_eod": False}, "the alphabet to sample from is empty"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(Sh2Error, match=message):
        sh2.generate(tiny(), ["A"], **settings)  # type: ignore[arg-type]


def test_one_prompt_is_no_list_of_prompts() -> None:
    with pytest.raises(Sh2Error, match="a list of sequences is wanted, not one str"):
        sh2.generate(tiny(), "ACGT", length=1)


def test_samples_come_one_by_one_however_many_are_asked_for() -> None:
    options = GenerationOptions(length=5, seed=4, alphabet="ACGT", samples=10**12, max_rows=2)
    stream = generate_each(tiny(), ["ACGT"], options)
    first = [next(stream) for _ in range(3)]
    want = sh2.generate(tiny(), ["ACGT"], samples=3, length=5, seed=4, alphabet="ACGT")
    assert [one.ids.tolist() for one in first] == [one.ids.tolist() for one in want]
