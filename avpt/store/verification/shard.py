"""Checking a shard against its contract: files, layout, values.

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
    inspect_layout,
    open_shard,
    wrong_audio_lengths,
    wrong_labels,
    wrong_offsets,
)
from avpt.store.verification.findings import ShardCheck

SUM_TOLERANCE = 1e-9  # relative to a sum's size: another machine may add in another order


@dataclass(frozen=True)
class ShardTask:
    """One shard for a worker."""

    path: Path  # without a suffix
    config: Mapping[str, Any]
    num_classes: int | None  # None if not known
    deep: bool


def check_shard(task: ShardTask) -> ShardCheck:
    """Check one shard and the JSON beside it, in a worker; never raises."""
    check = ShardCheck(task.path.name)
    try:
        _check_files(task, check)
    except UnreadableError as error:
        check.tell(str(error), remedy="access")
    except StoreError:  # the command gives advice of its own
        check.tell("it does not open as HDF5")
    except OSError as error:
        check.tell(f"its files can't be read ({error.strerror or error})", remedy="access" if error.errno else "shard")
    except Exception as error:  # HDF5 may raise anything on damaged bytes
        check.tell(f"it can't be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return check


def _check_files(task: ShardTask, check: ShardCheck) -> None:
    beside, shard = (task.path.with_name(f"{check.name}.{suffix}") for suffix in ("json", "h5"))
    missing = [path.name for path in (beside, shard) if not path.exists()]
    if missing:
        check.tell(f"{missing[0]} is missing")
        return
    try:
        declared = read_shard(task.path)
    except RecordError as error:
        check.tell(f"{beside.name} is damaged ({error})")
        return
    check.bytes, check.declared = shard.stat().st_size, declared
    check.computed = declared | {"sha256": sha256(shard)}
    if check.bytes != declared["bytes"]:
        check.tell(f"it has {check.bytes} bytes, its JSON says {declared['bytes']}")
        return
    if check.computed["sha256"] != declared["sha256"]:
        check.tell("its sha256 is not the one in its JSON")
    with open_shard(shard) as file:
        if _layout_is_valid(file, task, check):
            _check_values(file, task, check)


def _layout_is_valid(file: h5py.File, task: ShardTask, check: ShardCheck) -> bool:
    """Check attributes, names, types and shapes; returns whether the values can be read."""
    config = task.config
    options = {name: config[name] for name in (*ClipSettings.__dataclass_fields__, "multi_label") if name in config}
    options["schema"] = SCHEMA
    for name in sorted(options.keys() | set(file.attrs)):
        value, wanted = _attribute(file, name), options.get(name, config.get(name))
        if str(value) != str(wanted):
            check.tell(f"its attribute {name} is {value}, settings.json says {wanted}")
    _, wrong = inspect_layout(file, config, task.num_classes)
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
    return str(file.attrs[name])[:100] if file.attrs.get_id(name).shape == () else "a list"  # which may be of any size


def _check_values(file: h5py.File, task: ShardTask, check: ShardCheck) -> None:
    """Check every value of a shard whose types and shapes are right."""
    names = _check_ids(file["id"][:], check)
    check.clips, check.frames = len(names), len(file["visual/time"])
    check.computed["clips"] = check.clips
    if check.clips != check.declared["clips"]:
        check.tell(f"it holds {check.clips} clips, its JSON says {check.declared['clips']}")
    for row, problem in wrong_labels(file["label"][:], task.num_classes):
        check.tell(problem, names[row])
    _check_audio(file, names, task.config, check)
    _check_visual(file, names, task, check)


def _check_ids(ids: Array, check: ShardCheck) -> list[str]:
    """Check the ids; returns the names of the clips in messages: their ids, or the row if an id is empty."""
    names = [value.decode(errors="replace") or f"row {row}" for row, value in enumerate(ids)]
    for name, value in zip(names, ids, strict=True):
        if not value or value.decode(errors="ignore").encode() != value:
            check.tell("its id is not UTF-8" if value else "its id is empty", name)
    digests = (hashlib.blake2b(value, digest_size=8).digest() for value in ids)
    check.hashes = np.frombuffer(b"".join(digests), dtype=np.uint64)
    return names


def _check_audio(file: h5py.File, names: Sequence[str], config: Mapping[str, Any], check: ShardCheck) -> None:
    """Check the spectrograms, clip by clip, and their sums as `write_shard` computes them."""
    lengths, real = file["audio/num_frames"][:], []
    wrong = dict(wrong_audio_lengths(lengths, config["spectrogram_frames"]))
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
    check.computed["sums"] = {"count": int(count), "sum": total, "sum_of_squares": squares}
    sizes = {"count": 0.0, "sum": math.sqrt(count * squares), "sum_of_squares": squares}
    for name, size in sizes.items():
        declared, computed = check.declared["sums"][name], check.computed["sums"][name]
        changed = check.computed["sha256"] != check.declared["sha256"]  # which is reported already
        if not (changed or abs(declared - computed) <= SUM_TOLERANCE * size):
            check.tell(f"the {name} of its log-mel is {computed}, its JSON says {declared}")


def _check_visual(file: h5py.File, names: Sequence[str], task: ShardTask, check: ShardCheck) -> None:
    """Check the offsets, then the frames, clip by clip."""
    clip_offset, byte_offset = file["visual/clip_offset"][:], file["visual/byte_offset"][:]
    if not _check_offsets("visual/clip_offset", clip_offset, check.frames, names, check):
        return  # which frames belong to which clip is unknown
    clips, edges = clip_offset.tolist(), byte_offset.tolist()
    owners = [name for name, (low, high) in zip(names, pairwise(clips), strict=True) for _ in range(low, high)]
    if not _check_offsets("visual/byte_offset", byte_offset, len(file["visual/bytes"]), owners, check):
        return
    num_audio_frames = file["audio/num_frames"][:]
    with _captured_stderr() as captured:
        for row, (low, high) in enumerate(pairwise(clips)):
            if low == high and num_audio_frames[row] == 0:
                check.tell("it has neither sound nor pictures", names[row])
            times = file["visual/time"][low:high]
            if not (np.isfinite(times).all() and (np.diff(times) >= 0).all()):
                check.tell("the times of its frames are not finite, or go back", names[row])
            data = file["visual/bytes"][edges[low] : edges[high]]
            for number, (height, width) in enumerate(file["visual/size"][low:high].tolist()):
                start, end = (edge - edges[low] for edge in edges[low + number : low + number + 2])
                wrong, warning = _check_frame(data[start:end], height, width, task), captured()
                if wrong := wrong or (warning and f"is damaged: {warning}"):
                    check.tell(f"its frame {number} {wrong}", names[row])


def _check_offsets(what: str, offsets: Array, end: int, names: Sequence[str], check: ShardCheck) -> bool:
    before = check.num_problems
    for row, problem in wrong_offsets(what, offsets, end):
        check.tell(problem, *names[row:][:1])
    return check.num_problems == before


def _check_frame(frame: Array, height: int, width: int, task: ShardTask) -> str:
    """What is wrong with one stored frame; empty if nothing is."""
    largest = task.config["frame_size"]
    if not 0 < min(height, width) <= largest:
        return f"is {height} x {width}; its short side should be 1 to {largest}"
    return wrong_frame(frame, task.config["frame_codec"], height, width, deep=task.deep)


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Capture what C code prints to stderr: only there does libjpeg report damage in frames that it can still decode.

    Yields a function that returns what was printed since its last call.
    """
    with tempfile.TemporaryFile() as file:
        terminal, seen = os.dup(2), 0

        def captured() -> str:
            nonlocal seen
            printed = os.pread(file.fileno(), 1 << 16, seen)
            seen += len(printed)
            return " ".join(printed.decode(errors="replace").split())

        os.dup2(file.fileno(), 2)
        try:
            yield captured
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
