"""Embeddings against the blocks run by hand and pooled in float64, however the sequences are cut and batched."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sh2.reading.embedding
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.reading.embedding import Row, embed, embed_rows
from sh2.reading.sites import Pooling, Tap, find_sites, sites
from tests.sh2.models import CONFIGS, TINY, tiny

TEXT = "ACGTTGCATTAGCCGATACCGGATTTACAGGCATAGC" * 4  # 148 bases
POOLS = {
    "mean": lambda y_LD: y_LD.mean(0),
    "last": lambda y_LD: y_LD[-1],
    "max": lambda y_LD: y_LD.max(0),
    "second-half": lambda y_LD: y_LD[len(y_LD) // 2 :].mean(0),
}


@torch.no_grad()
def by_hand(model: StripedHyena2, text: str) -> dict[str, NDArray[np.float64]]:
    """What every site puts out in one pass [L, D], written down block by block."""
    x = model.embedding(torch.tensor([list(text.encode())]))
    seen: dict[str, torch.Tensor] = {}
    for layer, block in enumerate(model.blocks):
        read = block.mixer_norm(x)
        mixed, _ = block.mixer(read)
        x = x + mixed
        fed = block.feed_forward_norm(x)
        passed = block.feed_forward(fed)
        passed = passed[0] if isinstance(passed, tuple) else passed
        x = x + passed
        names = ("", ".mixer", ".mlp", ".mixer_norm", ".mlp_norm")
        seen |= {f"blocks.{layer}{name}": y for name, y in zip(names, (x, mixed, passed, read, fed), strict=True)}
    seen["norm"] = model.norm(x)
    return {name: y_BLD[0].double().numpy() for name, y_BLD in seen.items()}


@pytest.mark.parametrize("chunk", [1, 7, 128, 8192])
@pytest.mark.parametrize("config", ["striped", "hyena_se feed-forward", "attention only"])
def test_every_site_and_pooling_is_that_of_one_whole_pass(config: str, chunk: int) -> None:
    model = tiny(config).double()
    want = by_hand(model, TEXT)
    assert [site.name for site in sites(model.config)] == list(want)
    for name, pool in POOLS.items():
        (found,) = embed(model, [TEXT], list(want), pooling=name, chunk=chunk)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [pool(y_LD) for y_LD in want.values()], rtol=1e-6, atol=1e-7)
    (found,) = embed(model, [TEXT], list(want), pooling="per-base", chunk=chunk)
    np.testing.assert_allclose(found, np.stack(list(want.values()), axis=1), rtol=1e-6, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(
    bounds=st.lists(st.lists(st.integers(0, 60), min_size=2, max_size=2, unique=True).map(sorted), max_size=7),
    other=st.lists(st.lists(st.integers(0, 60), min_size=2, max_size=2, unique=True).map(sorted), max_size=2),
    chunk=st.sampled_from([1, 7, 13, 60, 128]),
    pooling=st.sampled_from([Pooling.MEAN, Pooling.MAX]),
    entries=st.sampled_from([1, 100, 1 << 25]),
)
def test_spans_of_any_kind_are_pooled_each_by_itself(
    bounds: list[list[int]], other: list[list[int]], chunk: int, pooling: Pooling, entries: int
) -> None:
    model = tiny().double()
    texts = [TEXT[:60], TEXT[5:65]]
    rows = [
        Row(ids=np.frombuffer(text.encode(), np.uint8), spans_S2=np.array(spans, dtype=np.int64).reshape(-1, 2))
        for text, spans in zip(texts, (bounds, other), strict=True)
    ]
    names = find_sites(model.config, ["2", "blocks.1.mixer"])
    before, sh2.reading.embedding._MASK_ENTRIES = sh2.reading.embedding._MASK_ENTRIES, entries
    try:
        parts = list(embed_rows(model, rows, names, pooling, chunk=chunk))
    finally:
        sh2.reading.embedding._MASK_ENTRIES = before
    assert sorted((part.row, part.first) for part in parts) == [
        (row, number) for row, spans in enumerate((bounds, other)) for number in range(len(spans))
    ]
    outputs = [by_hand(model, text) for text in texts]
    for part in parts:
        start, end = rows[part.row].spans_S2[part.first]
        want = [POOLS[pooling](outputs[part.row][name][start:end]) for name in names]
        np.testing.assert_allclose(part.values[0], want, rtol=1e-6, atol=1e-7)


def test_a_vector_depends_on_neither_batch_mates_nor_the_size_of_batches() -> None:
    model = tiny()
    texts = [TEXT, "GATTACA", TEXT[1:] + "A", "C", TEXT[::-1], "GATTACC"]
    alone = [embed(model, [text], ["all", "norm"])[0] for text in texts]
    for max_tokens in (1, 300, 65_536):
        for found, want in zip(embed(model, texts, ["all", "norm"], max_tokens=max_tokens), alone, strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_a_model_in_bf16_is_pooled_in_float32() -> None:
    model = tiny().to(torch.bfloat16)
    want = by_hand(model, TEXT)
    (found,) = embed(model, [TEXT], list(want))
    np.testing.assert_allclose(found, [y_LD.mean(0) for y_LD in want.values()], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", list(Pooling))
def test_a_piece_that_runs_out_of_memory_counts_once(pooling: Pooling, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    text = TEXT * 3
    want = embed(model, [text], ["all", "norm"], pooling=pooling)[0]
    whole = model.hidden

    def small(ids_BL: torch.Tensor, state: object = None) -> object:
        done = whole(ids_BL, state)  # type: ignore[arg-type]
        if ids_BL.shape[1] > 130:
            raise torch.OutOfMemoryError("after all the hooks were called")
        return done

    monkeypatch.setattr(model, "hidden", small)
    (found,) = embed(model, [text], ["all", "norm"], pooling=pooling)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=2e-6)


def test_the_model_is_left_as_it_was_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    embed(model, ["GATTACA"], ["all"])
    parts = embed_rows(
        model,
        [Row(ids=np.array(list(TEXT.encode())), spans_S2=np.array([[0, 148]]))],
        find_sites(model.config, ["all"]),
        Pooling.PER_BASE,
        chunk=10,
    )
    next(parts)
    parts.close()  # type: ignore[attr-defined]
    monkeypatch.setattr(sh2.reading.embedding, "_reduce", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embed(model, ["GATTACA"], ["all"])
    assert not any(module._forward_hooks for module in model.modules())


def test_only_what_a_span_can_see_is_read() -> None:
    model = tiny()
    seen: list[int] = []
    rows = [Row(ids=np.array(list(TEXT.encode())), spans_S2=np.array([[3, 20], [5, 9]]))] * 2
    rows.append(Row(ids=np.array(list(TEXT.encode())), spans_S2=np.zeros((0, 2), np.int64)))
    parts = list(embed_rows(model, rows, {"norm": "norm"}, Pooling.MEAN, progress=seen.append))
    assert (len(parts), seen) == (4, [40])


@pytest.mark.parametrize(
    ("words", "tap", "found"),
    [
        (["2", "0"], "residual", ["blocks.2", "blocks.0"]),
        (["all"], "mixer", ["blocks.0.mixer", "blocks.1.mixer", "blocks.2.mixer", "blocks.3.mixer"]),
        (["3", "norm", "blocks.3.mlp.l3", "blocks.3.feed_forward"], "mlp", ["blocks.3.mlp", "norm"]),
        (["blocks.0.pre_norm", "blocks.1.post_norm"], "mlp", ["blocks.0.mixer_norm", "blocks.1.mlp_norm"]),
        (["blocks.0.out_filter_dense"], "mlp", ["blocks.0.mixer"]),
        (["blocks.3.inner_mha_cls.out_proj", "blocks.3.inner_mha_cls"], "mlp", ["blocks.3.mixer"]),
    ],
)
def test_layers_are_found_by_number_and_by_any_name(words: list[str], tap: str, found: list[str]) -> None:
    assert list(find_sites(TINY, words, Tap(tap))) == found


@pytest.mark.parametrize(
    "word", ["4", "-1", "blocks.4", "blocks.0.mlp.l1", "blocks.0.inner_mha_cls", "unembed", "", "24-28", "blocks.0."]
)
def test_what_is_no_layer_is_refused_with_what_there_is(word: str) -> None:
    with pytest.raises(Sh2Error) as caught:
        find_sites(TINY, ["0", word])
    assert str(caught.value) == f"the model has no layer `{word}` to take embeddings from"
    assert caught.value.__notes__ == [
        "there are blocks 0 to 3, or `all`; `norm`; and by name, here of block 3: blocks.3, blocks.3.mixer, "
        "blocks.3.mlp, blocks.3.mixer_norm, blocks.3.mlp_norm"
    ]


def test_the_published_names_are_those_of_layers_of_that_kind() -> None:
    listed = {site.name: site for site in sites(replace(CONFIGS["any order"], activation="silu"))}  # type: ignore[arg-type]
    assert listed["blocks.0.mixer"].published == ("blocks.0.inner_mha_cls", "blocks.0.inner_mha_cls.out_proj")
    assert listed["blocks.1.mixer"].published == ("blocks.1.out_filter_dense",)
    assert (listed["blocks.1.mixer"].kind, listed["blocks.1.mlp"].kind) == ("hyena_li", "gated_mlp")
    assert listed["blocks.6"].published == ("blocks.6",)
    second = {site.name: site for site in sites(CONFIGS["hyena_se feed-forward"])}["blocks.0.mlp"]
    assert (second.kind, second.published) == ("hyena_se", ())


@pytest.mark.parametrize(
    ("sequences", "settings", "message"),
    [
        (["A", ""], {}, "sequence 1 is empty: there is nothing to embed"),
        (["A"], {"pooling": "median"}, "pooling must be one of mean, last, max, second-half, per-base, not `median`"),
        (["A"], {"tap": "mlp.l1"}, "tap must be one of residual, mixer, mlp, mixer_norm, mlp_norm, not `mlp.l1`"),
        (["A"], {"chunk": 0}, "chunk must be at least 1, not 0"),
        ("A", {}, "a list of sequences is wanted, not one str"),
        (["A"], {"layers": []}, "no layer is given"),
        (["A"], {"layers": "norm"}, "layers must be a list of numbers or names, not 'norm'"),
        (["A"], {"layers": 3}, "layers must be a list of numbers or names, not 3"),
    ],
)
def test_what_cannot_be_embedded_is_refused(sequences: list[str], settings: dict[str, object], message: str) -> None:
    arguments = {"layers": ["all"], **settings}
    with pytest.raises(Sh2Error, match=message):
        embed(tiny(), sequences, **arguments)  # type: ignore[arg-type]
