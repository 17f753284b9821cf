"""The first screen: what the data is, and how accurate the models are that were trained on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avpt.errors import AvptError
from avpt.report.chapters.clips import count_clips, show_examples
from avpt.report.chapters.results import Scores, collect_scores, read_answers
from avpt.report.drawing import percent
from avpt.report.experiment import Experiment, explain_error
from avpt.report.page.blocks import Bar, Bars, Block, Card, Strip, Text
from avpt.runs.lineage import Node
from avpt.store.store import Store
from avpt.text import format_count
from avpt.training.metrics import WORDS

CLIPS = 3  # that are shown
CLASSES = 4  # that are named
ORDER = ("audio", "visual", "joint")
BN = {  # what is done to the BatchNorm of pre-trained weights, where there is any
    "keep": "",
    "reset": "BatchNorm reset",
    "reset-abnormal": "abnormal channels reset",
    "abri": "ABRi",
}


def summarise(experiment: Experiment, clips: int) -> list[Block]:
    """Say in a line what the data is, show some clips, and draw the accuracies."""
    return [*introduce_data(experiment, min(clips, CLIPS)), *draw_scores(experiment)]


def introduce_data(experiment: Experiment, clips: int) -> list[Block]:
    """Introduce each store in a line, and the first of them by some clips."""
    blocks: list[Block] = []
    cards: list[Card] = []
    for node in experiment.of_kind("store"):
        try:
            store = Store(node.path)
            blocks.append(Text(count_clips(store, name_some(store.classes))))
            cards = cards or [Card(card.title, card.pictures) for card in show_examples(store, clips)[0]]
        except (AvptError, OSError, KeyError) as error:
            blocks.append(Text(explain_error(error), missing=True))
    if not blocks:
        headers = (run.header for run in experiment.runs.values())
        classes = next((list(header.classes) for header in headers if header is not None), [])
        known = f"Clips of {len(classes)} classes: {name_some(classes)}. " if classes else ""
        blocks.append(Text(f"{known}The store that they are in was not found.", missing=True))
    return [*blocks, Strip(cards)] if cards else blocks


def name_some(names: Sequence[str]) -> str:
    """Name the first few of some classes."""
    return ", ".join(names[:CLASSES]) + (", …" if len(names) > CLASSES else "")


def draw_scores(experiment: Experiment) -> list[Block]:
    """Draw the accuracy of each group of runs as a bar, with the spread over its seeds."""
    scores = collect_scores(experiment)
    if not scores:
        return [Text("None of these runs is finished, so there is no accuracy yet.", missing=True)]
    scores.sort(key=lambda one: (ORDER.index(kind_of(one.nodes[0])), one.nodes[0].option("mask") not in (None, "none")))
    blocks: list[Block] = []
    for split, metric in dict.fromkeys((one.split, one.metric) for one in scores):
        alike = [one for one in scores if (one.split, one.metric) == (split, metric)]
        bars = [draw_score(experiment, one) for one in alike]
        title = f"{split.capitalize()} {WORDS[metric]}"
        if any(bar.spread for bar in bars):
            title += ", mean over seeds (bracket: lowest to highest seed; ±: standard deviation)"
        guess = guess_most_frequent(experiment, alike) if metric == "accuracy" else None
        if guess is not None:
            bars.append(Bar("chance", "for comparison: always the most frequent class", "", guess, percent(guess)))
        blocks.append(Bars(title, bars))
    return blocks


def draw_score(experiment: Experiment, scores: Scores) -> Bar:
    """Draw the bar of one group."""
    low, high = min(scores.numbers), max(scores.numbers)
    number, note, spread = percent(scores.mean), "1 seed", None
    if scores.deviation is not None:
        number += f" ± {100 * scores.deviation:.1f}"
        note = f"{format_count(len(scores.numbers), 'seed')}: {100 * low:.1f} to {100 * high:.1f}"
        spread = (low, high)
    node = scores.nodes[0]
    return Bar(kind_of(node), describe_run(experiment, node), scores.name, scores.mean, number, note, spread)


def kind_of(node: Node) -> str:
    """What a run was trained on: audio, visual or joint."""
    return str(node.config.get("modality", "joint"))


def describe_run(experiment: Experiment, node: Node) -> str:
    """Describe how a run was trained in a few words."""
    if node.kind == "classifier":
        start = experiment.origin(node, "init")
        how = [] if start is None else [start_words(start)]
        words = f"{kind_of(node)} alone"
    else:
        words = "both together"
        mask, balance = node.option("mask"), node.option("balance")
        how = ["nothing masked"] if mask == "none" else [f"masked: {mask}"]
        how += [] if balance == "none" else [f"balanced: {balance}"]
    return ", ".join([words, *filter(None, how)])


def start_words(start: Node) -> str:
    """Say what an encoder started from."""
    if start.option("weights") == "random":
        return "random weights"
    return BN.get(start.option("bn"), "") or "pre-trained"


def guess_most_frequent(experiment: Experiment, scores: Sequence[Scores]) -> float | None:
    """The accuracy of always saying the most frequent class; None where the runs answer different clips."""
    answers = {}
    for one in scores:
        try:
            read = read_answers(one.nodes[0].path)
        except (AvptError, OSError, KeyError, ValueError):
            continue
        answers[tuple(read.ids), tuple(read.classes)] = read
    if len(answers) != 1:
        return None
    (only,) = answers.values()
    return None if only.labels.ndim > 1 else float(np.bincount(only.labels.numpy()).max() / len(only.labels))
