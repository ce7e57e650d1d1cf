"""`evo train` beyond one store and random weights: from a model, longer, adapted, frozen, ablated, on a mixture."""

import json
import random
import shutil

import pytest
import torch
from typer.testing import CliRunner

import sh2
from data.prepare import PrepareOptions, prepare
from data.store import TokenStore
from evo_cli.main import app
from sh2.checkpoint import save_model
from sh2.checkpoint.adapters import load_adapters
from sh2.lora import merge_adapters
from sh2.model import StripedHyena2
from sh2.presets import preset
from tests.evo_cli.cli import evo as evo_process
from tests.evo_cli.cli import rows

MODEL = """
[model]
width = 32
layout = "SML*"
num_heads = 2
mlp_width = 48
se_groups = 2
mr_groups = 2
mr_taps = 16
num_modes = 4
"""
SMALL = ("--length", 32, "--batch-size", 2, "--valid-windows", 2, "--threads", 1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two stores, a FASTA file, a configuration, and a run of two steps with its model."""
    path = tmp_path_factory.mktemp("home")
    rng = random.Random(0)
    for name, records in (("a", 8), ("b", 4)):
        text = "".join(f">{name}{number}\n{''.join(rng.choices('ACGT', k=400))}\n" for number in range(records))
        (path / f"{name}.fa").write_text(text)
        prepare([path / f"{name}.fa"], path / f"{name}.h5", PrepareOptions(valid=0.25))
    (path / "model.toml").write_text(MODEL)
    (path / "options.toml").write_text(f"{MODEL}[data]\nvalid = 0.2\n")
    words = ["train", path / "a.h5", "--config", path / "model.toml", "--steps", 2, *SMALL, "-o", path / "run"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.stderr
    return path


@pytest.fixture
def evo(home, tmp_path, monkeypatch):
    for file in ("a.fa", "a.h5", "b.h5", "model.toml", "options.toml", "run"):
        (tmp_path / file).symlink_to(home / file)
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, ["train", *map(str, words)])


def error_of(result):
    """The exit code, the error and its hint, as one line each."""
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    return result.exit_code, *lines


def weights(folder):
    return sh2.load(folder).state_dict()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def interrupted(run, step, to):
    """The folder as a kill after the checkpoint of a step would have left it."""
    shutil.copytree(run, to)
    for path in (to / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    shutil.rmtree(to / "model")


def test_a_run_begins_from_the_weights_of_a_model(evo, tmp_path):
    """With a learning rate that no weight feels, they come out as they went in."""
    result = evo("a.h5", "--from", "run/model", "--steps", 1, *SMALL, "--lr", 1e-30, "-o", "again")

    assert result.exit_code == 0, result.stderr
    assert f"from: {tmp_path}/run/model" in result.stderr
    assert same(weights("again/model"), weights("run/model"))
    assert json.loads((tmp_path / "again" / "run.json").read_text())["from"] == f"{tmp_path}/run/model"


def test_a_run_begins_from_a_published_file(evo, tmp_path):
    """The file has folded filters and frequencies of its own; the first loss is that of the model in our format."""
    save_model(StripedHyena2(preset("debug"), seed=1), tmp_path / "debug")
    assert CliRunner().invoke(app, ["convert", "debug", "model.pt", "--to", "published"]).exit_code == 0
    for name, start in (("ours", "debug"), ("published", "model.pt")):
        assert evo("a.h5", "--from", start, "--steps", 1, *SMALL, "-o", name).exit_code == 0

    losses = [json.loads((tmp_path / run / "metrics.jsonl").read_text())["loss"] for run in ("ours", "published")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_run_does_not_go_on_from_another_model_than_it_began_with(evo, tmp_path):
    assert evo("a.h5", "--from", "run/model", "--steps", 1, *SMALL, "-o", "first").exit_code == 0
    shutil.copytree("run/model", "other")
    before = (tmp_path / "first" / "config.toml").read_bytes()

    code, error, _ = error_of(evo("-o", "first", "--resume", "--from", "other"))

    assert code == 1
    assert f"cannot resume with model field `from` changed from '{tmp_path}/run/model' to '{tmp_path}/other'" in error
    assert (tmp_path / "first" / "config.toml").read_bytes() == before


def test_a_run_from_a_model_is_resumed_when_that_is_gone(evo, tmp_path):
    shutil.copytree("run/model", "source")
    words = ["a.h5", "--from", "source", *SMALL, "--steps", 6, "--save-every", 3, "-o"]
    assert evo(*words, "whole").exit_code == 0
    interrupted(tmp_path / "whole", 3, tmp_path / "cut")
    shutil.rmtree("source")

    result = evo("-o", "cut", "--resume")

    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert same(weights("cut/model"), weights("whole/model"))


def test_a_run_without_a_whole_checkpoint_does_not_go_on_with_random_weights(evo, tmp_path):
    assert evo("a.h5", "--from", "run/model", *SMALL, "--steps", 1, "-o", "whole").exit_code == 0
    (tmp_path / "whole" / "checkpoints" / "step_00000001" / "trainer.json").write_text("{}")

    code, error, hint = error_of(evo("-o", "whole", "--resume"))

    assert (code, error) == (1, "error: no checkpoint in whole/checkpoints is whole")
    assert hint == f"hint: train into another folder, from {tmp_path}/run/model again"


def test_a_context_is_extended_in_stages(evo, tmp_path):
    words = ["a.h5", "--steps", 1, *SMALL[2:], "-o"]
    first = evo("--from", "run/model", "--length", 64, "--extend-by", "both", *words, "stage1")
    second = evo("--from", "stage1/model", "--length", 128, "--extend-by", "interpolation", *words, "stage2")

    assert (first.exit_code, second.exit_code) == (0, 0), first.stderr + second.stderr
    configs = [
        json.loads((tmp_path / run / "model" / "config.json").read_text())["model"]
        for run in ("run", "stage1", "stage2")
    ]
    assert [(config["context"], config["rotary_interpolation"], config["rotary_base"]) for config in configs] == [
        (32, 1.0, 1e4),
        (64, 2.0, 1e5),
        (128, 4.0, 1e5),
    ]
    # given back, the configuration extends nothing once more
    assert evo("--config", "stage1/config.toml", "--valid-windows", 3, "-o", "again").exit_code == 0
    assert json.loads((tmp_path / "again/model/config.json").read_text())["model"] == configs[1]


def test_longer_windows_without_an_extension_are_pointed_out(evo):
    result = evo("a.h5", "--from", "run/model", "--length", 64, "--steps", 1, *SMALL[2:], "-o", "long")

    assert result.exit_code == 0, result.stderr
    assert "warning: windows of 64 bp are longer than the context of the model, 32 bp: `--extend-by`" in result.stderr


def test_adapters_are_trained_saved_merged_and_resumed_to_the_byte(evo, tmp_path):
    lora = ["--from", "run/model", "--lora-rank", 2, "--lora-targets", "output", "--lora-targets", "down"]
    words = ["a.h5", *lora, *SMALL, "--steps", 6, "--save-every", 3, "--lr", 0.05, "-o"]
    whole = evo(*words, "whole")
    interrupted(tmp_path / "whole", 3, tmp_path / "cut")

    result = evo("-o", "cut", "--resume")

    assert (whole.exit_code, result.exit_code) == (0, 0), whole.stderr + result.stderr
    # 4 blocks, two matrices of rank 2 beside each output (32 x 32) and down (48 x 32)
    assert "trained: 1,152 of " in whole.stderr
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert same(weights("cut/model"), weights("whole/model"))
    before, after = weights("run/model"), weights("whole/model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"blocks.{n}.{part}.weight" for n in range(4) for part in ("mixer.output", "feed_forward.down")}
    assert len((tmp_path / "whole" / "checkpoints" / "step_00000006" / "optimizer.safetensors").read_bytes()) < 30_000
    model = sh2.load("run/model")
    load_adapters(model, tmp_path / "whole" / "adapter.safetensors")
    merge_adapters(model)
    assert same(model.state_dict(), after)


def test_adapters_are_resumed_beside_the_weights_they_began_with(evo, tmp_path):
    shutil.copytree("run/model", "source")
    words = ["a.h5", "--from", "source", "--lora-rank", 1, *SMALL, "--steps", 2, "--save-every", 1, "-o"]
    assert evo(*words, "whole").exit_code == 0
    interrupted(tmp_path / "whole", 1, tmp_path / "cut")
    shutil.rmtree("source")
    shutil.copytree("whole/model", "source")

    code, error, hint = error_of(evo("-o", "cut", "--resume"))

    assert code == 1
    assert "adapter.safetensors were trained with other weights than this model's" in error
    assert hint == "hint: give the model that they began from"


def test_what_is_frozen_stays(evo):
    result = evo(
        "a.h5", "--from", "run/model", "--freeze", "mixers", "--freeze", "norms", "--steps", 1, *SMALL, "-o", "x"
    )

    assert result.exit_code == 0, result.stderr
    before, after = weights("run/model"), weights("x/model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".mixer." not in name and "norm." not in name}


def test_an_ablation_of_a_preset_is_trained(evo, tmp_path):
    result = evo("a.h5", "--preset", "debug", "--ablation", "all-mr", "--steps", 1, *SMALL, "-o", "mr")

    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "mr" / "model" / "config.json").read_text())["model"]["layout"] == "MMM*"


def test_the_ablations_of_a_preset_are_listed():
    result = CliRunner().invoke(app, ["models", "--ablations", "debug", "--layout"])

    table = rows(result.stdout)
    assert [row["layout"] for row in table[:6]] == ["SML*", "SSL*", "LLL*", "SSS*", "MMM*", "****"]
    parameters = [int(row["parameters"]) for row in table]
    assert max(parameters) < 1.01 * parameters[0]
    assert min(parameters) > 0.99 * parameters[0]


def test_a_mixture_says_its_shares_and_is_resumed_to_the_byte(evo, tmp_path):
    words = ["a.h5=3", "b.h5=1", "--config", "model.toml", *SMALL, "--steps", 6, "--save-every", 3, "-o"]
    whole = evo(*words, "whole")
    interrupted(tmp_path / "whole", 3, tmp_path / "cut")
    result = evo("-o", "cut", "--resume")

    assert (whole.exit_code, result.exit_code) == (0, 0), whole.stderr + result.stderr
    lines = whole.stderr.splitlines()
    assert lines[0].startswith("data: a mixture of 2 stores, ")
    assert lines[1].startswith(f"   75.0% from {tmp_path}/a.h5: ")
    assert lines[2].startswith(f"   25.0% from {tmp_path}/b.h5: ")
    assert lines[2].endswith(" epochs in 6 steps")
    stores = json.loads((tmp_path / "whole" / "run.json").read_text())["data"]["stores"]
    assert [store["share"] for store in stores] == [0.75, 0.25]
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert error_of(evo("a.h5=1", "b.h5=1", "-o", "cut", "--resume"))[1].startswith(
        "error: cannot resume with data field `weights` changed from (3.0, 1.0) to (1.0, 1.0)"
    )


def test_a_mixture_may_stand_in_the_configuration(evo, tmp_path):
    (tmp_path / "mix.toml").write_text(MODEL + '[data]\ninputs = ["a.h5", "b.h5"]\nweights = [1, 3]\n')
    assert evo("--config", "mix.toml", *SMALL, "--steps", 1, "-o", "mix").exit_code == 0
    stores = json.loads((tmp_path / "mix" / "run.json").read_text())["data"]["stores"]
    assert [store["share"] for store in stores] == [0.25, 0.75]

    (tmp_path / "mix.toml").write_text(MODEL + '[data]\ninputs = ["a.h5", "b.h5"]\nweights = [1]\n')
    assert error_of(evo("--config", "mix.toml", *SMALL, "--steps", 1, "-o", "other"))[:2] == (
        1,
        "error: data field `weights` must be a list of a number for each input, not [1]",
    )


def test_stores_without_weights_are_mixed_by_their_bases(evo, tmp_path):
    assert evo("a.h5", "b.h5", "--config", "model.toml", *SMALL, "--steps", 1, "-o", "mix").exit_code == 0

    stores = json.loads((tmp_path / "mix" / "run.json").read_text())["data"]["stores"]
    bases = []
    for name in ("a.h5", "b.h5"):
        with TokenStore(tmp_path / name) as store:
            bases.append(sum(int(segment["end"] - segment["start"]) for segment in store.segments("train")))
    assert [store["share"] for store in stores] == [pytest.approx(count / sum(bases)) for count in bases]


def test_a_file_may_be_called_like_a_weight(evo, tmp_path):
    (tmp_path / "a.h5=2").symlink_to(tmp_path / "a.h5")

    result = evo("a.h5=2", "--config", "model.toml", *SMALL, "--steps", 1, "-o", "one")

    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith(f"data: {tmp_path}/a.h5=2, ")


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["a.h5=1", "b.h5"], "1 of 2 inputs have a weight", "give every store one, `a.h5=0.7 b.h5=0.3`, or none"),
        (["a.h5=1", "b.h5=-2"], "the weight of b.h5 must be a number above 0, such as 0.7, not `-2`", None),
        (["a.h5=most", "b.h5=1"], "the weight of a.h5 must be a number above 0, such as 0.7, not `most`", None),
        (
            ["a.h5=0", "b.h5=0", "--config", "model.toml"],
            "data field `weights` must be of numbers above 0, not [0.0, 0.0]",
            "leave out the stores that are not wanted",
        ),
        (
            ["a.h5=1", "a.fa=1", "--config", "model.toml"],
            "a.fa is no token store: only stores can be mixed, or weighted",
            "make one of it with",
        ),
        (["a.h5=1", "c.h5=1", "--config", "model.toml"], "c.h5 does not exist", None),
        (
            ["a.h5", "--config", "options.toml"],
            "data field `valid` is for sequence files, and",
            "leave it out, or give it to `evo prepare`",
        ),
        (["a.h5", "--from", "nowhere"], "nowhere does not exist", "give a path, a published name"),
        (["a.h5", "--from", "run/model", "--preset", "debug"], "`--preset` and `--from` cannot both be given", None),
        (
            ["a.h5", "--extend-by", "base", "--preset", "debug"],
            "`--extend-by` extends a model that is there",
            "give it",
        ),
        (
            ["a.h5", "--from", "run/model", "--extend-by", "yarn"],
            "must be `interpolation` or `base` or `both`, not 'yarn'",
            None,
        ),
        (
            ["a.h5", "--from", "run/model", "--extend-by", "base", "--length", 16],
            "a context of 16 extends nothing: the model's own is 32",
            "give a `--length` above 32",
        ),
        (
            ["a.h5", "--preset", "debug", "--lora-rank", 4],
            "adapters (`--lora-rank`) are trained beside",
            "give it with",
        ),
        (
            ["a.h5", "--from", "run/model", "--lora-rank", 4, "--freeze", "norms"],
            "train fields `freeze` and `lora_rank` cannot both be given",
            "adapters leave all weights as they are",
        ),
        (["a.h5", "--from", "run/model", "--lora-rank", 4, "--lora-targets", "q"], "unknown target `q`", "use input,"),
        (
            ["a.h5", "--from", "run/model", "--freeze", "convs"],
            "nothing of the model is called `convs`",
            "use embedding",
        ),
        (
            ["a.h5", "--preset", "debug", "--ablation", "all-mrs"],
            "unknown ablation `all-mrs`",
            "did you mean `all-mr`?",
        ),
        (["a.h5", "--config", "model.toml", "--ablation", "groups-of-64"], "has no filter groups of 64 channels", None),
    ],
)
def test_a_mistake_is_one_line_and_a_way_out(evo, words, error, hint):
    result = evo(*words, "--steps", 1, *(SMALL if "--length" not in words else SMALL[2:]), "-o", "none")

    code, message, *hints = error_of(result)
    assert code == 1, result.stderr
    assert error in message
    assert hint is None or hints[0].startswith(f"hint: {hint}")


def test_a_process_of_its_own_does_all_of_it(evo, tmp_path):
    words = ["train", "a.h5=0.7", "b.h5=0.3", "--from", "run/model", "--extend-by", "interpolation", "--lora-rank", 1]

    result = evo_process(*words, "--length", 64, *SMALL[2:], "--steps", 1, "-o", "all", cwd=tmp_path)

    assert (result.returncode, result.stdout) == (0, "all/model\n"), result.stderr
    assert sh2.load("all/model").config.rotary_interpolation == 2.0
