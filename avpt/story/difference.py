"""Whether two ways of answering the same clips differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from avpt.story.drawing import points

CHANCE = 0.05  # a difference that chance alone would bring about more rarely is called one


@dataclass(frozen=True)
class Difference:
    """Of two ways of answering the same clips, each perhaps by several runs (seeds)."""

    pairs: list[tuple[float, float]]  # accuracy before, after; a pair a seed
    p: float  # how often chance alone would bring about as much
    clips: int

    @property
    def before(self) -> float:
        """Mean accuracy of the one."""
        return sum(before for before, _ in self.pairs) / len(self.pairs)

    @property
    def after(self) -> float:
        """And of the other."""
        return sum(after for _, after in self.pairs) / len(self.pairs)

    @property
    def each(self) -> list[float]:
        """After less before, by seed."""
        return [after - before for before, after in self.pairs]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return self.after - self.before

    def counts(self, chance: float = CHANCE) -> bool:
        """Whether it is more than chance over clips would bring about, and goes the same way in every seed."""
        return self.p < chance and (min(self.each) > 0 or max(self.each) < 0)

    def words(self) -> str:
        """With its test."""
        chance = f"p = {self.p:.3f}" if self.p >= 0.001 else "p < 0.001"
        seeds = f"; by seed {points(min(self.each))} to {points(max(self.each))}" if len(self.each) > 1 else ""
        return f"{points(self.mean)} ({chance} over {self.clips} clips{seeds})"


def compare(before: Sequence[dict[str, bool]], after: Sequence[dict[str, bool]]) -> Difference | None:
    """Two ways of answering the same clips, by the exact sign test.

    A clip speaks for the way in which it is right in more seeds; of one seed that is McNemar's exact test. Seeds are
    not independent of one another, being measured on the same clips, so clips are what is counted.

    Args:
        before: by clip whether the answer is right, a run each.
        after: the same of the runs to compare with, in the same order.

    Returns:
        None where no clip is in all of them.
    """
    clips = set.intersection(*(set(right) for right in [*before, *after])) if before else set()
    if not clips:
        return None
    shares = [
        tuple(sum(right[i] for i in clips) / len(clips) for right in pair) for pair in zip(before, after, strict=True)
    ]
    votes = [sum(right[i] for right in after) - sum(right[i] for right in before) for i in clips]
    gains, losses = sum(vote > 0 for vote in votes), sum(vote < 0 for vote in votes)
    p = float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0
    return Difference([(one, other) for one, other in shares], p, len(clips))


def called(difference: Difference, chance: float = CHANCE) -> str:
    """A difference in words."""
    if difference.counts(chance):
        return "a gain" if difference.mean > 0 else "a loss"
    return "no difference that this data could show"
