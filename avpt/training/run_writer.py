"""The files that a training run writes into its folder, epoch by epoch and at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from avpt.files.artifacts import Header, pack_ids, save
from avpt.files.checking import RecordError, read_lines
from avpt.files.outputs import write_json, write_text
from avpt.files.records import Timing
from avpt.training.checkpoint import previous_of
from avpt.training.state import Progress
from avpt.training.watch import Watcher
from avpt.types import Split

TIMING = "timing.jsonl"


class RunFiles(Watcher):
    """Keeps `metrics.jsonl` and `timing.jsonl` up to date."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def epoch_done(self, progress: Progress, timing: dict[str, Any]) -> None:
        """Replace both files."""
        _write_metrics(self.path, progress)
        rows = read_timings(self.path) | {timing["epoch"]: timing}
        so_far = [json.dumps(rows[epoch]) + "\n" for epoch in sorted(rows) if epoch <= timing["epoch"]]
        write_text(self.path / TIMING, "".join(so_far))


def read_timings(path: Path) -> dict[int, dict[str, Any]]:
    """The rows of a run folder's `timing.jsonl` by epoch, counted from 1; none where it is missing or damaged."""
    try:
        return {row["epoch"]: cast(dict[str, Any], row) for row in read_lines(path / TIMING, Timing)}
    except (FileNotFoundError, RecordError):  # no result depends on timings
        return {}


def _write_metrics(path: Path, progress: Progress) -> None:
    write_text(path / "metrics.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in progress.records))


def finish_run(
    path: Path,
    header: Header,
    progress: Progress,
    last_model: dict[str, Tensor],
    *,
    train_ids: Sequence[str],
    predictions: Mapping[Split, dict[str, Tensor]],
    prediction_ids: Mapping[Split, Sequence[str]],
    summary: dict[str, Any],
    modality: str,
) -> None:
    """Write models, dynamics and predictions, and last the summary that declares the run finished.

    Args:
        path: the run folder.
        header: that of the model's artifacts, its metrics still empty.
        progress: that of the finished training.
        last_model: the model's tensors after the last epoch.
        train_ids: ids of the training clips, in the order of the dynamics.
        predictions: per split, what `evaluate` returned for the best model.
        prediction_ids: per split, the clip ids.
        summary: what `summary.json` and `--json` hold.
        modality: that of the dynamics; "joint" for a fused model.
    """
    _write_metrics(path, progress)  # a kill may have come between the last checkpoint and its line
    save(path / "model.safetensors", replace(header, metrics=summary), progress.best_model)
    save(path / "last.safetensors", replace(header, metrics={"epoch": len(progress.records)}), last_model)

    spec = header.spec | {"modality": modality}
    rows = {"probability": torch.stack(progress.probability), "correct": torch.stack(progress.correct)}
    save(path / "dynamics.safetensors", replace(header, kind="dynamics", spec=spec), rows | pack_ids(train_ids))

    tensors: dict[str, Tensor] = {}
    for split, outputs in predictions.items():
        tensors |= {f"{split}_{name}": value for name, value in outputs.items()}
        tensors |= pack_ids(prediction_ids[split], prefix=f"{split}_")
    save(path / "predictions.safetensors", replace(header, kind="predictions", spec={}), tensors)
    previous_of(path / "checkpoint" / "last.pt").unlink(missing_ok=True)
    write_json(path / "summary.json", summary)  # last: a finished folder is not written to again
