"""How many processes share what: `dp=4,tp=2,cp=2`. Knows nothing of models or of how processes meet."""

from dataclasses import dataclass
from typing import Self

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from sh2.errors import Sh2Error

_MEANING = "dp (windows), cp (pieces of a window), tp (channels)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parallel:
    """The processes of a run as a block: their number is the product."""

    dp: int = 1  # each has windows of its own
    cp: int = 1  # they share the length of each window
    tp: int = 1  # they share the channels, heads and filter groups of each block

    @classmethod
    def parse(cls, text: str, processes: int) -> Self:
        """Read `dp=4,tp=2,cp=2`, in any order; what is missing is 1, but dp, or `dp` alone, is all that is left.

        Raises:
            Sh2Error: it is not of this form, or needs another number of processes.
        """
        given: dict[str, int] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, number = part.partition("=")
            if part == "dp":
                continue
            if name not in ("dp", "cp", "tp") or not number.isdecimal() or not int(number):
                raise Sh2Error(f"parallel `{text}`: `{part}` is not dp, cp or tp with a number of at least 1").hint(
                    f"write `dp=4,tp=2,cp=2`: {_MEANING}; what is left out of dp is found"
                )
            if name in given:
                raise Sh2Error(f"parallel `{text}` gives {name} twice")
            given[name] = int(number)
        rest = given.get("cp", 1) * given.get("tp", 1)
        parallel = cls(**{"dp": max(1, processes // rest), **given})
        if parallel.processes != processes:
            least = "" if "dp" in given else "a multiple of "
            raise Sh2Error(
                f"parallel `{text}` needs {least}{parallel.processes if 'dp' in given else rest} processes; "
                f"{'there is 1' if processes == 1 else f'there are {processes}'}"
            ).hint(
                f"start as many with `torchrun --nproc-per-node N -m evo_cli train ...` or srun, or change `--parallel`"
                f"{' (without dp, that takes what is left)' if 'dp' in given else ''}"
            )
        return parallel

    @property
    def processes(self) -> int:
        """How many there are."""
        return self.dp * self.cp * self.tp

    @property
    def shards(self) -> int:
        """Processes that hold the same channels, and so share the memory for them."""
        return self.dp * self.cp

    def mesh(self, device: str) -> DeviceMesh:
        """The processes as a mesh of dimensions dp, cp and tp; neighbours in tp are neighbours on the machine."""
        return init_device_mesh(device, (self.dp, self.cp, self.tp), mesh_dim_names=("dp", "cp", "tp"))

    def __str__(self) -> str:
        return f"dp={self.dp},cp={self.cp},tp={self.tp}"
