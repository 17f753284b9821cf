"""Schedules of the learning rate, and whether a finished run can be continued under them; no torch needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from avpt.types import ScheduleName


@dataclass(frozen=True, kw_only=True)
class RateSettings:
    """What a schedule computes its rates from. Epochs count from 0."""

    lr: float
    epochs: int
    milestones: Sequence[int]
    factor: float
    warmup_epochs: int


@dataclass(frozen=True)
class Schedule:
    """A learning rate over the epochs after warm-up.

    A finished run can be continued to more epochs if its rates would have been the same in a longer run: that is, if
    they do not depend on `RateSettings.epochs`.
    """

    rate: Callable[[RateSettings, int], float]
    continues: bool


def _step(settings: RateSettings, epoch: int) -> float:
    return float(settings.lr * settings.factor ** sum(epoch >= milestone for milestone in settings.milestones))


def _cosine(settings: RateSettings, epoch: int) -> float:
    """From the full rate at the first epoch after warm-up towards 0 past the last one."""
    progress = (epoch - settings.warmup_epochs) / (settings.epochs - settings.warmup_epochs)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))


def _constant(settings: RateSettings, epoch: int) -> float:
    return settings.lr


SCHEDULES: dict[ScheduleName, Schedule] = {
    "step": Schedule(_step, continues=True),
    "cosine": Schedule(_cosine, continues=False),
    "constant": Schedule(_constant, continues=True),
}


def learning_rate(
    *,
    lr: float,
    schedule: ScheduleName,
    epochs: int,
    milestones: Sequence[int],
    factor: float,
    warmup_epochs: int,
) -> Callable[[int, int, int], float]:
    """The learning rate as a function of (epoch from 0, step from 0, steps per epoch).

    Linear warm-up goes step by step and reaches the full rate with its last step; the schedule itself changes
    between epochs.
    """
    settings = RateSettings(lr=lr, epochs=epochs, milestones=milestones, factor=factor, warmup_epochs=warmup_epochs)

    def rate(epoch: int, step: int, steps: int) -> float:
        if epoch < warmup_epochs:
            return lr * (epoch * steps + step + 1) / (warmup_epochs * steps)
        return SCHEDULES[schedule].rate(settings, epoch)

    return rate
