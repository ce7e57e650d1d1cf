"""Loading and saving models: from folders, published files, parts and names; dtypes; what goes wrong."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import sh2.checkpoint.hub
from sh2.checkpoint import Target, convert, load, model_hash, save_model
from sh2.config import DEFAULT_WINDOW, FeedForward, ModelConfig, RotaryFrequencies
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from tests.sh2.published_files import BASE, published_tensors

CONFIG = ModelConfig(
    width=32, layout="SML*", num_heads=2, mlp_width=24, se_groups=4, mr_groups=8, mr_window=DEFAULT_WINDOW, num_modes=3
)
IDS = torch.arange(300)[None] % 32


@torch.no_grad()
def logits(model: StripedHyena2) -> torch.Tensor:
    return model(IDS)[0]


def assert_same_model(found: StripedHyena2, expected: StripedHyena2) -> None:
    assert found.config == expected.config
    states = found.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[1].items():
        assert states[0][name].dtype == tensor.dtype
        assert torch.equal(states[0][name], tensor), name
    assert torch.equal(logits(found), logits(expected))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, tied_embeddings=False, input_bias=True, featurizer_bias=True, queries_per_kv_head=2),
        replace(CONFIG, feed_forward=FeedForward.HYENA_SE, mr_skip=False, se_skip=True),
        replace(CONFIG, rotary_frequencies=RotaryFrequencies.STORED, hyena_output_bias=False),
        replace(CONFIG, layout="**", rotary_base=5e5, rotary_interpolation=4.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_saved_comes_back_to_the_bit(tmp_path: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    model = StripedHyena2(config, seed=3).to(dtype)
    save_model(model, tmp_path / "m")
    assert_same_model(load(tmp_path / "m"), model)
    assert not load(str(tmp_path / "m")).training


@pytest.mark.parametrize("published", [False, True])
def test_who_loads_and_scores_waits_for_no_compiler(tmp_path: Path, published: bool) -> None:
    """It is a second or more to import; and sympy, of which torch's meta tensors have need, a third of one."""
    save_model(StripedHyena2(CONFIG), model := tmp_path / "m")
    if published:
        model = convert(model, tmp_path / "m.pt", target=Target.PUBLISHED)
    work = f"sh2.score(sh2.load({str(model)!r}), ['ACGT'])"
    code = f"import sys, sh2; {work}; sys.exit(bool({{'torch._dynamo', 'sympy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


def test_weights_of_mixed_dtypes_get_the_one_that_holds_them_all(tmp_path: Path) -> None:
    model = StripedHyena2(CONFIG, seed=3).to(torch.bfloat16)
    model.embedding.float()
    save_model(model, tmp_path / "m")
    found = load(tmp_path / "m")
    assert {tensor.dtype for name, tensor in found.state_dict().items() if name.endswith("weight")} == {torch.float32}
    assert found.blocks[0].mixer.taps.dtype == torch.bfloat16
    assert torch.equal(logits(found), logits(load(tmp_path / "m", dtype=torch.float32)))


def test_a_dtype_leaves_poles_and_frequencies_alone(tmp_path: Path) -> None:
    config = replace(CONFIG, rotary_frequencies=RotaryFrequencies.STORED)
    save_model(StripedHyena2(config, seed=3), tmp_path / "m")
    state = load(tmp_path / "m", dtype=torch.bfloat16).state_dict()
    kept = {name.rsplit(".")[-1] for name, tensor in state.items() if tensor.dtype == torch.float32}
    assert kept == {"log_poles", "pole_shift", "residues", "inv_freq"}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.bfloat16}


def test_what_is_loaded_can_be_trained_and_does_not_hang_on_its_file(tmp_path: Path) -> None:
    save_model(StripedHyena2(CONFIG, seed=3), tmp_path / "m")
    model = load(tmp_path / "m")
    before = logits(model)
    with (tmp_path / "m" / "model.safetensors").open("r+b") as file:
        file.truncate(0)
    assert torch.equal(logits(model), before)
    model(IDS)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["tuned.pt", "tuned.safetensors", "tuned"])
def test_a_published_file_is_converted_on_the_fly(tmp_path: Path, name: str) -> None:
    """Window, shift and frequencies are folded: another configuration, the same model."""
    model = StripedHyena2(CONFIG, seed=3)
    with torch.no_grad():
        model.get_parameter("blocks.2.mixer.pole_shift").normal_()
    save_model(model, tmp_path / "m")
    convert(tmp_path / "m", tmp_path / name, target=Target.PUBLISHED)
    found = load(tmp_path / name)
    assert found.config == replace(CONFIG, mr_window=None, rotary_frequencies=RotaryFrequencies.STORED)
    assert torch.allclose(logits(found), logits(model), rtol=1e-5, atol=1e-5)
    # and it stays that model when it comes home
    convert(tmp_path / name, tmp_path / "home")
    assert_same_model(load(tmp_path / "home"), found)


def in_parts(folder: Path, count: int = 3) -> Path:
    keys = {**BASE, "num_attention_heads": 2}
    path = folder / "mine.pt"
    torch.save(published_tensors(keys), path)
    (folder / "mine.yml").write_text(yaml.safe_dump(keys))
    data = path.read_bytes()
    step = -(-len(data) // count)
    for number in range(count):
        path.with_name(f"mine.pt.part{number}").write_bytes(data[number * step : (number + 1) * step])
    return path


@pytest.mark.parametrize("name", ["mine.pt", "mine.pt.part0", "mine.pt.part11", "."])
def test_parts_go_by_the_name_of_the_whole_or_of_one_or_of_their_folder(tmp_path: Path, name: str) -> None:
    whole = in_parts(tmp_path, 12)
    expected = load(whole)
    whole.unlink()
    if name == ".":
        (tmp_path / "mine.yml").rename(tmp_path / "config.yml")
    assert_same_model(load(tmp_path / name), expected)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    in_parts(tmp_path).unlink()
    (tmp_path / "mine.pt.part1").unlink()
    with pytest.raises(Sh2Error, match=r"mine\.pt\.part1 is missing"):
        load(tmp_path / "mine.pt")


def test_a_published_name_says_which_configuration(tmp_path: Path) -> None:
    torch.save(published_tensors(BASE), tmp_path / "evo2_7b.pt")
    with pytest.raises(Sh2Error, match=r"evo2_7b\.pt does not fit its configuration: `embedding_layer\.weight` has"):
        load(tmp_path / "evo2_7b.pt")


@pytest.mark.parametrize(
    ("tensors", "message", "hint"),
    [
        (published_tensors(BASE), r"w\.pt needs the configuration of its model", "--config FILE"),
        ({"embedding.weight": torch.zeros(2)}, "weights of a model folder, without its config.json", "give the folder"),
        (
            {"lm_head.weight": torch.zeros(2)},
            "holds no StripedHyena 2 weights: its tensors are `lm_head",
            "sequential.0",
        ),
    ],
)
def test_weights_that_cannot_be_placed(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str, hint: str
) -> None:
    torch.save(tensors, tmp_path / "w.pt")
    with pytest.raises(Sh2Error, match=message) as caught:
        load(tmp_path / "w.pt")
    assert hint in caught.value.__notes__[0]


def test_a_folder_that_does_not_fit_its_configuration(tmp_path: Path) -> None:
    save_model(StripedHyena2(CONFIG, seed=3), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    content = json.loads(path.read_text())
    content["model"] |= {"layout": "SMLL", "mlp_width": 25}
    path.write_text(json.dumps(content))
    with pytest.raises(Sh2Error, match=r"`blocks\.0\.feed_forward\.gate\.weight` has shape \[24, 32\], not \[25, 32\]"):
        load(tmp_path / "m")


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    save_model(StripedHyena2(CONFIG), tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(Sh2Error, match=r"m/config\.json is not readable as JSON"):
        load(tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(Sh2Error, match=r"m/config\.json does not exist"):
        load(tmp_path / "m")


@pytest.mark.parametrize("dtype", ["bf16", torch.int64])
def test_only_floating_types_are_dtypes_of_a_model(tmp_path: Path, dtype: object) -> None:
    with pytest.raises(Sh2Error, match=r"dtype must be a floating type of torch such as torch\.bfloat16, not"):
        load(tmp_path, dtype=dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gone", "gone.pt", "{tmp}/gone", "{tmp}/sub/gone", "a/b/c"])
def test_what_does_not_exist_is_named_without_asking_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sh2.checkpoint.source, "fetch", lambda _: pytest.fail("asked the hub"))
    name = name.format(tmp=tmp_path)
    with pytest.raises(Sh2Error, match=f"{name} does not exist"):
        load(name)


def test_a_slip_in_a_path_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Sh2Error, match="run/modle does not exist"):
        load("run/modle")


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    save_model(StripedHyena2(CONFIG, seed=3), tmp_path / "m")
    with pytest.raises(Sh2Error, match="unknown device `nonsense`"):
        load(tmp_path / "m", device="nonsense")


def test_the_hash_of_a_saved_model(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        save_model(StripedHyena2(CONFIG, seed=seed), tmp_path / name)
    assert model_hash(tmp_path / "a") == model_hash(tmp_path / "b") != model_hash(tmp_path / "c")


# ---- the hub, without a network


@pytest.mark.parametrize("name", ["evo2_1b_base", "arcinstitute/evo2_1b_base"])
def test_published_names_come_from_their_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        torch.save(published_tensors(BASE), tmp_path / "evo2_1b_base.pt")
        return str(tmp_path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(Sh2Error, match=r"evo2_1b_base\.pt does not fit its configuration"):
        load(name)
    assert asked == [("arcinstitute/evo2_1b_base", ["evo2_1b_base.pt", "evo2_1b_base.pt.part*"])]


def test_a_repository_in_our_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StripedHyena2(CONFIG, seed=3)
    save_model(model, tmp_path / "m")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "m"))
    assert_same_model(load("somebody/model"), model)


def test_offline_without_a_copy_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        Sh2Error, match="`evo2_7b`: no such path, and the hub's arcinstitute/evo2_7b could not be fet"
    ) as caught:
        load("evo2_7b")
    assert "give the path of the file" in caught.value.__notes__[0]


def test_a_snapshot_without_the_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(Sh2Error, match=r"evo2_7b\.pt of the hub's arcinstitute/evo2_7b is not in the cache"):
        load("evo2_7b")


def test_weights_that_may_not_be_read_are_not_called_damaged(tmp_path: Path) -> None:
    save_model(StripedHyena2(CONFIG), tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(weights)  # which even root cannot open
    with pytest.raises(Sh2Error, match=r"model\.safetensors cannot be read: Too many levels of symbolic links"):
        load(tmp_path / "m")
