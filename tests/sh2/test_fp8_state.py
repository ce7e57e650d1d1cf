"""The FP8 state of published files: its forms, what is not understood or hostile, and its way through conversions."""

import io
import pickle
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from sh2.checkpoint import Target, convert, load, save_model
from sh2.checkpoint.fp8_state import read_scales
from sh2.checkpoint.safetensors_file import read_safetensors
from sh2.checkpoint.torch_file import read_torch_file
from sh2.fp8 import InputProjection, precision_of
from tests.sh2.published_files import BASE, published_tensors

SCALES = (12.5, 1234.0)
KEYS = BASE | {"use_fp8_input_projections": True}
NAME = "blocks.{}.projections._extra_state"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe as Transformer Engine's module has it, of classes that are gone when the file is read."""
    module = ModuleType("transformer_engine.common.recipe")
    helper = namedtuple("_FormatHelper", ["max_fwd", "max_bwd"])
    override = namedtuple("_OverrideLinearPrecision", ["fprop", "dgrad", "wgrad"])

    class Format(Enum):
        HYBRID = helper(max_fwd=448, max_bwd=57344)

    @dataclass
    class DelayedScaling:
        fp8_format: Format = Format.HYBRID
        override_linear_precision: object = override(False, False, False)
        amax_history_len: int = 16

    classes = {"_FormatHelper": helper, "_OverrideLinearPrecision": override, "Format": Format}
    for name, made in {**classes, "DelayedScaling": DelayedScaling}.items():
        made.__module__, made.__qualname__ = module.__name__, name
        setattr(module, name, made)
    for name in ("transformer_engine", "transformer_engine.common"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return DelayedScaling()


def state(recipe: object, scales: tuple[float, ...] = SCALES) -> dict[str, object]:
    """What Transformer Engine keeps of a layer."""
    return {
        "recipe": recipe,
        "scale_fwd": torch.tensor([*scales, 1.0]),
        "amax_history_fwd": torch.rand(16, 3),
        "scale_bwd": torch.ones(2),
        "amax_history_bwd": torch.rand(16, 2),
        "extra_fp8_variables": {"num_gemms": 1, "fp8_max_fwd": 448, "name": "x", "list": [1, 2.5, None]},
    }


def zipped(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


FORMS: dict[str, tuple[Callable[[object], bytes], Callable[[bytes], object]]] = {
    "a file in a BytesIO": (zipped, io.BytesIO),
    "a file in bytes": (zipped, bytes),
    "a pickle in a tensor": (pickle.dumps, lambda data: torch.frombuffer(bytearray(data), dtype=torch.uint8)),
}


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("transformer_engine")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("form", FORMS)
def test_scales_are_read_without_transformer_engine(monkeypatch: pytest.MonkeyPatch, recipe: object, form: str) -> None:
    blob = FORMS[form][0](state(recipe))
    forget(monkeypatch)
    assert read_scales(blob) == SCALES


@pytest.mark.parametrize("blob", [b"", pickle.dumps(None), zipped(None)])
def test_a_layer_that_never_ran_in_fp8_has_none(blob: bytes) -> None:
    assert read_scales(blob) is None


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (pickle.dumps({"scale": 1}), "it holds no list `scale_fwd`"),
        (pickle.dumps({"scale_fwd": torch.ones(1)}), "it holds no list `scale_fwd`"),
        (pickle.dumps({"scale_fwd": [1.0, 2.0]}), "it holds no list `scale_fwd`"),
        (zipped({"scale_fwd": torch.tensor([1.0, 0.0])}), "its scales are 1.0 and 0.0"),
        (zipped({"scale_fwd": torch.tensor([torch.inf, 1.0])}), "its scales are inf and 1.0"),
        (b"fp8 scales", "."),
        (zipped({"scale_fwd": torch.ones(3)})[:-40], "."),
    ],
)
def test_what_is_not_understood_says_why(blob: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_scales(blob)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("write", [zipped, pickle.dumps])
def test_nothing_in_a_blob_is_executed(tmp_path: Path, write: Callable[[object], bytes]) -> None:
    blob = write({"scale_fwd": torch.ones(3), "recipe": Hostile(tmp_path / "executed")})
    with pytest.raises(ValueError, match=r"^`\S+` is not loaded$"):
        read_scales(blob)
    inner = {"scale_fwd": HostileStorage(zipped(Hostile(tmp_path / "executed")))}
    with pytest.raises(ValueError, match=r"is not loaded|Weights only load failed"):
        read_scales(write(inner))
    assert not (tmp_path / "executed").exists()


class HostileStorage:
    """Asks torch to load bytes that hold something hostile, as the storage of a pickled tensor would."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return torch.storage._load_from_bytes, (self.data,)


def published(folder: Path, recipe: object, form: str) -> Path:
    """A published file whose first three blocks have FP8 state, each its own."""
    write, wrap = FORMS[form]
    blobs = {NAME.format(layer): wrap(write(state(recipe, (2.0 + layer, 100.0 + layer)))) for layer in range(3)}
    torch.save(published_tensors(KEYS) | blobs, folder / "m.pt")
    (folder / "m.yml").write_text(yaml.safe_dump(KEYS))
    return folder / "m.pt"


def scales_of(path: Path) -> dict[int, list[float]]:
    model = load(path)
    assert precision_of(model) == "fp8-emulated"
    found = {}
    for layer, block in enumerate(model.blocks):
        projection = block.mixer.input
        if isinstance(projection, InputProjection) and projection.fp8_scales is not None:
            assert projection.fp8_scales.dtype is torch.float32
            found[layer] = projection.fp8_scales.tolist()
    return found


@pytest.mark.parametrize("form", FORMS)
def test_scales_survive_loading_and_conversion_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: object, form: str
) -> None:
    source = published(tmp_path, recipe, form)
    forget(monkeypatch)
    want = {layer: [2.0 + layer, 100.0 + layer] for layer in range(3)}
    assert scales_of(source) == want
    assert scales_of(convert(source, tmp_path / "ours")) == want
    save_model(load(source, dtype=torch.bfloat16), tmp_path / "saved")
    assert scales_of(tmp_path / "saved") == want
    for name in ("back.pt", "back.safetensors"):
        back = convert(tmp_path / "ours", tmp_path / name, target=Target.PUBLISHED)
        assert scales_of(back) == want
    stored = read_torch_file(tmp_path / "back.pt")[NAME.format(1)].read()
    assert torch.equal(stored, read_safetensors(tmp_path / "back.safetensors")[NAME.format(1)].read())


def test_what_is_written_is_what_transformer_engine_reads(tmp_path: Path, recipe: object) -> None:
    convert(published(tmp_path, recipe, "a pickle in a tensor"), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back.pt", target=Target.PUBLISHED)
    blob = torch.load(tmp_path / "back.pt", weights_only=True)[NAME.format(2)]
    written = pickle.loads(blob.numpy().tobytes())
    assert written["scale_fwd"].tolist() == [4.0, 102.0, 1.0]
    assert written["amax_history_fwd"].shape == (16, 3)
    assert written["amax_history_fwd"][0].tolist() == pytest.approx([448 / 4, 448 / 102, 448])
    assert written["amax_history_bwd"].shape == (16, 2)


def test_stored_scales_decide_the_numbers(tmp_path: Path, recipe: object) -> None:
    stored = load(published(tmp_path, recipe, "a file in bytes"))
    torch.save(published_tensors(KEYS), tmp_path / "m.pt")
    current = load(tmp_path / "m.pt")
    ids_BL = torch.arange(20)[None]
    with torch.inference_mode():
        assert not torch.equal(stored(ids_BL)[0], current(ids_BL)[0])


def test_state_that_is_not_understood_is_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blobs = {NAME.format(layer): b"fp8 scales" for layer in range(2)}
    torch.save(published_tensors(KEYS) | blobs, tmp_path / "m.pt")
    (tmp_path / "m.yml").write_text(yaml.safe_dump(KEYS))
    assert scales_of(tmp_path / "m.pt") == {}
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"{tmp_path}/m.pt: the FP8 scales of 2 layers are not understood, theirs are taken from the values at hand "
        "(`blocks.0.projections._extra_state`: "
    )


def test_a_model_that_was_not_trained_in_fp8_has_no_scales(tmp_path: Path, recipe: object) -> None:
    source = published(tmp_path, recipe, "a file in bytes")
    (tmp_path / "m.yml").write_text(yaml.safe_dump(KEYS | {"use_fp8_input_projections": False}))
    model = load(source)
    assert precision_of(model) == "fp32"
    assert not [name for name in model.state_dict() if name.endswith("fp8_scales")]
