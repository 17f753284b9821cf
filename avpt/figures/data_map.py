"""Data maps: each training clip by how sure a model was of it, and how much that changed (Swayamdipta et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from avpt.figures.dominance import MANY
from avpt.figures.style import INK, TWO_COLUMNS, apply_style
from avpt.types import MODALITIES

Values = Sequence[float] | np.ndarray[Any, Any]

WIDEST = 0.5  # the highest standard deviation that numbers from 0 to 1 can have
REGIONS = (
    ("easy", 0.21, 0.985, 0),
    ("ambiguous", 0.525, 0.5, 90),
    ("hard", 0.21, 0.015, 0),
)  # where there are no clips
COLOURS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, 256)))  # yellow does not show on white
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
        bound = (1 - np.cos(np.linspace(0, np.pi, 101))) / 2
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
                    cmap=COLOURS,
                    vmin=0,
                    vmax=1,
                    alpha=0.8,
                    linewidths=0,
                    rasterized=len(confidence) > MANY,
                )
            for name, x, y, turned in REGIONS:
                axes.text(x, y, name, ha="center", va="center", style="italic", rotation=turned)
            axes.set(xlim=(-0.015, WIDEST + 0.045), ylim=(-0.03, 1.03), title=modality, xlabel="variability")
        panels[0].set_ylabel("confidence")
        assert points is not None
        scale = figure.colorbar(points, ax=list(panels), shrink=0.8)
        scale.outline.set_visible(False)
        scale.set_label("correctness: never ■  sometimes ●  always ▲", color=INK)
    return figure
