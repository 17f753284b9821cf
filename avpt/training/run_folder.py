"""The run folder: what a training command leaves behind, and when it counts as finished."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avpt.artifacts import Header, pack_ids, save
from avpt.outputs import differences, prepare_folder, refuse, write_json, write_text
from avpt.training.loop import Progress
from avpt.types import Split

log = logging.getLogger(__name__)

OWNED = re.compile(
    r"((model|last|dynamics|predictions|mask)\.safetensors|(metrics|timing)\.jsonl|summary\.json"
    r"|checkpoint/(settings\.json|last\.pt))|(checkpoint/)?\..*\.tmp"
)
SETTINGS = "checkpoint/settings.json"


def open_run(path: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Prepare a run folder to be written; call it inside `outputs.claim`.

    Args:
        path: the folder.
        settings: `config` and `inputs` of the run.
        overwrite: start over.

    Returns:
        The summary of a run that is already finished just so, or None where there is work to do.

    Raises:
        OutputError: the folder holds something else.
    """
    found = prepare_folder(path, SETTINGS, OWNED, overwrite)
    if found is not None and (different := differences(found, settings)):
        if not _is_continued(found, settings):
            raise refuse(path, different)
        (path / "summary.json").unlink(missing_ok=True)
    if found != settings:
        (path / "checkpoint").mkdir(exist_ok=True)
        write_json(path / SETTINGS, settings)
    summary = path / "summary.json"
    return json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else None


def _is_continued(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """More epochs of the same run, under a schedule that does not depend on how many there are."""
    longer = found["config"].get("epochs", 0) < wanted["config"]["epochs"]
    same = not differences({**found, "config": found["config"] | {"epochs": wanted["config"]["epochs"]}}, wanted)
    return longer and same and wanted["config"]["schedule"] != "cosine"


def write_epoch(path: Path, progress: Progress, seconds: float, num_clips: int) -> None:
    """Bring `metrics.jsonl` up to date, and what the clock says into `timing.jsonl`."""
    _write_metrics(path, progress)
    epoch = len(progress.records)
    timing = path / "timing.jsonl"
    rows = timing.read_text(encoding="utf-8").splitlines()[: epoch - 1] if timing.exists() else []
    now = {"epoch": epoch, "seconds": round(seconds, 3), "clips_per_second": round(num_clips / seconds, 2)}
    write_text(timing, "".join(row + "\n" for row in [*rows, json.dumps(now)]))
    record = progress.records[-1]
    log.info(
        "epoch %d  lr %.2g  loss %.4f  accuracy %.3f  val loss %.4f  val accuracy %.3f  %.1f s",
        epoch,
        record["lr"],
        record["train"]["loss"],
        record["train"]["accuracy"],
        record["val"]["loss"],
        record["val"]["accuracy"],
        seconds,
    )


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
        header: of the model's artifacts, metrics still empty.
        progress: of the finished training.
        last_model: as it is after the last epoch.
        train_ids: of the training clips, in the order of the dynamics.
        predictions: per split, what `evaluate` returned for the best model.
        prediction_ids: per split, the clip ids.
        summary: what `summary.json` and `--json` say.
        modality: of the dynamics; "joint" for a fused model.
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
    write_json(path / "summary.json", summary)
