"""Whether two ways of answering the same clips differ by more than chance, over the clips and over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from avpt.diagnosis.group_tests import FEWEST_PAIRS, NO_SPREAD, paired_test
from avpt.report.drawing import points

CHANCE = 0.05  # a difference that chance alone would bring about more rarely is called one
MARGIN = 0.02  # a loss of less than this is none to speak of

CAVEAT = (
    "A sign test over the clips asks whether these very models differ, and no more. Whether the recipes do is asked "
    f"by the paired t-test over seeds (as `avpt compare` prints it), which takes {FEWEST_PAIRS} seeds of each; a gain "
    "or a loss has to pass both."
)


@dataclass(frozen=True)
class Spread:
    """A difference as it comes out seed by seed, tested by Student's paired t-test."""

    each: dict[int, float]  # after less before, by seed
    p: float | None  # None of too few seeds, or where all differ by the same amount
    interval: tuple[float, float] | None  # 95 %, of the mean; None likewise

    @property
    def enough(self) -> bool:
        """Whether there are seeds enough to speak of the recipe."""
        return len(self.each) >= FEWEST_PAIRS

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.each.values()) / len(self.each)

    def falls(self, chance: float = CHANCE) -> bool:
        """Whether it is a loss by more than chance over seeds would bring about."""
        return self.mean < 0 and self.p is not None and self.p < chance

    def holds(self) -> bool:
        """Whether a loss of more than the margin is ruled out."""
        return self.interval is not None and self.interval[0] > -MARGIN

    def words(self) -> str:
        """Its test, or why there is none."""
        if not self.enough:
            return f"{many(len(self.each), 'seed')}: no test over seeds"
        low, high = min(self.each.values()), max(self.each.values())
        if self.p is None or self.interval is None:
            return f"the same in all {len(self.each)} seeds: no spread that a test over seeds could go by"
        return (
            f"t-test over {len(self.each)} seeds {chance_words(self.p)}, "
            f"95 % interval {reach(*self.interval)}, by seed {reach(low, high)}"
        )


@dataclass(frozen=True)
class Difference:
    """Of two ways of answering the same clips, each perhaps by several runs (seeds)."""

    before: float  # mean accuracy of the one
    after: float  # and of the other
    p: float  # how often chance alone would bring about as much, by the sign test over the clips
    clips: int
    seeds: Spread

    @property
    def mean(self) -> float:
        """After less before."""
        return self.seeds.mean

    def clips_tell(self, chance: float = CHANCE) -> bool:
        """Whether these very models differ by more than chance over clips would bring about, the same way each seed."""
        each = self.seeds.each.values()
        return self.p < chance and (min(each) > 0 or max(each) < 0)

    def counts(self, chance: float = CHANCE) -> bool:
        """Whether the recipes differ: clips and seeds both tell so."""
        return self.clips_tell(chance) and self.seeds.p is not None and self.seeds.p < chance

    def words(self) -> str:
        """With its tests."""
        tests = f"sign test over {self.clips} clips {chance_words(self.p)}; {self.seeds.words()}"
        return f"{points(self.mean)} ({tests})"


def compare(
    before: Sequence[Mapping[str, bool]], after: Sequence[Mapping[str, bool]], seeds: Sequence[int]
) -> Difference | None:
    """Two ways of answering the same clips, by the exact sign test over clips and the paired t-test over seeds.

    A clip speaks for the way in which it is right in more seeds; of one seed that is McNemar's exact test. Seeds are
    not independent of one another, being measured on the same clips, so clips are what is counted there.

    Args:
        before: by clip whether the answer is right, a run each.
        after: the same of the runs to compare with, in the same order.
        seeds: of the pairs; of several pairs with one seed the mean counts as one.

    Returns:
        None where no clip is in all of them.
    """
    clips = set.intersection(*(set(right) for right in [*before, *after])) if before else set()
    if not clips:
        return None
    firsts, seconds = ([sum(right[i] for i in clips) / len(clips) for right in runs] for runs in (before, after))
    votes = [sum(right[i] for right in after) - sum(right[i] for right in before) for i in clips]
    gains, losses = sum(vote > 0 for vote in votes), sum(vote < 0 for vote in votes)
    p = float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0
    first, second = by_seed(seeds, firsts), by_seed(seeds, seconds)
    means = [sum(values.values()) / len(values) for values in (first, second)]
    return Difference(means[0], means[1], p, len(clips), spread(first, second))


def by_seed(seeds: Sequence[int], values: Sequence[float]) -> dict[int, float]:
    """A value by seed; of several with one seed their mean."""
    found: dict[int, list[float]] = {}
    for seed, value in zip(seeds, values, strict=True):
        found.setdefault(seed, []).append(value)
    return {seed: sum(several) / len(several) for seed, several in found.items()}


def spread(before: Mapping[int, float], after: Mapping[int, float]) -> Spread:
    """A difference over the seeds that both have (one at least)."""
    each = {seed: after[seed] - before[seed] for seed in sorted(before.keys() & after.keys())}
    test = paired_test(before, after)
    if test is None:
        return Spread(each, None, None)
    if test["p"] is None:  # where nothing differs at all nothing has to be estimated
        same = max(map(abs, each.values())) < NO_SPREAD
        return Spread(each, 1.0 if same else None, (0.0, 0.0) if same else None)
    return Spread(each, test["p"], (test["interval"][0], test["interval"][1]))


def called(difference: Difference, chance: float = CHANCE) -> str:
    """A difference in words."""
    if not difference.seeds.enough:
        models = "these two trained models" if len(difference.seeds.each) == 1 else "these trained models"
        differ = "differ" if difference.clips_tell(chance) else "do not differ measurably"
        return f"{models} {differ} on these clips; one or two seeds say nothing of the recipe"
    if difference.counts(chance):
        return "a gain" if difference.mean > 0 else "a loss"
    return "no difference that this data could show"


def chance_words(p: float) -> str:
    """A p."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def reach(low: float, high: float) -> str:
    """-0.01 to 0.02 -> −1.0 to +2.0 points."""
    return f"{points(low).removesuffix(' points')} to {points(high)}"


def many(count: int, what: str) -> str:
    """1 seed, 2 seeds."""
    return f"{count} {what}{'' if count == 1 else 's'}"
