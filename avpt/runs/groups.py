"""Which runs differ in the seed alone: one answer for `compare`, for the page of a report and for its verdicts."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from os.path import commonprefix
from pathlib import Path
from typing import Any

from avpt.errors import listed
from avpt.options import complete, recorded_option
from avpt.runs.folder import Run
from avpt.runs.lineage import Lineage, Node
from avpt.runs.scores import curve_of, metric_of
from avpt.types import Split

log = logging.getLogger(__name__)

CHECKSUM = re.compile("[0-9a-f]{64}")
SUGGESTED = ("confidence.audio_patch", "confidence.visual_patch")  # to the run, which records what it took
MOST_NAMED = 3  # options in the name of a group
BALANCE_SETTINGS = ("balance_set", "balance_gamma")  # which say nothing without the method
POOLED = (
    "what %d of the runs were made from was not found: runs with equal options and other seeds count as "
    "repeats, whatever their inputs; name folders to look in with --search"
)


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone."""

    members: list[int]  # positions of the runs
    options: dict[str, Any]  # that all of them have
    pooled: bool  # some inputs that can't be found differ, perhaps in more than the seed


def group_made(made: Sequence[Run | Node], lineage: Lineage) -> list[Group]:
    """Put together runs, or other things of one kind, that differ in the seed alone, wherever in their history."""
    return group_runs([options_of(one, lineage) for one in made], [seed_of(one) for one in made])


def options_of(made: Run | Node, lineage: Lineage) -> dict[str, Any]:
    """All that a run's result depends on except the seed: its options, and those of all that it was made from."""
    lineage.follow(made.path)
    whole = lineage.whole_config(complete(made.kind, made.config), made.inputs, complete)
    whole = {name: value for name, value in whole.items() if name.split(".")[-1] != "modality"}  # the prefix says it
    whole = {name: value for name, value in whole.items() if not name.endswith(SUGGESTED)}
    return {"model": made.config.get("modality", "joint"), **whole}


def seed_of(made: Run | Node) -> int:
    """The seed of a run itself, not of what it was made from."""
    return int(recorded_option(made.kind, made.config, "seed") or 0)


def group_runs(options: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Group]:
    """Put runs together whose options are equal.

    An input that can't be found stands among the options as its checksum. Runs that differ in such inputs alone count
    as repeats if each has inputs and a seed of its own; otherwise other inputs make another group.

    Args:
        options: for each run, all that its result depends on except the seed.
        seeds: the seed of each run.
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
    """Whether an option is the checksum of a file that can't be found; of a store the fingerprint is enough."""
    is_store = name.split(".")[-1] in ("store", "fingerprint")
    return not is_store and isinstance(value, str) and CHECKSUM.fullmatch(value) is not None


def count_pooled(groups: Sequence[Group]) -> int:
    """Count the runs that are taken for repeats although their inputs can't be found, and warn of them."""
    pooled = sum(len(group.members) for group in groups if group.pooled)
    if pooled:
        log.warning(POOLED, pooled)
    return pooled


# --- names -------------------------------------------------------------------------------------------------------


def differing_options(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options in which groups that have them disagree, those of the runs themselves first.

    An option that some groups lack (the shape of a mask) follows from another (whether there is one), but for the
    settings of a balancing method, which groups with the same method may lack.
    """
    values: dict[str, set[str]] = {}
    for group in _with_settings(options):
        for name, value in group.items():
            values.setdefault(name, set()).add(_key({"": value}))
    return sorted((name for name, some in values.items() if len(some) > 1), key=lambda name: (name.count("."), name))


def name_groups(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each group the fewest options that distinguish it from all others; empty where no few of them do."""
    names, whole = differing_options(options), _with_settings(options)
    return [_distinguish(i, whole, names) for i in range(len(whole))]


def _with_settings(options: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The groups' options, with None for a setting that a group lacks and another with its balancing method has."""
    lacking: list[dict[str, Any]] = [{} for _ in options]
    for group in options:
        for above, last in (_parts(name) for name in group):
            if last in BALANCE_SETTINGS:
                for other, lacks in zip(options, lacking, strict=True):
                    if other.get(f"{above}balance") == group.get(f"{above}balance") is not None:
                        lacks[above + last] = None
    return [lacks | dict(group) for group, lacks in zip(options, lacking, strict=True)]


def _parts(name: str) -> tuple[str, str]:
    """`model.balance` -> `model.`, `balance`."""
    above, dot, last = name.rpartition(".")
    return above + dot, last


def _distinguish(own: int, options: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    have = [name for name in names if name in options[own]]
    for count in range(1, MOST_NAMED + 1):
        for chosen in combinations(have[:12], count):
            alike = [all(n in group and group[n] == options[own][n] for n in chosen) for group in options]
            if sum(alike) == 1:
                return ", ".join(dict.fromkeys(_choice_in_words(options[own], name, chosen) for name in chosen))
    return ""


def _choice_in_words(options: Mapping[str, Any], name: str, chosen: Sequence[str]) -> str:
    """An option and its value; settings of a balancing method stand behind the method, as in uniform(gamma=2)."""
    above, last = _parts(name)
    method = balance_in_words(options, above)
    of_settings = last in BALANCE_SETTINGS or (
        last == "balance" and any(above + setting in chosen for setting in BALANCE_SETTINGS)
    )
    if of_settings:
        return f"{above}{method}" if method.endswith(")") else f"{above}balance={method}"
    return f"{name}={value_in_words(options[name])}"


def balance_in_words(options: Mapping[str, Any], above: str = "") -> str:
    """The balancing method of a run with the settings that it was given: ogm-ge, uniform(gamma=2).

    `above` is what stands before the options' names in the history of something that was made from the run.
    """
    settings = [*(options.get(f"{above}balance_set") or ())]
    if (gamma := options.get(f"{above}balance_gamma")) is not None:
        settings.append(f"gamma={value_in_words(gamma)}")
    method = str(options.get(f"{above}balance", "none"))
    return f"{method}({', '.join(settings)})" if settings else method


def value_in_words(value: Any) -> str:
    """An option's value for a table."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return " ".join(map(value_in_words, value))
    return f"{value[:12]}..." if CHECKSUM.fullmatch(str(value)) else str(value)


# --- groups to be compared ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedGroup:
    """A group of runs with a letter and a name, to be compared with others."""

    letter: str
    name: str  # what distinguishes it from the others
    options: dict[str, Any]
    runs: list[Run]

    @property
    def finished(self) -> list[Run]:
        """The finished runs, which are the ones that count."""
        return [run for run in self.runs if run.summary is not None]

    def values(self, split: Split, metric: str) -> dict[int, float]:
        """A metric by seed; the mean where several runs have one seed."""
        by_seed: dict[int, list[float]] = {}
        for run in self.finished:
            if (value := metric_of(run, split, metric)) is not None:
                by_seed.setdefault(seed_of(run), []).append(value)
        return {seed: sum(values) / len(values) for seed, values in by_seed.items()}

    def curves(self, metric: str) -> list[list[float]]:
        """A metric on val, epoch by epoch, of each finished run."""
        return [curve for run in self.finished if (curve := curve_of(run, metric))]


def group(runs: Sequence[Run], search: Sequence[Path] | None) -> list[NamedGroup]:
    """The groups in the order of their first runs, each with a letter and named by what distinguishes it."""
    unnamed = group_made(runs, Lineage([run.path for run in runs], search))
    count_pooled(unnamed)
    options = [group.options for group in unnamed]
    unknown = [name for name in differing_options(options) if any(is_lost(name, some.get(name)) for some in options)]
    if unknown:
        log.warning(
            "groups differ by inputs that were not found, known by their checksums alone (%s); name folders to "
            "look in with --search",
            listed(unknown),
        )
    names = name_groups(options)
    groups = []
    for number, (name, one) in enumerate(zip(names, unnamed, strict=True)):
        members = [runs[i] for i in one.members]
        twice = [str(seed) for seed, count in Counter(map(seed_of, members)).items() if count > 1]
        letter = letters(number)
        if twice:
            log.warning("group %s has several runs of seed %s: a paired test takes their mean", letter, listed(twice))
        groups.append(NamedGroup(letter, name or pattern(members), one.options, members))
    return groups


def letters(number: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    more, last = divmod(number, 26)
    return (letters(more - 1) if more else "") + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[last]


def pattern(runs: Sequence[Run]) -> str:
    """The folders of some runs as one path, with a star where they differ."""
    parts = [run.path.parts for run in runs]
    if len(set(map(len, parts))) > 1:
        return f"{runs[0].path}, ..."
    # letter by letter, which is what is wanted here: seed-0, seed-1 -> seed-*
    starts = ((commonprefix(names), names) for names in zip(*parts, strict=True))  # noqa: RUF071
    return str(Path(*(start if len(set(names)) == 1 else f"{start}*" for start, names in starts)))
