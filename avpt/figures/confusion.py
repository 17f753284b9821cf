"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from avpt.figures.bars import plain
from avpt.figures.style import ONE_COLUMN, applied
from avpt.text import shortened

MOST_NAMES, MOST_NUMBERS = 50, 12  # classes up to which they are named, and clips written into the cells
LARGE, SMALL, MANY = 7, 6, 15  # points: of names, and of those of so many classes
LONGEST = 20  # characters of a name
LINE = 1.25  # a row's least height, in sizes of its name


def draw_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], width: float = ONE_COLUMN) -> Figure:
    """A matrix, a row a true class and a column a predicted one; the shade is the share of the true class.

    Args:
        counts: (classes, classes) clips.
        classes: their names.
        width: inches, of a matrix of few classes; with more it grows, so that their names can be read.
    """
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    names = [plain(shortened(name, LONGEST)) for name in classes] if len(classes) <= MOST_NAMES else []
    size = LARGE if len(names) < MANY else SMALL
    beside = 0.6 * max(map(len, names), default=0) * size / 72  # inches that the longest name takes, about
    side = max(width * 0.6, len(names) * LINE * size / 72)
    turned = max(map(len, names), default=0) > 2
    with applied():
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
                axes.text(column, row, count, ha="center", va="center", fontsize=6, color=colour)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    return figure
