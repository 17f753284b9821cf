"""Runs side by side: which are repeats of one another, what differs, and whether a difference in results is one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import ttest_rel

CHECKSUM = re.compile("[0-9a-f]{64}")
FEWEST_PAIRS = 3  # seeds that two groups must share for a test
MOST_NAMED = 3  # options in the name of a group
NO_SPREAD = 1e-12  # differences closer to one another than this are equal but for rounding


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone."""

    members: list[int]  # positions of the runs
    options: dict[str, Any]  # that all of them have
    pooled: bool  # inputs that are not to be found differ, and may differ in more than the seed


def group_runs(options: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Group]:
    """Put runs together whose options are equal.

    An input that is not to be found is among the options as a checksum. Where each of the runs that are equal but for
    such inputs has inputs of its own and a seed of its own, they count as repeats; otherwise other inputs are another
    group.

    Args:
        options: of each run, all that its result depends on but the seed.
        seeds: of each run.
    """
    alike: dict[str, list[int]] = {}
    for run, values in enumerate(options):
        alike.setdefault(_key({name: is_lost(name, value) or value for name, value in values.items()}), []).append(run)
    groups = []
    for runs in alike.values():
        exact: dict[str, list[int]] = {}
        for run in runs:
            exact.setdefault(_key(options[run]), []).append(run)
        if 1 < len(exact) == len(runs) == len({seeds[run] for run in runs}):
            shared = {name: value for name, value in options[runs[0]].items() if not is_lost(name, value)}
            groups.append(Group(runs, shared, pooled=True))
        else:
            groups += [Group(members, dict(options[members[0]]), pooled=False) for members in exact.values()]
    return sorted(groups, key=lambda group: group.members[0])


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def is_lost(name: str, value: Any) -> bool:
    """Whether it is the checksum of a file that is not to be found; a store is as good as its fingerprint."""
    return name.split(".")[-1] != "store" and isinstance(value, str) and CHECKSUM.fullmatch(value) is not None


def differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Options that two groups which both have them disagree on, those of the runs themselves first.

    One that only some have (the shape of a mask) follows from another (whether there is one).
    """
    values: dict[str, set[str]] = {}
    for group in options:
        for name, value in group.items():
            values.setdefault(name, set()).add(_key({"": value}))
    return sorted((name for name, found in values.items() if len(found) > 1), key=lambda name: (name.count("."), name))


def name_groups(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each group the fewest options that tell it from all others; empty where a few do not."""
    names = differing(options)
    return [_tell(i, options, names) for i in range(len(options))]


def _tell(own: int, options: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    have = [name for name in names if name in options[own]]
    for count in range(1, MOST_NAMED + 1):
        for chosen in combinations(have[:12], count):
            alike = [all(n in group and group[n] == options[own][n] for n in chosen) for group in options]
            if sum(alike) == 1:
                return ", ".join(f"{name}={in_words(options[own][name])}" for name in chosen)
    return ""


def in_words(value: Any) -> str:
    """An option's value for a table."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return " ".join(map(in_words, value))
    return f"{value[:12]}..." if CHECKSUM.fullmatch(str(value)) else str(value)


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
