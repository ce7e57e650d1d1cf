"""One model a device and jobs handed out to them: results come in the order of the jobs, whatever ran where."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sh2.config import ModelConfig
from sh2.fp8 import precision_of
from sh2.model import StripedHyena2

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int], None]


class Replicas:
    """A model, ready to work through jobs.

    config: the model's. precision: in which numbers it runs, as `sh2.fp8.precision_of` says.
    """

    def __init__(self, load: Callable[[str], StripedHyena2], devices: list[str]) -> None:
        """Load the model on every device.

        Args:
            load: loads the model on a device.
        """
        (device,) = devices
        self._model = load(device)
        self.config: ModelConfig = self._model.config
        self.precision: str = precision_of(self._model)

    def map(
        self,
        work: Callable[[StripedHyena2, Job, Progress], Result],
        jobs: Iterable[Job],
        progress: Progress = lambda _: None,
    ) -> Iterator[Result]:
        """Run `work(model, job, progress)` for every job; yield the results in the order of the jobs.

        Args:
            work: does one job, and calls progress with what it has done since the last call.
            jobs: taken one by one as there is room for them, so that there may be any number.
        """
        for job in jobs:
            yield work(self._model, job, progress)
