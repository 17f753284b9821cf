"""Data maps: each training clip by how sure a model was of it, and how much that changed (Swayamdipta et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from avpt.figures.dominance import MANY
from avpt.figures.style import INK, TWO_COLUMNS, apply_style
from avpt.types import MODALITIES

Values = Sequence[float] | np.ndarray[Any, Any]

WIDEST = 0.5  # the highest standard deviation that numbers from 0 to 1 can have
REGIONS = (("easy", 0.02, 0.97, "left"), ("ambiguous", 0.5, 0.36, "right"), ("hard", 0.02, 0.03, "left"))
MARKERS = ("s", "o", "^")  # never right, sometimes, in every epoch: so that colour alone does not carry the meaning


def draw_data_map(statistics: Mapping[str, Values], *, width: float = TWO_COLUMNS) -> Figure:
    """Draw a panel for each modality with one point per clip, coloured by correctness.

    Args:
        statistics: of the clips, each (clips,), by the names that a confidence artifact has for them:
            `audio_confidence`, `audio_variability`, `audio_correctness`, and the same for visual.
        width: inches.
    """
    with apply_style():
        figure = Figure(figsize=(width, width / len(MODALITIES) * 0.92))
        panels = figure.subplots(1, len(MODALITIES), sharex=True, sharey=True, squeeze=False)[0]
        bound = np.linspace(0, 1, 101)
        points = None
        for axes, modality in zip(panels, MODALITIES, strict=True):
            confidence, variability, correctness = (
                np.asarray(statistics[f"{modality}_{name}"], dtype=float)
                for name in ("confidence", "variability", "correctness")
            )
            axes.plot(np.sqrt(bound * (1 - bound)), bound, color="#8C8C8C", lw=0.6)
            never, always = correctness <= 0, correctness >= 1
            for these, marker in zip((never, ~never & ~always, always), MARKERS, strict=True):
                points = axes.scatter(
                    variability[these],
                    confidence[these],
                    s=9,
                    c=correctness[these],
                    marker=marker,
                    vmin=0,
                    vmax=1,
                    alpha=0.8,
                    linewidths=0,
                    rasterized=len(confidence) > MANY,
                )
            for name, x, y, side in REGIONS:
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 1.5}
                axes.text(x, y, name, ha=side, va="center", style="italic", fontsize=7, color="#1b1b1d", bbox=box)
            axes.set(xlim=(-0.015, WIDEST + 0.015), ylim=(-0.03, 1.03), title=modality, xlabel="variability")
        panels[0].set_ylabel("confidence")
        assert points is not None
        scale = figure.colorbar(points, ax=list(panels), shrink=0.8)
        scale.outline.set_visible(False)
        scale.set_label("correctness: never ■  sometimes ●  always ▲", color=INK)
    return figure
