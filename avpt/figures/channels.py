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

from avpt.figures.bars import plain
from avpt.figures.style import ABNORMAL, AFTER, BEFORE, DEAD, INK, ONE_COLUMN, TWO_COLUMNS, applied
from avpt.text import shortened

Array = np.ndarray[Any, Any]

SERIES = (BEFORE, AFTER)
HATCHES = ("", "////")  # series are told apart without colour too
BINS = 60  # of the histogram
BRIGHTEST = 0.9  # quantile of the peaks of feature maps that is the top of their scale: above most, below freaks
MARGIN = 0.0127  # of a picture beside a grid of 8 x 8, which has as much
LOWEST = 1e-45  # the least that float32 tells from zero


def draw_abnormal(
    layers: Sequence[str],
    thresholds: Sequence[float],
    shares: Mapping[str, Sequence[Sequence[float]]],
    row_height: float = 0.9,
) -> Figure:
    """Share of abnormal channels by layer: a row a threshold, of those at which there are any.

    Args:
        layers: names.
        thresholds: lowest first.
        shares: by the name in the legend, (thresholds, layers).
        row_height: inches.
    """
    shown = [number for number in range(len(thresholds)) if any(any(values[number]) for values in shares.values())]
    rows = shown or [len(thresholds) - 1]
    with applied():
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
        panels[0].set_ylim(0, None if shown else 1)  # of all: they share it
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
    """How many channels have which |gamma|, on a logarithmic axis; zeros stand apart at its left end.

    Args:
        gammas: by the name in the legend, |gamma| of every channel of the encoder.
    """
    values = {name: np.asarray(found, dtype=np.float64) for name, found in gammas.items()}
    positive = np.concatenate([found[found >= LOWEST] for found in values.values()])
    low, high = (math.log10(positive.min()), math.log10(positive.max())) if len(positive) else (-1.0, 0.0)
    low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    step = (high - low) / BINS
    with_zeros = any((found < LOWEST).any() for found in values.values())
    with applied():
        figure = Figure(figsize=(ONE_COLUMN, 2.2))
        axes = figure.add_subplot()
        for number, (name, found) in enumerate(values.items()):
            logarithms = np.log10(found[found >= LOWEST])
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
                zeros = int((found < LOWEST).sum())
                where = low - (3 + 3 * (len(values) - number)) * step
                axes.bar(where, zeros, 3 * step, lw=0.9 * number, fill=number == 0, edgecolor=INK, **style)
        ticks: list[float] = [
            tick for tick in range(low, high + 1) if (high - tick) % max(1, math.ceil((high - low) / 7)) == 0
        ]
        labels = [f"$10^{{{tick}}}$" for tick in ticks]
        if with_zeros:
            ticks, labels = [low - (3 + 1.5 * (len(values) + 1)) * step, *ticks], ["0", *labels]
        axes.set_xticks(ticks, labels)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("|γ|")
        axes.set_ylabel("channels")
        if len(values) > 1:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(values))
    return figure


def draw_alpha(layers: Sequence[str], alphas: Sequence[Array]) -> Figure:
    """ABRi's alpha, the share of the pre-trained branch, by layer: box of quartiles, whiskers to the extremes.

    Args:
        layers: names.
        alphas: of each, (channels,) or (1,).
    """
    with applied():
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
    """What the first layer makes of one clip, after its ReLU; dead channels are framed, and abnormal ones that are not.

    All channels of an encoder have one scale, whose top is a high quantile of their peaks: weak ones look weak, and
    those of a sick encoder do not make the others look strong. The colour goes by the square root.

    Args:
        picture: what the encoder was fed, normalised: (1, frame, mel) or (3, height, width).
        maps: by name, (channels, height, width), and twice (channels,) bool, which are dead and which abnormal.
        clip: its name.
        words: what the frames of "dead" and of "abnormal" mean.
    """
    with applied():
        figure, (first, *others) = _panels(1 + len(maps), 0.85)
        span = picture.max() - picture.min()
        _show(first, _upright((picture - picture.min()) / (span or 1.0)), cmap="gray", extent=(0, 1, 1, 0))
        first.set(xlim=(-MARGIN, 1 + MARGIN), ylim=(1 + MARGIN, -MARGIN))  # as high as a grid
        first.set_title(plain(f"input: {shortened(clip, 24)}"))
        for axes, (name, (channels, dead, abnormal)) in zip(others, maps.items(), strict=True):
            peaks = channels.max(axis=(1, 2))
            top = np.quantile(peaks[peaks > 0], BRIGHTEST) if (peaks > 0).any() else 1.0
            _grid(axes, [_upright(np.sqrt(channel[None] / top)) for channel in channels], dead, abnormal, "viridis")
            axes.set_title(_titled(name, dead, abnormal))
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
        _legend(figure, [(dead, abnormal) for _, dead, abnormal in maps.values()], words)
    return figure


def draw_filters(filters: Mapping[str, tuple[Array, Array | None, Array]], words: Mapping[str, str]) -> Figure:
    """The first convolution's filters, in colour where they see colours; dead channels and abnormal ones framed.

    All filters of an encoder have one scale, on which zero is the middle: filters without weight are plain grey.

    Args:
        filters: by name, (channels, 1 or 3, height, width), and twice (channels,) bool, which are dead, if that is
            known, and which abnormal.
        words: what the frames of "dead" and of "abnormal" mean.
    """
    with applied():
        figure, panels = _panels(len(filters), 0.55)
        for axes, (name, (weights, dead, abnormal)) in zip(panels, filters.items(), strict=True):
            largest = np.quantile(np.abs(weights), 0.995) or 1.0
            pictures = [_upright(np.clip(0.5 + weight / (2 * largest), 0, 1)) for weight in weights]
            _grid(axes, pictures, dead, abnormal, "gray")
            axes.set_title(_titled(name, dead, abnormal))
        _legend(figure, [(dead, abnormal) for _, dead, abnormal in filters.values()], words)
    return figure


def _panels(number: int, more: float) -> tuple[Figure, Sequence[Axes]]:
    """Squares side by side, and so many inches for what is above and below them."""
    width = TWO_COLUMNS if number > 1 else ONE_COLUMN
    figure = Figure(figsize=(width, width / number + more))
    figure.set_layout_engine("constrained", w_pad=0.06)
    return figure, figure.subplots(1, number, squeeze=False)[0]


def _titled(name: str, dead: Array | None, abnormal: Array) -> str:
    counts = [] if dead is None else [f"{int(dead.sum())} dead"]
    counts.append(f"{int(abnormal.sum())} abnormal")
    told = f"{', '.join(counts)} of {len(abnormal)}"
    return plain(f"{name}: {told}" if name else told)


FRAMES: dict[str, dict[str, Any]] = {
    "dead": {"edgecolor": DEAD, "linewidth": 1.6},
    "abnormal": {"edgecolor": ABNORMAL, "linewidth": 1.2, "linestyle": (0, (2.2, 1.2))},
}


def _kinds(dead: Array | None, abnormal: Array) -> list[str | None]:
    """How each channel is framed, if it is."""
    known = np.zeros_like(abnormal) if dead is None else dead
    return ["dead" if died else "abnormal" if bad else None for died, bad in zip(known, abnormal, strict=True)]


def _legend(figure: Figure, sides: Sequence[tuple[Array | None, Array]], words: Mapping[str, str]) -> None:
    """What the frames mean that there are."""
    there = {kind for side in sides for kind in _kinds(*side)}
    frames = [Rectangle((0, 0), 1, 1, fill=False, **FRAMES[kind]) for kind in words if kind in there]
    if frames:
        told = [words[kind] for kind in words if kind in there]
        figure.legend(frames, told, loc="outside lower center", ncols=2, handlelength=1, handleheight=1)


def _grid(axes: Axes, pictures: Sequence[Array], dead: Array | None, abnormal: Array, colours: str) -> None:
    """Small pictures side by side, row by row, in a square."""
    side, size = math.ceil(math.sqrt(len(pictures))), 0.88
    for number, (picture, kind) in enumerate(zip(pictures, _kinds(dead, abnormal), strict=True)):
        top, left = divmod(number, side)
        _show(axes, picture, cmap=colours, extent=(left, left + size, top + size, top))
        if kind is not None:
            axes.add_patch(Rectangle((left, top), size, size, fill=False, clip_on=False, **FRAMES[kind]))
    axes.set_xlim(-0.1, side - 0.02)
    axes.set_ylim(side - 0.02, -0.1)


def _show(axes: Axes, picture: Array, **how: Any) -> None:
    """A picture of values from 0 to 1 in a square without axes."""
    axes.imshow(picture, vmin=0, vmax=1, aspect="auto", **how)
    axes.set_box_aspect(1)
    axes.set_axis_off()


def _upright(values: Array) -> Array:
    """(3, height, width) as matplotlib takes it; of (1, frame, mel) time runs to the right and pitch up."""
    return values.transpose(1, 2, 0) if len(values) == 3 else values[0].T[::-1]
