"""Which clips runs answer right, and comparisons of runs by that: what the verdicts depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from avpt.errors import AvptError
from avpt.report.chapters.results import Answers, read_answers
from avpt.report.differences import CHANCE, Difference, compare
from avpt.report.experiment import Experiment
from avpt.runs.groups import seed_of
from avpt.runs.lineage import Node

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


def explain_correction(count: int) -> list[str]:
    """Explain Bonferroni's correction, if there are several comparisons."""
    rule = f"Of {count} comparisons one is soon a hit by chance: each p has to be below {CHANCE / max(1, count):.2g}."
    return [rule] if count > 1 else []
