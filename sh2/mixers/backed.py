"""A mixer that kernels can run: which ones do is a choice of the machine's, and no file has it."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import Backend
from sh2.errors import Sh2Error


class Backed(nn.Module):
    """What mixers on a backend share. Each has an input projection."""

    backend: Backend = Backend.AUTO  # set by `StripedHyena2.use_backend`

    input: nn.Linear

    def check_backend(self, backend: Backend) -> None:
        """Refuse a backend that cannot run this mixer, of its sizes, in its dtype and on its device; nothing is run.

        Raises:
            Sh2Error: says why.
        """
        weight_ED = self.input.weight
        before, self.backend = self.backend, backend
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                x_B1D = weight_ED.new_empty(1, 1, weight_ED.shape[1])
                self(x_B1D, self(x_B1D)[1])
        except ValueError as error:
            raise Sh2Error(str(error)).hint(
                "the backend `auto` takes plain torch where the kernels cannot run; `evo doctor` shows what is there"
            ) from None
        finally:
            self.backend = before
