"""Training under torch.compile: the same losses and files as without it, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.train import compilation
from sh2.train.config import TrainConfig
from tests.sh2.test_train_loop import TINY, Watcher, stopping_after, trainer

# torch's compiler warns of what it does itself
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def eager_backend(monkeypatch):
    """Trace as always, but leave out the C++ compiler, which takes a minute."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line.get("valid_loss", 0.0)) for line in lines]


def test_a_compiled_run_has_the_losses_of_an_eager_one_and_goes_on_without(tmp_path):
    trainer(tmp_path / "eager").run()
    trainer(tmp_path / "compiled", compile=True).run(stopping_after(6))
    watcher = Watcher()
    again = trainer(tmp_path / "compiled", watcher=watcher)
    assert again.restore() == 6
    again.run()

    assert watcher.notes[0].startswith("warning: the run began with compile True and goes on with False")
    torch.testing.assert_close(losses(tmp_path / "compiled"), losses(tmp_path / "eager"), rtol=1e-5, atol=1e-5)
    assert torch._dynamo.config.recompile_limit == 8


def test_only_blocks_of_another_kind_make_another_graph(tmp_path, monkeypatch):
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compilation, "BACKEND", counter)
    layers = 2 * "SML*"
    model = StripedHyena2(replace(TINY, layout=layers))
    trainer(tmp_path, compile=True, model=model, steps=2, valid_windows=0, save_every=0).run()

    check, norm, loss, feed_forward, kinds = 1, 1, 1, 1, len(set(layers))
    assert counter.frame_count == check + norm + loss + feed_forward + kinds


def test_a_machine_that_cannot_compile_is_told_so(tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(compilation, "BACKEND", broken)
    with pytest.raises(Sh2Error) as caught:
        trainer(tmp_path, compile=True)

    assert caught.value.args == ("torch.compile does not work here: No working C++ compiler found",)
    assert caught.value.__notes__ == ["train with `--no-compile`"]


def test_documents_of_any_length_are_not_compiled():
    with pytest.raises(Sh2Error, match="train fields `compile` and `reset_documents` cannot both be true") as caught:
        TrainConfig(steps=1, compile=True, reset_documents=True)
    assert caught.value.__notes__[0].startswith("what is compiled has one length")


def test_a_backend_that_cannot_run_is_refused_first(tmp_path):
    with pytest.raises(Sh2Error, match="unknown backend `cuda`"):
        trainer(tmp_path, backend="cuda")
