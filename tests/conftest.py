"""What tests of several rooms share."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # Triton reads this when a kernel is defined
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their length: gzip's hold the time of day, and parallel workers must agree on the names."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, saved in our format."""
    from sh2.checkpoint import save_model
    from tests.sh2.models import tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(tiny(), folder)
    return folder
