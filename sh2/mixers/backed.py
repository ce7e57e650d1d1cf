"""A mixer that kernels can run: which ones do is a choice of the machine's, and no file has it."""

from itertools import chain

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import Backend
from sh2.errors import Sh2Error
from sh2.packed import PackedLinear


class Backed(nn.Module):
    """What mixers on a backend share. Each has an input projection."""

    backend: Backend = Backend.AUTO  # set by `StripedHyena2.use_backend`

    input: nn.Linear | PackedLinear

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(chain(self.parameters(), self.buffers())).device

    def check_backend(self, backend: Backend, dtype: torch.dtype) -> None:
        """Refuse a backend that cannot run this mixer, of its sizes and on its device; nothing is run.

        Args:
            dtype: of its input.

        Raises:
            Sh2Error: says why.
        """
        before, self.backend = self.backend, backend
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                x_B1D = torch.empty(1, 1, self.input.in_features, dtype=dtype, device=self.device)
                self(x_B1D, self(x_B1D)[1])
        except ValueError as error:
            raise Sh2Error(str(error)).hint(
                "the backend `auto` takes plain torch where the kernels cannot run; `evo doctor` shows what is there"
            ) from None
        finally:
            self.backend = before
