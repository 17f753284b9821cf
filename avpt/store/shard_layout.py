"""The layout of a shard: its datasets, their types and shapes, which are checked before a value is read.

HDF5 can take values from any other file and declare any size, so every shard is checked here after it is opened. N is
the number of clips, F of frames.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from avpt.errors import StoreError

Array = np.ndarray[Any, Any]

# a text as HDF5 stores it: its length, and where in the file its bytes are
TEXT = np.dtype([("length", "<u4"), ("address", "<u8"), ("number", "<u4")])


class UnreadableError(StoreError):
    """The operating system can't read a shard, which may be intact."""


def open_shard(path: Path) -> h5py.File:
    """Open a shard for reading, without a lock: it is complete, and some file systems have no locks.

    Raises:
        StoreError: it is missing, truncated, or not HDF5, or it can't be read.
    """
    try:
        with path.open("rb") as file:
            file.read(1)
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if error.errno:  # the system's error, which says nothing about the content
            raise UnreadableError(f"{path} can't be opened ({os.strerror(error.errno)})") from None
        raise StoreError(f"{path} is truncated or not a shard; remove it and run its `avpt preprocess` again") from None


def contract(config: Mapping[str, Any], clips: int, frames: int, size: int, num_classes: int) -> dict[str, str]:
    """The type and shape of every dataset of a shard.

    Args:
        config: the store's settings.
        clips: N.
        frames: F.
        size: the bytes of all frames.
        num_classes: the number of the store's classes.
    """
    return {
        "id": f"text {(clips,)}",
        "label": f"uint8 {(clips, num_classes)}" if config["multi_label"] else f"int64 {(clips,)}",
        "audio/fbank": f"{config['audio_dtype']} {(clips, config['spectrogram_frames'], config['mel_bins'])}",
        "audio/num_frames": f"int32 {(clips,)}",
        "visual/clip_offset": f"int64 {(clips + 1,)}",
        "visual/time": f"float32 {(frames,)}",
        "visual/byte_offset": f"int64 {(frames + 1,)}",
        "visual/bytes": f"uint8 {(size,)}",
        "visual/size": f"int32 {(frames, 2)}",
        "source": f"text {(clips,)}",  # missing in a shard without segments
    }


def inspect_layout(
    file: h5py.File, config: Mapping[str, Any], num_classes: int | None
) -> tuple[dict[str, h5py.Dataset], list[str]]:
    """The datasets of a shard, and what differs from what avpt writes; if nothing does, every value can be read.

    Args:
        file: the shard, open.
        config: the store's settings.
        num_classes: the number of the store's classes; None if it is not known.
    """
    groups = {name: _open(file.id, name.encode()) for name in ("audio", "visual")}
    members: dict[str, h5py.Dataset | str] = {}
    for name in contract(config, 0, 0, 0, 0):
        group, _, last = name.rpartition("/")
        members[name] = _dataset(_open(groups[group] if group else file.id, last.encode()))
    if members["source"] == "missing":
        del members["source"]
    datasets = {name: one for name, one in members.items() if isinstance(one, h5py.Dataset)}
    shapes = {name: dataset.shape or (0,) for name, dataset in datasets.items()}
    clips, edges, size = (shapes.get(name, (0,))[0] for name in ("id", "visual/byte_offset", "visual/bytes"))
    wanted = contract(config, clips, edges - 1, size, num_classes or shapes.get("label", (0,))[-1])
    whole = file.id.get_filesize()
    kinds = {name: one if isinstance(one, str) else _kind(file, one, whole) for name, one in members.items()}
    return datasets, [f"{name} is {kind}, not {wanted[name]}" for name, kind in kinds.items() if kind != wanted[name]]


def _open(group: Any, name: bytes) -> Any:
    """The HDF5 identifier of a member of a group; in words, why there is none."""
    if isinstance(group, str):
        return group
    if not isinstance(group, h5py.h5g.GroupID) or not group.links.exists(name):
        return "missing"
    if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        return "a link, to another file or to nowhere"
    return h5py.h5o.open(group, name)


def _dataset(member: Any) -> h5py.Dataset | str:
    """A member as a dataset that is one contiguous piece of its file; in words, what it is instead."""
    if isinstance(member, str):
        return member
    if not isinstance(member, h5py.h5d.DatasetID):
        return "no dataset"
    made = member.get_create_plist()
    layout = made.get_layout()
    if layout == h5py.h5d.VIRTUAL or (layout == h5py.h5d.CONTIGUOUS and made.get_external_count()):
        return "in another file"
    return h5py.Dataset(member) if layout == h5py.h5d.CONTIGUOUS else "compressed or in pieces"


def _kind(file: h5py.File, dataset: h5py.Dataset, whole: int) -> str:
    """The type and shape of a dataset; in words, why its values can't all be in this file."""
    try:
        dtype = dataset.dtype
    except TypeError:
        return "of a type that numpy does not have"
    if (shape := dataset.shape) is None:
        return "empty"
    text = h5py.check_string_dtype(dtype) == h5py.h5t.string_info("utf-8", None)
    # not `dataset.nbytes`, which overflows
    count, stored = math.prod(shape), dataset.id.get_storage_size()
    needed = count * (TEXT.itemsize if text else dtype.itemsize)
    start = dataset.id.get_offset() or 0
    if not needed <= stored <= start + stored <= whole:
        return "larger than its bytes"
    if text and count:
        texts = np.fromfile(file.filename, TEXT, count, offset=start)
        if int(texts["length"].sum(dtype=np.uint64)) > whole:  # many texts may share the same bytes
            return "larger than its bytes"
    return f"{'text' if text else str(dtype)[:60]} {shape}"


# --- values: the row of each that is wrong, and what is wrong -------------------------------------------------------


def wrong_labels(labels: Array, num_classes: int | None) -> Iterator[tuple[int, str]]:
    """Labels (N,) that name no class, or rows of labels (N, classes) that are invalid or empty."""
    if labels.ndim == 2:
        for row in np.flatnonzero((labels > 1).any(axis=1)).tolist():
            yield row, "a label of it is neither 0 nor 1"
        for row in np.flatnonzero(~labels.any(axis=1)).tolist():
            yield row, "it has no label"
        return
    for row in np.flatnonzero((labels < 0) | (labels >= (num_classes or math.inf))).tolist():
        yield row, f"its label is {labels[row]}, of {num_classes or 'some'} classes from 0"


def wrong_audio_lengths(num_frames: Array, most: int) -> Iterator[tuple[int, str]]:
    """Lengths (N,) that no spectrogram can have."""
    for row in np.flatnonzero((num_frames < 0) | (num_frames > most)).tolist():
        yield row, f"its audio/num_frames is {num_frames[row]}, not 0 to {most}"


def wrong_offsets(what: str, offsets: Array, end: int) -> Iterator[tuple[int, str]]:
    """Offsets (N + 1,) that do not rise from 0 to the end."""
    if offsets[0] != 0:
        yield 0, f"{what} starts at {offsets[0]}, not 0"
    for row in np.flatnonzero(offsets[1:] < offsets[:-1]).tolist():
        yield row, f"{what} goes back from {offsets[row]} to {offsets[row + 1]}"
    if offsets[-1] != end:
        yield len(offsets) - 2, f"{what} ends at {offsets[-1]}, not {end}"
