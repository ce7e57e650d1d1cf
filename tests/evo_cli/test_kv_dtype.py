"""`--kv-dtype` of the commands that read: keys and values in FP8, as in Python."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import sh2
from sh2.reading.scan import scan
from tests.evo_cli.cli import evo, rows

BASES = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 8_700).tobytes()  # more than are read at once


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "genome.fa"
    path.write_bytes(b">one\n" + BASES + b"\n")
    return path


def asked(command: str, genome: Path, model: Path, kv_dtype: str) -> np.ndarray:
    """What a command says of the genome."""
    output = genome.with_name(f"{command}_{kv_dtype}" + {"score": ".tsv", "embed": ".h5", "scan": ""}[command])
    more = {"score": (), "embed": ("--layers", "norm"), "scan": ("--tracks", "logprob")}[command]
    result = evo(command, genome, "-m", model, "-o", output, "--kv-dtype", kv_dtype, *more)
    assert result.returncode == 0, result.stderr
    told = next(output.parent.glob(f"{output.name}*meta.json"), None)
    if told is not None:
        assert json.loads(told.read_text())["options"].get("kv_dtype", "auto") == kv_dtype
    if command == "score":
        return np.array([float(rows(output.read_text())[0]["log_likelihood"])])
    if command == "embed":
        with h5py.File(output) as file:
            return np.concatenate([np.asarray(part).ravel() for part in _numbers(file)])
    (track,) = output.parent.glob(f"{output.name}*.bedgraph*")
    return np.array([float(line.split()[3]) for line in track.read_text().splitlines() if line.startswith("one")])


def _numbers(file: h5py.File) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    file.visititems(
        lambda _, item: found.append(item[()]) if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" else None
    )
    return found


def expected(command: str, model: sh2.StripedHyena2) -> np.ndarray:
    """The same, from Python."""
    if command == "score":
        return np.array([sh2.score(model, [BASES])[0].log_likelihood])
    if command == "embed":
        return sh2.embed(model, [BASES], layers=["norm"])[0].ravel()
    return np.concatenate([block_SL[0] for _, block_SL in scan(model, BASES)])


@pytest.mark.parametrize("command", ["score", "embed", "scan"])
def test_keys_and_values_are_kept_as_asked_for(command: str, genome: Path, model_folder: Path) -> None:
    found = {kv_dtype: asked(command, genome, model_folder, kv_dtype) for kv_dtype in ("auto", "fp8")}
    want = {name: expected(command, sh2.load(model_folder).use_kv_dtype(name)) for name in found}
    assert not np.array_equal(want["auto"], want["fp8"])
    for name, numbers in found.items():
        np.testing.assert_allclose(numbers, want[name], rtol=2e-5, atol=2e-5, err_msg=name)
