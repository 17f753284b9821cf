"""Values over epochs, of one run or of several overlaid (the paper's Figure 1a)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from avpt.figures.bars import escape_maths
from avpt.figures.style import ONE_COLUMN, apply_style, line_style
from avpt.text import shortened

LEGENDS = ((4, 40), (3, 40), (2, 40), (1, 40), (1, 20))  # columns, and characters of a name: the first that fits


def draw_curves(
    curves: Mapping[str, Sequence[Sequence[float]]],
    *,
    label: str,
    width: float = ONE_COLUMN,
    height: float = 2.2,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw one line per name, the mean of its runs, with their range as a band and the legend below.

    Args:
        curves: for each name in the legend, the values of its runs epoch by epoch; runs may differ in length.
        label: of the axis of values.
        width: inches.
        height: inches, without the legend.
        colours: of some names; the others take those of the style in turn.
    """
    with apply_style():
        figure = Figure(figsize=(width, height))
        axes = figure.add_subplot()
        plot_curves(axes, curves, colours)
        axes.set_xlabel("epoch")
        axes.set_ylabel(escape_maths(label))
        if len(curves) > 1:
            _add_legend_below(figure, axes)
    return figure


def plot_curves(
    axes: Axes, curves: Mapping[str, Sequence[Sequence[float]]], colours: Mapping[str, str] | None = None
) -> None:
    """Plot the lines of `draw_curves` in one part of a figure."""
    for number, (name, runs) in enumerate(curves.items()):
        colour, dash = line_style(number)
        colour = (colours or {}).get(name, colour)
        epochs = range(1, 1 + max(map(len, runs), default=0))
        reached = [[run[epoch - 1] for run in runs if len(run) >= epoch] for epoch in epochs]
        mean = [sum(values) / len(values) for values in reached]
        marker = "o" if len(epochs) == 1 else None  # a line of one point is invisible
        axes.plot(epochs, mean, dash, color=colour, label=name, marker=marker)
        if len(runs) > 1:
            axes.fill_between(epochs, list(map(min, reached)), list(map(max, reached)), color=colour, alpha=0.2, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if max((len(run) for runs in curves.values() for run in runs), default=0) == 1:  # else there would be no tick
        axes.set_xticks([1])


def _add_legend_below(figure: Figure, axes: Axes) -> None:
    """Add a legend in as many columns as fit; the figure grows by its height, so that the axes keep theirs."""
    labels = [str(line.get_label()).replace(r"\$", "$") for line in axes.lines]  # as it was before `escape_maths`
    for columns, most in LEGENDS:
        names = [escape_maths(shortened(name, most)) for name in labels]
        legend = figure.legend(axes.lines, names, loc="outside lower center", ncols=min(columns, len(names)))
        extent = legend.get_window_extent()
        if extent.width <= figure.bbox.width or (columns, most) == LEGENDS[-1]:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
