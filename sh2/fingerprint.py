"""Which model this is, told from what is loaded: quick for any size, wherever the weights came from or lie."""

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import Tensor

from sh2.config import ModelConfig
from sh2.model import StripedHyena2

_SAMPLES = 1024  # of every tensor


def config_hash(config: ModelConfig) -> str:
    """SHA-256 of a configuration."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()


def weights_fingerprint(model: StripedHyena2) -> str:
    """SHA-256 over names, shapes and evenly spaced samples of all tensors, as float32.

    Training changes every tensor nearly everywhere, so about a thousand numbers of each tell models apart, and 14 GB
    need not be read a second time. A file's bf16 weights have one fingerprint in bf16 and in fp32. It is no proof
    against tampering: `sh2.checkpoint.model_hash` takes in every byte of a folder.
    """
    return tensors_fingerprint(sorted(model.state_dict().items()))


@torch.no_grad()
def tensors_fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The same, of any tensors with their names, which are taken one by one."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        flat = tensor.detach().reshape(-1)
        samples = flat[:: max(1, flat.numel() // _SAMPLES)]
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(samples.float().cpu().numpy().tobytes())
    return digest.hexdigest()
