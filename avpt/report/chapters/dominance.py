"""How sure each encoder alone is of each training clip, and how much masking hides."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avpt.confidence.formulas import mask_ratios
from avpt.errors import AvptError, listed
from avpt.figures.data_map import draw_data_map
from avpt.figures.dominance import draw_confidence
from avpt.figures.style import ONE_COLUMN
from avpt.files import artifacts
from avpt.options import MaskConfig
from avpt.report.drawing import make_figure, name_clip, name_label, percent, show_stored_clip
from avpt.report.experiment import Experiment, explain_error, list_missing
from avpt.report.page.blocks import Block, Card, Cards, Fold, Grid, Heading, Section, Text
from avpt.runs.lineage import Node
from avpt.store.store import SplitIndex, Store
from avpt.types import MODALITIES, Modality, Table


@dataclass(frozen=True)
class Confidence:
    """A confidence artifact, with the masks of a run that uses it."""

    ids: list[str]
    mean: dict[Modality, Tensor]  # (clips,)
    ratio: dict[Modality, Tensor]  # (clips,)
    threshold: float
    of: str  # which run's masks these are, in words
    statistics: dict[str, Tensor]  # each (clips,), by the artifact's names


def section(experiment: Experiment, clips: int) -> Section:
    """Write the section: the scatter of the paper's Figure 4, the most extreme clips, and what each run masks."""
    nodes = experiment.of_kind("confidence")
    lost = list_missing(experiment, "confidence")
    if not nodes:
        none = Text(explain_none(experiment), missing=True)
        return Section("confidence", "Confidence", [*tabulate_masks(experiment), *(lost or [none])])
    blocks: list[Block] = [
        Text(
            "How sure each encoder was of each training clip while it was trained alone. Where one modality is sure "
            "and the other is not, masking hides part of the one that is easy."
        )
    ]
    found: dict[Path, Confidence] = {}
    for node in nodes:
        try:
            found[node.path] = read_with_ratios(experiment, node)
        except (AvptError, OSError, KeyError, ValueError) as error:
            blocks.append(Text(explain_error(error), missing=True))
    ratios = [ratio for data in found.values() for ratio in data.ratio.values()]
    most = max((float(ratio.max()) for ratio in ratios if len(ratio)), default=0.0)
    others: list[Block] = []
    for number, node in enumerate(node for node in nodes if node.path in found):
        title, first = Heading(f"Confidence of {experiment.name(node)}"), number == 0
        try:  # they look alike in every seed
            shown = show_artifact(experiment, found[node.path], most, clips if first else 0)
        except (AvptError, OSError, KeyError, ValueError) as error:
            shown = [Text(explain_error(error), missing=True)]
        (blocks if first else others).extend([title, *shown])
    if others:
        rest = [experiment.name(node) for node in nodes if node.path in found][1:]
        blocks.append(Fold(f"The same of {listed(rest)}", others))
    blocks += tabulate_masks(experiment)
    return Section("confidence", "Confidence", [*blocks, *lost])


def explain_none(experiment: Experiment) -> str:
    """Why there is no confidence, and what to do."""
    if not experiment.unused:
        return "No confidence was made from these runs (`avpt score-confidence` does that)."
    files = listed([os.path.relpath(path, experiment.base) for path in experiment.unused])
    return f"None of these runs was made with a confidence. Name {files} with the runs, and it is shown here."


def show_artifact(experiment: Experiment, data: Confidence, most: float, clips: int) -> list[Block]:
    """Show one confidence artifact: its scatter, coloured up to the ratio `most`, and its most extreme clips."""
    audio, visual = (data.mean[modality].double().numpy() for modality in MODALITIES)
    signed = (data.ratio["audio"] - data.ratio["visual"]).double().numpy()
    difference = audio - visual
    order = [int(i) for i in np.argsort(-difference, kind="stable")]
    ends: dict[Modality, list[int]] = {
        "audio": [i for i in order[:clips] if difference[i] > 0],
        "visual": [i for i in order[::-1][:clips] if difference[i] < 0],
    }
    correlation = float(np.corrcoef(audio, visual)[0, 1]) if min(audio.std(), visual.std()) > 0 else float("nan")
    correlated = f"{correlation:.2f}".replace("-", "−")
    seen = (
        f"{len(audio)} clips; mean confidence: audio {audio.mean():.2f}, visual {visual.mean():.2f}; audio is "
        f"the surer one in {percent((difference > 0).mean())}; correlation {correlated}; "
        f"the mask ratio of audio is above 0 in {int((signed > 0).sum())} clips, that of visual in "
        f"{int((signed < 0).sum())}"
    )
    marked = [i for end in ends.values() for i in end]
    figure = draw_confidence(
        *(audio, visual, signed), threshold=data.threshold, marked=marked, most=most, width=ONE_COLUMN
    )
    caption = (
        f"Each point is a training clip, coloured by its mask ratio ({data.of}); dotted lines are the threshold "
        f"{data.threshold:g} from which a modality may be masked"
        f"{', rings mark the clips shown below' if clips else ''}. {seen[0].upper()}{seen[1:]}."
    )
    blocks: list[Block] = [make_figure(figure, f"Scatter of audio against visual confidence: {seen}", caption)]
    blocks += show_data_map(data)
    if not clips:
        return blocks
    place = find_store(experiment, data.ids)
    if place is None:
        return [*blocks, Text("The clips can't be shown: their store was not found. See The data.", missing=True)]
    for modality, end in ends.items():
        if end:
            other = "visual" if modality == "audio" else "audio"
            blocks.append(
                Cards(
                    f"Clips of which the {modality} encoder is surer than the {other} one",
                    [make_card(place, data, i) for i in end],
                )
            )
    return blocks


def show_data_map(data: Confidence) -> list[Block]:
    """Show the data map of each modality, and say what its axes and regions mean."""
    seen = []
    for modality in MODALITIES:
        names = ("confidence", "variability", "correctness", "forgetting")
        values = [data.statistics.get(f"{modality}_{name}") for name in names]
        if any(value is None for value in values[:3]):
            return []
        means = [
            f"{name} {value.double().mean():.2f}"
            for name, value in zip(names, values, strict=True)
            if value is not None
        ]
        never = float((data.statistics[f"{modality}_correctness"] == 0).double().mean())
        seen.append(f"{modality}: mean {', '.join(means)}; {percent(never)} were never right")
    caption = (
        "Data maps (Swayamdipta et al. 2020), one for each encoder alone; each point is a training clip. Variability "
        "is the standard deviation of its probabilities over epochs, correctness (the colour) the share of epochs in "
        "which it was predicted right, forgetting how often it was right and wrong in the epoch after. Clips at the "
        "top left are easy: learnt early and kept. Those at the right are ambiguous: the encoder changed its mind "
        "about them. Those at the bottom left are hard: hardly ever right, and a wrong label is often among them. No "
        f"clip can lie right of the line. Of all clips, {'; '.join(seen)}. `avpt score-confidence --select` makes a "
        "manifest of one of these regions."
    )
    figure = draw_data_map({name: values.numpy() for name, values in data.statistics.items()})
    return [make_figure(figure, f"Data maps, confidence against variability: {'; '.join(seen)}", caption)]


def make_card(place: tuple[Store, SplitIndex, dict[str, int]], data: Confidence, i: int) -> Card:
    """Make a card of one clip with its confidences."""
    store, index, positions = place
    position = positions[data.ids[i]]
    label = name_label(store, index, position)
    ratios = ", ".join(f"{m} {data.ratio[m][i]:.2f}" for m in MODALITIES)
    lines = (
        name_clip(data.ids[i]),
        f"confidence: audio {data.mean['audio'][i]:.2f}, visual {data.mean['visual'][i]:.2f}",
        f"mask ratio: {ratios}",
    )
    return Card(f"class {label}", show_stored_clip(store, index, position, label), lines)


def find_store(experiment: Experiment, ids: list[str]) -> tuple[Store, SplitIndex, dict[str, int]] | None:
    """Find the store and split that hold all of these clips, and the position of each clip there."""
    for node in experiment.of_kind("store"):
        store = Store(node.path)
        for index in store.indices.values():
            positions = {clip_id: i for i, clip_id in enumerate(index.ids)}
            if all(clip_id in positions for clip_id in ids):
                return store, index, positions
    return None


def read_with_ratios(experiment: Experiment, node: Node) -> Confidence:
    """Read the artifact, with the mask ratios of a run that uses it or, if none does, of the default options."""
    tensors = artifacts.load(node.path, "confidence").tensors
    ids, mean = artifacts.unpack_ids(tensors), {m: tensors[f"{m}_confidence"] for m in MODALITIES}
    for run in experiment.of_kind("fused"):
        adaptive = run.option("mask") == "adaptive" and run.option("mask_rule") == "dominant"
        if adaptive and experiment.origin(run, "confidence") is node and (run.path / "mask.safetensors").is_file():
            ratios = read_ratios(run)
            nothing = torch.tensor(0.0)
            ratio = {m: torch.stack([ratios[m].get(clip_id, nothing) for clip_id in ids]) for m in MODALITIES}
            of = f"as in {experiment.name(run)}"
            return Confidence(ids, mean, ratio, run.option("mask_threshold"), of, tensors)
    defaults = MaskConfig()
    ratio = mask_ratios(mean, **defaults.ratio_options)
    of = "as --mask adaptive would by default; no run does"
    return Confidence(ids, mean, ratio, defaults.mask_threshold, of, tensors)


def read_ratios(run: Node) -> dict[Modality, dict[str, Tensor]]:
    """Read the mask ratio of every training clip of a fused run, by clip id."""
    tensors = artifacts.load(run.path / "mask.safetensors", "mask").tensors
    ids = artifacts.unpack_ids(tensors)
    return {m: dict(zip(ids, tensors[f"{m}_ratio"], strict=True)) for m in MODALITIES}


def tabulate_masks(experiment: Experiment) -> list[Block]:
    """Tabulate how much each run masks."""
    rows = []
    for run in experiment.of_kind("fused"):
        if run.option("mask") == "none" or not (run.path / "mask.safetensors").is_file():
            continue
        cells = []
        for ratios in read_ratios(run).values():
            values = torch.stack(list(ratios.values())).double()
            some = values[values > 0]
            cells += [
                percent(len(some) / len(values)),
                f"{some.mean():.2f}" if len(some) else "–",
                f"{values.max():.2f}",
            ]
        rows.append((experiment.name(run), f"{run.option('mask')}, {run.option('mask_rule')}", *cells))
    if not rows:
        return []
    columns = (
        "run",
        "mask",
        *(f"{side}: {what}" for side in MODALITIES for what in ("clips", "mean", "most")),
    )
    return [
        Heading("What each run masks"),
        Grid(
            Table(
                "clips whose mask ratio is above 0, and the ratio: mean over these, and highest", columns, rows, left=2
            )
        ),
    ]
