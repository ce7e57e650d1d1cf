"""What tests of several rooms share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, saved in our format."""
    from sh2.checkpoint import save_model
    from tests.sh2.models import tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(tiny(), folder)
    return folder
