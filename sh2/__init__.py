"""StripedHyena 2: train it, load it, score with it, generate from it.

`import sh2` alone loads no torch: the names below are fetched when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sh2.checkpoint import load, save_model
    from sh2.config import ModelConfig
    from sh2.devices.replicas import Replicas
    from sh2.errors import Sh2Error
    from sh2.generation.generate import GenerationOptions, generate
    from sh2.generation.guidance import beam_search, best_of
    from sh2.model import StripedHyena2
    from sh2.reading.embedding import embed
    from sh2.reading.scoring import score

__all__ = [
    "GenerationOptions",
    "ModelConfig",
    "Replicas",
    "Sh2Error",
    "StripedHyena2",
    "beam_search",
    "best_of",
    "embed",
    "generate",
    "load",
    "save_model",
    "score",
]

_HOMES = {
    "GenerationOptions": "sh2.generation.generate",
    "ModelConfig": "sh2.config",
    "Replicas": "sh2.devices.replicas",
    "Sh2Error": "sh2.errors",
    "StripedHyena2": "sh2.model",
    "beam_search": "sh2.generation.guidance",
    "best_of": "sh2.generation.guidance",
    "embed": "sh2.reading.embedding",
    "generate": "sh2.generation.generate",
    "load": "sh2.checkpoint",
    "save_model": "sh2.checkpoint",
    "score": "sh2.reading.scoring",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module `sh2` has no attribute `{name}`")
