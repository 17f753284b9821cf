"""Which clips runs answer right, and comparisons of runs by that: what the verdicts depend on."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from avpt.errors import AvptError
from avpt.options import complete
from avpt.report.chapters.results import Answers, read_answers
from avpt.report.differences import Difference, compare, describe_outcome, explain_doubt, summarise_difference
from avpt.report.experiment import Experiment
from avpt.runs.groups import seed_of
from avpt.runs.lineage import Node
from avpt.text import format_count

Answer = Literal["yes", "no", "unclear", "not measured"]


@dataclass
class Results:
    """The answers of all finished runs on clips with one label."""

    experiment: Experiment
    by_run: dict[Any, Answers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path, run in self.experiment.runs.items():
            if run.summary is not None:
                try:
                    answers = read_answers(path)
                except (AvptError, OSError, KeyError, ValueError):
                    continue
                if answers.labels.ndim == 1:  # with several labels there is no answer that is right or wrong
                    self.by_run[path] = answers

    def classes(self, node: Node) -> list[str] | None:
        """The classes that a run distinguishes; None where its answers are not known."""
        return self.by_run[node.path].classes if node.path in self.by_run else None

    def right(self, node: Node | None, side: str = "joint") -> dict[str, bool] | None:
        """Whether a run's answer is right, by clip; None where it has no answers."""
        answers = self.by_run.get(node.path) if node is not None else None
        return answers.right(side) if answers is not None and side in answers.logits else None


def compare_runs(pairs: Sequence[tuple[Node, Node]], results: Results, side: str = "joint") -> Difference | None:
    """Compare pairs of runs by their answers; None where no pair can be compared."""
    comparable = []
    for before, after in pairs:
        one, other = results.right(before, side), results.right(after, side)
        if one is not None and other is not None and results.classes(before) == results.classes(after):
            comparable.append((one, other, seed_of(after)))
    return compare(*map(list, zip(*comparable, strict=True))) if comparable else None


def list_unsettled(experiment: Experiment, runs: Sequence[Node]) -> str:
    """List the groups of runs of which most were best at their last epoch, so that a longer training may change them.

    Returns:
        a sentence; an empty one where there is no such group.
    """
    groups: dict[str, list[bool]] = {}
    for run in {run.path: run for run in runs}.values():
        record = experiment.runs[run.path]
        if record.summary is not None:
            best_is_last = bool(record.epochs) and record.summary["best_epoch"] == len(record.epochs)
            groups.setdefault(experiment.group_of(run), []).append(best_is_last)
    names = [
        f"`{name}` ({sum(last)} of {len(last)} runs)" for name, last in groups.items() if 2 * sum(last) > len(last)
    ]
    if not names:
        return ""
    return f"The best epoch of {' and '.join(names)} is the last one: a longer training may change this."


def make_pairing_key(run: Node, options: Collection[str], inputs: Collection[str]) -> str:
    """Make a key of what compared runs must share: everything but these options and inputs."""
    config = {name: value for name, value in complete(run.kind, run.config).items() if name not in options}
    made_from = {name: checksum for name, checksum in run.inputs.items() if name not in inputs}
    return json.dumps([config, made_from], sort_keys=True)


def weigh_gains(gains: Sequence[tuple[str, Difference]], least: float, method: str, without: str) -> tuple[Answer, str]:
    """Answer whether a method raises accuracy, by its gains over runs without it, and say why.

    Args:
        gains: of each group of runs with the method, at least one.
        least: what each p is held against.
        method: in a word, such as masking.
        without: the runs that it is compared with, such as without masking.
    """
    hits = [(name, difference) for name, difference in gains if difference.counts(least)]
    up, down = ([(name, d) for name, d in hits if (d.mean > 0) == better] for better in (True, False))
    changes = [f"{how} with {list_changes(some)}" for how, some in (("higher", up), ("lower", down)) if some]
    if changes:
        answer: Answer = "unclear" if up and down else "yes" if up else "no"
        return answer, f"Accuracy is {' and '.join(changes)} than {without}."
    clips, seeds = gains[0][1].clips, max(len(difference.seeds.each) for _, difference in gains)
    if any(difference.seeds.enough for _, difference in gains):
        alike = any(difference.seeds.enough and difference.seeds.p is None for _, difference in gains)
        nothing = "Not to be judged" if alike else f"No difference that {seeds} seeds and {clips} clips could show"
        return "unclear", f"{nothing}: {list_changes(gains, least)}."
    if differing := [name for name, difference in gains if difference.clips_tell(least)]:
        models = f"Trained models differ on these clips ({', '.join(f'`{name}`' for name in differing)})"
    else:
        doubts = any(explain_doubt(difference, least) for _, difference in gains)
        models = "Trained models can't be said to differ" if doubts else "No trained models differ measurably"
        models += f" ({list_changes(gains, least)})"
    return "unclear", f"{models}; {format_count(seeds, 'seed')} can't tell what {method} does."


def list_changes(gains: Sequence[tuple[str, Difference]], least: float | None = None) -> str:
    """List runs with what a method changed and, if p is held against something, why a small one does not count."""
    words = []
    for name, difference in gains:
        doubt = explain_doubt(difference, least) if least is not None else ""
        words.append(f"`{name}` {summarise_difference(difference)}{f': {doubt}' if doubt else ''}")
    return "; ".join(words)


def describe_gain(difference: Difference, least: float) -> str:
    """Describe a difference that answers the question: its tests, and whether it is a gain."""
    return f"{difference.words(least)}; {describe_outcome(difference, least)}."


def explain_precision(clips: int) -> str:
    """Say how precise an accuracy on so many clips is."""
    error = 196 * (0.25 / clips) ** 0.5
    return (
        f"An accuracy near 50 % on {clips} clips is itself known to ± {error:.1f} points (95 %), one nearer to 0 or "
        "100 % more precisely."
    )
