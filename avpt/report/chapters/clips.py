"""What the models were trained on."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from avpt.errors import AvptError
from avpt.figures.bars import draw_bars
from avpt.figures.style import CYCLE
from avpt.report.drawing import drawn, label_of, percent, stored
from avpt.report.experiment import Experiment, absences, excuse
from avpt.report.page.blocks import Block, Card, Cards, Grid, Heading, Section, Text
from avpt.store.store import SplitIndex, Store
from avpt.types import SPLITS, Split, Table

MOST_CLASSES = 40  # that a table names


def section(experiment: Experiment, clips: int) -> Section:
    """Clips, classes, failures, and what some clips look and sound like, store by store."""
    blocks: list[Block] = []
    nodes = experiment.of_kind("store")
    for node in nodes:
        blocks.append(Heading(f"Clips in {experiment.name(node)}"))
        try:
            blocks += of_store(Store(node.path), clips)
        except (AvptError, OSError, KeyError) as error:
            blocks.append(Text(excuse(error), missing=True))
    lost = absences(experiment, "store")
    blocks += lost
    if len(nodes) + len(lost) > 1:
        blocks.insert(0, Text("These runs come from several stores; what follows compares only runs on the same one."))
    return Section("data", "The data", blocks)


def of_store(store: Store, clips: int) -> list[Block]:
    """One store."""
    indices = store.indices
    total = sum(map(len, indices.values()))
    split_words = ", ".join(f"{len(index)} to {what(split)}" for split, index in indices.items() if len(index))
    labels = "several labels each" if store.multi_label else "one label each"
    blocks: list[Block] = [
        Text(
            f"{total} clips of {len(store.classes)} classes, {labels}: {split_words}. "
            f"Sound is kept as log-mel spectrograms of {store.settings['mel_bins']} bins and up to "
            f"{store.settings['spectrogram_frames']} frames of 10 ms, pictures as up to "
            f"{store.settings['max_frames']} frames a clip, short side {store.settings['frame_size']} pixels."
        ),
        Text(failures(store, total)),
    ]
    counts = {split: per_class(index, len(store.classes)) for split, index in indices.items() if len(index)}
    blocks.append(classes(store, counts))
    split = next((split for split in SPLITS if split in counts), None)
    if clips and split is not None:
        index = indices[split]
        cards = []
        for position in examples(index, clips):
            label = label_of(store, index, position)
            cards.append(Card(f"class {label}", stored(store, index, position, label), [index.ids[position]]))
        blocks.append(Cards(f"The first clips of {len(cards)} classes, as stored ({split})", cards))
    return blocks


def what(split: str) -> str:
    """What a split is for."""
    return {"train": "train on", "val": "choose the best epoch by", "test": "test on"}[split]


def failures(store: Store, total: int) -> str:
    """How many clips could not be used, and why."""
    if not store.failures and not store.partial:
        return "No clip failed to decode."
    share = percent(store.failures / (total + store.failures))
    words = f"{store.failures} of {total + store.failures} clips failed ({share})"
    why = reasons(store.path / "failures.csv")
    words += f": {why}" if why else ""
    return f"{words}; {store.partial} are told of in partial.csv." if store.partial else f"{words}."


def reasons(path: Path) -> str:
    """At which stage clips failed, with counts."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            stages = [row["stage"] for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError):
        return ""
    return ", ".join(f"{stages.count(stage)} {stage}" for stage in sorted(set(stages)))


def per_class(index: SplitIndex, num_classes: int) -> list[int]:
    """Clips of each class."""
    if index.labels.ndim > 1:
        return [int(count) for count in index.labels.sum(axis=0, dtype=np.int64)]
    counts: list[int] = np.bincount(index.labels, minlength=num_classes).tolist()
    return counts


def classes(store: Store, counts: Mapping[Split, list[int]]) -> Block:
    """Clips per class: a table of a few classes, bars of many."""
    if len(store.classes) <= MOST_CLASSES:
        rows = [(name, *(str(column[i]) for column in counts.values())) for i, name in enumerate(store.classes)]
        return Grid(Table("clips per class and split", ("class", *counts), rows))
    bars = {str(split): column for split, column in counts.items()}
    figure = draw_bars(store.classes, bars, label="clips", colours=CYCLE[2:])
    ranges = "; ".join(f"{split}: {min(column)} to {max(column)}" for split, column in counts.items())
    return drawn(figure, f"clips per class, {ranges}", f"Clips of each of {len(store.classes)} classes ({ranges}).")


def examples(index: SplitIndex, clips: int) -> list[int]:
    """The first clip of the first class, of the second, ..."""
    labels = index.labels if index.labels.ndim == 1 else index.labels.argmax(axis=1)
    _, first = np.unique(labels, return_index=True)
    return [int(position) for position in first[:clips]]
