"""The recipes of training on a GPU: adapters, compiled and in bfloat16; a model trained with a head."""

import random

import pytest
import torch

import sh2
from sh2.checkpoint import save_model
from sh2.checkpoint.adapters import load_adapters
from sh2.lora import merge_adapters
from sh2.model import StripedHyena2
from sh2.presets import preset
from tests.evo_cli.cli import evo, rows

pytestmark = pytest.mark.gpu


@pytest.fixture
def home(tmp_path):
    save_model(StripedHyena2(preset("debug"), seed=1), tmp_path / "model")
    rng = random.Random(0)
    texts = ["".join(rng.choices("ACGT", k=300)) for _ in range(64)]
    (tmp_path / "g.fa").write_text("".join(f">r{number}\n{text}\n" for number, text in enumerate(texts)))
    lines = "".join(f"{text}\t{text.count('G') / len(text):.4f}\n" for text in texts)
    (tmp_path / "labels.tsv").write_text(f"sequence\tlabel\n{lines}")
    return tmp_path


@pytest.mark.parametrize("compiled", ["--compile", "--no-compile"])
def test_adapters_are_trained_and_merged(home, compiled):
    words = ["train", "g.fa", "--from", "model", "--lora-rank", 4, "--length", 256, "--steps", 6, "--batch-size", 4]

    result = evo(*words, "--device", "cuda", compiled, "-o", "run", cwd=home)

    assert result.returncode == 0, result.stderr
    model = sh2.load(home / "model")
    load_adapters(model, home / "run" / "adapter.safetensors")
    merge_adapters(model)
    trained = sh2.load(home / "run" / "model")
    for name, tensor in model.state_dict().items():  # merged on the GPU, and here
        torch.testing.assert_close(trained.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)
    assert not torch.equal(trained.blocks[0].mixer.input.weight, sh2.load(home / "model").blocks[0].mixer.input.weight)


@pytest.mark.parametrize("train", ["head", "adapters", "all"])
def test_heads_say_the_same_on_a_cpu(home, train):
    words = ["finetune", "labels.tsv", "--model", "model", "--train", train, "--epochs", 2, "--recompute", "full"]

    tuned = evo(*words, "--device", "cuda", "-o", "run", cwd=home)
    tables = [evo("predict", "g.fa", "--head", "run", "--device", device, cwd=home) for device in ("cuda", "cpu")]

    assert tuned.returncode == 0, tuned.stderr
    on_gpu, on_cpu = ([float(row["prediction"]) for row in rows(table.stdout)] for table in tables)
    assert on_gpu == pytest.approx(on_cpu, abs=0.01)
