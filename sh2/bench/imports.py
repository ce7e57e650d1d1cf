"""Importing one module of another package without the rest of it."""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from typing import Any


def import_alone(name: str) -> Any:
    """Import a module; where its parent packages cannot be imported, import it without running their own code.

    Some packages' top level imports compiled extensions that their plain Python modules never use.

    Raises:
        ImportError: the module itself cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        parents = name.split(".")[:-1]
        if not parents:
            raise
    for depth in range(1, len(parents) + 1):
        _stand_in(parents[:depth])
    return importlib.import_module(name)


def _stand_in(parts: list[str]) -> None:
    """Put an empty package in place of one that cannot be imported, so that its submodules can be found."""
    name = ".".join(parts)
    if name in sys.modules:
        return
    spec = ModuleSpec(name, loader=None, is_package=True)
    if len(parts) == 1:
        found = importlib.util.find_spec(name)
        spec.submodule_search_locations = list(found.submodule_search_locations or []) if found else []
    else:
        above = sys.modules[".".join(parts[:-1])].__path__
        spec.submodule_search_locations = [f"{folder}/{parts[-1]}" for folder in above]
    sys.modules[name] = importlib.util.module_from_spec(spec)
