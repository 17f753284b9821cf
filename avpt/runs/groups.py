"""Runs read and grouped for a comparison: those that differ in the seed alone belong together."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from os.path import commonprefix
from pathlib import Path
from typing import Any

from avpt.diagnosis import group_tests
from avpt.errors import ArtifactError, ConfigError, listed
from avpt.options import Config, FinetuneConfig, FuseConfig, InitConfig, ScoreConfig
from avpt.runs.folder import Run
from avpt.runs.lineage import Lineage
from avpt.types import Split

log = logging.getLogger(__name__)

CONFIGS: dict[str, type[Config]] = {
    "classifier": FinetuneConfig,
    "fused": FuseConfig,
    "encoder": InitConfig,
    "confidence": ScoreConfig,
}
PATHS = ("store", "out", "init", "audio", "visual", "confidence")  # options of theirs, which no record has
FIRST = ("map", "accuracy", "audio_accuracy", "visual_accuracy")  # of the metrics; the others follow by name
HELD_OUT: tuple[Split, ...] = ("test", "val")


@dataclass(frozen=True)
class Compared:
    """A group of runs, ready to be shown."""

    letter: str
    name: str  # what tells it from the others
    options: dict[str, Any]
    runs: list[Run]

    @property
    def finished(self) -> list[Run]:
        """Those that count."""
        return [run for run in self.runs if run.summary is not None]

    def values(self, split: Split, metric: str) -> dict[int, float]:
        """A metric by seed; of several runs with one seed their mean."""
        found: dict[int, list[float]] = {}
        for run in self.finished:
            if (value := metric_of(run, split, metric)) is not None:
                found.setdefault(seed_of(run), []).append(value)
        return {seed: sum(values) / len(values) for seed, values in found.items()}

    def curves(self, metric: str) -> list[list[float]]:
        """A metric on val, epoch by epoch, of each finished run."""
        return [curve for run in self.finished if (curve := curve_of(run, metric))]


def measured(run: Run) -> list[dict[str, Any]]:
    """Every set of metrics that a run has: of its best model, and on val epoch by epoch."""
    best = [(run.summary or {}).get(split) or {} for split in HELD_OUT]
    return best + [row.get("val", {}) for row in run.epochs]


def check_clips(runs: Sequence[Run]) -> None:
    """See that all runs tell the same classes apart; other clips of these are warned of.

    Raises:
        ArtifactError: they do not, and which differ.
    """
    known = [(run, set(run.header.classes)) for run in runs if run.header is not None]
    for other, classes in known[1:]:
        first, wanted = known[0]
        if classes != wanted:
            only = [
                f"only {listed(sorted(some))} in {of.path}"
                for some, of in ((wanted - classes, first), (classes - wanted, other))
                if some
            ]
            raise ArtifactError(
                f"{first.path} and {other.path} were trained on different classes ({', '.join(only)}); "
                "compare runs on the same ones"
            )
    stores = Counter(run.inputs.get("store") for run in runs)
    if len(stores) > 1:
        log.warning("the runs were made on %d different stores: their numbers are of different clips", len(stores))


def group(runs: Sequence[Run], search: Sequence[Path] | None) -> list[Compared]:
    """The groups in the order of their first runs, lettered and named by what tells them apart."""
    lineage = Lineage([run.path for run in runs], search)
    seeds = [seed_of(run) for run in runs]
    found = group_tests.group_runs([options_of(run, lineage) for run in runs], seeds)
    pooled = sum(len(group.members) for group in found if group.pooled)
    if pooled:
        log.warning(
            "what %d of the runs were made from is not to be found: runs with equal options and other seeds count as "
            "repeats, whatever their inputs; name folders to look in with --search",
            pooled,
        )
    options = [group.options for group in found]
    apart = [n for n in group_tests.differing(options) if any(group_tests.is_lost(n, some.get(n)) for some in options)]
    if apart:
        log.warning(
            "groups differ by inputs that are not to be found, known by their checksums alone (%s); name folders to "
            "look in with --search",
            listed(apart),
        )
    names = group_tests.name_groups(options)
    groups = []
    for number, (name, one) in enumerate(zip(names, found, strict=True)):
        members = [runs[i] for i in one.members]
        twice = [str(seed) for seed, count in Counter(map(seed_of, members)).items() if count > 1]
        letter = letters(number)
        if twice:
            log.warning("group %s has several runs of seed %s: a paired test takes their mean", letter, listed(twice))
        groups.append(Compared(letter, name or pattern(members), one.options, members))
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


def options_of(run: Run, lineage: Lineage) -> dict[str, Any]:
    """All that a run's result depends on but the seed."""
    whole = lineage.whole_config(complete(run.kind, run.config), run.inputs, complete)
    whole = {name: value for name, value in whole.items() if name.split(".")[-1] != "modality"}  # its place says it
    return {"model": run.config.get("modality", "joint"), **whole}


def complete(kind: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a record, with the defaults of those that are younger than it and count beside the others."""
    config_type = CONFIGS.get(kind)
    if config_type is None:
        return config
    names = {field.name for field in fields(config_type)}
    known: dict[str, Any] = {name: Path() for name in PATHS if name in names}
    known |= {name: value for name, value in config.items() if name in names}
    try:
        settings = config_type(**known)
    except (ConfigError, TypeError, ValueError, AttributeError):  # of a newer avpt
        return config
    return {**config, **settings.record()}


def seed_of(run: Run) -> int:
    """The seed of a run itself."""
    seed: int = run.config.get("seed", 0)
    return seed


def metric_of(run: Run, split: Split, metric: str) -> float | None:
    """A metric of a finished run's best model, where it has that."""
    values = (run.summary or {}).get(split) or {}
    return values.get(metric)


def curve_of(run: Run, metric: str) -> list[float]:
    """A metric on val, epoch by epoch; empty where the run does not have it."""
    return [row["val"][metric] for row in run.epochs if row.get("val", {}).get(metric) is not None]


def metrics_of(runs: Sequence[Run], asked: Sequence[str] | None) -> list[str]:
    """The metrics to show, the one that is tested first.

    Raises:
        ConfigError: no run has one that was asked for.
    """
    there = {name for run in runs for values in measured(run) for name in values}
    if unknown := [name for name in asked or () if name not in there]:
        raise ConfigError(
            f"--metric {unknown[0]} is in none of the runs; they have {listed(sorted(there), 10) or 'none'}"
        )
    return list(asked or sorted(there, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)))
