"""What both stages show of the course of training: curves on axes that can be compared, and how far runs got."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from avpt.figures.bars import escape_maths
from avpt.figures.curves import draw_curves
from avpt.figures.style import CYCLE
from avpt.report.drawing import make_figure, percent
from avpt.report.experiment import Experiment
from avpt.report.page.blocks import Block, Figures, Grid, Text
from avpt.runs.lineage import Node
from avpt.training.metrics import WORDS, key_name_of
from avpt.types import Table

if TYPE_CHECKING:
    from matplotlib import figure as matplotlib_figure

Row = Mapping[str, Any]
ENOUGH = 10  # values after the first epoch by which a loss is judged to start far too high
FAR = 5  # times the loss that nearly all later epochs stay below: what is higher than that is cut off
WIDELY = 100  # ratio of highest to lowest loss above which the axis is logarithmic
COLOURS = CYCLE[2:] + CYCLE[:2]  # blue and orange come last: elsewhere they mean audio and visual


@dataclass(frozen=True)
class Curves:
    """A figure of values over epochs, before it is rendered: its axis may still be made that of another."""

    figure: matplotlib_figure.Figure
    values: list[float]
    loss: bool  # which may have a logarithmic axis, and of which the first epochs may be cut off
    alt: str
    caption: str
    later: list[float] = field(default_factory=list)  # finite values after the first epoch


def group_epochs(experiment: Experiment, nodes: list[Node]) -> dict[str, list[list[Row]]]:
    """Group the epochs of each run, by the name of its group."""
    groups: dict[str, list[list[Row]]] = {}
    for node in nodes:
        groups.setdefault(experiment.group_of(node), []).append(list(experiment.runs[node.path].epochs))
    return groups


def find_key_metric(experiment: Experiment, nodes: list[Node]) -> tuple[str, str]:
    """Find the metric by which some runs are judged, and its name in words."""
    rows = [row for node in nodes for row in experiment.runs[node.path].epochs]
    name = key_name_of({metric for row in rows for metric in row.get("val", {})})
    return name, WORDS[name]


def draw_metrics(experiment: Experiment, groups: dict[str, list[list[Row]]], key: str, word: str) -> list[Curves]:
    """Draw loss and accuracy: for one group train and val in one figure, for several groups in a figure each."""
    kinds = (("loss", "loss"), ("accuracy", "accuracy"))  # metrics that are recorded for train as well
    figures: list[Curves | None] = []
    if len(groups) == 1:
        (several,) = groups.values()
        for metric, name in kinds:
            both = {
                split: [list_values(epochs, make_picker(split, metric)) for epochs in several]
                for split in ("train", "val")
            }
            figures.append(draw_curve(both, name))
    else:
        for split, metric, name in [(split, *kind) for kind in kinds for split in ("train", "val")]:
            pick = make_picker(split, metric)
            figures.append(draw_groups(experiment, groups, f"{split} {name}", pick))
    if key != "accuracy":
        figures.append(draw_groups(experiment, groups, f"val {word}", make_picker("val", key)))
    return [figure for figure in figures if figure]


def show_curves(curves: Sequence[Curves]) -> Block:
    """Show curves whose axes are settled."""
    if not curves:
        return Text("No epoch is done yet.", missing=True)
    return Figures([make_figure(one.figure, one.alt, one.caption + say_cut(one)) for one in curves])


def say_cut(curves: Curves) -> str:
    """Say which values the axis leaves out, if any."""
    top, highest = curves.figure.axes[0].get_ylim()[1], max(filter(math.isfinite, curves.values), default=0.0)
    return f" Values above {top:.3g} (up to {highest:.3g}) are cut off." if highest > top else ""


def show_pair(curves: Sequence[Curves | None]) -> Block:
    """Show curves of the two modalities, where there are any, on one axis."""
    there = [one for one in curves if one]
    share_axis(there)
    return show_curves(there)


def share_axes(curves: Sequence[Curves]) -> None:
    """Give all figures of a loss one axis, and all others, which show accuracies, another."""
    for loss in (True, False):
        share_axis([one for one in curves if one.loss == loss])


def share_axis(curves: Sequence[Curves]) -> None:
    """Give figures that a reader compares the same axis of values: the widest, logarithmic if one of them needs it."""
    values = [value for one in curves for value in one.values]
    if not values:
        return
    loss = all(one.loss for one in curves)
    top = find_top(curves) if loss else None
    if top is not None:
        values = [value for value in values if value <= top]
    wide = loss and ranges_widely(values)
    for one in curves:
        axes = one.figure.axes[0]
        if wide:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(lambda value, place: "")
    limits = [one.figure.axes[0].get_ylim() for one in curves]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    if top is not None:
        low, high = min(values) / 1.2 if wide else min(values) - 0.05 * (top - min(values)), top
    for one in curves:
        one.figure.axes[0].set_ylim(low, high)


def find_top(curves: Sequence[Curves]) -> float | None:
    """Find where to cut a loss off that is so high at first that nothing else could be read; None where it is not."""
    later = [value for one in curves for value in one.later]
    if len(later) < ENOUGH:
        return None
    top = 1.25 * float(np.percentile(later, 95))
    return top if max(value for one in curves for value in one.values) > FAR * top > 0 else None


def make_picker(part: str, name: str) -> Callable[[Row], float | None]:
    """Make a function that reads a row of metrics.jsonl: a metric of train or val, or an encoder's gradient norm."""
    return lambda row: row.get(part, {}).get(name)


def draw_groups(
    experiment: Experiment, groups: dict[str, list[list[Row]]], label: str, pick: Callable[[Row], float | None]
) -> Curves | None:
    """Draw a value over epochs, all groups in one figure; None where no run has it."""
    return draw_curve(
        {name: [list_values(epochs, pick) for epochs in several] for name, several in groups.items()}, label
    )


def list_values(epochs: list[Row], pick: Callable[[Row], float | None]) -> list[float]:
    """List a value epoch by epoch."""
    return [value for value in map(pick, epochs) if value is not None]


def draw_curve(curves: Mapping[str, list[list[float]]], label: str) -> Curves | None:
    """Draw curves, described in words by where they start and end; None where there are none."""
    there = {name: [run for run in several if run] for name, several in curves.items()}
    there = {escape_maths(name): several for name, several in there.items() if several}
    if not there:
        return None
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(there)}
    figure = draw_curves(there, label=label, colours=colours)
    ends = [
        f"{name} {mean([run[0] for run in s]):.3g} to {mean([run[-1] for run in s]):.3g}" for name, s in there.items()
    ]
    bands = (
        " Bands run from the lowest to the highest seed." if any(len(several) > 1 for several in there.values()) else ""
    )
    return Curves(
        figure,
        [value for several in there.values() for run in several for value in run],
        label.endswith("loss"),
        f"{label} from the first epoch to the last: {', '.join(ends)}",
        f"{label[0].upper()}{label[1:]}, by epoch.{bands}",
        [value for several in there.values() for run in several for value in run[1:] if math.isfinite(value)],
    )


def ranges_widely(numbers: list[float]) -> bool:
    """Whether the values range so widely that the small ones could not be read on a linear axis."""
    return min(numbers) > 0 and max(numbers) > WIDELY * min(numbers)


def mean(numbers: list[float]) -> float:
    """The mean of some numbers."""
    return sum(numbers) / len(numbers)


def tabulate_progress(experiment: Experiment, nodes: list[Node], title: str) -> Block:
    """Tabulate the progress of each run, by the metric that it is judged by."""
    lasts = [run.epochs[-1]["val"] if run.epochs else {} for run in (experiment.runs[node.path] for node in nodes)]
    keys = list(dict.fromkeys(key_name_of(last) for last in lasts if last)) or ["accuracy"]
    rows = []
    for node, last in zip(nodes, lasts, strict=True):
        run = experiment.runs[node.path]
        best = run.summary["best_epoch"] if run.summary else None
        loss = f"{last['loss']:.4f}" if "loss" in last else "–"
        scores = (percent(last.get(key)) if last and key_name_of(last) == key else "–" for key in keys)
        rows.append((experiment.name(node), run.progress, "–" if best is None else str(best), loss, *scores))
    columns = ("run", "is", "best epoch", "last val loss", *(f"last val {WORDS[key]}" for key in keys))
    best = " or ".join(WORDS[key] for key in keys)
    return Grid(
        Table(f"runs of {title}; the best epoch is the first with the highest val {best}", columns, rows, left=2)
    )
