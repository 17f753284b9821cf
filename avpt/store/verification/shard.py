"""A shard held against its contract: files, layout, values.

N is the number of clips, F of frames.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from avpt.errors import StoreError
from avpt.files.checking import RecordError
from avpt.files.outputs import sha256
from avpt.media.clip import ClipSettings
from avpt.media.codecs import wrong_frame
from avpt.store.json_files import SCHEMA, read_shard
from avpt.store.shard_layout import (
    Array,
    UnreadableError,
    contract,
    look_at,
    open_shard,
    wrong_labels,
    wrong_offsets,
    wrong_sound,
)
from avpt.store.verification.findings import ShardCheck

SUM_TOLERANCE = 1e-9  # of a sum's own size: another machine may add in another order


@dataclass(frozen=True)
class ShardTask:
    """One shard for a worker."""

    path: Path  # without a suffix
    config: Mapping[str, Any]
    num_classes: int | None  # None: not known
    deep: bool


def check_shard(task: ShardTask) -> ShardCheck:
    """Check one shard and the JSON beside it; what a worker does, it never raises."""
    check = ShardCheck(task.path.name)
    try:
        _check_files(task, check)
    except UnreadableError as error:
        check.tell(str(error), remedy="access")
    except StoreError:  # what it advises is the command's to say
        check.tell("it does not open as HDF5")
    except OSError as error:
        check.tell(f"its files can't be read ({error.strerror or error})", remedy="access" if error.errno else "shard")
    except Exception as error:  # whatever HDF5 makes of damaged bytes
        check.tell(f"it can't be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return check


def _check_files(task: ShardTask, check: ShardCheck) -> None:
    beside, shard = (task.path.with_name(f"{check.name}.{suffix}") for suffix in ("json", "h5"))
    missing = [path.name for path in (beside, shard) if not path.exists()]
    if missing:
        check.tell(f"{missing[0]} is missing")
        return
    try:
        told = read_shard(task.path)
    except RecordError as error:
        check.tell(f"{beside.name} is damaged ({error})")
        return
    check.bytes, check.told, check.found = shard.stat().st_size, told, told | {"sha256": sha256(shard)}
    if check.bytes != told["bytes"]:
        check.tell(f"it has {check.bytes} bytes, its JSON says {told['bytes']}")
        return
    if check.found["sha256"] != told["sha256"]:
        check.tell("its sha256 is not the one in its JSON")
    with open_shard(shard) as file:
        if _layout_is_sound(file, task, check):
            _check_values(file, task, check)


def _layout_is_sound(file: h5py.File, task: ShardTask, check: ShardCheck) -> bool:
    """Check attributes, names, types and shapes; whether the values can be read by them."""
    config = task.config
    options = {name: config[name] for name in (*ClipSettings.__dataclass_fields__, "multi_label") if name in config}
    options["schema"] = SCHEMA
    for name in sorted(options.keys() | set(file.attrs)):
        value, wanted = _attribute(file, name), options.get(name, config.get(name))
        if str(value) != str(wanted):
            check.tell(f"its attribute {name} is {value}, settings.json says {wanted}")
    _, wrong = look_at(file, config, task.num_classes)
    groups = [name for name in ("audio", "visual") if not wrong]
    members = {f"{group}/{name}" for group in groups for name in file[group]} | (set(file) - {"audio", "visual"})
    for name in sorted(members - contract(config, 0, 0, 0, 0).keys()):
        check.tell(f"{name} is no part of a shard")
    for problem in wrong:
        check.tell(problem)
    return not wrong


def _attribute(file: h5py.File, name: str) -> str | None:
    if name not in file.attrs:
        return None
    return str(file.attrs[name])[:100] if file.attrs.get_id(name).shape == () else "a list"  # of any size


def _check_values(file: h5py.File, task: ShardTask, check: ShardCheck) -> None:
    """Every value of a shard whose types and shapes are right."""
    names = _check_ids(file["id"][:], check)
    check.clips, check.frames = len(names), len(file["visual/time"])
    check.found["clips"] = check.clips
    if check.clips != check.told["clips"]:
        check.tell(f"it holds {check.clips} clips, its JSON says {check.told['clips']}")
    for row, problem in wrong_labels(file["label"][:], task.num_classes):
        check.tell(problem, names[row])
    _check_sound(file, names, task.config, check)
    _check_pictures(file, names, task, check)


def _check_ids(ids: Array, check: ShardCheck) -> list[str]:
    """The names to tell the clips by: their ids, or the row of one without."""
    names = [value.decode(errors="replace") or f"row {row}" for row, value in enumerate(ids)]
    for name, value in zip(names, ids, strict=True):
        if not value or value.decode(errors="ignore").encode() != value:
            check.tell("its id is not UTF-8" if value else "its id is empty", name)
    digests = (hashlib.blake2b(value, digest_size=8).digest() for value in ids)
    check.hashes = np.frombuffer(b"".join(digests), dtype=np.uint64)
    return names


def _check_sound(file: h5py.File, names: Sequence[str], config: Mapping[str, Any], check: ShardCheck) -> None:
    """Spectrograms, clip by clip, and their sums as `write_shard` computes them."""
    lengths, real = file["audio/num_frames"][:], []
    wrong = dict(wrong_sound(lengths, config["spectrogram_frames"]))
    for row, num_frames in enumerate(lengths.tolist()):
        if row in wrong:
            check.tell(wrong[row], names[row])
            continue
        fbank = file["audio/fbank"][row]
        if not np.isfinite(fbank).all():
            check.tell("its log-mel is not finite", names[row])
            continue
        if fbank[num_frames:].any() and (config["pad"] == "zero" or num_frames == 0):
            check.tell(f"its log-mel is not 0.0 behind frame {num_frames}, where its sound ends", names[row])
        values = fbank[:num_frames].astype(np.float64)
        real.append((values.size, float(values.sum()), float(np.square(values).sum())))
    count, total, squares = (math.fsum(column) for column in zip((0, 0.0, 0.0), *real, strict=True))
    check.found["sums"] = {"count": int(count), "sum": total, "sum_of_squares": squares}
    sizes = {"count": 0.0, "sum": math.sqrt(count * squares), "sum_of_squares": squares}
    for name, size in sizes.items():
        told, found = check.told["sums"][name], check.found["sums"][name]
        changed = check.found["sha256"] != check.told["sha256"]  # then this is told already
        if not (changed or abs(told - found) <= SUM_TOLERANCE * size):
            check.tell(f"the {name} of its log-mel is {found}, its JSON says {told}")


def _check_pictures(file: h5py.File, names: Sequence[str], task: ShardTask, check: ShardCheck) -> None:
    """Offsets, then the frames, clip by clip."""
    clip_offset, byte_offset = file["visual/clip_offset"][:], file["visual/byte_offset"][:]
    if not _check_offsets("visual/clip_offset", clip_offset, check.frames, names, check):
        return  # which frame is whose is not known
    clips, edges = clip_offset.tolist(), byte_offset.tolist()
    owners = [name for name, (low, high) in zip(names, pairwise(clips), strict=True) for _ in range(low, high)]
    if not _check_offsets("visual/byte_offset", byte_offset, len(file["visual/bytes"]), owners, check):
        return
    num_audio_frames = file["audio/num_frames"][:]
    with _overheard() as overheard:
        for row, (low, high) in enumerate(pairwise(clips)):
            if low == high and num_audio_frames[row] == 0:
                check.tell("it has neither sound nor pictures", names[row])
            times = file["visual/time"][low:high]
            if not (np.isfinite(times).all() and (np.diff(times) >= 0).all()):
                check.tell("the times of its frames are not finite, or go back", names[row])
            data = file["visual/bytes"][edges[low] : edges[high]]
            for number, (height, width) in enumerate(file["visual/size"][low:high].tolist()):
                start, end = (edge - edges[low] for edge in edges[low + number : low + number + 2])
                wrong, warning = _check_frame(data[start:end], height, width, task), overheard()
                if wrong := wrong or (warning and f"is damaged: {warning}"):
                    check.tell(f"its frame {number} {wrong}", names[row])


def _check_offsets(what: str, offsets: Array, end: int, names: Sequence[str], check: ShardCheck) -> bool:
    before = check.num_problems
    for row, problem in wrong_offsets(what, offsets, end):
        check.tell(problem, *names[row:][:1])
    return check.num_problems == before


def _check_frame(frame: Array, height: int, width: int, task: ShardTask) -> str:
    """What is wrong with one stored frame; empty where nothing is."""
    largest = task.config["frame_size"]
    if not 0 < min(height, width) <= largest:
        return f"is {height} x {width}; its short side should be 1 to {largest}"
    return wrong_frame(frame, task.config["frame_codec"], height, width, deep=task.deep)


@contextmanager
def _overheard() -> Iterator[Callable[[], str]]:
    """Keep what C prints to stderr: nowhere else does libjpeg tell of damage that it decodes all the same.

    Yields a function that returns what was printed since its last call.
    """
    with tempfile.TemporaryFile() as file:
        terminal, seen = os.dup(2), 0

        def overheard() -> str:
            nonlocal seen
            printed = os.pread(file.fileno(), 1 << 16, seen)
            seen += len(printed)
            return " ".join(printed.decode(errors="replace").split())

        os.dup2(file.fileno(), 2)
        try:
            yield overheard
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
