"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from avpt.figures.bars import escape_maths
from avpt.figures.style import ONE_COLUMN, apply_style
from avpt.text import shortened

MOST_NAMES, MOST_NUMBERS = 50, 12  # classes up to which names are shown, and counts written into the cells
LARGE, SMALL, MANY = 7, 6, 15  # font sizes in points, the smaller one from MANY classes on
LONGEST = 20  # characters of a name
LINE = 1.25  # the least height of a row, in font sizes
DIGIT = 0.64  # the width of a digit, in font sizes


def draw_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], width: float = ONE_COLUMN) -> Figure:
    """Draw a matrix with a row per true class and a column per predicted one, shaded by the share of the true class.

    Args:
        counts: numbers of clips, (classes, classes).
        classes: their names.
        width: inches; with many classes the figure becomes wider, so that their names can be read.
    """
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    names = [escape_maths(shortened(name, LONGEST)) for name in classes] if len(classes) <= MOST_NAMES else []
    size = LARGE if len(names) < MANY else SMALL
    beside = 0.6 * max(map(len, names), default=0) * size / 72  # rough width of the longest name, inches
    digits = len(f"{table.max(initial=0):.0f}") + 0.5 if len(classes) <= MOST_NUMBERS else 0
    side = max(width * 0.6, len(names) * LINE * size / 72, len(classes) * digits * DIGIT * LARGE / 72)
    turned = max(map(len, names), default=0) > 2
    with apply_style():
        figure = Figure(figsize=(side + beside + 1.1, side + 0.5 + (beside if turned else 0.1)))
        axes = figure.add_subplot()
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="cividis")
        if names:
            axes.set_xticks(range(len(names)), names, rotation=90 if turned else 0, fontsize=size)
            axes.set_yticks(range(len(names)), names, fontsize=size)
        if len(classes) <= MOST_NUMBERS:
            for row, column in zip(*np.nonzero(table), strict=True):
                colour = "#ffffff" if shares[row, column] < 0.5 else "#111111"
                count = f"{table[row, column]:.0f}"
                axes.text(column, row, count, ha="center", va="center", fontsize=LARGE, color=colour)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    return figure
