"""On a GPU: the goldens, the 7B shape against its own float32 run, states, training and generation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sh2
from sh2.model import StripedHyena2
from sh2.presets import preset
from tests.integration.test_goldens import BFLOAT16_RATIO, CASES, Golden
from tests.kernels.definitions import relative_error
from tests.sh2.models import CONFIGS

pytestmark = pytest.mark.gpu

LAMBDA = Path(__file__).parents[1] / "assets" / "genomes" / "lambda_NC_001416.1.fa.gz"


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_the_goldens_hold(name: str, backend: str, tmp_path: Path) -> None:
    golden = Golden(name, tmp_path)
    golden.model.cuda().use_backend(backend)
    for case in golden.case["inputs"]:
        logits = golden.model(golden.ids(case).cuda())[0].cpu()
        if golden.exact:
            assert relative_error(logits, golden.want[f"{case}.logits"]) < 1e-4
            continue
        reference = golden.want[f"{case}.logits_fp32ref_tail64"]
        tail = reference.shape[1]
        theirs = relative_error(golden.want[f"{case}.logits"][:, -tail:], reference)
        assert relative_error(logits[:, -tail:], reference) < BFLOAT16_RATIO * theirs
    want = golden.want["greedy.tokens"]
    results = sh2.generate(
        golden.model, list(golden.want["greedy.prompt"]), length=want.shape[1], top_k=1, stop_at_eod=False
    )
    assert [one.ids.tolist() for one in results] == want.tolist()


@torch.inference_mode()
def test_the_7b_shape_in_bfloat16_matches_its_own_float32_run_at_8192() -> None:
    """The measure of bfloat16's error: what rounding the weights to it changes, everything else in float32."""
    with torch.device("cuda"):
        model = StripedHyena2(preset("evo2_7b_base"))
    ids_BL = torch.randint(0, 256, (1, 8192), generator=torch.Generator().manual_seed(0)).cuda()
    unrounded = model(ids_BL)[0].cpu()
    half = model.to(torch.bfloat16)(ids_BL)[0].float().cpu()
    full = model.float()(ids_BL)[0].cpu()
    assert full.isfinite().all()
    assert relative_error(half, full) < 1.5 * relative_error(full, unrounded)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("piece", [1, 3, 127, 128, 129])
@torch.inference_mode()
def test_pieces_joined_equal_one_pass(name: str, piece: int) -> None:
    model = StripedHyena2(CONFIGS[name]).cuda()
    ids_BL = torch.randint(0, 256, (2, 300), generator=torch.Generator().manual_seed(1)).cuda()
    outputs, state = [], None
    for part in ids_BL.split(piece, dim=1):
        logits, state = model(part, state)
        outputs.append(logits)
    assert relative_error(torch.cat(outputs, dim=1), model(ids_BL)[0]) < 1e-5


@pytest.mark.parametrize("tap", ["residual", "mixer", "mlp"])
@pytest.mark.parametrize("pooling", ["mean", "max", "second-half", "per-base"])
def test_embeddings_are_those_of_the_cpu(tap: str, pooling: str) -> None:
    texts = ["".join("ACGT"[base] for base in torch.randint(4, (length,))) for length in (300, 77, 300)]
    vectors = []
    for device, chunk in (("cpu", 8192), ("cuda", 128)):
        model = StripedHyena2(CONFIGS["striped"]).to(device)
        vectors.append(sh2.embed(model, texts, ["all"], tap=tap, pooling=pooling, chunk=chunk))
    for on_cpu, on_gpu in zip(*vectors, strict=True):
        assert relative_error(torch.from_numpy(on_gpu), torch.from_numpy(on_cpu)) < 1e-5


def test_constraints_and_beams_are_those_of_the_cpu() -> None:
    settings = {"length": 40, "alphabet": "ACGT", "forbid": ["GAATTC", "CC"], "no_repeat": 4}
    texts = []
    for device in ("cpu", "cuda"):
        model = StripedHyena2(CONFIGS["striped"]).to(device).use_backend("reference")
        samples = sh2.generate(
            model, ["GAATT", "A"], samples=4, min_p=0.1, stop_at="GTG", stop_at_eod=False, **settings
        )
        beams = sh2.beam_search(model, ["GAATT", "A"], width=3, **settings)
        texts.append([one.text for one in [*samples, *beams[0], *beams[1]]])
    assert texts[0] == texts[1]


def evo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evo_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_training_scoring_and_generating_from_the_command_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = (LAMBDA, "--preset", "debug", "--steps", 60, "--length", 512, "--valid-every", 30, "-o", run)
    trained = evo("train", *common, "--device", "cuda", "--lr", 3e-3)
    assert trained.returncode == 0, trained.stderr
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert losses[0] > 4
    assert losses[-1] < 1.5

    gpu = evo("score", LAMBDA, "--model", run / "model", "--device", "cuda", "--precision", "fp32")
    cpu = evo("score", LAMBDA, "--model", run / "model", "--device", "cpu")
    assert gpu.returncode == cpu.returncode == 0, gpu.stderr + cpu.stderr
    on_gpu, on_cpu = (float(result.stdout.splitlines()[1].split("\t")[2]) for result in (gpu, cpu))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-5)

    generated = evo(
        "generate", "--model", run / "model", "--prompt", "GGGCGGCGACCT", "--length", 50, "--device", "cuda"
    )
    assert generated.returncode == 0, generated.stderr
    assert set(generated.stdout.splitlines()[1]) <= set("ACGT")
