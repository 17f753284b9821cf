"""The first screen: what the data is, and how accurate the models are that were trained on it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from avpt.errors import AvptError, listed
from avpt.report.axis import LEAST, Axis, choose_axes, format_tick
from avpt.report.chapters.clips import count_clips, show_examples
from avpt.report.chapters.initialisation import TREATED
from avpt.report.chapters.results import Scores, collect_scores, read_answers
from avpt.report.drawing import percent
from avpt.report.experiment import Experiment, explain_error
from avpt.report.methods import describe_method
from avpt.report.page.blocks import Badges, Block, Card, Dot, Dots, Section, Strip, Text, Verdict
from avpt.report.terms import explain_terms
from avpt.runs.lineage import Node
from avpt.store.store import Store
from avpt.text import format_count
from avpt.training.metrics import WORDS
from avpt.types import MODALITIES

CLIPS = 3  # that are shown
CLASSES = 4  # that are named
CLIPS_SPANNED = 5  # at least, by an axis: a clip or two must not look like much
OR = " or "
ORDER = ("audio", "visual", "joint")
PANELS = {"audio": "Sound alone", "visual": "Pictures alone", "joint": "Both together"}


def summarise(
    experiment: Experiment, clips: int, answers: Sequence[Verdict], sections: Sequence[Section]
) -> list[Block]:
    """Say in a line each what the data is and how accurate models are, give the answers, show clips, and draw all.

    The terms that are used here or in the sections are explained, folded.
    """
    data, cards = introduce_data(experiment, min(clips, CLIPS))
    models, scores = introduce_models(experiment), draw_scores(experiment)
    terms = explain_terms([*data, *models, *answers, *scores, *sections])
    strip = [Strip(cards)] if cards else []
    return [*data, *give_numbers(experiment), Badges(answers), *terms, *strip, *scores, *models]


def introduce_data(experiment: Experiment, clips: int) -> tuple[list[Block], list[Card]]:
    """Introduce each store in a line, and the first of them by some clips."""
    blocks: list[Block] = []
    cards: list[Card] = []
    for node in experiment.of_kind("store"):
        try:
            store = Store(node.path)
            blocks.append(Text(count_clips(store, name_some(store.classes))))
            cards = cards or show_examples(store, clips)[0]
        except (AvptError, OSError, KeyError) as error:
            blocks.append(Text(explain_error(error), missing=True))
    if not blocks:
        headers = (run.header for run in experiment.runs.values())
        classes = next((list(header.classes) for header in headers if header is not None), [])
        known = f"Clips of {len(classes)} classes: {name_some(classes)}. " if classes else ""
        blocks.append(Text(f"{known}The store that they are in was not found.", missing=True))
    return blocks, cards


def introduce_models(experiment: Experiment) -> list[Block]:
    """Say which models are compared."""
    phrases: list[str] = []
    for modality in MODALITIES:
        runs = experiment.stage1(modality)
        inits = [init for run in runs if (init := experiment.origin(run, "init")) is not None]
        archs = list(dict.fromkeys(str(init.option("arch")) for init in inits))
        starts: dict[str, list[str]] = {}
        for init in sorted(inits, key=lambda init: init.option("weights") != "random"):
            treated = starts.setdefault(describe_weights(experiment, init), [])
            treated += [how for how in (describe_treatment(experiment, init),) if how and how not in treated]
        origins = [f"{origin} ({'; '.join(how)})" if how else origin for origin, how in starts.items()]
        if runs:
            words = f"{'an' if modality == 'audio' else 'a'} {modality} encoder"
            words += f" ({listed(archs)})" if archs else ""
            phrases.append(f"{words} alone{f', {OR.join(origins)}' if origins else ''}")
    fused = experiment.of_kind("fused")
    if fused:
        plain_first = sorted(fused, key=lambda run: run.option("mask") != "none")
        methods = dict.fromkeys(describe_method(experiment, run) for run in plain_first)
        phrases.append(f"both together ({'; '.join(methods)})")
    if not phrases:
        return []
    return [Text(f"Trained on these clips, to tell the classes apart: {'; '.join(phrases)}.")]


def name_some(names: Sequence[str]) -> str:
    """Name the first few of some classes."""
    return ", ".join(names[:CLASSES]) + (", …" if len(names) > CLASSES else "")


def give_numbers(experiment: Experiment) -> list[Block]:
    """Give the accuracies in a line; of several groups that were trained on the same their range, of one its spread.

    Groups of one seed count where there are no others.
    """
    scores = collect_scores(experiment)
    if not scores:
        return []
    split, metric = scores[0].split, scores[0].metric
    parts = []
    for kind, some in group_kinds([one for one in scores if (one.split, one.metric) == (split, metric)]).items():
        group = [one for one in some if one.deviation is not None] or some
        low, high = (pick(group, key=lambda one: one.mean) for pick in (min, max))
        number = format_score(low) if low is high else f"{percent(low.mean)} to {percent(high.mean)}"
        how = f" ({len(group)} ways of training)" if len(group) > 1 else ""
        seeds = " (1 seed)" if len(group) == 1 and low.deviation is None else ""
        parts.append((ORDER.index(kind), f"{PANELS[kind].lower()} {number}{how}{seeds}"))
    return [Text(f"{split.capitalize()} {WORDS[metric]}: {', '.join(part for _, part in sorted(parts))}.")]


def format_score(scores: Scores) -> str:
    """Format a mean with its standard deviation, if there is one: 60.0 % ± 14.1."""
    spread = "" if scores.deviation is None else f" ± {100 * scores.deviation:.1f}"
    return percent(scores.mean) + spread


def draw_scores(experiment: Experiment) -> list[Block]:
    """Draw the accuracy of each group of runs as a dot, with those of its seeds."""
    scores = collect_scores(experiment)
    if not scores:
        return [Text("None of these runs is finished, so there is no accuracy yet.", missing=True)]
    scores.sort(key=place_score)
    blocks: list[Block] = []
    for split, metric in dict.fromkeys((one.split, one.metric) for one in scores):
        alike = [one for one in scores if (one.split, one.metric) == (split, metric)]
        by_kind = group_kinds(alike)
        labels = find_labels(alike) if metric == "accuracy" else None
        least = LEAST if labels is None else max(LEAST, min(1.0, CLIPS_SPANNED / len(labels)))
        axes = choose_axes([[value for one in group for value in one.numbers] for group in by_kind.values()], least)
        title = f"{split.capitalize()} {WORDS[metric]}"
        if any(one.deviation is not None for one in alike):
            title += ", mean over seeds (strokes: the single seeds; ±: their standard deviation)"
        if any(one.deviation is None for one in alike):
            title += "; a hollow dot is a single seed, of which no spread is known"
        if len(axes) == 1:
            blocks.append(draw_dots(experiment, f"{title}. The axis goes from {axes[0].words}", alike, axes[0]))
        else:
            blocks.append(Text(f"{title}. Each of the axes has a range of its own."))
            panels = zip(by_kind.items(), axes, strict=True)
            blocks += [
                draw_dots(experiment, f"{PANELS[kind]}: {axis.words}", some, axis) for (kind, some), axis in panels
            ]
        blocks += give_yardsticks(labels) if labels is not None else []
    return blocks


def place_score(scores: Scores) -> tuple[int, bool, bool]:
    """Where a group stands: by what it was trained on; a single seed below several, and what is masked below plain."""
    node = scores.nodes[0]
    return ORDER.index(kind_of(node)), scores.deviation is None, node.option("mask") not in (None, "none")


def group_kinds(scores: Sequence[Scores]) -> dict[str, list[Scores]]:
    """Group scores by what their runs were trained on."""
    groups: dict[str, list[Scores]] = {}
    for one in scores:
        groups.setdefault(kind_of(one.nodes[0]), []).append(one)
    return groups


def draw_dots(experiment: Experiment, title: str, scores: Sequence[Scores], axis: Axis) -> Dots:
    """Draw some groups on one axis."""
    ticks = [(axis.place(tick), format_tick(tick)) for tick in axis.ticks]
    return Dots(title, [draw_score(experiment, one, axis) for one in scores], ticks)


def draw_score(experiment: Experiment, scores: Scores, axis: Axis) -> Dot:
    """Draw the dot of one group."""
    number, note, each = format_score(scores), "1 seed", list[float]()
    if scores.deviation is not None:
        low, high = min(scores.numbers), max(scores.numbers)
        note = f"{format_count(len(scores.numbers), 'seed')}: {100 * low:.1f} to {100 * high:.1f}"
        each = [axis.place(value) for value in scores.numbers]
    node = scores.nodes[0]
    return Dot(kind_of(node), describe_run(experiment, node), scores.name, number, note, axis.place(scores.mean), each)


def give_yardsticks(labels: Tensor) -> list[Block]:
    """Say how much one clip counts, and what the most frequent class alone would reach."""
    clip, guess = 100 / len(labels), percent(float(labels.bincount().max()) / len(labels))
    words = f"one clip of {len(labels)} is {clip:.2g} points, and always the most frequent class would reach {guess}"
    return [Text(f"For comparison: {words}.")]


def kind_of(node: Node) -> str:
    """What a run was trained on: audio, visual or joint."""
    return str(node.config.get("modality", "joint"))


def describe_run(experiment: Experiment, node: Node) -> str:
    """Describe how a run was trained in a few words."""
    if node.kind == "classifier":
        start = experiment.origin(node, "init")
        alone = f"{kind_of(node)} alone"
        return alone if start is None else f"{alone}, {describe_start(experiment, start)}"
    return f"both together, {describe_method(experiment, node)}"


def describe_start(experiment: Experiment, start: Node) -> str:
    """Say what an encoder started from, and what was done to its BatchNorm."""
    return ", ".join(filter(None, [describe_weights(experiment, start), describe_treatment(experiment, start)]))


def describe_weights(experiment: Experiment, start: Node) -> str:
    """Say which weights an encoder started from."""
    weights = str(start.option("weights"))
    if weights == "random":
        return "from random weights"
    origin = experiment.origin(start, "weights")
    if origin is not None and "modality" in origin.config:
        return f"from the {origin.config['modality']} encoder"
    return "from weights in a file" if weights == "file" else f"from {weights} weights"


def describe_treatment(experiment: Experiment, start: Node) -> str:
    """Say what was done to the BatchNorm of pre-trained weights, if anything was done to that of any encoder here."""
    pretrained = [node for node in experiment.of_kind("encoder") if node.option("weights") != "random"]
    if start not in pretrained or all(node.option("bn") == "keep" for node in pretrained):
        return ""  # there need not be any BatchNorm
    return TREATED[start.option("bn")]


def find_labels(scores: Sequence[Scores]) -> Tensor | None:
    """Find the labels of the clips that runs answer; None where these differ, or have several labels each."""
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
    return None if only.labels.ndim > 1 else only.labels
