"""What tests of the kernels share."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill what is allocated and never written with NaN."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or torch refuses matrix products on a GPU
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def all_memory() -> None:
    """Free what tests before left behind, of which a test that takes most of a GPU has no room for any."""
    gc.collect()
    torch.cuda.empty_cache()
