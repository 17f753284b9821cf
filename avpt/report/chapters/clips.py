"""The clips that the models were trained on."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from avpt.errors import AvptError, listed
from avpt.figures.bars import draw_bars
from avpt.figures.style import CYCLE
from avpt.report.drawing import SPECTROGRAM, make_figure, name_clip, name_label, percent, show_stored_clip
from avpt.report.experiment import Experiment, explain_error, list_missing
from avpt.report.page.blocks import Block, Card, Cards, Grid, Heading, Section, Text
from avpt.store.store import SplitIndex, Store
from avpt.types import Split, Table

MOST_CLASSES = 40  # that are shown in a table


def section(experiment: Experiment, clips: int) -> Section:
    """Write the section: clips, classes, failures, and some clips as examples, store by store."""
    blocks: list[Block] = []
    nodes = experiment.of_kind("store")
    for node in nodes:
        blocks.append(Heading(f"Clips in {experiment.name(node)}"))
        try:
            blocks += describe_store(Store(node.path), clips)
        except (AvptError, OSError, KeyError) as error:
            blocks.append(Text(explain_error(error), missing=True))
    lost = list_missing(experiment, "store")
    blocks += lost
    if len(nodes) + len(lost) > 1:
        blocks.insert(0, Text("These runs come from several stores; what follows compares only runs on the same one."))
    return Section("data", "The data", blocks)


def describe_store(store: Store, clips: int) -> list[Block]:
    """Describe one store."""
    indices = store.indices
    total = sum(map(len, indices.values()))
    blocks: list[Block] = [
        Text(
            f"{count_clips(store)} "
            f"Sound is kept as log-mel spectrograms of {store.settings['mel_bins']} bins and up to "
            f"{store.settings['spectrogram_frames']} frames of 10 ms, pictures as up to "
            f"{store.settings['max_frames']} frames a clip, short side {store.settings['frame_size']} pixels."
        ),
        Text(describe_failures(store, total)),
    ]
    counts = {split: count_per_class(index, len(store.classes)) for split, index in indices.items() if len(index)}
    blocks += [Text(line) for line in name_absent_classes(store, counts)]
    blocks.append(show_classes(store, counts))
    cards, split = show_examples(store, clips)
    if cards:
        blocks += [Text(SPECTROGRAM), Cards(f"The first clips of {len(cards)} classes, as stored ({split})", cards)]
    return blocks


def count_clips(store: Store, named: str = "") -> str:
    """Say in a sentence how many clips there are, of how many classes, some of them named, and what they are for."""
    split_words = ", ".join(
        f"{len(index)} to {explain_split(split)}" for split, index in store.indices.items() if len(index)
    )
    labels = "several labels each" if store.multi_label else "one label each"
    total = sum(map(len, store.indices.values()))
    classes = f"{len(store.classes)} classes{f' ({named})' if named else ''}"
    return f"{total} clips of {classes}, {labels}: {split_words}.{explain_recordings(store)}"


def explain_recordings(store: Store) -> str:
    """Say of how many recordings the clips are, where several are cut from one; empty where none are."""
    cut = {}
    for split, index in store.indices.items():
        recordings = {source or clip for source, clip in zip(index.sources, index.ids, strict=False)}
        if index.sources and len(recordings) < len(index):
            cut[split] = len(recordings)
    if not cut:
        return ""
    counts = ", ".join(f"{count} to {explain_split(split)}" for split, count in cut.items())
    return (
        f" They are pieces of fewer recordings: {counts}. Pieces of one recording are alike, so what a test over clips "
        "says is less sure than its p."
    )


def show_examples(store: Store, clips: int) -> tuple[list[Card], str]:
    """Show the first clip of each of the first classes of one split, and name that split."""
    split = next((split for split, index in store.indices.items() if len(index)), None)
    if not clips or split is None:
        return [], ""
    index, cards = store.indices[split], []
    for position in pick_examples(index, clips):
        label = name_label(store, index, position)
        cards.append(
            Card(f"class {label}", show_stored_clip(store, index, position, label), [name_clip(index.ids[position])])
        )
    return cards, split


def explain_split(split: str) -> str:
    """Say what a split is for."""
    return {"train": "train on", "val": "choose the best epoch by", "test": "test on"}[split]


def describe_failures(store: Store, total: int) -> str:
    """Say how many clips could not be used, and why."""
    if not store.failures and not store.partial:
        return "No clip failed to decode."
    share = percent(store.failures / (total + store.failures))
    words = f"{store.failures} of {total + store.failures} clips failed ({share})"
    why = count_reasons(store.path / "failures.csv")
    words += f": {why}" if why else ""
    return f"{words}; {store.partial} are noted in partial.csv." if store.partial else f"{words}."


def count_reasons(path: Path) -> str:
    """Count the clips that failed at each step of decoding."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            steps = [row["stage"] for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError):
        return ""
    return ", ".join(f"{steps.count(step)} {step}" for step in sorted(set(steps)))


def count_per_class(index: SplitIndex, num_classes: int) -> list[int]:
    """Count the clips of each class."""
    if index.labels.ndim > 1:
        return [int(count) for count in index.labels.sum(axis=0, dtype=np.int64)]
    counts: list[int] = np.bincount(index.labels, minlength=num_classes).tolist()
    return counts


def show_classes(store: Store, counts: Mapping[Split, list[int]]) -> Block:
    """Show the clips per class: few classes in a table, many as bars."""
    if len(store.classes) <= MOST_CLASSES:
        rows = [(name, *(str(column[i]) for column in counts.values())) for i, name in enumerate(store.classes)]
        return Grid(Table("clips per class and split", ("class", *counts), rows))
    bars = {str(split): column for split, column in counts.items()}
    figure = draw_bars(store.classes, bars, label="clips", colours=CYCLE[2:])
    ranges = "; ".join(f"{split}: {min(column)} to {max(column)}" for split, column in counts.items())
    return make_figure(
        figure, f"clips per class, {ranges}", f"Clips of each of {len(store.classes)} classes ({ranges})."
    )


def name_absent_classes(store: Store, counts: Mapping[Split, list[int]]) -> list[str]:
    """Name the classes that a split has no clip of, with what follows."""
    follows = {
        "train": "no model can have learnt them",
        "val": "the best epoch was chosen without them",
        "test": "nothing is known of how they are told apart",
    }
    absent = {
        split: [store.classes[i] for i, count in enumerate(column) if not count] for split, column in counts.items()
    }
    return [
        f"No clip to {explain_split(split)} is of {listed(names)}: {follows[split]}."
        for split, names in absent.items()
        if names
    ]


def pick_examples(index: SplitIndex, clips: int) -> list[int]:
    """Pick the first clip of each of the first classes."""
    labels = index.labels if index.labels.ndim == 1 else index.labels.argmax(axis=1)
    _, first = np.unique(labels, return_index=True)
    return [int(position) for position in first[:clips]]
