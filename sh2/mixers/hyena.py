"""The three convolutional mixers: projection, hyena operator, output projection. Each is `(x, state) -> (y, state)`."""

# B batch, L length, D width, E = 3D projected channels, G filter groups, K taps, N modes

import torch
from torch import Tensor, nn

from kernels import FirState, ModalState, hyena_fir, hyena_fir_step, hyena_li, hyena_li_step
from sh2.config import DecayWindow, ModelConfig
from sh2.fp8 import InputProjection
from sh2.layers import linear, unset
from sh2.mixers.backed import Backed
from sh2.mixers.kept import Kept
from sh2.precision import Float32Kept


class Hyena(Backed):
    """What the three share: the projections and the featurizer (paper eq. 1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.input = unset(InputProjection, width, 3 * width, bias=config.input_bias)
        self.featurizer_taps = nn.Parameter(torch.empty(3 * width, config.featurizer_taps))
        self.featurizer_bias = nn.Parameter(torch.empty(3 * width)) if config.featurizer_bias else None
        self.output = linear(width, width, bias=config.hyena_output_bias)


class HyenaFir(Hyena):
    """A hyena mixer with an explicit filter: learned taps, one filter a group of channels."""

    def __init__(
        self, config: ModelConfig, *, groups: int, taps: int, skip: bool, window: DecayWindow | None = None
    ) -> None:
        super().__init__(config)
        self.taps = nn.Parameter(torch.empty(groups, taps))
        self.skip = nn.Parameter(torch.empty(config.width)) if skip else None
        self.window = window
        self._kept = Kept()

    def inner_filter(self) -> Tensor:
        """The filter that is applied [G, K]: the learned taps, under the decay window where there is one."""
        if self.window is None:
            return self.taps
        return self.taps.float() * decay_window(self.window, self.taps.shape[0], self.taps.shape[1], self.taps.device)

    def filters(self, inner_GK: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """What the operator takes beside a projection and a state; the inner filter, where it is at hand already."""
        inner_GK = self.inner_filter() if inner_GK is None else inner_GK
        return self.featurizer_taps, self.featurizer_bias, inner_GK, self.skip

    def forward(self, x_BLD: Tensor, state: FirState | None = None) -> tuple[Tensor, FirState]:
        u_BLD, state = self.inner(x_BLD, state)
        return self.output(u_BLD), state

    def inner(self, x_BLD: Tensor, state: FirState | None = None) -> tuple[Tensor, FirState]:
        """What `output` projects [B, L, D], and the state."""
        return hyena_fir(self.input(x_BLD), *self.filters(), state, backend=self.backend)

    def advance(self, z_BE: Tensor, state: FirState) -> Tensor:
        """What lies between the projections, for one token; the state itself moves on."""
        filters = self.filters(self._kept.of(self.inner_filter, self.taps))
        return hyena_fir_step(z_BE, *filters, state, backend=self.backend)


class HyenaSE(HyenaFir):
    """Hyena-SE: a few learned taps."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, groups=config.se_groups, taps=config.se_taps, skip=config.se_skip)


class HyenaMR(HyenaFir):
    """Hyena-MR: hundreds of learned taps under a fixed decay window."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            config, groups=config.mr_groups, taps=config.mr_taps, skip=config.mr_skip, window=config.mr_window
        )


class HyenaLI(Float32Kept, Hyena):
    """Hyena-LI: a filter as long as the sequence, the sum of real exponentials; none are shared between channels.

    The poles are log_poles * exp(pole_shift): the shift is what is trained, so a pole stays a decay whatever the step,
    and a published file's poles are kept to the bit.
    """

    float32_names = ("log_poles", "pole_shift", "residues")

    log_poles: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        shape = config.width, config.num_modes
        self.register_buffer("log_poles", torch.empty(shape, dtype=torch.float32))
        self.pole_shift = nn.Parameter(torch.empty(shape, dtype=torch.float32))
        self.residues = nn.Parameter(torch.empty(shape, dtype=torch.float32))
        self.skip = nn.Parameter(torch.empty(config.width))
        self._kept = Kept()

    def effective_log_poles(self) -> Tensor:
        """The logarithms of the poles that are applied [D, N], float32."""
        return self.log_poles * self.pole_shift.exp()

    def filters(self, log_poles_DN: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """What the operator takes beside a projection and a state; the poles, where they are at hand already."""
        log_poles_DN = self.effective_log_poles() if log_poles_DN is None else log_poles_DN
        return self.featurizer_taps, self.featurizer_bias, log_poles_DN, self.residues, self.skip

    def forward(self, x_BLD: Tensor, state: ModalState | None = None) -> tuple[Tensor, ModalState]:
        u_BLD, state = self.inner(x_BLD, state)
        return self.output(u_BLD), state

    def inner(self, x_BLD: Tensor, state: ModalState | None = None) -> tuple[Tensor, ModalState]:
        """What `output` projects [B, L, D], and the state."""
        return hyena_li(self.input(x_BLD), *self.filters(), state, backend=self.backend)

    def advance(self, z_BE: Tensor, state: ModalState) -> Tensor:
        """What lies between the projections, for one token; the state itself moves on."""
        filters = self.filters(self._kept.of(self.effective_log_poles, self.log_poles, self.pole_shift))
        return hyena_li_step(z_BE, *filters, state, backend=self.backend)


def decay_window(window: DecayWindow, groups: int, taps: int, device: torch.device) -> Tensor:
    """Return exp(-alpha_g k) [G, K], float32: tap k counted in tokens, alpha spaced evenly in the logarithm."""
    first, last = (
        torch.tensor(alpha, dtype=torch.float64).log10() for alpha in (window.alpha_first, window.alpha_last)
    )
    alpha_G = torch.logspace(float(first), float(last), groups, dtype=torch.float64, device=device)
    k = torch.arange(taps, dtype=torch.float64, device=device)
    return torch.exp(-alpha_G[:, None] * k).float()
