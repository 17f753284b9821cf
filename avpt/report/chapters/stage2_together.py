"""Stage 2: how both encoders learnt together, what each contributes, and the gradient that reaches it."""

from __future__ import annotations

from dataclasses import replace

from avpt.report.chapters.learning import (
    Curves,
    draw_groups,
    draw_metrics,
    find_key_metric,
    group_epochs,
    make_picker,
    mean,
    share_axes,
    show_curves,
    show_pair,
    tabulate_progress,
)
from avpt.report.chapters.masked_inputs import show_masked_inputs
from avpt.report.drawing import percent
from avpt.report.experiment import Experiment, mean_of
from avpt.report.page.blocks import Block, Grid, Heading, Section, Text
from avpt.runs.lineage import Node
from avpt.types import MODALITIES, Modality, Table


def section(experiment: Experiment, clips: int) -> Section:
    """Write the section: the joint model, the shares of both modalities, gradients, and masked inputs."""
    nodes = experiment.of_kind("fused")
    if not nodes:
        lost = Text("None of these runs trains both modalities together (`avpt fuse-train`).", missing=True)
        return Section("stage-2", "Stage 2: both together", [lost])
    blocks: list[Block] = [
        Text(
            "Then both encoders and a fusion head are trained together. The gradient's norm tells how much there is "
            "for an encoder to learn from."
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
    """The mean val accuracy of the encoders of some joint runs when trained alone; None where it is not known."""
    origins = [origin for node in nodes if (origin := experiment.alone(node, modality)) is not None]
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
