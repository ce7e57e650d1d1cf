"""Any source of weights as names and lazily read tensors: a file, parts of a file, a folder, a name on the hub."""

import re
from dataclasses import dataclass
from pathlib import Path

from sh2.checkpoint.folder import CONFIG, WEIGHTS, is_model_folder, read_model_config, read_model_tensors
from sh2.checkpoint.hub import fetch, is_hub_name
from sh2.checkpoint.layout import PublishedLayout, canonical_layout
from sh2.checkpoint.published import published_names, published_to_ours
from sh2.checkpoint.published_config import from_published, read_published_config
from sh2.checkpoint.safetensors_file import read_safetensors
from sh2.checkpoint.savanna import published_names_of, savanna_names, savanna_to_published
from sh2.checkpoint.shards import index_of, read_index
from sh2.checkpoint.tensors import LazyTensor
from sh2.checkpoint.torch_file import read_torch_file, read_torch_parts
from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.presets import PUBLISHED

_PART = re.compile(r"(.+)\.part(\d+)")
_ZIP = b"PK\x03\x04"
# published under another name than the preset of its shape
_SAME_SHAPE = {"evo2_7b_microviridae": "evo2_7b_base"}


@dataclass(frozen=True, slots=True)
class Model:
    """A configuration and our tensors that fit it."""

    config: ModelConfig
    tensors: dict[str, LazyTensor]


def open_model(path_or_name: str | Path, config_file: Path | None = None) -> Model:
    """Open weights in any known form as a model of ours; tensors are converted when they are read.

    Args:
        path_or_name: a folder in our format; a `.pt` file, its parts (`.pt.part0` ...), a safetensors file, or a
            folder with one of these, with published or Savanna names; the name of a published model (`evo2_7b`) or
            of a repository on the hub.
        config_file: a published configuration. Left out: one beside the file, or the preset with the file's name.

    Raises:
        Sh2Error: the source cannot be found or read, its names are not known, or it does not fit its configuration.
    """
    path = _find(path_or_name)
    if path.is_dir() and is_model_folder(path):
        if config_file is not None:
            raise Sh2Error(f"{path} has its own configuration; a published one is not used with it")
        return Model(read_model_config(path), read_model_tensors(path))
    tensors = _read(path)
    label = str(path)
    if savanna_names(tensors):
        config, layout = _configuration(path, config_file, published_names_of(tensors))
        tensors = savanna_to_published(tensors, config, label)
    elif published_names(tensors):
        config, layout = _configuration(path, config_file, tensors)
    elif "embedding.weight" in tensors:
        raise _without_config(path)
    else:
        some = ", ".join(f"`{name}`" for name in list(tensors)[:3])
        raise Sh2Error(f"{path} holds no StripedHyena 2 weights: its tensors are {some or 'none'} ...").hint(
            "known are the names of published files (`embedding_layer.weight` ...) and of Savanna (`sequential.0...`)"
        )
    return Model(config, published_to_ours(tensors, config, layout, label))


def _without_config(path: Path) -> Sh2Error:
    """Why weights with our names are no model: what is wrong with the configuration beside them."""
    if not path.is_dir():
        return Sh2Error(f"{path} has the weights of a model folder, without its {CONFIG}").hint("give the folder")
    try:
        read_model_config(path)
    except Sh2Error as error:
        return error
    return Sh2Error(f"{path} is not a model folder")


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.exists() or _parts(path):
        return path
    # `RUN/model` with a folder RUN here is a slip, not a repository
    if (
        isinstance(path_or_name, str)
        and is_hub_name(path_or_name)
        and (path.parent == Path() or not path.parent.is_dir())
    ):
        return fetch(path_or_name)
    raise Sh2Error(f"{path_or_name} does not exist").hint(
        f"give a path, a published name ({', '.join(PUBLISHED)}) or a hub repository such as arcinstitute/evo2_7b"
    )


def _read(path: Path) -> dict[str, LazyTensor]:
    if path.is_dir():
        return _read_folder(path)
    if parts := _parts(path):
        return read_torch_parts(parts)
    if path.suffix == ".safetensors" or not _is_zip(path):
        # only zip files can be mapped: whatever else has the suffix of torch gets torch's error
        return read_torch_file(path) if path.suffix in (".pt", ".pth", ".bin") else read_safetensors(path)
    return read_torch_file(path)


def _read_folder(folder: Path) -> dict[str, LazyTensor]:
    index = index_of(folder / WEIGHTS)
    if index.exists():
        return read_index(index)
    if shards := sorted(folder.glob("*.safetensors")):
        tensors: dict[str, LazyTensor] = {}
        for shard in shards:
            read = read_safetensors(shard)
            if twice := tensors.keys() & read.keys():
                raise Sh2Error(f"{shard}: `{min(twice)}` is in another file of the folder too")
            tensors |= read
        return tensors
    whole = sorted({folder / _PART.sub(r"\1", file.name) for file in folder.glob("*.pt*")})
    if len(whole) == 1:
        return _read(whole[0])
    raise Sh2Error(f"{folder} holds {len(whole) or 'no'} files of weights").hint(
        "give a folder with `config.json` and `model.safetensors`, or one `.pt` file"
    )


def _parts(path: Path) -> list[Path]:
    """The parts of a file that was cut, in order, given its name or that of one part; empty for a whole file.

    Raises:
        Sh2Error: a part is missing between others.
    """
    match = _PART.fullmatch(path.name)
    if path.is_file() and not match:
        return []
    stem = match[1] if match else path.name
    numbered = {
        int(part[2]): file
        for file in path.parent.glob("*.part*")
        if (part := _PART.fullmatch(file.name)) and part[1] == stem
    }
    for number in range(max(numbered, default=-1) + 1):
        if number not in numbered:
            raise Sh2Error(f"{path.parent / stem}.part{number} is missing: there are {len(numbered)} other parts")
    return [numbered[number] for number in sorted(numbered)]


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _ZIP


def _configuration(
    path: Path, config_file: Path | None, names: set[str] | dict[str, LazyTensor]
) -> tuple[ModelConfig, PublishedLayout]:
    """The configuration given, or lying beside the weights, or of the preset that the file is named after."""
    file = config_file or _beside(path)
    if file is not None:
        try:
            return from_published(read_published_config(file), names)
        except Sh2Error as error:
            hints = getattr(error, "__notes__", [])
            located = Sh2Error(f"{file}: {error}" if str(file) not in str(error) else str(error))
            raise (located.hint(hints[0]) if hints else located) from None
    name = _PART.sub(r"\1", path.name).split(".")[0].removeprefix("savanna_")
    preset = PUBLISHED.get(_SAME_SHAPE.get(name, name))
    if preset is None:
        raise Sh2Error(f"{path} needs the configuration of its model").hint(
            "give it with `--config FILE` (YAML or JSON), or name the file after a published model:"
            f" {', '.join(PUBLISHED)}"
        )
    return preset, canonical_layout(preset)


def _beside(path: Path) -> Path | None:
    """A published configuration with the file's own name, or `config.yml` in the folder."""
    if path.is_dir():
        candidates = [path / "config.yml", path / "config.yaml"]
    else:
        whole = path.with_name(_PART.sub(r"\1", path.name))
        candidates = [whole.with_suffix(suffix) for suffix in (".yml", ".yaml", ".json")]
        candidates += [path.parent / "config.yml"]
    return next((candidate for candidate in candidates if candidate.is_file()), None)
