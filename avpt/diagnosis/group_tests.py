"""Statistics of groups of runs: mean and spread, and tests of the difference between two groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

FEWEST_PAIRS = 3  # seeds that two groups must share for a test
NO_SPREAD = 1e-12  # differences closer to one another than this are equal but for rounding


def summarise(values: Iterable[float]) -> dict[str, Any]:
    """Compute `mean`, `std` (of a sample; None of a single value) and `n`."""
    sample = list(values)
    std = float(np.std(sample, ddof=1)) if len(sample) > 1 else None
    return {"mean": float(np.mean(sample)), "std": std, "n": len(sample)}


def paired_test(first: Mapping[int, float], second: Mapping[int, float]) -> dict[str, Any] | None:
    """Compare two groups by Student's paired t-test over the seeds that they share; None if these are fewer than three.

    Args:
        first: the value of each seed of one group.
        second: the same for the other group.

    Returns:
        `seeds`, `difference` (mean of second - first), its 95 % confidence `interval`, `t` and two-sided `p`; the
        last three are None where all differences are equal, so that they have no spread.
    """
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < FEWEST_PAIRS:
        return None
    differences = np.array([second[seed] - first[seed] for seed in seeds])
    test: dict[str, Any] = {"seeds": seeds, "difference": float(differences.mean())}
    if np.ptp(differences) < NO_SPREAD:
        return test | {"interval": None, "t": None, "p": None}
    from scipy.stats import ttest_rel  # which takes seconds to load

    result = ttest_rel([second[seed] for seed in seeds], [first[seed] for seed in seeds])
    interval = [float(bound) for bound in result.confidence_interval(0.95)]
    return test | {"interval": interval, "t": float(result.statistic), "p": float(result.pvalue)}


def sign_test(gains: int, losses: int) -> float:
    """The exact two-sided p of so many gains and losses, if either is as likely: SciPy's `binomtest`, quick to load."""
    count, fewer = gains + losses, min(gains, losses)
    logs = [math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log - count * math.log(2)) for log in logs))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p for the number of tests (Holm, Scandinavian Journal of Statistics 1979); None stays None."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = highest
    return adjusted


def mean_curve(runs: Sequence[Sequence[float]]) -> list[float]:
    """The mean over runs, epoch by epoch, of the runs that reached that epoch."""
    longest = max(map(len, runs), default=0)
    return [
        math.fsum(there) / len(there) for i in range(longest) if (there := [run[i] for run in runs if len(run) > i])
    ]
