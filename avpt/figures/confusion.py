"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from avpt.figures.bars import plain
from avpt.figures.style import ONE_COLUMN, applied

MOST_NAMES, MOST_NUMBERS = 40, 12  # classes up to which they are named, and clips written into the cells


def draw_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], width: float = ONE_COLUMN) -> Figure:
    """A matrix, a row a true class and a column a predicted one; the shade is the share of the true class.

    Args:
        counts: (classes, classes) clips.
        classes: their names.
        width: inches.
    """
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    with applied():
        figure = Figure(figsize=(width, width * 0.8))
        axes = figure.add_subplot()
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="cividis")
        if len(classes) <= MOST_NAMES:
            names = [plain(name) for name in classes]
            size = 7 if len(classes) <= 20 else 4.5
            axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=size)
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
