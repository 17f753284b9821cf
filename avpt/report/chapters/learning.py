"""The course of training: curves of both stages, gradients, and masked inputs as the network saw them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from avpt.errors import AvptError
from avpt.figures.bars import escape_maths
from avpt.figures.curves import draw_curves
from avpt.figures.style import CYCLE
from avpt.files import artifacts
from avpt.loading.dataset import ClipDataset, Masking
from avpt.loading.loader import Loader
from avpt.loading.masking import most_masked, plan_masking
from avpt.models.checkpoint import read_input
from avpt.options import FuseConfig, restore_config
from avpt.report.chapters.dominance import read_ratios
from avpt.report.drawing import make_figure, percent, show_input
from avpt.report.experiment import Experiment, explain_error, explain_missing, list_missing, mean_of
from avpt.report.page.blocks import Block, Card, Cards, Figures, Grid, Heading, Section, Text
from avpt.runs import training_run
from avpt.runs.lineage import Node
from avpt.store.splits import training_splits
from avpt.store.store import Store
from avpt.training.metrics import WORDS, key_name_of
from avpt.types import MODALITIES, Modality, Table

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


def stage1(experiment: Experiment) -> Section:
    """Write the section on stage 1: each encoder alone."""
    blocks: list[Block] = [
        Text("First each encoder is trained alone, on its own modality, to tell the classes apart by itself.")
    ]
    drawn: list[tuple[str, list[Curves]]] = []
    for modality in MODALITIES:
        nodes = experiment.stage1(modality)
        if nodes:
            key, word = find_key_metric(experiment, nodes)
            curves = draw_metrics(experiment, group_epochs(experiment, nodes), key, word)
            drawn.append((f"{modality.capitalize()} alone", curves))
    share_axes([one for _, curves in drawn for one in curves])
    for title, curves in drawn:
        blocks += [Heading(title), show_curves(curves)]
    lost = list_missing(experiment, *MODALITIES)
    blocks += lost
    nodes = experiment.of_kind("classifier")
    if nodes:
        blocks.append(tabulate_progress(experiment, nodes, "stage 1"))
    elif not lost:
        blocks.append(Text("These runs start from encoders that were not fine-tuned alone first.", missing=True))
    return Section("stage-1", "Stage 1: each alone", blocks)


def stage2(experiment: Experiment, clips: int) -> Section:
    """Write the section on stage 2: both encoders together."""
    nodes = experiment.of_kind("fused")
    if not nodes:
        lost = Text("None of these runs trains both modalities together (`avpt fuse-train`).", missing=True)
        return Section("stage-2", "Stage 2: both together", [lost])
    blocks: list[Block] = [
        Text(
            "Then both encoders and a fusion head are trained together. A modality's share is what it adds to the "
            "joint model's answer (its Shapley value); its accuracy tells how much it would know by that alone. The "
            "gradient's norm tells how much there is for an encoder to learn from."
        )
    ]
    groups = group_epochs(experiment, nodes)
    key, word = find_key_metric(experiment, nodes)
    together = draw_metrics(experiment, groups, key, word)
    share_axes(together)
    blocks += [Heading("The joint model"), show_curves(together)]
    shares = [
        draw_level(
            draw_groups(experiment, groups, f"{m} share, val accuracy", make_picker("val", f"{m}_accuracy")),
            find_level(experiment, nodes, m),
        )
        for m in MODALITIES
    ]
    blocks += [Heading("What each modality contributes"), show_pair(shares)]
    blocks.append(Heading("The gradient that reaches each encoder"))
    norms = [draw_groups(experiment, groups, f"{m} gradient norm", make_picker("gradient_norm", m)) for m in MODALITIES]
    if any(norms):
        blocks += [show_pair(norms), tabulate_gradients(experiment, nodes)]
    else:
        blocks.append(
            Text("These runs did not record it: their encoders were frozen, or avpt was older.", missing=True)
        )
    blocks.append(tabulate_progress(experiment, nodes, "stage 2"))
    if clips:
        blocks.append(Heading("Masked inputs as the network saw them"))
        blocks += show_masked_inputs(experiment, nodes, clips)
    return Section("stage-2", "Stage 2: both together", blocks)


def find_level(experiment: Experiment, nodes: list[Node], modality: Modality) -> float | None:
    """The mean val accuracy of the encoders alone that some joint runs started from; None where it is not known."""
    origins = [origin for node in nodes if (origin := experiment.origin(node, modality)) is not None]
    summaries = [
        experiment.runs[path].summary for path in dict.fromkeys(origin.path for origin in origins if origin.is_run)
    ]
    values = [summary["val"]["accuracy"] for summary in summaries if summary and "accuracy" in summary.get("val", {})]
    return mean(values) if values else None


def draw_level(curves: Curves | None, level: float | None) -> Curves | None:
    """Draw what an encoder reaches alone as a dotted line, to compare its share with."""
    if curves is None or level is None:
        return curves
    curves.figure.axes[0].axhline(level, color="#8C8C8C", lw=0.8, ls=":")
    words = f" The dotted line is the encoder alone ({percent(level)})."
    return replace(curves, alt=f"{curves.alt};{words.lower().rstrip('.')}", caption=curves.caption + words)


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
    """Tabulate the progress of each run."""
    rows = []
    for node in nodes:
        run = experiment.runs[node.path]
        best = run.summary["best_epoch"] if run.summary else None
        last = run.epochs[-1]["val"] if run.epochs else {}
        cells = (f"{last['loss']:.4f}" if "loss" in last else "–", percent(last.get(key_name_of(last))))
        rows.append((experiment.name(node), run.progress, "–" if best is None else str(best), *cells))
    columns = ("run", "is", "best epoch", "last val loss", "last val accuracy or mAP")
    return Grid(Table(f"runs of {title}", columns, rows, left=2))


def tabulate_gradients(experiment: Experiment, nodes: list[Node]) -> Block:
    """Tabulate the gradient norms of each run, averaged over its epochs."""
    rows = []
    for node in nodes:
        norms = [row["gradient_norm"] for row in experiment.runs[node.path].epochs if row.get("gradient_norm")]
        audio, visual = (mean_of(norms, modality) for modality in MODALITIES)
        if audio is not None and visual is not None:
            ratio = f"{audio / visual:.2f}" if visual else "–"
            rows.append((experiment.name(node), f"{audio:.4f}", f"{visual:.4f}", ratio))
    return Grid(Table("norm of the gradient, mean over epochs", ("run", "audio", "visual", "audio : visual"), rows))


def show_masked_inputs(experiment: Experiment, nodes: list[Node], clips: int) -> list[Block]:
    """Show clips with and without their masks, for each run that masks (of several seeds the first)."""
    blocks: list[Block] = []
    for node in {experiment.group_of(node): node for node in reversed(nodes)}.values():
        if node.option("mask") == "none":
            continue
        store = experiment.origin(node, "store")
        if store is None:
            blocks.append(Text(explain_missing(experiment, node, "store"), missing=True))
            continue
        try:
            blocks.append(show_run_inputs(experiment, node, Store(store.path), clips))
        except (AvptError, OSError, KeyError, ValueError) as error:
            blocks.append(Text(explain_error(error), missing=True))
    return blocks or [Text("None of these runs masks anything.")]


def show_run_inputs(experiment: Experiment, node: Node, store: Store, clips: int) -> Block:
    """Show the clips of which a run masks most, as they were in its first epoch."""
    config = restore_config(node.kind, node.config)
    assert isinstance(config, FuseConfig)
    index = training_splits(store, MODALITIES, config.val_fraction)["train"]
    ratios = read_ratios(node)
    there = {m: torch.stack([ratios[m][clip_id] for clip_id in index.ids]) for m in MODALITIES}
    spec = read_input(node.path, artifacts.read_header(artifacts.model_file(node.path))[0])
    masking = plan_masking(there, spec, config.patch, warn=False)
    most = most_masked(masking, 2 * clips)
    positions = [position for position in most if any(masking.num_masked[m][position] for m in MODALITIES)][:clips]
    if not positions:
        return Text(f"`{experiment.name(node)}` masks nothing: all its ratios are less than one patch.")

    def batch(mask: Masking | None) -> tuple[torch.Tensor, ...]:
        dataset = ClipDataset(
            *(index, MODALITIES, spec, store.settings["frame_codec"]),
            seed=config.seed,
            augmentation=training_run.augmentation(config),
            masking=mask,
        )
        loader = Loader(dataset, config.batch_size, device=torch.device("cpu"), workers=0, shuffle_seed=config.seed)
        return tuple(values.clone() for values in loader.clips(0, positions).inputs)

    plain_inputs, masked = batch(None), batch(masking)
    cards = []
    for i, position in enumerate(positions):
        pictures, shares = [], []
        for m, modality in enumerate(MODALITIES):
            ratio = float(there[modality][position])
            shares.append(f"{modality} {ratio:.2f}")
            whole, versions = plain_inputs[m][i], list[tuple[torch.Tensor | None, str]]()
            if masking.num_masked[modality][position]:
                versions += [(None, "as it is"), (masked[m][i], "masked")]
            else:
                versions.append((None, "not masked"))
            what = "spectrogram" if modality == "audio" else "frames"
            pictures += [
                show_input(modality, whole, hidden, spec, f"{what} {how}, ratio {ratio:.2f}", how)
                for hidden, how in versions
            ]
        cards.append(Card(index.ids[position], pictures, [f"mask ratio: {', '.join(shares)}"]))
    title = f"{experiment.name(node)}, epoch 1; what is masked is blue in the audio and orange in the visual input"
    return Cards(title, cards)
