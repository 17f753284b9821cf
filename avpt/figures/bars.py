"""Bars side by side, and ranges of values by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from avpt.figures.style import CYCLE, TWO_COLUMNS, apply_style
from avpt.text import printable

MOST_LABELS = 60
HATCHES = ("", "////", "....", "xxxx")  # so that kinds can be distinguished without colour too


def draw_bars(
    names: Sequence[str],
    values: Mapping[str, Sequence[float]],
    *,
    label: str,
    colours: Sequence[str] = CYCLE,
    width: float = TWO_COLUMNS,
    height: float = 2.2,
) -> Figure:
    """Draw one group of bars per name, with one bar for each kind of values.

    Args:
        names: labels below the groups; left out where there are too many to read.
        values: for each name in the legend, (names,).
        label: of the axis of values.
        colours: one per kind.
        width: inches.
        height: inches.
    """
    places, share = np.arange(len(names)), 0.8 / max(1, len(values))
    with apply_style():
        figure = Figure(figsize=(width, height))
        axes = figure.add_subplot()
        for number, (name, heights) in enumerate(values.items()):
            left = places + (number - (len(values) - 1) / 2) * share
            colour, hatch = colours[number % len(colours)], HATCHES[number % len(HATCHES)]
            axes.bar(left, list(heights), share, color=colour, hatch=hatch, lw=0, label=escape_maths(name))
        _label_groups(axes, names)
        axes.set_ylabel(label)
        if len(values) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)  # inside, it would cover marks
    return figure


def draw_ranges(
    names: Sequence[str], values: Mapping[str, Sequence[Sequence[float]]], *, label: str, start: float | None = None
) -> Figure:
    """Draw mean and range of several values per name (such as the alphas that ABRi learnt in each layer).

    Args:
        names: labels below.
        values: for each name in the legend, the values of each of `names`.
        label: of the axis of values.
        start: where to draw a line to compare with.
    """
    with apply_style():
        figure = Figure(figsize=(TWO_COLUMNS, 2.2))
        axes = figure.add_subplot()
        if start is not None:
            axes.axhline(start, color="#8C8C8C", lw=0.6, ls=":")
        for number, (name, several) in enumerate(values.items()):
            left = np.arange(len(names)) + (number - (len(values) - 1) / 2) * 0.2
            mean, low, high = (np.array([pick(one) for one in several]) for pick in (np.mean, np.min, np.max))
            spread = np.stack([mean - low, high - mean])
            axes.errorbar(
                left, mean, spread, fmt="o^sD"[number % 4], color=CYCLE[number % 8], lw=0.8, label=escape_maths(name)
            )
        _label_groups(axes, names)
        axes.set_ylabel(label)
        if len(values) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)  # inside, it would cover marks
    return figure


def escape_maths(text: str) -> str:
    """Put text in one line and escape what matplotlib would take for mathematics."""
    return printable(text).replace("$", r"\$")


def _label_groups(axes, names: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
    if len(names) > MOST_LABELS:
        axes.set_xticks([])
        return
    turned = sum(map(len, names)) > 70
    axes.set_xticks(range(len(names)), [escape_maths(name) for name in names], rotation=90 if turned else 0)
