"""Rows of a manifest become shards of a store: planned, decoded in a pool of workers, written one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avpt.engines.local import Crashed, Hung, run_isolated
from avpt.errors import MediaError, wants_memory
from avpt.machine.processes import begin_peak, peak_since
from avpt.media.clip import ClipSettings, DecodedClip, failed
from avpt.store.manifest import Clip
from avpt.store.store import Failure, shard_name, write_shard
from avpt.types import SPLITS


@dataclass(frozen=True)
class Shard:
    """Consecutive manifest rows of one split."""

    split: str
    name: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Job:
    """What making a shard depends on besides its rows, and the resources for it."""

    out: Path
    classes: tuple[str, ...]
    settings: ClipSettings
    attributes: dict[str, Any]  # of the shard's file, `multi_label` among them
    workers: int
    timeout: float  # seconds per clip
    memory: int  # bytes per worker


@dataclass(frozen=True)
class Task:
    """One row of a shard, with what a worker needs to decode it."""

    shard: str
    row: int
    clip: Clip
    settings: ClipSettings
    memory: int


def plan_shards(clips: Sequence[Clip], shard_size: int) -> list[Shard]:
    """Cut the rows of each split, in manifest order, into shards."""
    shards = []
    for split in SPLITS:
        rows = tuple(clip for clip in clips if clip.split == split)
        for number, start in enumerate(range(0, len(rows), shard_size)):
            shards.append(Shard(split, shard_name(split, number), rows[start : start + shard_size]))
    return shards


def make_shards(job: Job, shards: Iterable[Shard]) -> Iterator[bool]:
    """Decode the clips of some shards in a pool, and write each shard once all its rows are in.

    Yields, for every clip that is done, whether it failed. Only shards that some worker is still busy with
    are held in memory.
    """
    unfinished: dict[str, tuple[Shard, dict[int, DecodedClip | Failure]]] = {}

    def tasks() -> Iterator[Task]:
        for shard in shards:
            unfinished[shard.name] = (shard, {})
            yield from (Task(shard.name, row, clip, job.settings, job.memory) for row, clip in enumerate(shard.clips))

    results = run_isolated(
        decode_task,
        tasks(),
        workers=job.workers,
        timeout=job.timeout,
        memory=job.memory,
        preload="avpt.media.decode",
    )
    # an error of the writer's and this frame refer to each other: the workers must not wait for that to be collected
    with ThreadPoolExecutor(1) as writer, closing(results):
        writing: Future[None] | None = None  # the workers need not wait for the disk
        for task, result in results:
            shard, rows = unfinished[task.shard]
            outcome = rows[task.row] = outcome_of(task, result)
            if len(rows) == len(shard.clips):
                if writing is not None:
                    writing.result()
                del unfinished[shard.name]
                writing = writer.submit(_write, job, shard, [rows[i] for i in range(len(rows))])
            yield isinstance(outcome, Failure) and failed(outcome.error)
        if writing is not None:
            writing.result()


def make_shard(job: Job, shard: Shard) -> list[bool]:
    """Make one whole shard, as a machine of a cluster does."""
    return list(make_shards(job, [shard]))


def decode_task(task: Task) -> DecodedClip | Failure:
    """Decode one row, in a worker. The only error that it raises is MemoryError, after which the row is tried again."""
    from avpt.media.decode import decode_clip  # torch and FFmpeg: in the workers, not in the parent

    clip, before = task.clip, begin_peak()
    try:
        decoded = decode_clip(clip.video, clip.audio, clip.frames, clip.start, clip.end, task.settings)
    except MemoryError:
        raise
    except MediaError as error:
        if peak_since(before) > task.memory / 2:  # without memory a decoder reports a damaged clip
            raise MemoryError from error
        return Failure(clip.id, clip.split, clip.source, error.stage, str(error))
    except Exception as error:  # whatever a decoder throws costs one clip, and is reported
        if wants_memory(error):
            raise MemoryError from error
        return Failure(clip.id, clip.split, clip.source, "crash", f"{type(error).__name__}: {error}")
    if decoded.troubles and peak_since(before) > task.memory / 2:
        raise MemoryError
    return decoded


def outcome_of(
    task: Task,
    result: DecodedClip | Failure | Crashed | Hung,
    remedy: str = "raise --worker-memory and --retry-failures",
) -> DecodedClip | Failure:
    """What came of a task: a crash or a timeout becomes its clip's Failure; `remedy` is for lack of memory."""
    if not isinstance(result, Crashed | Hung):
        return result
    how, clip = result.how, task.clip
    if "out of memory" in how:
        how = f"needs more than {task.memory / 2**30:g} GiB of memory; {remedy}"
    cause = "timeout" if isinstance(result, Hung) else "crash"
    return Failure(clip.id, clip.split, clip.source, cause, how)


def _write(job: Job, shard: Shard, rows: list[DecodedClip | Failure]) -> None:
    kept = [(clip, row) for clip, row in zip(shard.clips, rows, strict=True) if isinstance(row, DecodedClip)]
    partial = [
        Failure(clip.id, clip.split, clip.source, trouble.modality, trouble.what)
        for clip, row in kept
        for trouble in row.troubles
    ]
    write_shard(
        job.out / shard.name,
        ids=[clip.id for clip, _ in kept],
        labels=encode_labels([clip.labels for clip, _ in kept], job.classes, job.attributes["multi_label"]),
        clips=[row for _, row in kept],
        failures=[row for row in rows if isinstance(row, Failure)],
        partial=partial,
        settings=job.attributes,
        lengths={
            "longer": sum(row.is_longer(job.settings) for _, row in kept),
            "longest": round(max((max(row.seconds.values(), default=0.0) for _, row in kept), default=0.0), 2),
            "shorter": sum(row.is_short(job.settings) for _, row in kept),
        },
        sources=[source_of(clip) for clip, _ in kept],
    )


def source_of(clip: Clip) -> str:
    """What a clip is cut from: its recording by name, or the file of a segment; empty for a whole file."""
    if clip.recording or (clip.start is None and clip.end is None):
        return clip.recording
    return clip.file


def encode_labels(labels: list[tuple[str, ...]], classes: tuple[str, ...], multi_label: bool) -> np.ndarray:
    """Labels as (N,) int64 class indices, or (N, classes) uint8 when multi-label."""
    number = {name: i for i, name in enumerate(classes)}
    if not multi_label:
        return np.array([number[names[0]] for names in labels], dtype=np.int64)
    encoded = np.zeros((len(labels), len(classes)), dtype=np.uint8)
    for row, names in enumerate(labels):
        encoded[row, [number[name] for name in names]] = 1
    return encoded
