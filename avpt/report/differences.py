"""Whether the answers of two groups of runs to the same clips differ by more than chance, over clips and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avpt.diagnosis.group_tests import FEWEST_PAIRS, NO_SPREAD, paired_test, sign_test
from avpt.report.drawing import points
from avpt.text import format_count

CHANCE = 0.05  # a difference counts as one if chance alone would produce it with a lower probability
MOST_DIGITS = 6  # of a p-value
MARGIN = 0.02  # a smaller loss of accuracy is negligible

RULES = (
    "A sign test over the clips asks whether these very models differ, and no more: of several seeds a clip votes for "
    "the side on which more seeds answer it right, and a tie does not vote. Whether the recipes differ is asked by the "
    f"paired t-test over seeds (as `avpt compare` prints it), which takes {FEWEST_PAIRS} seeds of each; a gain or a "
    "loss has to pass both.",
    f"One rule for p in every verdict: it has to be below {CHANCE:g} divided by the number of comparisons that answer "
    "its question (Bonferroni), as of many comparisons one is soon a hit by chance. What stands beside the question "
    "is held against nothing.",
    "Accuracies, their differences and spreads are rounded to 0.1, confidences and mask ratios to 0.01, p to 0.001 or "
    "as far as tells it from its limit.",
)


@dataclass(frozen=True)
class Spread:
    """A difference seed by seed, tested by Student's paired t-test."""

    each: dict[int, float]  # after minus before, by seed
    p: float | None  # None with too few seeds, or where all differ by the same amount
    interval: tuple[float, float] | None  # 95 %, of the mean; None where `p` is

    @property
    def enough(self) -> bool:
        """Whether there are enough seeds to judge the recipe."""
        return len(self.each) >= FEWEST_PAIRS

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return sum(self.each.values()) / len(self.each)

    def falls(self, chance: float = CHANCE) -> bool:
        """Whether it is a loss that chance over seeds does not explain."""
        return self.mean < 0 and self.p is not None and self.p < chance

    def holds(self) -> bool:
        """Whether a loss of more than the margin is ruled out."""
        return self.interval is not None and self.interval[0] > -MARGIN

    def words(self, chance: float | None = None) -> str:
        """The test in words, or why there is none; `chance` is what its p is held against."""
        if not self.enough:
            return f"{format_count(len(self.each), 'seed')}: no test over seeds"
        low, high = min(self.each.values()), max(self.each.values())
        if self.p is None or self.interval is None:
            return f"the same in all {len(self.each)} seeds: no spread that a test over seeds could go by"
        return (
            f"t-test over {len(self.each)} seeds {format_p(self.p, chance)}, "
            f"95 % interval {format_range(*self.interval)}, by seed {format_range(low, high)}"
        )


@dataclass(frozen=True)
class Difference:
    """The difference between two groups of runs (one or more seeds each) that answered the same clips."""

    before: float  # mean accuracy of the first group
    after: float  # and of the second
    p: float  # of the sign test over the clips
    clips: int  # how many
    seeds: Spread

    @property
    def mean(self) -> float:
        """After minus before, the mean over the seeds."""
        return self.seeds.mean

    def clips_tell(self, chance: float = CHANCE) -> bool:
        """Whether these very models differ by more than chance over clips, and in the same direction in each seed."""
        each = self.seeds.each.values()
        return self.p < chance and (min(each) > 0 or max(each) < 0)

    def counts(self, chance: float = CHANCE) -> bool:
        """Whether the recipes differ: both tests, over clips and over seeds, say so."""
        return self.clips_tell(chance) and self.seeds.p is not None and self.seeds.p < chance

    def words(self, chance: float | None = None) -> str:
        """The difference and its tests in words; `chance` is what their p are held against."""
        tests = f"sign test over {self.clips} clips {format_p(self.p, chance)}; {self.seeds.words(chance)}"
        return f"{points(self.mean)} ({tests})"


def compare(
    before: Sequence[Mapping[str, bool]], after: Sequence[Mapping[str, bool]], seeds: Sequence[int]
) -> Difference | None:
    """Compare two groups of runs by the exact sign test over clips and the paired t-test over seeds.

    In the sign test a clip votes for the group in which more seeds answer it right; with one seed that is McNemar's
    exact test. It counts clips and not seeds, as seeds measured on the same clips are not independent.

    Args:
        before: for each run, whether its answer is right, by clip.
        after: the same for the runs to compare with, in the same order.
        seeds: of the pairs; several pairs with one seed count as one, their mean.

    Returns:
        None where the runs have no clip in common.
    """
    clips = set.intersection(*(set(right) for right in [*before, *after])) if before else set()
    if not clips:
        return None
    firsts, seconds = ([sum(right[i] for i in clips) / len(clips) for right in runs] for runs in (before, after))
    votes = [sum(right[i] for right in after) - sum(right[i] for right in before) for i in clips]
    gains, losses = sum(vote > 0 for vote in votes), sum(vote < 0 for vote in votes)
    p = sign_test(gains, losses)
    first, second = average_by_seed(seeds, firsts), average_by_seed(seeds, seconds)
    means = [sum(values.values()) / len(values) for values in (first, second)]
    return Difference(means[0], means[1], p, len(clips), compare_seeds(first, second))


def average_by_seed(seeds: Sequence[int], values: Sequence[float]) -> dict[int, float]:
    """Average the values of each seed."""
    collected: dict[int, list[float]] = {}
    for seed, value in zip(seeds, values, strict=True):
        collected.setdefault(seed, []).append(value)
    return {seed: sum(several) / len(several) for seed, several in collected.items()}


def compare_seeds(before: Mapping[int, float], after: Mapping[int, float]) -> Spread:
    """Compare two groups over the seeds that both have (at least one)."""
    each = {seed: after[seed] - before[seed] for seed in sorted(before.keys() & after.keys())}
    test = paired_test(before, after)
    if test is None:
        return Spread(each, None, None)
    if test["p"] is None:  # without any difference there is nothing to estimate
        same = max(map(abs, each.values())) < NO_SPREAD
        return Spread(each, 1.0 if same else None, (0.0, 0.0) if same else None)
    return Spread(each, test["p"], (test["interval"][0], test["interval"][1]))


def set_limit(count: int) -> float:
    """What each p of so many comparisons, which answer one question, has to be below (Bonferroni)."""
    return CHANCE / max(1, count)


def explain_limit(count: int) -> str:
    """Say what p is held against in one verdict; the rule itself stands once on the page."""
    shown = f"{CHANCE:g} / {count} = {set_limit(count):.2g}" if count > 1 else f"{CHANCE:g}"
    return f"{format_count(count, 'comparison')}: the limit for each p is {shown}."


def explain_doubt(difference: Difference, chance: float = CHANCE) -> str:
    """Say why a p that looks small does not count; empty where none does, or where all is said by the outcome."""
    if difference.counts(chance):
        return ""
    reasons = []
    over_clips, over_seeds = format_p(difference.p), difference.seeds.p
    if difference.clips_tell(chance):
        reasons += [f"{over_clips} over clips is not borne out over seeds"] if over_seeds is not None else []
    elif difference.p < chance:
        reasons.append(f"{over_clips} over clips, but the seeds do not all point in one direction")
    elif difference.p < CHANCE:
        reasons.append(f"{format_p(difference.p, chance)} over clips")
    if over_seeds is not None and chance <= over_seeds < CHANCE:
        reasons.append(f"{format_p(over_seeds, chance)} over seeds")
    elif over_seeds is not None and over_seeds < chance:
        reasons.append(f"{format_p(over_seeds)} over seeds is not borne out over clips")
    return "; ".join(reasons)


def describe_outcome(difference: Difference, chance: float = CHANCE) -> str:
    """Say whether a difference is a gain, a loss or neither."""
    if not difference.seeds.enough:
        models = "these two trained models" if len(difference.seeds.each) == 1 else "these trained models"
        differ = "differ" if difference.clips_tell(chance) else "do not differ measurably"
        doubt = f" ({why})" if (why := explain_doubt(difference, chance)) else ""
        return f"{models} {differ} on these clips{doubt}; one or two seeds say nothing of the recipe"
    if difference.counts(chance):
        return "a gain" if difference.mean > 0 else "a loss"
    nothing = "no difference that this data could show"
    if difference.clips_tell(chance) and difference.seeds.p is not None:
        return f"{nothing}: these trained models differ, but by so unlike amounts that others need not"
    if difference.p < chance and not difference.clips_tell(chance):
        return f"{nothing}: these trained models differ, but not all in one direction"
    doubt = explain_doubt(difference, chance)
    return f"{nothing}: {doubt}" if doubt else nothing


def summarise_difference(difference: Difference) -> str:
    """Summarise a difference by its mean, and what is known of it beyond these seeds: +1.0 points (95 % ...)."""
    mean, spread = points(difference.mean), difference.seeds
    if not spread.enough:
        return mean
    if spread.p is None or spread.interval is None:
        return f"{mean} in all {len(spread.each)} seeds alike, so that no test over seeds is possible"
    return f"{mean} (95 % interval {format_range(*spread.interval)})"


def format_p(p: float, chance: float | None = None) -> str:
    """Format a p-value: 0.012 -> p = 0.012; held against 0.025: p = 0.012 (below 0.025).

    It gets as many digits as it takes to tell it from what it is held against.
    """
    digits = 3
    while chance is not None and p != chance and digits < MOST_DIGITS and round(p, digits) == round(chance, digits):
        digits += 1
    words = f"p = {p:.{digits}f}" if p >= 0.001 else "p < 0.001"
    return words if chance is None else f"{words} ({'below' if p < chance else 'not below'} {chance:.2g})"


def format_range(low: float, high: float) -> str:
    """Format an interval: -0.01, 0.02 -> −1.0 to +2.0 points."""
    return f"{points(low).removesuffix(' points')} to {points(high)}"
