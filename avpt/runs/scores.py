"""The metrics of runs: of their best models, and epoch by epoch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from avpt.errors import ArtifactError, ConfigError, listed
from avpt.runs.folder import Run
from avpt.training.metrics import key_name
from avpt.types import Split

log = logging.getLogger(__name__)

FIRST = (key_name(True), key_name(False), "audio_accuracy", "visual_accuracy")  # the others follow by name
TEST_FIRST: tuple[Split, ...] = ("test", "val")


def recorded_metrics(run: Run) -> list[dict[str, Any]]:
    """Every set of metrics that a run has: of its best model, and on val epoch by epoch."""
    best = [(run.summary or {}).get(split) or {} for split in TEST_FIRST]
    return best + [row.get("val", {}) for row in run.epochs]


def metric_of(run: Run, split: Split, metric: str) -> float | None:
    """A metric of a finished run's best model, where it has that."""
    values = (run.summary or {}).get(split) or {}
    return values.get(metric)


def curve_of(run: Run, metric: str) -> list[float]:
    """A metric on val, epoch by epoch; empty where the run does not have it."""
    return [row["val"][metric] for row in run.epochs if row.get("val", {}).get(metric) is not None]


def metrics_of(runs: Sequence[Run], asked: Sequence[str] | None) -> list[str]:
    """The names of the metrics to show; the first is the one that is tested.

    Raises:
        ConfigError: no run has a metric that was asked for.
    """
    recorded = {name for run in runs for values in recorded_metrics(run) for name in values}
    if unknown := [name for name in asked or () if name not in recorded]:
        raise ConfigError(
            f"--metric {unknown[0]} is in none of the runs; they have {listed(sorted(recorded), 10) or 'none'}"
        )
    return list(asked or sorted(recorded, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)))


def check_clips(runs: Sequence[Run]) -> None:
    """Check that all runs have the same classes, and warn where their clips differ.

    Raises:
        ArtifactError: they do not; the message says which classes differ.
    """
    known = [(run, set(run.header.classes)) for run in runs if run.header is not None]
    for other, classes in known[1:]:
        first, wanted = known[0]
        if classes != wanted:
            unshared = [
                f"only {listed(sorted(some))} in {of.path}"
                for some, of in ((wanted - classes, first), (classes - wanted, other))
                if some
            ]
            raise ArtifactError(
                f"{first.path} and {other.path} were trained on different classes ({', '.join(unshared)}); "
                "compare runs on the same ones"
            )
    stores = Counter(run.inputs.get("store") for run in runs)
    if len(stores) > 1:
        log.warning("the runs were made on %d different stores: their numbers are of different clips", len(stores))
