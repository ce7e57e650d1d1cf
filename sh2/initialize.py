"""Starting values of every parameter, each on purpose.

A parameter's random numbers come from the seed and its own name, so they do not depend on the order of construction,
on what else the model holds, or on how it is split over devices.
"""

import hashlib
import math

import torch
from torch import Tensor, nn

from sh2.config import ModelConfig
from sh2.mixers import Attention, HyenaLI, HyenaMR, HyenaSE
from sh2.mixers.attention import rotary_frequencies
from sh2.mixers.hyena import decay_window

# Hyena-LI's memories at the start, in tokens, spread evenly in the logarithm over the modes of a channel
_SHORTEST_MEMORY, _LONGEST_MEMORY = 2.0, 4096.0


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int, *, prefix: str = "") -> None:
    """Set every parameter and buffer of a `StripedHyena2` of that configuration, or of a part of one, in place.

    Matrices into a block are N(0, 2/(5D)), matrices out of it N(0, (2/(layers sqrt(D)))^2), as in the published
    recipe; biases are 0, norms 1. Filters start close to passing the current token through.

    Args:
        prefix: the name of the part.

    Raises:
        ValueError: the model has a parameter that no rule covers.
    """
    into = math.sqrt(2 / (5 * config.width))
    out = 2 / (config.num_layers * math.sqrt(config.width))
    rules = {"embedding.weight": into, "unembedding.weight": into, "input.weight": into, "output.weight": out}
    rules |= {"gate.weight": into, "up.weight": into, "down.weight": out}
    done = set()
    for name, parameter in model.named_parameters(prefix):
        last, last_two = name.rsplit(".", 1)[-1], ".".join(name.rsplit(".", 2)[-2:])
        if last_two in rules:
            parameter.normal_(0.0, rules[last_two], generator=generator(seed, name, parameter.device))
        elif last == "scale":
            parameter.fill_(1.0)
        elif last in ("bias", "featurizer_bias", "pole_shift"):
            parameter.zero_()
        else:
            continue
        done.add(name)
    for path, module in model.named_modules(prefix=prefix):
        done |= {f"{path}.{name}" for name in _filters(module, path, seed)}
        if isinstance(module, Attention):
            module.inv_freq.copy_(rotary_frequencies(config))
    if missed := {name for name, _ in model.named_parameters(prefix)} - done:
        raise ValueError(f"no rule initialises {sorted(missed)}")


def _filters(module: nn.Module, prefix: str, seed: int) -> list[str]:
    """Initialise a hyena mixer's filters; return the names of the parameters set."""
    if not isinstance(module, (HyenaSE, HyenaMR, HyenaLI)):
        return []
    device = module.featurizer_taps.device
    _pass_through(module.featurizer_taps, generator(seed, f"{prefix}.featurizer_taps", device))
    names = ["featurizer_taps"]
    if isinstance(module, HyenaLI):
        _modes(module, generator(seed, f"{prefix}.residues", device))
        names += ["residues"]
    elif module.skip is None:
        _pass_through(module.taps, generator(seed, f"{prefix}.taps", device))
        names += ["taps"]
    else:
        # beside a skip of 1, the filter starts with a tenth of its energy
        window = torch.ones_like(module.taps)
        if module.window is not None:
            window = decay_window(module.window, module.taps.shape[0], module.taps.shape[1], module.taps.device)
        module.taps.normal_(generator=generator(seed, f"{prefix}.taps", device))
        module.taps.mul_(math.sqrt(0.1) / torch.linalg.vector_norm(window, dim=1, keepdim=True))
        names += ["taps"]
    if module.skip is not None:
        module.skip.fill_(1.0)
        names += ["skip"]
    return names


def _pass_through(taps: Tensor, generator: torch.Generator) -> None:
    """Tap 0 near 1, the rest small: the layer begins as the identity with a little of the past."""
    taps.normal_(0.0, math.sqrt(0.1 / taps.shape[1]), generator=generator)
    taps[:, 0] += 1.0


def _modes(module: HyenaLI, generator: torch.Generator) -> None:
    """Memories from a few tokens to thousands, each mode with the same energy, a tenth of the skip's in all."""
    modes = module.log_poles.shape[1]
    memory_N = torch.logspace(math.log10(_SHORTEST_MEMORY), math.log10(_LONGEST_MEMORY), modes, dtype=torch.float64)
    module.log_poles.copy_((-1.0 / memory_N).expand_as(module.log_poles))
    energy_N = 1.0 / -torch.expm1(-2.0 / memory_N)  # of the unit exponential: sum over t of lambda^(2t)
    module.residues.normal_(generator=generator)
    module.residues.mul_(torch.sqrt(0.1 / (modes * energy_N)).to(module.residues))


def generator(seed: int, name: str, device: torch.device) -> torch.Generator:
    """The random numbers of one parameter: they hang on the seed and its name alone."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
