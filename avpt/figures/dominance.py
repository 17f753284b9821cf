"""How sure each encoder alone is of each clip, and how much masking hides (arXiv 2302.03533, Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from avpt.figures.style import AUDIO, INK, ONE_COLUMN, VISUAL, apply_style

Values = Sequence[float] | np.ndarray[Any, Any]

MANY = 2000  # points above which a vector file holds them as one bitmap
MASKED = LinearSegmentedColormap.from_list("masked", [VISUAL, "#B4B4B4", AUDIO])


def draw_confidence(
    audio: Values,
    visual: Values,
    ratio: Values,
    *,
    threshold: float | None,
    marked: Sequence[int] = (),
    most: float | None = None,
    width: float = ONE_COLUMN * 1.25,
) -> Figure:
    """Draw a scatter plot with one point per clip.

    Args:
        audio: mean confidence of the audio encoder alone, (clips,).
        visual: the same for the visual encoder.
        ratio: mask ratio, (clips,): of the audio where positive, of the frames (negated) where negative.
        threshold: tau, drawn as two lines; None for no lines.
        marked: positions of clips to be ringed.
        most: the ratio at both ends of the colour scale, to compare figures by; None for the highest ratio here.
        width: inches.
    """
    x, y, colour = (np.asarray(values, dtype=float) for values in (visual, audio, ratio))
    most = max(float(np.abs(colour).max(initial=0)) if most is None else most, 1e-3)
    with apply_style():
        figure = Figure(figsize=(width, width * 0.86))
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="#8C8C8C", lw=0.6)
        if threshold is not None:
            axes.axhline(threshold, color="#8C8C8C", lw=0.6, ls=":")
            axes.axvline(threshold, color="#8C8C8C", lw=0.6, ls=":")
        points = None
        for these, marker in ((colour == 0, "o"), (colour > 0, "^"), (colour < 0, "s")):
            points = axes.scatter(
                x[these],
                y[these],
                s=14,
                c=colour[these],
                marker=marker,
                cmap=MASKED,
                vmin=-most,
                vmax=most,
                alpha=0.85,
                linewidths=0,
                rasterized=len(x) > MANY,
            )
        axes.scatter(x[list(marked)], y[list(marked)], s=46, facecolors="none", edgecolors=INK, lw=0.8)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axes.set_xlabel("visual confidence")
        axes.set_ylabel("audio confidence")
        assert points is not None
        scale = figure.colorbar(points, ax=axes, shrink=0.8)
        scale.outline.set_visible(False)
        scale.ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.2f}")
        scale.set_label("mask ratio: visual ■  |  audio ▲")
    return figure
