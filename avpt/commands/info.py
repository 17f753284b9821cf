"""`avpt info`: what is in a store, a run folder or an artifact, and how it came about."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from avpt.datasets.media_files import COLUMN_OF
from avpt.errors import ArtifactError, listed
from avpt.files import artifacts
from avpt.files.export_headers import read_exported
from avpt.files.outputs import read_record
from avpt.files.records import EvaluationRecord
from avpt.options import InfoConfig
from avpt.runs.folder import is_run, read_run
from avpt.store.store import SplitIndex, Store
from avpt.text import decimals
from avpt.training.metrics import TOP
from avpt.types import SPLITS, Report, Table

CLASSES_SHOWN = 20  # --json has all of them
MOST_READ = 10_000  # characters of a CSV's first line


def run(config: InfoConfig) -> Report:
    """Find out what is at the path, and describe it."""
    path = config.path
    if not path.exists():
        raise ArtifactError(
            f"{path} does not exist; info takes a store, a run folder, an artifact or an exported model"
        )
    if path.is_dir() and is_run(path):
        return describe_run(path)
    if path.is_dir():
        return describe_store(Store(path))
    if what := other_file(path):
        raise ArtifactError(f"{path} {what}")
    return describe_artifact(path, config.tensors)


def other_file(path: Path) -> str:
    """What a file is that info does not describe, and what takes it; empty where its name does not say."""
    suffix = path.suffix.lower()
    if suffix == ".csv" and path.is_file():
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            columns = {column.strip().strip('"') for column in file.readline(MOST_READ).split(",")}
        if columns >= {"label", "split"}:
            return "is a manifest of clips; `avpt preprocess` makes a store of it, which info shows"
        return "is a table for spreadsheets (CSV); info takes the store, run folder or artifact that it is about"
    if suffix in (".html", ".htm"):
        return "is a page, such as `avpt report` writes; look at it in a browser"
    if suffix == ".jsonl":
        return "is lines of JSON, one a record; info takes the run folder, and shows those of a run"
    if suffix == ".h5":
        return "is a shard of a store; info takes the folder that it is in"
    if suffix[1:] in COLUMN_OF:
        return "is a media file; `avpt predict` labels it with a trained model"
    return ""


def describe_artifact(path: Path, whole: bool = False) -> Report:
    """Describe one file: its header, and with `whole` each layer and the shape of each tensor."""
    if path.suffix in (".onnx", ".pt2"):
        summary = {"path": str(path), **asdict(read_exported(path))}
        return Report(summary, tables=_header_tables(str(path), summary))
    if path.suffix == ".json":
        step = "info knows the records of `avpt evaluate --out`"
        if read_record(path, step).get("kind") != "evaluation":
            raise ArtifactError(f"{path} is not a record of an evaluation; info takes the folder that it belongs to")
        record = read_record(path, step, EvaluationRecord)
        return Report(
            {"path": str(path), **record}, tables=_header_tables(str(path), {"metrics": _measured(record), **record})
        )
    try:
        header, tensors = artifacts.read_header(path)
    except artifacts.ForeignWeightsError as error:
        from avpt.models.weights import init_step

        raise ArtifactError(f"{error.what}; {init_step(path)}") from None
    shapes: dict[str, dict[str, Any]] = {
        name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in sorted(tensors.items())
    }
    summary = {"path": str(path), **asdict(header), "tensors": shapes}
    tables = _header_tables(str(path), summary, whole)
    if not whole:
        return Report(summary, tables=tables)
    rows = [(name, entry["dtype"], "x".join(map(str, entry["shape"])) or "scalar") for name, entry in shapes.items()]
    return Report(summary, tables=[*tables, Table("tensors", ("name", "type", "shape"), rows, left=3)])


def describe_run(path: Path) -> Report:
    """Describe a run folder, finished or not."""
    run = read_run(path)
    summary: dict[str, Any] = {
        "path": str(path),
        "kind": "run",
        "finished": run.summary is not None,
        "config": run.config,
        "inputs": run.inputs,
        "epochs": run.epochs,
    }
    if run.header is not None:
        _, tensors = artifacts.read_header(path / "model.safetensors")
        summary |= {"model": asdict(run.header) | {"tensors": len(tensors)}, "files": _files(path)}
        summary |= {name: getattr(run.header, name) for name in ("spec", "classes", "metrics", "environment", "avpt")}
    rows = [
        (str(row["epoch"]), f"{row['lr']:.2g}", *(decimals(value) for value in _curve(row).values()))
        for row in run.epochs
    ]
    columns = ("epoch", "lr", *(_curve(run.epochs[0]) if run.epochs else ()))
    return Report(summary, tables=[*_header_tables(f"{path}, {run.progress}", summary), Table("epochs", columns, rows)])


def describe_store(store: Store) -> Report:
    """Describe a store: settings, classes, clips per class and split, statistics."""
    splits: dict[str, dict[str, Any]] = {
        split: {
            "clips": len(index),
            "shards": len(index.shards),
            "with_audio": int((index.num_audio_frames > 0).sum()),
            "with_visual": int((index.num_visual_frames > 0).sum()),
            "frames": int(index.num_visual_frames.sum()),
            "classes": _clips_per_class(store, index),
        }
        for split, index in store.indices.items()
    }
    summary = {
        "path": str(store.path),
        "kind": "store",
        "config": store.settings,
        "inputs": store.inputs,
        "classes": store.classes,
        "multi_label": store.multi_label,
        "normalisation": {"mean": store.mean, "std": store.std},
        "splits": splits,
        "failures": store.failures,
        "partial": store.partial,
        "fingerprint": store.fingerprint,
    }
    facts = [
        ("failures", str(store.failures)),
        ("in partial.csv", str(store.partial)),
        ("log-mel mean, std", f"{store.mean:.6f}, {store.std:.6f}"),
        ("fingerprint", store.fingerprint),
        *_flat("config", store.settings),
        *_flat("inputs", store.inputs),
    ]
    columns = ("clips", "shards", "with_audio", "with_visual", "frames")
    split_rows = [(split, *(str(values[column]) for column in columns)) for split, values in splits.items()]
    class_rows = [(name, *(str(values["classes"][name]) for values in splits.values())) for name in store.classes]
    tables = [
        Table(f"store {store.path}", ("", "value"), facts, left=2),
        Table("splits", ("split", "clips", "shards", "with sound", "with pictures", "frames"), split_rows),
        Table("clips per class", ("class", *splits), class_rows),
    ]
    return Report(summary, tables=tables)


def _clips_per_class(store: Store, index: SplitIndex) -> dict[str, int]:
    if store.multi_label:
        counts = index.labels.sum(axis=0, dtype=np.int64)
    else:
        counts = np.bincount(index.labels, minlength=len(store.classes))
    return {name: int(count) for name, count in zip(store.classes, counts, strict=True)}


def _header_tables(title: str, summary: Mapping[str, Any], whole: bool = False) -> list[Table]:
    """Everything about an artifact or run that is not a tensor or a curve; of layers and tensors a line each."""
    rows = [("kind", str(summary["kind"])), ("avpt", str(summary.get("avpt", "")))]
    metrics = dict(summary.get("metrics", {}))
    layers, weights = metrics.pop("layers", None), metrics.pop("weights", None)
    for part in ("spec", "config", "inputs"):
        rows += _flat(part, {name: value for name, value in summary.get(part, {}).items() if value is not None})
    if layers:
        metrics.pop("abnormal_share", None)
        rows.append(("abnormal channels", _abnormal(layers)))
    if weights:
        counts = (f"{len(weights.get(what, ()))} {what}" for what in ("loaded", "adapted", "dropped", "new"))
        rows.append(("weights", ", ".join(counts)))
    classes = summary.get("classes", [])
    few = 0 < len(classes) <= TOP  # of which the best five are right by definition
    rows += [row for row in _flat("metrics", metrics) if not (few and row[0].endswith(".top5"))]
    rows += _flat("environment", summary.get("environment", {}))
    rows.append(("classes", listed(classes, len(classes) if whole else CLASSES_SHOWN)))
    if tensors := summary.get("tensors"):
        numbers = sum(math.prod(entry["shape"]) for entry in tensors.values())
        rows.append(
            ("tensors", f"{len(tensors)} of {numbers:,} numbers" + ("" if whole else " (--tensors lists them)"))
        )
    tables = [Table(title, ("", "value"), [row for row in rows if row[1]], left=2)]
    if layers and whole:
        cells = [(layer["name"], str(layer["channels"]), str(layer["abnormal"])) for layer in layers]
        tables.append(Table("abnormal channels, as loaded", ("layer", "channels", "abnormal"), cells))
    return tables


def _abnormal(layers: Sequence[Mapping[str, Any]]) -> str:
    """How many channels were abnormal as loaded, in words."""
    channels, abnormal = (sum(layer[what] for layer in layers) for what in ("channels", "abnormal"))
    where = sum(layer["abnormal"] > 0 for layer in layers)
    if not abnormal:
        return f"none of {channels} as loaded"
    return f"{abnormal} of {channels} ({abnormal / max(channels, 1):.1%}) as loaded, in {where} of {len(layers)} layers"


def _measured(record: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of an evaluation's record, split by split."""
    return {split: record[split] for split in SPLITS if record.get(split)}


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    """Flatten nested values to rows, each with a dotted name and a text."""
    if isinstance(value, Mapping):
        return [row for name, inner in value.items() for row in _flat(f"{prefix}.{name}", inner)]
    if isinstance(value, float):
        return [(prefix, f"{value:.6g}")]
    text = str(value)
    return [(prefix, f"{text[:13]}..." if re.fullmatch("[0-9a-f]{64}", text) else text)]  # --json has all of it


def _curve(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {f"{part} {name}": row[part].get(name) for part in ("train", "val") for name in ("loss", "accuracy")}


def _files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
