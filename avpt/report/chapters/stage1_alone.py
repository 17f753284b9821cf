"""Stage 1: how each encoder learnt alone."""

from __future__ import annotations

from avpt.report.chapters.learning import (
    Curves,
    draw_metrics,
    find_key_metric,
    group_epochs,
    share_axes,
    show_curves,
    tabulate_progress,
)
from avpt.report.experiment import Experiment, list_missing
from avpt.report.page.blocks import Block, Heading, Section, Text
from avpt.types import MODALITIES


def section(experiment: Experiment) -> Section:
    """Write the section: curves of each modality, and how far each run got."""
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
