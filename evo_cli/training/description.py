"""What made a run, written down beside the model: `run.json`."""

import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from evo_cli.inference import warn
from evo_cli.training.config import RunConfig
from evo_cli.training.data import RunData
from sh2.train.folder import RunFolder
from sh2.train.records import write_json


def describe(
    run: RunConfig, data: RunData, folder: RunFolder, *, parameters: int, parallel: str | None, from_step: int
) -> None:
    """Write what made the run so far, and what makes the part that begins now.

    Args:
        parallel: how many processes share what; None for one process.
    """
    session = {
        "from_step": from_step,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "device": run.train.device,
        "parallel": parallel,
        "threads": run.train.threads,
        "machine": platform.platform(),
        "versions": {
            "evo": version("evo-sh2"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": version("numpy"),
        },
    }
    content = {
        "seed": run.train.seed,
        "parameters": parameters,
        "from": run.start,
        "data": data.describe(),
        "sessions": [*_sessions(folder), session],
    }
    write_json(folder.description, content)


def _sessions(folder: RunFolder) -> list[Any]:
    """What `run.json` says of the sessions before this one; nothing if it cannot be read, for no number hangs on it."""
    try:
        sessions = json.loads(folder.description.read_text(encoding="utf-8"))["sessions"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        warn(f"{folder.description} is damaged: what it said of earlier sessions is lost")
        return []
    return list(sessions)
