"""`avpt preprocess`: a manifest and its media become a store."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avpt.config import PreprocessConfig
from avpt.data.clip import ClipSettings, DecodedClip
from avpt.data.manifest import Clip, Manifest, read_manifest
from avpt.data.store import Failure, read_shard_record, shard_name, store_record, write_shard
from avpt.engines.local import Crashed, Hung, run_isolated
from avpt.errors import MediaError, StoreError
from avpt.outputs import begin, claim, differences, look_into, refuse, write_json, write_text
from avpt.processes import num_cores
from avpt.progress import track
from avpt.types import SPLITS, Report, Table

log = logging.getLogger(__name__)

OWNED = re.compile(r"(settings|store|timing)\.json|failures\.csv|(train|val|test)-\d{5,}\.(h5|json)|\..*\.tmp")


@dataclass(frozen=True)
class Shard:
    """Consecutive manifest rows of one split."""

    split: str
    name: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Task:
    """One row for a worker."""

    shard: str
    row: int
    clip: Clip
    settings: ClipSettings


def run(config: PreprocessConfig) -> Report:
    """Decode every clip of the manifest, shard by shard; a shard that is already there is kept."""
    manifest = read_manifest(config.manifest, root=config.root, multi_label=config.multi_label)
    shards = plan_shards(manifest.clips[: config.limit], config.shard_size)
    settings = {"schema": 1, "config": config.record(), "inputs": {"manifest": manifest.sha256}}
    out = config.out
    with claim(out):
        found = look_into(out, "settings.json", OWNED, config.overwrite)
        if found is None:
            begin(out, "settings.json", settings, config.overwrite)
        elif different := differences(found, settings, config.defaults()):
            raise refuse(out, different)
        if config.retry_failures:
            forget_failures(out, shards)
        missing = [shard for shard in shards if read_shard_record(out / shard.name) is None]
        if missing or not (out / "store.json").exists():
            (out / "store.json").unlink(missing_ok=True)  # from here on the store is unfinished
            make_shards(config, shards, missing, manifest)
            records = read_records(out, shards)
            write_failures(out, records)
            check_failures(out, records, len(manifest.clips[: config.limit]), config.max_failures)
            write_json(out / "store.json", store_record(settings, manifest.classes, records))
        return report(out)


def plan_shards(clips: tuple[Clip, ...], shard_size: int) -> list[Shard]:
    """Cut the rows of each split, in manifest order, into shards."""
    shards = []
    for split in SPLITS:
        rows = tuple(clip for clip in clips if clip.split == split)
        for number, start in enumerate(range(0, len(rows), shard_size)):
            shards.append(Shard(split, shard_name(split, number), rows[start : start + shard_size]))
    return shards


def forget_failures(out: Path, shards: list[Shard]) -> None:
    """Take back the shards that have failures."""
    for shard in shards:
        record = read_shard_record(out / shard.name)
        if record is not None and record["failures"]:
            (out / f"{shard.name}.json").unlink()


def make_shards(config: PreprocessConfig, shards: list[Shard], missing: list[Shard], manifest: Manifest) -> None:
    """Decode the clips of the missing shards in a pool, and write each shard once all its rows are in."""
    values = config.record()
    settings = ClipSettings(**{name: values[name] for name in ClipSettings.__dataclass_fields__})
    attributes = vars(settings) | {"multi_label": config.multi_label}
    tasks = [Task(shard.name, row, clip, settings) for shard in missing for row, clip in enumerate(shard.clips)]
    if not tasks:
        return
    total = sum(len(shard.clips) for shard in shards)
    by_name = {shard.name: shard for shard in missing}
    gathered: dict[str, dict[int, DecodedClip | Failure]] = {name: {} for name in by_name}
    began, failed = time.perf_counter(), count_failures(config.out, shards)
    workers = min(config.workers or num_cores(), len(tasks))
    results = run_isolated(decode_task, tasks, workers=workers, timeout=config.clip_timeout, preload="avpt.data.decode")
    with track(total, "preprocess") as show:
        show(total - len(tasks), failed)
        for done, (task, result) in enumerate(results, total - len(tasks) + 1):
            outcome = _failure(task.clip, result)
            failed += isinstance(outcome, Failure)
            gathered[task.shard][task.row] = outcome
            shard = by_name[task.shard]
            if len(gathered[shard.name]) == len(shard.clips):
                rows = gathered.pop(shard.name)
                _write(config, shard, [rows[i] for i in range(len(shard.clips))], manifest, attributes)
            show(done, failed)
    seconds = time.perf_counter() - began
    timing = {"seconds": round(seconds, 3), "clips": len(tasks), "clips_per_second": round(len(tasks) / seconds, 2)}
    write_json(config.out / "timing.json", timing)


def decode_task(task: Task) -> DecodedClip | Failure:
    """What a worker does; it never raises."""
    from avpt.data.decode import decode_clip  # torch and FFmpeg: in the workers, not in the parent

    clip = task.clip
    try:
        return decode_clip(clip.video, clip.audio, clip.frames, clip.start, clip.end, task.settings)
    except MediaError as error:
        return Failure(clip.id, clip.split, clip.source, error.stage, str(error))
    except Exception as error:  # whatever a decoder throws costs one clip, and is told
        return Failure(clip.id, clip.split, clip.source, "crash", f"{type(error).__name__}: {error}")


def _failure(clip: Clip, result: DecodedClip | Failure | Crashed | Hung) -> DecodedClip | Failure:
    if isinstance(result, Crashed | Hung):
        stage = "timeout" if isinstance(result, Hung) else "crash"
        return Failure(clip.id, clip.split, clip.source, stage, result.how)
    return result


def _write(
    config: PreprocessConfig,
    shard: Shard,
    rows: list[DecodedClip | Failure],
    manifest: Manifest,
    attributes: dict[str, Any],
) -> None:
    kept = [(clip, row) for clip, row in zip(shard.clips, rows, strict=True) if isinstance(row, DecodedClip)]
    write_shard(
        config.out / shard.name,
        ids=[clip.id for clip, _ in kept],
        labels=encode_labels([clip.labels for clip, _ in kept], manifest.classes, config.multi_label),
        clips=[row for _, row in kept],
        failures=[row for row in rows if isinstance(row, Failure)],
        settings=attributes,
    )


def encode_labels(labels: list[tuple[str, ...]], classes: tuple[str, ...], multi_label: bool) -> np.ndarray[Any, Any]:
    """(N,) int64 class indices, or (N, classes) uint8 when multi-label."""
    number = {name: i for i, name in enumerate(classes)}
    if not multi_label:
        return np.array([number[names[0]] for names in labels], dtype=np.int64)
    encoded = np.zeros((len(labels), len(classes)), dtype=np.uint8)
    for row, names in enumerate(labels):
        encoded[row, [number[name] for name in names]] = 1
    return encoded


def count_failures(out: Path, shards: list[Shard]) -> int:
    """Failures of the shards that are there."""
    return sum(len(record["failures"]) for shard in shards if (record := read_shard_record(out / shard.name)))


def read_records(out: Path, shards: list[Shard]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Per split, each shard's name and record."""
    records: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for shard in shards:
        record = read_shard_record(out / shard.name)
        assert record is not None
        records.setdefault(shard.split, []).append((shard.name, record))
    return records


def write_failures(out: Path, records: dict[str, list[tuple[str, dict[str, Any]]]]) -> None:
    """`failures.csv`: a line for every row left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Failure.__dataclass_fields__))
    writer.writeheader()
    for parts in records.values():
        for _, record in parts:
            writer.writerows(record["failures"])
    write_text(out / "failures.csv", text.getvalue())


def check_failures(out: Path, records: dict[str, list[tuple[str, dict[str, Any]]]], num_rows: int, most: float) -> None:
    """Warn of failures, or stop where there are more than --max-failures."""
    failures = [Failure(**row) for parts in records.values() for _, record in parts for row in record["failures"]]
    if not failures:
        return
    stages = ", ".join(f"{count} {stage}" for stage, count in Counter(f.stage for f in failures).most_common())
    first = failures[0]
    told = (
        f"{len(failures)} of {num_rows} clips failed ({stages}), first {first.id} ({first.source}): {first.error}; "
        f"all are in {out / 'failures.csv'}"
    )
    if len(failures) > most * num_rows:
        raise StoreError(
            f"{told}. That is more than --max-failures {most:g}: mend the clips and --retry-failures, or raise it"
        )
    log.warning("%s", told)


def report(out: Path) -> Report:
    """The record of a finished store."""
    record = json.loads((out / "store.json").read_text(encoding="utf-8"))
    clips = sum(split["clips"] for split in record["splits"].values())
    splits = [(name, record["splits"][name]) for name in SPLITS if name in record["splits"]]
    rows = [(name, str(split["clips"]), str(len(split["shards"]))) for name, split in splits]
    return Report(
        summary={"store": str(out), "clips": clips, "failures": record["failures"]},
        outputs=(out,),
        tables=[Table(f"{clips} clips, {record['failures']} failed", ("split", "clips", "shards"), rows)],
    )
