"""The run folder that a training command fills: what it records, and when it counts as finished; no torch needed."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from avpt.errors import ArtifactError, OutputError, listed
from avpt.files.artifacts import A_RUN, Header, read_header
from avpt.files.checking import RecordError, read_lines
from avpt.files.content_kinds import but_what
from avpt.files.locks import sweep
from avpt.files.outputs import read_record
from avpt.files.records import Epoch, Provenance, RunSummary
from avpt.files.reuse import begin, check_same, differences, look_into, say_there
from avpt.files.typed_paths import write_paths
from avpt.text import decimals
from avpt.training.metrics import informative
from avpt.training.schedules import SCHEDULES
from avpt.types import HELD_OUT, Report, Table

log = logging.getLogger(__name__)

OWNED = re.compile(
    r"((model|last|dynamics|predictions|mask)\.safetensors|(metrics|timing)\.jsonl|(summary|paths)\.json"
    r"|checkpoint/(settings\.json|(last|previous)\.pt)|tensorboard/events\.out\.tfevents\.[^/]*)|(checkpoint/)?\..*\.tmp"
)
SETTINGS = "checkpoint/settings.json"
AGAIN = "run the command that made it again with --overwrite"
LEVELS_OF_RUNS = 4  # below a folder, where recipes put runs: seed-0/masked, masked/seed-0


@dataclass(frozen=True)
class Run:
    """The records of a run folder, finished or not."""

    path: Path
    kind: str  # classifier, fused
    config: dict[str, Any]
    inputs: dict[str, str]
    epochs: list[dict[str, Any]]  # the rows of metrics.jsonl
    summary: dict[str, Any] | None  # None while it is unfinished
    header: Header | None  # of its best model

    @property
    def progress(self) -> str:
        """In words: finished, or how far the run came."""
        done, planned = len(self.epochs), self.config.get("epochs", 0)
        if self.summary:
            return f"finished, stopped early after {done} of {planned} epochs" if done < planned else "finished"
        return f"unfinished, {done} of {planned} epochs done"


def is_run(path: Path) -> bool:
    """Whether a folder looks like one that a training command filled."""
    return (path / "checkpoint").is_dir() or ((path / "summary.json").exists() and (path / "metrics.jsonl").exists())


def expand_folders(paths: Sequence[Path]) -> list[Path]:
    """The run folders that are named, and of any other folder those in it; what else is there is passed over and named.

    A path below which there is no run stays as it is: who reads it says what is wrong with it.
    """
    runs: list[Path] = []
    for path in paths:
        within, others = ([], []) if is_run(path) else _runs_below(path, LEVELS_OF_RUNS)
        runs += within or [path]
        if within and others:
            names = listed([str(other.relative_to(path)) for other in others])
            log.info("%d run(s) in %s; passed over, being none: %s", len(within), path, names)
    return runs


def _runs_below(folder: Path, levels: int) -> tuple[list[Path], list[Path]]:
    """The runs in a folder, and what is there besides; of folders without a run the uppermost."""
    runs: list[Path] = []
    others: list[Path] = []
    entries = sorted(folder.iterdir()) if levels and folder.is_dir() else []
    for entry in (entry for entry in entries if not entry.name.startswith(".")):
        within, besides = ([entry], []) if is_run(entry) else _runs_below(entry, levels - 1)
        runs += within
        others += besides if within else [entry]
    return runs, others


def read_run(path: Path) -> Run:
    """Read the records of a run folder; no tensors.

    Raises:
        ArtifactError, OutputError: it is not a run folder, or is damaged.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; it should be a run folder written by avpt")
    if not is_run(path):
        raise ArtifactError(f"{path} is not a run folder written by avpt{but_what(path)}; {A_RUN}")
    header, summary = None, None
    if (path / "summary.json").exists():
        summary = read_record(path / "summary.json", AGAIN, RunSummary)
        header, _ = read_header(path / "model.safetensors")
    if header is not None and not (path / SETTINGS).exists():  # checkpoint/ was removed to save space
        settings: dict[str, Any] = {"config": header.config, "inputs": header.inputs}
    else:
        settings = read_record(path / SETTINGS, AGAIN, Provenance)
    config = settings["config"]
    kind = "classifier" if "modality" in config else "fused"
    return Run(path, kind, config, settings["inputs"], _read_epochs(path / "metrics.jsonl"), summary, header)


def _read_epochs(path: Path) -> list[dict[str, Any]]:
    try:
        return [cast(dict[str, Any], row) for row in read_lines(path, Epoch)]
    except FileNotFoundError:
        return []
    except RecordError as error:
        raise ArtifactError(f"{path} is damaged ({error}); {AGAIN}") from None


def find_summary(
    path: Path, settings: dict[str, Any], defaults: dict[str, Any], overwrite: bool
) -> dict[str, Any] | None:
    """Check whether the run is already there, and change nothing. Call it inside `outputs.claim`.

    Args:
        path: the run folder.
        settings: `config` and `inputs` of the run.
        defaults: of the options.
        overwrite: the caller means to start over.

    Returns:
        The summary of a run that was finished with these settings, or None where there is work to do.

    Raises:
        OutputError: the folder holds something else.
    """
    complete = all((path / name).exists() for name in ("summary.json", "model.safetensors"))
    if complete and not overwrite and not (path / SETTINGS).exists():  # checkpoint/ was removed to save space
        header, _ = read_header(path / "model.safetensors")
        existing: dict[str, Any] | None = {"config": header.config, "inputs": header.inputs}
    else:
        existing = look_into(path, SETTINGS, OWNED, overwrite)
    if existing is None:
        return None
    if not _is_continued(existing, settings, defaults):
        check_same(path, existing, settings, defaults)
        if (path / "summary.json").exists():
            say_there(path)
            return read_record(path / "summary.json", "--overwrite starts over", RunSummary)
    if (path / "metrics.jsonl").exists() and not any((path / "checkpoint").glob("*.pt")):
        raise OutputError(f"{path} has epochs behind it, but its checkpoint is gone; --overwrite starts over")
    return None


def begin_run(path: Path, settings: dict[str, Any], overwrite: bool, inputs: Mapping[str, Path | None]) -> None:
    """Make the folder, or prepare to continue the unfinished or shorter run in it; `inputs` are paths as typed."""
    (path / "summary.json").unlink(missing_ok=True)  # from here on the run is unfinished
    begin(path, SETTINGS, settings, overwrite)
    write_paths(path, settings["inputs"], inputs)
    sweep([*path.glob(".*.tmp"), *path.glob("checkpoint/.*.tmp")])


def _is_continued(existing: dict[str, Any], wanted: dict[str, Any], defaults: dict[str, Any]) -> bool:
    """Whether more epochs of the same run are wanted, under a schedule that lets it be continued."""
    longer = existing["config"].get("epochs", 0) < wanted["config"]["epochs"]
    same = not differences(
        {**existing, "config": existing["config"] | {"epochs": wanted["config"]["epochs"]}}, wanted, defaults
    )
    return longer and same and SCHEDULES[wanted["config"]["schedule"]].continues


def report(path: Path, summary: dict[str, Any], title: str, num_classes: int) -> Report:
    """What a training command reports of a finished run: its record, and a table of the metrics that say something."""
    names = [name for name in HELD_OUT if summary[name] is not None]
    metrics = informative(sorted(summary[names[0]]), num_classes)
    rows = [(metric, *(decimals(summary[split].get(metric)) for split in names)) for metric in metrics]
    table = Table(f"{title}, best epoch {summary['best_epoch']} of {summary['epochs']}", ("", *names), rows)
    return Report({"run": str(path), **summary}, (path,), [table])
