"""A model trained with a head: the same embedding as `sh2.embed`'s, better validation, and nothing else changed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sh2.errors import Sh2Error
from sh2.heads import Targets, Task, fit_head
from sh2.lora import Lora, add_adapters
from sh2.reading.embedding import embed
from sh2.train.config import TrainConfig
from sh2.train.finetune import POOLINGS, Labelled, _Headed, finetune, pooled
from tests.sh2.models import tiny

CONFIG = TrainConfig(steps=1, batch_size=16, lr=3e-4, threads=1, seed=1)


def examples(count, seed, task=Task.CLASSIFICATION):
    """Sequences of several lengths, with one of two motifs of the same bases at a random place."""
    rng = np.random.default_rng(seed)
    ids, labels = [], []
    for _ in range(count):
        text = bytearray(rng.choice(list(b"ACGT"), rng.integers(24, 40)).tolist())
        first = int(rng.integers(2))
        place = int(rng.integers(16))
        text[place : place + 6] = b"TGACGA" if first else b"AGCAGT"
        ids.append(np.frombuffer(bytes(text), np.uint8).astype(np.int64))
        labels.append(str(first) if task is Task.CLASSIFICATION else str(first * 1000.0 + len(text)))
    return ids, Targets.of(labels, task)


def started(layer="blocks.2", pooling="mean", task=Task.CLASSIFICATION):
    """A model, the head fitted to it, and its data."""
    model = tiny(seed=2)
    train, valid = (Labelled(ids=ids, targets=of) for ids, of in (examples(128, 0, task), examples(64, 1, task)))
    word = layer.removeprefix("blocks.")
    vectors = [
        torch.from_numpy(np.concatenate(embed(model, data.ids, [word], pooling=pooling))) for data in (train, valid)
    ]
    head, loss = fit_head(vectors[0], train.targets, vectors[1], valid.targets, layer=layer, pooling=pooling)
    return model, head, train, valid, loss


@torch.no_grad()
@pytest.mark.parametrize("layer", ["blocks.2", "norm"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_is_trained_is_what_is_used(layer, pooling):
    """The outputs of rows of several lengths, padded, are those of the head on embeddings that never saw a pad."""
    model, head, train, _, _ = started(layer, pooling)
    ids = [torch.from_numpy(one) for one in train.ids[:6]]

    outputs = _Headed(model, head)(
        torch.nn.utils.rnn.pad_sequence(ids, batch_first=True), torch.tensor([len(one) for one in ids])
    )

    vectors = embed(model, train.ids[:6], [layer.removeprefix("blocks.")], pooling=pooling)
    torch.testing.assert_close(outputs, head.outputs(torch.from_numpy(np.concatenate(vectors))), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("task", Task)
def test_training_beats_the_frozen_model_where_it_can(task):
    model, head, train, valid, frozen = started(task=task)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    epochs = []

    tuned = finetune(model, head, train, valid, CONFIG, epochs=8, told=epochs.append)

    assert [epoch.number for epoch in epochs] == list(range(9))
    assert epochs[0].valid_loss == pytest.approx(frozen, rel=1e-3)
    best = min(epoch.valid_loss for epoch in epochs)
    assert best < 0.85 * frozen
    # what is returned is of the best epoch
    vectors = embed(model, valid.ids, ["2"])
    outputs = tuned.outputs(torch.from_numpy(np.concatenate(vectors)))
    if task is Task.CLASSIFICATION:
        assert torch.nn.functional.cross_entropy(outputs, valid.targets.values).item() == pytest.approx(best, rel=1e-2)
    else:
        error = (outputs[:, 0] - valid.targets.values).square().mean()
        assert error.item() == pytest.approx(best, rel=1e-2)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "embedding.weight" in changed
    assert not [name for name in changed if name.startswith(("blocks.3", "norm"))]


def test_adapters_alone_can_be_trained():
    model, head, train, valid, frozen = started()
    add_adapters(model, Lora(rank=4, alpha=8.0), seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    epochs = []

    finetune(model, head, train, valid, CONFIG, epochs=4, told=epochs.append)

    assert min(epoch.valid_loss for epoch in epochs) < frozen
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(".adapter." in name for name in changed)


@pytest.mark.parametrize("recompute", ["selective", "full", "nested"])
def test_what_is_recomputed_trains_alike(recompute):
    def weights(choice):
        model, head, train, valid, _ = started()
        add_adapters(model, Lora(rank=2, alpha=4.0), seed=0)
        return finetune(model.use_recompute(choice), head, train, valid, CONFIG, epochs=1).weight

    torch.testing.assert_close(weights(recompute), weights("none"), atol=1e-5, rtol=1e-4)


def test_what_gets_worse_is_undone():
    model, head, train, valid, _ = started()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wild = TrainConfig(steps=1, batch_size=8, lr=3.0, threads=1, warmup_fraction=0.0)

    tuned = finetune(model, head, train, valid, wild, epochs=1)

    assert torch.equal(tuned.weight, head.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_seed_decides_the_run():
    def weights(seed):
        model, head, train, valid, _ = started()
        config = TrainConfig(steps=1, batch_size=8, lr=3e-4, threads=1, seed=seed)
        return finetune(model, head, train, valid, config, epochs=2).weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_pads_count_for_nothing():
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([5, 2])

    for pooling, wanted in (("mean", x[1, :2].mean(0)), ("max", x[1, :2].amax(0)), ("last", x[1, 1])):
        torch.testing.assert_close(pooled(x, lengths, pooling)[1], wanted)
        torch.testing.assert_close(pooled(x, lengths, pooling)[0], pooled(x[:1], lengths[:1], pooling)[0])


def test_other_layers_and_poolings_are_refused():
    model, head, train, valid, _ = started(pooling="second-half")

    with pytest.raises(Sh2Error, match="a model cannot be trained through the pooling second-half"):
        finetune(model, head, train, valid, CONFIG, epochs=1)
    inside = replace(head, layer="blocks.2.mixer", pooling="mean")
    with pytest.raises(Sh2Error, match=r"a model cannot be trained through the layer blocks\.2\.mixer"):
        finetune(model, inside, train, valid, CONFIG, epochs=1)
