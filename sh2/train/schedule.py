"""The learning rate of a step. Knows nothing of optimizers."""

import math

from sh2.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of update `step`, counted from 1 to `config.steps`.

    With peak `lr`, floor `m = min_lr_fraction`, `W = warmup_steps` and `T = steps`:

        step <= W:  lr * step / W
        step >  W:  lr * (m + (1 - m) * (1 + cos(pi * (step - W) / (T - W))) / 2)

    so that step W has exactly `lr` and step T exactly `m * lr` (up to the last bit of the arithmetic).
    """
    warmup = config.warmup_steps
    if step <= warmup:
        return config.lr * step / warmup
    progress = (step - warmup) / (config.steps - warmup)
    floor = config.min_lr_fraction
    return config.lr * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
