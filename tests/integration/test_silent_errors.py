"""What published training code gets wrong without a word: for each, the tests that would notice it here.

The list is that of the errors found in the code that Evo 2 was trained with; what no other module tests is tested here.
"""

import ast
import json
import shutil
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from data.prepare import PrepareOptions
from evo_cli.main import app
from sh2.config import Activation, ModelConfig
from sh2.model import StripedHyena2
from sh2.planning.accounting import forward_flops
from sh2.presets import PRESETS, TRAINABLE, preset
from sh2.train.config import TrainConfig
from tests.sh2.models import CONFIGS, TINY

ROOT = Path(__file__).parents[2]
HERE = "tests/integration/test_silent_errors.py"
WATCHED = {
    "a mixer's activation leaks into the feed-forward layers built after it": [
        f"{HERE}::test_what_is_built_first_changes_nothing_of_what_is_built_then",
    ],
    "the skip D is never initialised, and is there or not as the kernel has it": [
        f"{HERE}::test_no_number_comes_from_memory_that_nobody_set",
        "tests/kernels/test_operators.py::test_an_operator_is_equation_one",
        "tests/kernels/test_hyena_fir.py::test_many_taps",
    ],
    "Hyena-MR's taps and window run backwards in one of two kernels": [
        "tests/kernels/test_operators.py::test_an_operator_is_equation_one",
        "tests/kernels/test_hyena_fir.py::test_many_taps",
        "tests/sh2/test_convert_tensors.py::test_filters_are_stored_first_tap_on_the_current_token",
    ],
    "rotary positions are bfloat16, so neighbours far out are one": [
        f"{HERE}::test_neighbours_far_out_are_turned_apart_in_bfloat16",
    ],
    "stored rotary frequencies undo a new base": [
        "tests/sh2/test_extension.py::test_a_model_begun_from_a_shorter_one_turns_by_the_formula",
    ],
    "rotary positions are wrong under context parallelism": [
        "tests/sh2/parallel/test_equivalence.py::test_all_is_as_in_one_process",
    ],
    "Hyena-MR's window hangs on the context, and tensors have its length": [
        "tests/sh2/test_extension.py::test_the_window_of_hyena_mr_does_not_change_with_the_context",
        f"{HERE}::test_no_tensor_knows_the_context",
    ],
    "a circular FFT shows the start of a sequence its end": [
        "tests/kernels/test_operators.py::test_no_output_depends_on_a_later_input",
        "tests/sh2/test_model.py::test_no_logit_depends_on_a_later_token",
    ],
    "Hyena-SE gets no halo under context parallelism": [
        "tests/sh2/parallel/test_equivalence.py::test_all_is_as_in_one_process",
    ],
    "weights of the loss and masks of tags hang on how a batch is cut": [
        "tests/sh2/test_train_update.py::test_the_gradient_does_not_depend_on_the_split_into_micro_batches",
        "tests/sh2/test_train_loop.py::test_the_result_does_not_depend_on_accumulation",
        "tests/data/test_windows.py::test_in_order_the_windows_are_the_documents_end_to_end",
    ],
    "weight decay reaches poles, taps, norms and embeddings": [
        "tests/sh2/test_train_update.py::test_every_parameter_is_in_one_group_and_only_matrices_of_linear_layers_decay",
    ],
    "a resumed run with accumulation reads data that it has read": [
        f"{HERE}::test_a_resumed_run_with_accumulation_goes_on_with_the_data_it_has_not_read",
    ],
    "every Hyena-SE and Hyena-MR layer is billed as a long convolution": [
        f"{HERE}::test_each_kind_of_layer_is_billed_as_what_it_is",
        "tests/sh2/test_accounting.py::test_filters_cost_two_operations_a_tap_or_mode_and_one_a_gate",
    ],
    "filters are initialised alike in all shards": [
        f"{HERE}::test_no_filter_begins_as_another",
        "tests/sh2/test_model.py::test_weights_depend_on_the_seed_and_on_nothing_else",
    ],
    "biases get the gradient of one shard's tokens": [
        "tests/sh2/parallel/test_equivalence.py::test_all_is_as_in_one_process",
    ],
    "options crash, or do nothing": [
        f"{HERE}::test_every_option_is_read_somewhere",
    ],
    "a document leaks into the next, whatever is asked for": [
        "tests/sh2/test_model.py::test_a_document_start_hides_everything_before_it",
        "tests/sh2/test_train_loop.py::test_documents_are_reset_when_asked",
    ],
    "a mixture's indices wrap or repeat, and its schedule hangs on the length of the run": [
        "tests/data/test_mixture.py::test_shares_are_kept_and_no_window_is_left_out",
        "tests/data/test_mixture.py::test_a_window_depends_on_its_number_alone",
    ],
}


KINDS = {"S": "hyena_se", "M": "hyena_mr", "L": "hyena_li", "*": "attention"}


@cache
def functions(path: str) -> set[str]:
    """Names of the functions of a module."""
    return {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("error", WATCHED)
def test_each_error_is_watched_by_tests_that_are_there(error):
    for name in WATCHED[error]:
        path, function = name.split("::")
        assert function in functions(path), name


def test_what_is_built_first_changes_nothing_of_what_is_built_then():
    """The published code's first Hyena layer took the activation away from all feed-forward layers after it."""
    ours, published = preset("debug"), replace(TINY, first_activation=Activation.GELU, activation=Activation.IDENTITY)
    first = [block.feed_forward.activation for block in StripedHyena2(ours).blocks]
    bilinear = [block.feed_forward.activation for block in StripedHyena2(published).blocks]
    again = [block.feed_forward.activation for block in StripedHyena2(ours).blocks]

    assert first == again == [Activation.GELU] * 4
    assert bilinear == [Activation.GELU, *[Activation.IDENTITY] * 3]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_number_comes_from_memory_that_nobody_set(name):
    """Memory that torch has not set holds NaN here, so whatever was left to chance shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        model = StripedHyena2(CONFIGS[name])
    finally:
        torch.use_deterministic_algorithms(before)

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert [tensor_name for tensor_name, tensor in tensors.items() if not tensor.isfinite().all()] == []
    skips = [tensor for tensor_name, tensor in tensors.items() if tensor_name.endswith(".skip")]
    assert all(torch.equal(skip, torch.ones_like(skip)) for skip in skips)


class Ones(torch.nn.Module):
    """In place of a projection: queries, keys and values of ones."""

    def forward(self, x):
        return torch.ones(1, x.shape[1], 3 * TINY.width, dtype=torch.bfloat16)


@torch.no_grad()
def test_neighbours_far_out_are_turned_apart_in_bfloat16():
    """Above 4,096, bfloat16 has every 32nd number. The first pair of channels turns by a radian a token."""
    attention = StripedHyena2(TINY).bfloat16().blocks[3].mixer
    attention.input = Ones()
    positions = torch.arange(5000, 5064)

    queries, _ = attention.project(torch.zeros(1, 64, TINY.width, dtype=torch.bfloat16), positions[None])

    found = queries[0, :, 0, 0].double()
    wanted = positions.double().cos() - positions.double().sin()
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_no_tensor_knows_the_context(name):
    def shapes(config: ModelConfig) -> dict[str, torch.Size]:
        with torch.device("meta"):
            model = StripedHyena2(config)
        return {key: tensor.shape for key, tensor in [*model.named_parameters(), *model.named_buffers()]}

    config = replace(PRESETS[name], layout=PRESETS[name].layout[:4])

    assert shapes(replace(config, context=8192)) == shapes(replace(config, context=1_048_576))


@torch.no_grad()
@pytest.mark.parametrize("layer", range(4))
def test_no_filter_begins_as_another(layer):
    """Shards of one layer, or layers, that begin alike would be seen as rows that are alike."""
    blocks = StripedHyena2(TRAINABLE["debug"]).blocks
    rows = [
        tensor.flatten(1)
        for name, tensor in blocks[layer].named_parameters()
        if name.endswith(("taps", "residues", "weight"))
    ]

    assert rows
    assert all(len(tensor.unique(dim=0)) == len(tensor) for tensor in rows)


def test_layers_of_a_kind_begin_differently():
    blocks = StripedHyena2(replace(TINY, layout="SSMMLL**")).blocks

    for first in range(0, 8, 2):
        for (name, one), (_, other) in zip(
            blocks[first].named_parameters(), blocks[first + 1].named_parameters(), strict=True
        ):
            random = name.endswith(("taps", "residues", "weight"))
            assert torch.equal(one, other) != random, name


@pytest.mark.parametrize(
    ("letter", "name"), {"S": "hyena_se", "M": "hyena_mr", "L": "hyena_li", "*": "attention"}.items()
)
def test_each_kind_of_layer_is_billed_as_what_it_is(letter, name):
    flops = forward_flops(replace(TINY, layout=letter * 3), 64)

    assert flops[name] > 0
    assert all(flops[other] == 0 for other in {*KINDS.values()} - {name})
    # twice the length costs attention four times as much, a filter twice
    doubled = forward_flops(replace(TINY, layout=letter * 3), 128)[name] / flops[name]
    assert doubled == pytest.approx(4, abs=0.1) if letter == "*" else doubled == 2


def test_a_resumed_run_with_accumulation_goes_on_with_the_data_it_has_not_read(tmp_path):
    """Published: the place in the data is too small by the factor of the accumulation after a restart."""
    bases = "".join(np.random.default_rng(0).choice(list("ACGT"), 3000))
    (tmp_path / "g.fa").write_text(f">g\n{bases}\n")
    words = ["train", tmp_path / "g.fa", "--preset", "debug", "--steps", 4, "--length", 16, "--valid-windows", 0]
    words += ["--batch-size", 2, "--accumulation", 3, "--save-every", 2, "--keep-last", 9, "--threads", 1]

    def evo(*more):
        result = CliRunner().invoke(app, [str(word) for word in more])
        assert result.exit_code == 0, result.stderr

    evo(*words, "-o", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step_00000004")
    saved = json.loads((tmp_path / "cut" / "checkpoints" / "step_00000002" / "trainer.json").read_text())
    evo("train", "-o", tmp_path / "cut", "--resume")

    assert saved["state"]["windows"] == 2 * 2 * 3
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


@cache
def attributes_read() -> set[str]:
    """Names that the code reads of anything, other than the checks of the classes that hold the options."""
    names: set[str] = set()
    for room in ("sh2", "data", "evo_cli"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    names.add(node.attr)
    return names


@pytest.mark.parametrize("options", [TrainConfig, ModelConfig, PrepareOptions], ids=lambda options: options.__name__)
def test_every_option_is_read_somewhere(options):
    assert {field.name for field in fields(options)} <= attributes_read()
