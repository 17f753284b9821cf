"""The results: all runs in a table, confusions, probes, evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from avpt.errors import AvptError
from avpt.figures.confusion import draw_confusion
from avpt.files import artifacts
from avpt.files.checking import RecordError, read
from avpt.files.records import EvaluationRecord
from avpt.report.differences import format_p
from avpt.report.drawing import make_figure, percent, points
from avpt.report.experiment import Experiment, explain_error
from avpt.report.methods import describe_method
from avpt.report.page.blocks import Block, Figures, Grid, Heading, Section, Text
from avpt.runs.lineage import Node
from avpt.text import format_count
from avpt.training.metrics import WORDS, is_correct, key_name_of, per_class
from avpt.types import Table

METRICS = (
    ("map", WORDS["map"]),
    ("auc", "AUC"),
    ("accuracy", WORDS["accuracy"]),
    ("macro_f1", "macro F1"),
    ("audio_accuracy", "audio share"),
    ("visual_accuracy", "visual share"),
)
MOST_PAIRS = 10


@dataclass(frozen=True)
class Answers:
    """What a run answered for the clips that it was not trained on."""

    split: str  # test, or val where there is none
    ids: list[str]
    logits: dict[str, Tensor]  # joint, and for fused runs audio, visual: (clips, classes)
    labels: Tensor
    classes: list[str]

    def right(self, side: str = "joint") -> dict[str, bool]:
        """Whether the joint answer, or one modality's share of it, is right, by clip."""
        return dict(zip(self.ids, is_correct(self.logits[side], self.labels).tolist(), strict=True))


def read_answers(run: Path) -> Answers:
    """Read the predictions of a finished run.

    Raises:
        AvptError: they are missing or damaged.
    """
    artifact = artifacts.load(run / "predictions.safetensors", "predictions")
    tensors = artifact.tensors
    split = "test" if "test_logits" in tensors else "val"
    sides = {"joint": "logits", "audio": "audio_logits", "visual": "visual_logits"}
    logits = {side: tensors[f"{split}_{name}"] for side, name in sides.items() if f"{split}_{name}" in tensors}
    ids = artifacts.unpack_ids(tensors, prefix=f"{split}_")
    return Answers(split, ids, logits, tensors[f"{split}_labels"], artifact.header.classes)


@dataclass(frozen=True)
class Scores:
    """The accuracy (or mAP) of the finished ones of some runs that differ in the seed alone."""

    name: str  # of their group
    nodes: list[Node]
    split: str  # test, or val where there is none
    metric: str  # accuracy or map
    numbers: list[float]  # one per run

    @property
    def mean(self) -> float:
        """The mean over the runs."""
        return float(np.mean(self.numbers))

    @property
    def deviation(self) -> float | None:
        """The standard deviation of single runs; None of one run."""
        return float(np.std(self.numbers, ddof=1)) if len(self.numbers) > 1 else None


def collect_scores(experiment: Experiment) -> list[Scores]:
    """Collect the scores of each group that has a finished run."""
    scores = []
    for name, nodes in experiment.groups.items():
        done = [node for node in nodes if experiment.runs[node.path].summary]
        summaries = [experiment.runs[node.path].summary or {} for node in done]
        if not done:
            continue
        split = "test" if all(summary.get("test") for summary in summaries) else "val"
        values = [summary[split] for summary in summaries]
        metric = key_name_of({metric for row in values for metric in row})
        scores.append(Scores(name, done, split, metric, [row[metric] for row in values]))
    return scores


def section(experiment: Experiment) -> Section:
    """Write the section: the table of all runs, then details."""
    blocks: list[Block] = [tabulate_runs(experiment)]
    waiting = experiment.unfinished()
    if waiting:
        names = ", ".join(f"{experiment.name(node)} ({experiment.runs[node.path].progress})" for node in waiting)
        blocks.append(Text(f"Not finished, so without results: {names}.", missing=True))
    classes = {tuple(run.header.classes) for run in experiment.runs.values() if run.header is not None}
    if len(classes) > 1:
        blocks.append(
            Text(f"These runs tell apart {len(classes)} different sets of classes: their numbers can't be compared.")
        )
    blocks += summarise_groups(experiment)
    blocks += show_confusions(experiment)
    blocks += tabulate_probes(experiment)
    blocks += tabulate_evaluations(experiment)
    return Section("results", "Results", blocks)


def tabulate_runs(experiment: Experiment) -> Block:
    """Tabulate the metrics of all runs."""
    runs = [node for group in experiment.groups.values() for node in group]
    summaries = [experiment.runs[node.path].summary or {} for node in runs]
    splits = [split for split in ("val", "test") if any(summary.get(split) for summary in summaries)]
    wanted = [("test", *metric) for metric in METRICS] + [("val", *metric) for metric in METRICS[:3]]
    if "test" not in splits:
        wanted = [("val", *metric) for metric in METRICS]
    there = [(split, key, word) for split, key, word in wanted if any(key in (s.get(split) or {}) for s in summaries)]
    rows = []
    for node, summary in zip(runs, summaries, strict=True):
        cells = ((summary.get(split) or {}).get(metric) for split, metric, _ in there)
        kind = (
            f"{node.config['modality']} alone"
            if "modality" in node.config
            else f"both, {describe_method(experiment, node)}"
        )
        rows.append((experiment.name(node), kind, *map(percent, cells)))
    columns = ("run", "trained on", *(f"{split} {word}" for split, _, word in there))
    judged = dict.fromkeys(WORDS[key_name_of(summary["val"])] for summary in summaries if summary.get("val"))
    chosen = f": the first with the highest val {' or '.join(judged)}" if judged else ""
    return Grid(Table(f"each run at its best epoch{chosen}", columns, rows, left=2))


def summarise_groups(experiment: Experiment) -> list[Block]:
    """Summarise runs that differ in the seed alone by mean and deviation."""
    rows, measured = [], dict[str, None]()
    for score in collect_scores(experiment):
        if score.deviation is not None:
            deviation = f"{100 * score.deviation:.1f} points"
            rows.append((score.name, str(len(score.numbers)), percent(score.mean), deviation))
            measured[f"{score.split} {WORDS[score.metric]}"] = None
    if not rows:
        return []
    title = f"{' or '.join(measured)} over seeds; deviation of single runs"
    blocks: list[Block] = [Grid(Table(title, ("runs", "seeds", "mean", "deviation"), rows))]
    if experiment.pooled:
        blocks.append(
            Text(
                f"What {experiment.pooled} of the runs were made from was not found: those with equal options and "
                "other seeds count as repeats, whatever their inputs. Folders to look in are named with --search.",
                missing=True,
            )
        )
    return blocks


def show_confusions(experiment: Experiment) -> list[Block]:
    """Show the confusions of each group of finished fused runs, seeds together, or of stage-1 runs if none is fused."""
    kind = "fused" if experiment.of_kind("fused") else "classifier"
    blocks: list[Block] = [Heading("Which classes are taken for which")]
    figures = []
    for name, group in experiment.groups.items():
        several = []
        for node in (node for node in group if node.kind == kind and experiment.runs[node.path].summary is not None):
            try:
                several.append(read_answers(node.path))
            except (AvptError, OSError, KeyError, ValueError) as error:
                blocks.append(Text(explain_error(error), missing=True))
        if not several:
            continue
        if several[0].labels.ndim > 1:
            blocks.append(tabulate_precisions(name, several[0]))
            continue
        classes, split = several[0].classes, several[0].split
        tables = [per_class(answers.logits["joint"], answers.labels)["confusion"] for answers in several]
        confusion = np.array(tables).sum(axis=0)
        pairs = find_worst_pairs(confusion, classes)
        seeds = f" of {len(several)} seeds together" if len(several) > 1 else ""
        alt = f"`{name}`: {int(confusion.trace())} of {int(confusion.sum())} {split} clips right{seeds}"
        caption = f"{alt}. Most frequent errors (true class → answer): {'; '.join(pairs)}." if pairs else f"{alt}."
        figures.append(make_figure(draw_confusion(confusion.tolist(), classes), caption.replace("`", ""), caption))
    blocks += [Figures(figures)] if figures else []
    return blocks if len(blocks) > 1 else []


def find_worst_pairs(confusion: np.ndarray[Any, Any], classes: Sequence[str]) -> list[str]:
    """Find the pairs of classes that are confused most, in words."""
    off = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-off, axis=None, kind="stable")[:3]
    pairs = [divmod(int(place), len(classes)) for place in order if off.flat[place] > 0]
    return [f"{classes[true]} → {classes[taken]}, {format_count(off[true, taken], 'time')}" for true, taken in pairs]


def tabulate_precisions(name: str, answers: Answers) -> Block:
    """Tabulate the average precision of the classes that have clips, the worst first."""
    record = per_class(answers.logits["joint"], answers.labels)
    known = [
        (precision, cls, count)
        for precision, cls, count in zip(record["average_precision"], answers.classes, record["count"], strict=True)
        if precision is not None
    ]
    rows = [(cls, str(count), percent(precision)) for precision, cls, count in sorted(known)[: 2 * MOST_PAIRS]]
    title = f"{name}: average precision on {answers.split}, the lowest {len(rows)} of {len(known)} classes"
    return Grid(Table(title, ("class", "clips", "average precision"), rows))


def tabulate_probes(experiment: Experiment) -> list[Block]:
    """Tabulate linear probes, if `avpt probe` was run."""
    rows, metrics = [], dict[str, None]()
    for node in experiment.of_kind("probe"):
        probe = read_probe(node)
        if probe is not None:
            model = experiment.origin(node, "model")
            alone, difference = probe.alone, probe.difference
            metrics[WORDS[probe.metric]] = None
            name = experiment.name(model) if model else experiment.name(node)
            gap = "–" if difference is None else points(difference)
            chance = "–" if difference is None or probe.p is None else format_p(probe.p)
            rows.append((name, probe.modality, percent(probe.accuracy), percent(alone), gap, chance))
    if not rows:
        return []
    columns = ("encoder of", "modality", "probe", "trained alone", "difference", "over clips")
    title = f"test {' or '.join(metrics)} of a linear probe of each encoder; "
    title += "McNemar's test over clips, of these models alone"
    return [Heading("Linear probes"), Grid(Table(title, columns, rows, left=2))]


@dataclass(frozen=True)
class Probe:
    """The result of a linear probe of an encoder."""

    modality: str
    metric: str  # accuracy or map
    accuracy: float | None
    alone: float | None  # accuracy with the encoder before joint training
    difference: float | None
    p: float | None  # of McNemar's test of the difference


def read_probe(node: Node) -> Probe | None:
    """Read what `avpt probe` wrote; None where the file can't be read."""
    try:
        metrics = artifacts.read_header(node.path)[0].metrics
    except AvptError:
        return None
    before, mcnemar = metrics.get("stage1"), metrics.get("mcnemar")
    return Probe(
        modality=str(metrics.get("modality")),
        metric=key_name_of(metrics),
        accuracy=pick_number(metrics.get(key_name_of(metrics))),
        alone=pick_number(before.get(key_name_of(before))) if isinstance(before, dict) else None,
        difference=pick_number(metrics.get("difference")),
        p=pick_number(mcnemar.get("p")) if isinstance(mcnemar, dict) else None,
    )


def pick_number(value: Any) -> float | None:
    """Pick a number, or from a record by split the one of test (else val)."""
    if isinstance(value, dict):
        value = value.get("val") if value.get("test") is None else value["test"]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def tabulate_evaluations(experiment: Experiment) -> list[Block]:
    """Tabulate the records that `avpt evaluate --out` wrote."""
    rows = []
    for node in experiment.of_kind("evaluation"):
        try:
            record = read(node.path, EvaluationRecord)
        except (OSError, RecordError):
            continue
        model, config = experiment.origin(node, "model"), node.config
        how = [f"without {config['drop']}"] if config.get("drop") else []
        if config.get("snr") is not None:
            how.append(f"noise on {config.get('noise') or 'its input'} at {config['snr']:g} dB")
        cells = (percent((scores or {}).get("accuracy")) for scores in (record["val"], record["test"]))
        name = experiment.name(model) if model else experiment.name(node)
        if "ensemble" in node.inputs:
            other = experiment.origin(node, "ensemble")
            name += f" with {experiment.name(other) if other else 'another'}"
        rows.append((name, ", ".join(how) or "as it is", *cells))
    if not rows:
        return []
    columns = ("model", "input", "val accuracy", "test accuracy")
    return [Heading("Evaluations"), Grid(Table("records of `avpt evaluate`", columns, rows, left=2))]
