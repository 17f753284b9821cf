"""Statistics of groups of runs: mean and spread, and whether a difference between two groups is one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import ttest_rel

FEWEST_PAIRS = 3  # seeds that two groups must share for a test
NO_SPREAD = 1e-12  # differences closer to one another than this are equal but for rounding


def spread(values: Iterable[float]) -> dict[str, Any]:
    """`mean`, `std` (of a sample; None of a single value) and `n`."""
    found = list(values)
    std = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return {"mean": float(np.mean(found)), "std": std, "n": len(found)}


def paired_test(first: Mapping[int, float], second: Mapping[int, float]) -> dict[str, Any] | None:
    """Student's paired t-test over the seeds that two groups share; None where these are fewer than three.

    Args:
        first: a value by seed.
        second: the same of the other group.

    Returns:
        `seeds`, `difference` (mean of second - first), its 95 % confidence `interval`, `t` and two-sided `p`; the
        last three None where all differences are equal, so that there is no spread to go by.
    """
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < FEWEST_PAIRS:
        return None
    differences = np.array([second[seed] - first[seed] for seed in seeds])
    found: dict[str, Any] = {"seeds": seeds, "difference": float(differences.mean())}
    if np.ptp(differences) < NO_SPREAD:
        return found | {"interval": None, "t": None, "p": None}
    result = ttest_rel([second[seed] for seed in seeds], [first[seed] for seed in seeds])
    interval = [float(bound) for bound in result.confidence_interval(0.95)]
    return found | {"interval": interval, "t": float(result.statistic), "p": float(result.pvalue)}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p adjusted for the number of tests (Holm, Scandinavian Journal of Statistics 1979); those without one stay so."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = highest
    return adjusted


def mean_curve(runs: Sequence[Sequence[float]]) -> list[float]:
    """The mean over runs, epoch by epoch, of those that came so far."""
    longest = max(map(len, runs), default=0)
    return [
        math.fsum(there) / len(there) for i in range(longest) if (there := [run[i] for run in runs if len(run) > i])
    ]
