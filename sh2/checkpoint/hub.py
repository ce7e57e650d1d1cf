"""Weights on the Hugging Face hub. The only module that reaches for the network; HF_HUB_OFFLINE is honoured."""

import re
from pathlib import Path

from sh2.errors import Sh2Error
from sh2.presets import HUB, HubSource

# a fine-tuned model of the same shape, which lives elsewhere
_MICROVIRIDAE = HubSource(repository="evo-design/evo-2-7b-8k-microviridae", filename="evo2_7b_microviridae.pt")
_ANY_FORMAT = ["config.json", "config.yml", "*.safetensors", "*.safetensors.index.json", "*.pt", "*.pt.part*"]


def is_hub_name(name: str) -> bool:
    """Whether this is the name of a published model, or looks like `owner/repository`."""
    return name in HUB or name == "evo2_7b_microviridae" or re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def fetch(name: str) -> Path:
    """Download, or find in the cache, the files of a model; return the file or folder that holds them.

    Raises:
        Sh2Error: there is no such repository, or no network and no copy in the cache.
    """
    # slow to import, and not needed for local files
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    source = _source(name)
    repository = name if source is None else source.repository
    patterns = _ANY_FORMAT if source is None else [source.filename, f"{source.filename}.part*"]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns))
    except (LocalEntryNotFoundError, OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise Sh2Error(f"`{name}`: no such path, and the hub's {repository} could not be fetched: {reason}").hint(
            "check the spelling; without a network, download on another machine and give the path of the file"
        ) from None
    if source is None:
        return folder
    whole = folder / source.filename
    if not whole.exists() and not any(folder.glob(f"{source.filename}.part*")):
        raise Sh2Error(f"`{name}`: {source.filename} of the hub's {repository} is not in the cache").hint(
            "unset HF_HUB_OFFLINE, or give the path of the file"
        )
    return whole


def _source(name: str) -> HubSource | None:
    known = [*HUB.items(), ("evo2_7b_microviridae", _MICROVIRIDAE)]
    return next((source for key, source in known if name in (key, source.repository)), None)
