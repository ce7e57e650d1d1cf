"""Windows made ahead: the same ones in the same order, on a thread, and whatever goes wrong there is said here."""

import threading

import numpy as np
import pytest
import torch

from sh2.train import loader as loader_module
from sh2.train.loader import HostBatch, Loader
from tests.sh2.test_train_update import RandomWindows


class Watched(RandomWindows):
    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.asked: list[tuple[int, int]] = []
        self.threads: set[str] = set()

    def batch(self, first, count):
        self.asked.append((first, count))
        self.threads.add(threading.current_thread().name)
        if first + count > 90:
            raise ValueError("the disk is gone")
        return super().batch(first, count)


def test_batches_are_the_source_s_in_order_and_made_before_they_are_asked_for() -> None:
    source = Watched(12)
    wanted = [(4, 2), (6, 2), (8, 3), (11, 2), (13, 2), (0, 1), (1, 2), (3, 1)]
    with Loader(source, iter(wanted), pinned=False) as loader:
        found = [loader.next() for _ in wanted]
    # one by one until their length is known, then all that follow one another
    assert source.asked == [(4, 2), (6, 2), (8, 3), (11, 4), (0, 4)]
    assert all(name.startswith("windows") for name in source.threads)
    for (first, count), batch in zip(wanted, found, strict=True):
        plain = RandomWindows(12).batch(first, count)
        assert np.array_equal(batch.tokens.numpy(), plain.tokens)
        assert np.array_equal(batch.weights.numpy(), plain.weights)
        assert np.array_equal(batch.document_starts.numpy(), plain.document_starts)
        assert batch.weight == plain.weights.sum(dtype="float64")


def test_it_works_ahead_while_nobody_asks_but_not_far(monkeypatch) -> None:
    monkeypatch.setattr(loader_module, "_TOGETHER", 4 * 13)  # of 12 targets: 4 windows
    source = Watched(12)
    with Loader(source, ((number, 1) for number in range(50)), pinned=False) as loader:
        for _ in range(3):
            loader.next()
        loader._thread.submit(lambda: None).result()  # behind what was ordered
        assert source.asked == [(0, 1), (1, 1), (2, 1), (3, 4), (7, 4)]
        loader.next()
        loader._thread.submit(lambda: None).result()
        assert source.asked[5:] == [(11, 4)]
    assert len(source.asked) == 6


def test_what_goes_wrong_is_said_where_it_is_asked_for_and_not_before() -> None:
    for good in ([(88, 1)], [(86, 1), (87, 1), (88, 1), (89, 1)]):  # apart from the bad one, and in one group with it
        with Loader(Watched(12), [*good, (90, 1)], pinned=False) as loader:
            for first, _ in good:
                assert np.array_equal(loader.next().tokens.numpy(), RandomWindows(12).batch(first, 1).tokens)
            with pytest.raises(ValueError, match="the disk is gone"):
                loader.next()


def test_nothing_is_waited_for_when_a_run_ends_early() -> None:
    blocked = threading.Event()

    class Slow(RandomWindows):
        def batch(self, first, count):
            blocked.wait(10)
            return super().batch(first, count)

    loader = Loader(Slow(12), ((number, 1) for number in range(50)), pinned=False)
    blocked.set()
    loader.__exit__()
    assert loader._thread._shutdown


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("recorded", [False, True])
def test_an_update_never_waits_for_the_device(recorded: bool) -> None:
    from sh2.config import DEFAULT_WINDOW, ModelConfig
    from sh2.model import StripedHyena2
    from sh2.train.config import Precision, TrainConfig
    from sh2.train.optimizer import build_optimizer
    from sh2.train.team import ALONE
    from sh2.train.update import Updates

    shape = ModelConfig(
        width=128, layout="SML*", num_heads=2, mlp_width=256, se_groups=8, mr_groups=8, mr_window=DEFAULT_WINDOW
    )
    config = TrainConfig(steps=9, batch_size=2, accumulation=2, length=512, precision=Precision.BF16, device="cuda")
    model = StripedHyena2(shape).cuda()
    updates = Updates(model, build_optimizer(model, config), config, ALONE)
    updates.passes.records = recorded
    source = RandomWindows(512)
    with Loader(source, [(4 * step, 4) for step in range(5)], pinned=True) as loader:
        batches = [loader.next() for _ in range(5)]
        assert all(batch.tokens.is_pinned() for batch in batches)
        for batch in batches[:3]:  # to compile, and to record, are to wait
            updates.make(batch, lr=1e-3)
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            for batch in batches[3:]:
                numbers = updates.make(batch, lr=1e-3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(numbers).all()


def test_a_batch_of_no_weight_is_zero() -> None:
    plain = RandomWindows(8).batch(0, 2)
    plain.weights[:] = 0
    assert HostBatch.of(plain, pinned=False).weight == 0.0
