"""BatchNorm channels: abnormal shares, gammas and alphas, and what the first layer sees (the paper's Figure 2).

Figures of Feng, Xia, Hu, arXiv 2302.03533: 2a shares per layer, 2b and 2c feature maps, 2d filters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from avpt.figures.bars import escape_maths
from avpt.figures.style import ABNORMAL, AFTER, BEFORE, DEAD, INK, ONE_COLUMN, TWO_COLUMNS, apply_style
from avpt.text import shortened

Array = np.ndarray[Any, Any]

SERIES = (BEFORE, AFTER)
HATCHES = ("", "////")  # so that series can be distinguished without colour too
BINS = 60  # of the histogram
BRIGHTEST = 0.9  # quantile of the peaks of feature maps at the top of their scale: above most, below outliers
MARGIN = 0.0127  # around a picture beside a grid of 8 x 8, which has as much
LOWEST = 1e-45  # the least that float32 distinguishes from zero


def draw_abnormal(
    layers: Sequence[str],
    thresholds: Sequence[float],
    shares: Mapping[str, Sequence[Sequence[float]]],
    row_height: float = 0.9,
) -> Figure:
    """Draw the share of abnormal channels by layer, one row for each threshold at which there are any.

    Args:
        layers: names.
        thresholds: lowest first.
        shares: for each name in the legend, (thresholds, layers).
        row_height: inches.
    """
    shown = [number for number in range(len(thresholds)) if any(any(values[number]) for values in shares.values())]
    rows = shown or [len(thresholds) - 1]
    with apply_style():
        figure = Figure(figsize=(TWO_COLUMNS, 1.2 + row_height * len(rows)))
        panels = figure.subplots(len(rows), sharex=True, sharey=True, squeeze=False)[:, 0]
        width = 0.8 / len(shares)
        for axes, row in zip(panels, rows, strict=True):
            for number, (name, values) in enumerate(shares.items()):
                places = np.arange(len(layers)) + (number - (len(shares) - 1) / 2) * width
                look = {"color": SERIES[number], "hatch": HATCHES[number], "hatchcolor": "white"}
                axes.bar(places, values[row], width, label=name, lw=0, **look)
            axes.set_title(f"max(|γ|, |β|) < {thresholds[row]:g}", loc="left")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0].set_ylim(0, None if shown else 1)  # of all panels: they share it
        if not shown:
            panels[0].text(0.5, 0.5, "no channel in any layer", transform=panels[0].transAxes, ha="center", va="center")
        panels[-1].set_xticks(range(len(layers)), layers, rotation=90, fontsize=7 if len(layers) < 45 else 5.5)
        panels[-1].set_xlim(-0.6, len(layers) - 0.4)
        if len(rows) > 1:
            figure.supylabel("abnormal channels", fontsize=8)
        else:
            panels[0].set_ylabel("abnormal channels")
        if len(shares) > 1 and shown:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(shares))
    return figure


def draw_gamma(gammas: Mapping[str, Sequence[float]]) -> Figure:
    """Draw a histogram of |gamma| on a logarithmic axis, with zeros as separate bars at its left end.

    Args:
        gammas: for each name in the legend, |gamma| of every channel of the encoder.
    """
    absolute = {name: np.asarray(gamma, dtype=np.float64) for name, gamma in gammas.items()}
    positive = np.concatenate([gamma[gamma >= LOWEST] for gamma in absolute.values()])
    low, high = (math.log10(positive.min()), math.log10(positive.max())) if len(positive) else (-1.0, 0.0)
    low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    step = (high - low) / BINS
    with_zeros = any((gamma < LOWEST).any() for gamma in absolute.values())
    with apply_style():
        figure = Figure(figsize=(ONE_COLUMN, 2.2))
        axes = figure.add_subplot()
        for number, (name, gamma) in enumerate(absolute.items()):
            logarithms = np.log10(gamma[gamma >= LOWEST])
            style: dict[str, Any] = {"color": SERIES[number], "alpha": 0.5} if number == 0 else {"color": INK}
            axes.hist(
                logarithms,
                bins=BINS,
                range=(low, high),
                histtype="stepfilled" if number == 0 else "step",
                label=name,
                lw=0.9,
                **style,
            )
            if with_zeros:
                zeros = int((gamma < LOWEST).sum())
                where = low - (3 + 3 * (len(absolute) - number)) * step
                axes.bar(where, zeros, 3 * step, lw=0.9 * number, fill=number == 0, edgecolor=INK, **style)
        ticks: list[float] = [
            tick for tick in range(low, high + 1) if (high - tick) % max(1, math.ceil((high - low) / 7)) == 0
        ]
        labels = [f"$10^{{{tick}}}$" for tick in ticks]
        if with_zeros:
            ticks, labels = [low - (3 + 1.5 * (len(absolute) + 1)) * step, *ticks], ["0", *labels]
        axes.set_xticks(ticks, labels)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("|γ|")
        axes.set_ylabel("channels")
        if len(absolute) > 1:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(absolute))
    return figure


def draw_alpha(layers: Sequence[str], alphas: Sequence[Array]) -> Figure:
    """Draw ABRi's alpha, the share of the pre-trained branch, by layer: a box of quartiles, whiskers to the extremes.

    Args:
        layers: names.
        alphas: one array per layer, (channels,) or (1,).
    """
    with apply_style():
        figure = Figure(figsize=(TWO_COLUMNS, 2.6))
        axes = figure.add_subplot()
        axes.axhline(0.5, color=INK, lw=0.5, ls=":")
        if all(len(alpha) == 1 for alpha in alphas):
            axes.plot(range(len(layers)), [alpha[0] for alpha in alphas], "o", color=SERIES[1], mec=INK, mew=0.5, ms=5)
        else:
            look = {"linewidth": 0.7, "color": INK}
            axes.boxplot(
                list(alphas),
                positions=range(len(layers)),
                widths=0.6,
                whis=(0, 100),
                patch_artist=True,
                boxprops={"facecolor": SERIES[1], "linewidth": 0.7, "edgecolor": INK},
                medianprops=look | {"linewidth": 1.4},
                whiskerprops=look,
                capprops=look,
            )
        axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7 if len(layers) < 45 else 5.5)
        axes.set_xlim(-0.6, len(layers) - 0.4)
        axes.set_title("α, the share of the pre-trained branch", loc="left")
    return figure


def draw_feature_maps(
    picture: Array, maps: Mapping[str, tuple[Array, Array, Array]], clip: str, words: Mapping[str, str]
) -> Figure:
    """Draw the first layer's output for one clip, after its ReLU, with frames around dead and other abnormal channels.

    All channels of an encoder share one scale, whose top is a high quantile of their peaks, so that weak channels look
    weak. Each encoder has its own scale. The colour shows the square root of the activation.

    Args:
        picture: the input of the encoder, normalised: (1, frame, mel) or (3, height, width).
        maps: for each name, (channels, height, width), and twice (channels,) bool: which are dead, which abnormal.
        clip: its id.
        words: what the frames of "dead" and of "abnormal" mean.
    """
    with apply_style():
        figure, (first, *others) = _make_panels(1 + len(maps), 0.85)
        span = picture.max() - picture.min()
        _show(first, _orient((picture - picture.min()) / (span or 1.0)), cmap="gray", extent=(0, 1, 1, 0))
        first.set(xlim=(-MARGIN, 1 + MARGIN), ylim=(1 + MARGIN, -MARGIN))  # as tall as a grid
        first.set_title(escape_maths(f"input: {shortened(clip, 24)}"))
        for axes, (name, (channels, dead, abnormal)) in zip(others, maps.items(), strict=True):
            peaks = channels.max(axis=(1, 2))
            top = np.quantile(peaks[peaks > 0], BRIGHTEST) if (peaks > 0).any() else 1.0
            _show_grid(axes, [_orient(np.sqrt(channel[None] / top)) for channel in channels], dead, abnormal, "viridis")
            axes.set_title(_write_title(name, dead, abnormal))
        panels = [first, *others]
        look: dict[str, Any] = {
            "orientation": "horizontal",
            "fraction": 0.03,
            "pad": 0.02,
            "shrink": 0.62,
            "aspect": 50,
        }
        scale = figure.colorbar(others[0].images[0], ax=panels, **look)
        scale.set_ticks(
            [0, math.sqrt(0.1), 1], labels=["0", "a tenth", f"{BRIGHTEST:.0%} of active channels peak below"]
        )
        least, _, most = scale.ax.get_xticklabels()
        least.set_horizontalalignment("left")
        most.set_horizontalalignment("right")
        scale.outline.set_visible(False)
        _add_legend(figure, [(dead, abnormal) for _, dead, abnormal in maps.values()], words)
    return figure


def draw_filters(filters: Mapping[str, tuple[Array, Array | None, Array]], words: Mapping[str, str]) -> Figure:
    """Draw the first convolution's filters, in colour if the input is, with dead and abnormal channels framed.

    All filters of an encoder share one scale with zero in the middle, so that filters of zeros are plain grey.

    Args:
        filters: for each name, (channels, 1 or 3, height, width), and twice (channels,) bool: which are dead (None if
            that is not known) and which abnormal.
        words: what the frames of "dead" and of "abnormal" mean.
    """
    with apply_style():
        figure, panels = _make_panels(len(filters), 0.55)
        for axes, (name, (weights, dead, abnormal)) in zip(panels, filters.items(), strict=True):
            largest = np.quantile(np.abs(weights), 0.995) or 1.0
            pictures = [_orient(np.clip(0.5 + weight / (2 * largest), 0, 1)) for weight in weights]
            _show_grid(axes, pictures, dead, abnormal, "gray")
            axes.set_title(_write_title(name, dead, abnormal))
        _add_legend(figure, [(dead, abnormal) for _, dead, abnormal in filters.values()], words)
    return figure


def _make_panels(number: int, more: float) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure of squares side by side, with `more` inches for what is above and below them."""
    width = TWO_COLUMNS if number > 1 else ONE_COLUMN
    figure = Figure(figsize=(width, width / number + more))
    figure.set_layout_engine("constrained", w_pad=0.06)
    return figure, figure.subplots(1, number, squeeze=False)[0]


def _write_title(name: str, dead: Array | None, abnormal: Array) -> str:
    counts = [] if dead is None else [f"{int(dead.sum())} dead"]
    counts.append(f"{int(abnormal.sum())} abnormal")
    summary = f"{', '.join(counts)} of {len(abnormal)}"
    return escape_maths(f"{name}: {summary}" if name else summary)


FRAMES: dict[str, dict[str, Any]] = {
    "dead": {"edgecolor": DEAD, "linewidth": 1.6},
    "abnormal": {"edgecolor": ABNORMAL, "linewidth": 1.2, "linestyle": (0, (2.2, 1.2))},
}


def _choose_frames(dead: Array | None, abnormal: Array) -> list[str | None]:
    """Choose the frame of each channel, None where it has none."""
    known = np.zeros_like(abnormal) if dead is None else dead
    return ["dead" if died else "abnormal" if bad else None for died, bad in zip(known, abnormal, strict=True)]


def _add_legend(figure: Figure, sides: Sequence[tuple[Array | None, Array]], words: Mapping[str, str]) -> None:
    """Explain the frames that occur."""
    shown = {kind for side in sides for kind in _choose_frames(*side)}
    frames = [Rectangle((0, 0), 1, 1, fill=False, **FRAMES[kind]) for kind in words if kind in shown]
    if frames:
        labels = [words[kind] for kind in words if kind in shown]
        figure.legend(frames, labels, loc="outside lower center", ncols=2, handlelength=1, handleheight=1)


def _show_grid(axes: Axes, pictures: Sequence[Array], dead: Array | None, abnormal: Array, colours: str) -> None:
    """Show small pictures side by side, row by row, in a square."""
    side, size = math.ceil(math.sqrt(len(pictures))), 0.88
    for number, (picture, kind) in enumerate(zip(pictures, _choose_frames(dead, abnormal), strict=True)):
        top, left = divmod(number, side)
        _show(axes, picture, cmap=colours, extent=(left, left + size, top + size, top))
        if kind is not None:
            axes.add_patch(Rectangle((left, top), size, size, fill=False, clip_on=False, **FRAMES[kind]))
    axes.set_xlim(-0.1, side - 0.02)
    axes.set_ylim(side - 0.02, -0.1)


def _show(axes: Axes, picture: Array, **how: Any) -> None:
    """Show a picture of values from 0 to 1 in a square without axes."""
    axes.imshow(picture, vmin=0, vmax=1, aspect="auto", **how)
    axes.set_box_aspect(1)
    axes.set_axis_off()


def _orient(values: Array) -> Array:
    """Turn (3, height, width) into what matplotlib expects; in (1, frame, mel) time is to run right and pitch up."""
    return values.transpose(1, 2, 0) if len(values) == 3 else values[0].T[::-1]
