"""StripedHyena 2: train it, load it, score with it, generate from it.

`import sh2` alone loads no torch: the names below are fetched when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sh2.checkpoint import load
    from sh2.config import ModelConfig
    from sh2.embedding import embed
    from sh2.generation import generate
    from sh2.guidance import beam_search, best_of
    from sh2.model import StripedHyena2
    from sh2.scoring import score

__all__ = ["ModelConfig", "StripedHyena2", "beam_search", "best_of", "embed", "generate", "load", "score"]

_HOMES = {
    "ModelConfig": "sh2.config",
    "StripedHyena2": "sh2.model",
    "beam_search": "sh2.guidance",
    "best_of": "sh2.guidance",
    "embed": "sh2.embedding",
    "generate": "sh2.generation",
    "load": "sh2.checkpoint",
    "score": "sh2.scoring",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module `sh2` has no attribute `{name}`")
