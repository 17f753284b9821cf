"""An axis of shares that is zoomed to the data, with round numbers at its ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST = 0.04  # that an axis spans, so that next to nothing does not look like much
MOST_STEPS = 6  # of an axis
SQUEEZED = 4  # an axis so many times as long as what some groups span squeezes the differences between them


@dataclass(frozen=True)
class Axis:
    """An axis from one round number to another."""

    low: float
    high: float
    step: float

    def place(self, value: float) -> float:
        """Where a value lies, from 0 at the low end to 1 at the high one."""
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        """The round numbers on it, with its ends."""
        return [self.low + place * self.step for place in range(round((self.high - self.low) / self.step) + 1)]

    @property
    def words(self) -> str:
        """Its range: 80 % to 90 %."""
        return f"{format_tick(self.low)} to {format_tick(self.high)}"


def choose_axes(groups: Sequence[Sequence[float]], least: float = LEAST) -> list[Axis]:
    """Choose one axis for all shares or, where that would squeeze the differences within a group, one for each group.

    Args:
        groups: whose shares are compared with others of their group; none is empty.
        least: that an axis spans.
    """
    every = [value for values in groups for value in values]
    whole = max(every) - min(every)
    if all(whole <= SQUEEZED * max(least, max(values) - min(values)) for values in groups if len(values) > 1):
        return [zoom(every, least)]
    return [zoom(values, least) for values in groups]


def zoom(values: Sequence[float], least: float) -> Axis:
    """Make an axis for some shares."""
    span = max(least, max(values) - min(values))
    step = round_up(span / (MOST_STEPS - 1))
    steps = math.ceil(span / step - 1e-9) + 1  # one more than needed, as the data begins at no round number
    middle = (min(values) + max(values)) / 2
    start = round(middle / step - steps / 2)
    start -= start * step > min(values) + 1e-9
    start += (start + steps) * step < max(values) - 1e-9
    whole = round(1 / step)
    start = max(0, min(start, whole - steps))
    return Axis(start * step, min(1.0, (start + steps) * step), step)


def round_up(number: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(number) + 1e-9)
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= number * (1 - 1e-9))


def format_tick(share: float) -> str:
    """Format the number at a tick: 0.875 -> 87.5 %."""
    return f"{round(100 * share, 2):g} %"
