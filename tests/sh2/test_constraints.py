"""Forbidden motifs, repeated k-mers and the motif to stop at: against their definitions, alone and while generating."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sh2
from sh2.errors import Sh2Error
from sh2.generation.constraints import Constraints, History
from sh2.generation.generate import Generation
from sh2.generation.sampling import Sampling, choose
from tests.sh2.models import tiny

MOTIFS = st.lists(st.text("ACGTacgt", min_size=1, max_size=5), max_size=4)
LETTERS = "ACGTacgtN"


def kmers(text: str, k: int) -> list[str]:
    return [text[start : start + k] for start in range(len(text) - k + 1)]


def banned_by_definition(prompt: str, written: str, forbid: list[str], k: int | None) -> set[str]:
    prompt, written = prompt.upper(), written.upper()
    banned = set()
    for letter in LETTERS:
        text = prompt + written + letter.upper()
        last = (written + letter.upper())[-k:] if k else ""
        if any(text.endswith(motif.upper()) for motif in forbid) or (k and last in kmers(written, k)):
            banned.add(letter)
    return banned


@given(
    prompts=st.lists(st.text(LETTERS, max_size=6), min_size=1, max_size=3),
    forbid=MOTIFS,
    k=st.none() | st.integers(1, 4),
    stop_at=st.none() | st.text("ACGTacgt", min_size=1, max_size=4),
    data=st.data(),
)
def test_what_is_banned_and_what_ends_are_as_defined(
    prompts: list[str], forbid: list[str], k: int | None, stop_at: str | None, data: st.DataObject
) -> None:
    rows = [np.frombuffer(prompt.encode(), dtype=np.uint8).astype(np.int64) for prompt in prompts]
    constraints = Constraints(forbid=forbid, no_repeat=k, stop_at=stop_at)
    history = History(constraints, rows, length=10, vocab_size=128, device=torch.device("cpu"))
    written = [""] * len(rows)
    for _ in range(10):
        banned_BV = history.banned()
        assert (banned_BV is None) == (not forbid and not k)
        for row, (prompt, text) in enumerate(zip(prompts, written, strict=True)):
            got = set() if banned_BV is None else {chr(token) for token in banned_BV[row].nonzero()[:, 0].tolist()}
            assert got == banned_by_definition(prompt, text, forbid, k)
        letters = [data.draw(st.sampled_from(LETTERS)) for _ in written]
        history.write(torch.tensor([ord(letter) for letter in letters]))
        written = [text + letter for text, letter in zip(written, letters, strict=True)]
        want = [stop_at is not None and text.upper().endswith(stop_at.upper()) for text in written]
        assert history.ended().tolist() == want
        order = data.draw(st.lists(st.sampled_from(range(len(written))), min_size=1, max_size=4))
        history.select(torch.tensor(order))
        prompts, written = [prompts[row] for row in order], [written[row] for row in order]


def violations(prompt: str, one: Generation, forbid: list[str], k: int | None) -> list[str]:
    text = prompt + one.text
    found = [motif for motif in forbid if motif.upper() in text[max(0, len(prompt) - len(motif) + 1) :]]
    repeated = k is not None and len(set(kmers(one.text, k))) < len(kmers(one.text, k))
    return [*found, *(["k-mer"] if repeated else [])]


@settings(max_examples=20, deadline=None)
@given(
    prompts=st.lists(st.text("ACGT", min_size=1, max_size=12), min_size=1, max_size=3),
    forbid=MOTIFS,
    k=st.none() | st.integers(1, 5),
    settings_of=st.sampled_from([{}, {"temperature": 0}, {"min_p": 0.3}, {"top_k": 2}, {"temperature": 5.0}]),
    stop_at_eod=st.booleans(),
)
def test_nothing_banned_is_ever_written(
    prompts: list[str], forbid: list[str], k: int | None, settings_of: dict[str, float], stop_at_eod: bool
) -> None:
    options = {"length": 25, "alphabet": "ACGT", "forbid": forbid, "no_repeat": k, "stop_at_eod": stop_at_eod}
    for one in sh2.generate(tiny(), prompts, samples=2, **options, **settings_of):  # type: ignore[arg-type]
        prompt = prompts[one.prompt]
        assert violations(prompt, one, forbid, k) == []
        assert len(one.ids) == len(one.log_probs)
        assert set(one.text) <= set("ACGT")
        assert one.end in (("length", "eod", "banned") if stop_at_eod else ("length", "banned"))
        assert (one.end == "length") == (len(one.ids) == 25)
        stuck = set("ACGT") <= banned_by_definition(prompt, one.text, forbid, k)
        assert len(one.ids) == 25 or stuck == (one.end == "banned")


def test_a_sample_under_constraints_is_the_same_alone_and_in_a_batch() -> None:
    prompts = ["A", "GAATT", "ACGTACGTACGT", "GATTACA" * 9]
    options = {
        "length": 60,
        "alphabet": "ACGT",
        "forbid": ["GAATTC", "CC", "tat"],
        "no_repeat": 4,
        "stop_at": "GTG",
        "min_p": 0.1,
        "stop_at_eod": False,
    }
    together = sh2.generate(tiny(), prompts, samples=3, **options)
    assert len({one.end for one in together}) > 1
    for number, prompt in enumerate(prompts):
        alone = sh2.generate(tiny(), [prompt], samples=3, **options, max_rows=1)
        of_prompt = together[3 * number : 3 * number + 3]
        assert [(a.text, a.end) for a in alone] == [(b.text, b.end) for b in of_prompt]


@pytest.mark.parametrize("stop_at", ["ACG", "acg", "T"])
def test_a_sample_ends_with_the_first_motif_that_it_writes_itself(stop_at: str) -> None:
    motif = stop_at.upper()
    results = sh2.generate(
        tiny(), [motif, "G"], length=80, alphabet="ACGT", stop_at_eod=False, stop_at=stop_at, samples=8, temperature=5.0
    )
    free = sh2.generate(tiny(), [motif, "G"], length=80, alphabet="ACGT", stop_at_eod=False, samples=8, temperature=5.0)
    assert any(one.end == "motif" for one in results)
    for one, other in zip(results, free, strict=True):
        place = other.text.find(motif)
        assert one.text == (other.text if place < 0 else other.text[: place + len(motif)])
        assert one.end == ("length" if place < 0 else "motif")


@pytest.mark.parametrize("stop_at_eod", [False, True])
def test_a_row_that_may_write_nothing_ends_and_the_others_go_on(stop_at_eod: bool) -> None:
    forbid = ["GA", "GC", "GG", "GT"]
    stuck, free = sh2.generate(
        tiny(), ["CG", "CC"], length=6, alphabet="ACGT", temperature=0, forbid=[*forbid, "G"], stop_at_eod=stop_at_eod
    )
    assert (stuck.text, stuck.end) == ("", "banned")
    assert (len(free.ids), free.end) == (6, "length")


def test_one_mers_are_all_written_once_and_then_nothing() -> None:
    results = sh2.generate(tiny(), ["ACGT"], length=9, alphabet="ACGT", no_repeat=1, stop_at_eod=False, samples=5)
    for one in results:
        assert (sorted(one.text), one.end) == (list("ACGT"), "banned")


def test_lower_case_counts_as_its_upper_case() -> None:
    results = sh2.generate(tiny(), ["g"], length=40, alphabet="ACgtact", forbid=["Gt"], stop_at_eod=False, samples=4)
    assert any(letter.islower() for letter in results[0].text)
    for one in results:
        assert ("G", "T") not in set(pairwise("G" + one.text.upper()))


def test_a_step_stays_on_the_device_and_never_waits_for_it() -> None:
    """Meta tensors have no values to look at, and do not mix with tensors elsewhere."""
    device = torch.device("meta")
    constraints = Constraints(forbid=["GAATTC", "C"], no_repeat=3, stop_at="TAA")
    history = History(constraints, [np.zeros(4, dtype=np.int64)] * 3, length=5, vocab_size=512, device=device)
    sampling = Sampling(temperature=0.7, top_k=3, top_p=0.5, min_p=0.1, alphabet=(65, 67))
    for _ in range(5):
        banned_BV = history.banned()
        logits_BV = torch.empty(3, 512, device=device, dtype=torch.bfloat16)
        ids_B = choose(logits_BV, sampling, torch.empty(3, device=device, dtype=torch.float64), banned_BV)
        history.write(ids_B)
        assert history.ended().shape == ids_B.shape == (3,)
        history.select(torch.zeros(3, dtype=torch.int64, device=device))


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ({"forbid": ["GAATTC", "GANTC"]}, "a motif of forbid must be of A, C, G and T, one or more, not `GANTC`"),
        ({"forbid": [""]}, "a motif of forbid must be of A, C, G and T, one or more, not ``"),
        ({"forbid": "GAATTC"}, "forbid must be a list of motifs, not the text `GAATTC`"),
        ({"stop_at": "TAR"}, "a motif of stop_at must be of A, C, G and T, one or more, not `TAR`"),
        ({"stop_at": ""}, "a motif of stop_at must be of A, C, G and T, one or more, not ``"),
        ({"no_repeat": 0}, r"no_repeat must lie in 1\.\.2147483647, not 0"),
        ({"no_repeat": 2**31}, r"no_repeat must lie in 1\.\.2147483647, not 2147483648"),
        ({"min_p": 1.5}, r"min_p must lie in 0\.\.1, not 1\.5"),
    ],
)
def test_a_bad_constraint_is_refused(constraints: dict[str, object], message: str) -> None:
    with pytest.raises(Sh2Error, match=message):
        sh2.generate(tiny(), ["A"], length=1, **constraints)  # type: ignore[arg-type]
