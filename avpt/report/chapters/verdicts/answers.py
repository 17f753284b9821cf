"""Which clips runs answer right, and runs compared by that: what the verdicts rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from avpt.errors import AvptError
from avpt.report.chapters.results import Answers, answers_of
from avpt.report.differences import CHANCE, Difference, compare
from avpt.report.experiment import Experiment
from avpt.runs.groups import seed_of
from avpt.runs.lineage import Node

Answer = Literal["yes", "no", "unclear", "not measured"]


@dataclass
class Results:
    """Answers of all finished runs on clips with one label."""

    experiment: Experiment
    by_run: dict[Any, Answers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path, run in self.experiment.runs.items():
            if run.summary is not None:
                try:
                    answers = answers_of(path)
                except (AvptError, OSError, KeyError, ValueError):
                    continue
                if answers.labels.ndim == 1:  # with several labels there is no answer that is right or wrong
                    self.by_run[path] = answers

    def classes(self, node: Node) -> list[str] | None:
        """What a run tells apart; None where its answers are not known."""
        return self.by_run[node.path].classes if node.path in self.by_run else None

    def right(self, node: Node | None, side: str = "joint") -> dict[str, bool] | None:
        """By clip, whether a run's answer is right; None where it has none."""
        answers = self.by_run.get(node.path) if node is not None else None
        return answers.right(side) if answers is not None and side in answers.logits else None


def compare_runs(pairs: Sequence[tuple[Node, Node]], results: Results, side: str = "joint") -> Difference | None:
    """Pairs of runs by what they answered; None where no pair can be compared."""
    found = []
    for before, after in pairs:
        one, other = results.right(before, side), results.right(after, side)
        if one is not None and other is not None and results.classes(before) == results.classes(after):
            found.append((one, other, seed_of(after)))
    return compare(*map(list, zip(*found, strict=True))) if found else None


def shared(count: int) -> list[str]:
    """Bonferroni's rule in words."""
    told = f"Of {count} comparisons one is soon a hit by chance: each p has to be below {CHANCE / max(1, count):.2g}."
    return [told] if count > 1 else []
