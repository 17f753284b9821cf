"""Reading a manifest, a CSV file with one row per clip; every row is checked before any clip is decoded."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from avpt.errors import ManifestError
from avpt.files.content_kinds import what_it_is
from avpt.store.spelling import find_spelling, warn_of_lookalikes
from avpt.types import SPLITS, Split

MEDIA_COLUMNS = ("video", "audio", "frames")  # a default id comes from the first that is filled in
COLUMNS = ("id", "label", "split", *MEDIA_COLUMNS, "start", "end", "recording")
LABEL_SEPARATOR = ";"
UNLABELLED = {"label": "-", "split": "test"}  # used where neither matters
MAX_LISTED = 20  # bad rows that are listed one by one; the rest are counted
A_MANIFEST = "a manifest is a CSV file with a row for each clip, which `avpt manifest` makes of a folder of clips"
MAX_SHOWN = 100  # characters of a cell quoted in a message

# forbidden in ids and labels: it ends strings (NUL) or lines, controls terminals, or changes the reading direction
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

Row = tuple[int, list[str] | str]  # the line it starts on; its cells, or why it does not parse


@dataclass(frozen=True, slots=True)
class Clip:
    """One row: where the audio and the pictures are, and their labels; small, as there may be millions."""

    id: str
    labels: tuple[str, ...]  # one, unless the manifest is multi-label
    split: Split
    base: Path  # the folder that the paths start from
    written: tuple[str, ...]  # paths as written in the manifest, in the order of MEDIA_COLUMNS; "" if there is none
    start: float | None  # seconds
    end: float | None  # seconds
    recording: str = ""  # what the clip was cut from, if its files do not show it; its clips stay in one split

    @property
    def video(self) -> Path | None:
        """A container with pictures, audio or both."""
        return self._path("video")

    @property
    def audio(self) -> Path | None:
        """A file with audio; it replaces the video's."""
        return self._path("audio")

    @property
    def frames(self) -> Path | None:
        """An image or a folder of images; it replaces the video's pictures."""
        return self._path("frames")

    @property
    def file(self) -> str:
        """The first of its paths, normalised."""
        return os.path.normpath(next(filter(None, self.written)))

    @property
    def source(self) -> str:
        """The paths as written in the manifest, the same on every machine."""
        return "; ".join(filter(None, self.written))

    def _path(self, column: str) -> Path | None:
        cell = self.written[MEDIA_COLUMNS.index(column)]
        return find_spelling(self.base, cell) if cell else None


@dataclass(frozen=True)
class Manifest:
    """The clips of a manifest in file order, and its class names."""

    clips: tuple[Clip, ...]
    classes: tuple[str, ...]  # sorted over all rows
    sha256: str  # of the file's bytes

    def split(self, name: Split) -> list[Clip]:
        """Return the clips of one split in file order."""
        return [clip for clip in self.clips if clip.split == name]


def read_manifest(
    path: Path, *, root: Path | None = None, multi_label: bool = False, labelled: bool = True
) -> Manifest:
    """Read a manifest and check every row; one ManifestError reports all the bad ones.

    Paths in it are relative to `root`, or else to the manifest's own folder. Unless rows must be `labelled`, labels and
    splits are ignored, and their columns may be missing.
    """
    data, text = _read(path)
    if root is not None and not root.is_dir():
        raise ManifestError(f"{path}: root {root} is not a folder; give the one its paths start from")
    base = (root or path.parent).absolute()  # FFmpeg would take a bare "10:30.wav" for a protocol
    rows = _rows(text)
    columns = _columns(path, next(rows, None), ("label", "split") if labelled else ())

    clips: list[Clip] = []
    bad: list[str] = []
    lines: dict[str, int] = {}  # id -> the line that has it first
    for line, cells in rows:
        if isinstance(cells, str):
            problems = [cells]
        elif len(cells) != len(columns):
            problems = [f"has {len(cells)} cells, not {len(columns)}; put quotes around a cell with a comma"]
        else:
            row = dict(zip(columns, cells, strict=True))
            clip, problems = _clip(row if labelled else row | UNLABELLED, base, multi_label, there=labelled)
            first = lines.setdefault(clip.id, line)
            if clip.id and first != line:
                problems.append(f"id {_show(clip.id)} is taken by line {first}; name each in column id")
            clips.append(clip)
        if problems:
            bad.append(f"line {line}: {'; '.join(problems)}")
    if bad:
        raise ManifestError(*_messages(path, bad))
    if not clips:
        raise ManifestError(f"{path}: has no rows, only a header; add a row for each clip")
    classes = tuple(sorted({label for clip in clips for label in clip.labels}))
    warn_of_lookalikes(classes)
    return Manifest(tuple(_set_recordings(clips) if labelled else clips), classes, hashlib.sha256(data).hexdigest())


def read_cells(path: Path) -> tuple[list[str], list[list[str]]]:
    """The columns of a manifest that `read_manifest` takes, and the cells of every row as they are written."""
    rows = _rows(_read(path)[1])
    columns = _columns(path, next(rows, None), ())
    return columns, [list(cells) for _, cells in rows]


def _set_recordings(clips: list[Clip]) -> Iterator[Clip]:
    """Set the recording of clips that are whole files to the file, if other rows use the same file."""
    seen: set[int] = set()
    again: set[int] = set()
    for clip in clips:
        key = hash(clip.file)
        (again if key in seen else seen).add(key)
    for clip in clips:
        alone = clip.recording or clip.start is not None or clip.end is not None or hash(clip.file) not in again
        yield clip if alone else replace(clip, recording=clip.file)


def _read(path: Path) -> tuple[bytes, str]:
    try:
        if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
            raise ManifestError(f"{path}: is a device or a pipe; name the manifest, a CSV file")
        if stat.S_ISREG(mode) and (what := what_it_is(path)) and not what.endswith("(CSV)"):
            raise ManifestError(f"{path}: is {what}; {A_MANIFEST}")
        data = path.read_bytes()
        return data, data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; name the manifest, a CSV file") from None
    except IsADirectoryError:
        what = what_it_is(path) or "a folder; name the manifest in it"
        raise ManifestError(f"{path}: is {what}; {A_MANIFEST}") from None
    except OSError as error:
        raise ManifestError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path}: line {line}: not UTF-8; save the file as UTF-8") from None


def _rows(text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"not CSV ({error}); look for a quote that is not closed or not doubled"
            if reader.line_num > line:
                return  # an open quote swallowed lines, and where the next row starts is unknown
            continue
        if len(cells) > 1 or any(cells):
            yield line, cells


def _columns(path: Path, header: Row | None, needed: tuple[str, ...]) -> list[str]:
    known = f"the columns are {', '.join(COLUMNS)}"
    if header is None:
        raise ManifestError(f"{path}: is empty; the first line names the columns: {known}")
    line, names = header
    if isinstance(names, str):
        raise ManifestError(f"{path}: line {line}: {names}")
    problems = [f"unknown column {_show(name)}" for name in dict.fromkeys(names) if name not in COLUMNS]
    problems += [f"column {name} is there twice" for name in COLUMNS if names.count(name) > 1]
    problems += [f"no column {name}" for name in needed if name not in names]
    if not set(MEDIA_COLUMNS) & set(names):
        problems.append("none of the columns video, audio, frames")
    if len(names) == 1 and any(other in names[0] for other in ";\t|"):
        problems = [f"{_show(names[0])} is one cell; separate the cells by commas"]
    if problems:
        raise ManifestError(f"{path}: line {line}: {'; '.join(problems)}; {known}")
    return names


def _clip(row: dict[str, str], base: Path, multi_label: bool, *, there: bool) -> tuple[Clip, list[str]]:
    """Return the clip of a row and what is wrong with it; the clip is valid if nothing is.

    Unless its files must be `there`, a missing one is reported only when it is opened.
    """
    problems: list[str] = []
    labels = _labels(row["label"], multi_label, problems)
    if row["split"] not in SPLITS:
        problems.append(f"split {_show(row['split'])} is not one of {', '.join(SPLITS)}")

    written = {column: row[column] for column in MEDIA_COLUMNS if row.get(column)}
    paths = {column: find_spelling(base, cell) for column, cell in written.items()}
    if not paths:
        problems.append("names no media; fill in video, audio or frames")
    folders = [name for name, path in paths.items() if _is_folder(name, path, written[name], problems, there=there)]

    times = {column: row[column] for column in ("start", "end") if row.get(column)}
    seconds = {column: _seconds(column, cell, problems) for column, cell in times.items()}
    start, end = seconds.get("start"), seconds.get("end")
    if end is not None and end <= (start or 0.0):
        problems.append(f"end {_show(times['end'])} is not after start {_show(times.get('start', '0'))}")
    if times and "frames" in paths:
        problems.append("start and end do not go with frames; leave them empty")

    clip_id = row.get("id", "")
    if paths and not clip_id:
        column = next(iter(paths))
        path = base / written[column]  # as the manifest spells it, so that the id is the same on every machine
        clip_id = "_".join([path.name if column in folders else path.stem, *times.values()])
        if not clip_id:
            problems.append(f"{column} {_show(written[column])} gives no id; fill in column id")
    recording = row.get("recording", "")
    for name, value in (("id", clip_id), ("recording", recording)):
        if CONTROL.search(value):
            problems.append(f"{name} {_show(value)} has control characters; give another in column {name}")
    clip = Clip(
        id=clip_id,
        labels=tuple(map(sys.intern, labels)),
        split=cast(Split, sys.intern(row["split"])),
        base=base,
        written=tuple(written.get(column, "") for column in MEDIA_COLUMNS),
        start=start,
        end=end,
        recording=sys.intern(recording),
    )
    return clip, problems


def _labels(cell: str, multi_label: bool, problems: list[str]) -> tuple[str, ...]:
    labels = tuple(part.strip() for part in cell.split(LABEL_SEPARATOR)) if multi_label else (cell,)
    if not cell:
        problems.append("label is empty")
    elif "" in labels:
        problems.append(f"label {_show(cell)} has an empty part; write a{LABEL_SEPARATOR}b")
    problems += [f"label {_show(label)} has control characters; rename it" for label in labels if CONTROL.search(label)]
    repeated = [label for label in dict.fromkeys(labels) if label and labels.count(label) > 1]
    problems += [f"label {_show(label)} is there twice" for label in repeated]
    return labels


def _is_folder(column: str, path: Path, written: str, problems: list[str], *, there: bool) -> bool:
    """Whether a path is a folder; notes in `problems` if it can't be a source of media."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: NUL, or a name the file system can't spell
        reason = "does not exist" if not isinstance(error, PermissionError) else "can't be read"
        if there or isinstance(error, ValueError):
            problems.append(f"{column} {_show(written)} {reason}")
        return False
    if stat.S_ISDIR(mode) and column != "frames":
        problems.append(f"{column} {_show(written)} is a folder; a folder of images goes in column frames")
    elif not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        problems.append(f"{column} {_show(written)} is neither a file nor a folder")
    return stat.S_ISDIR(mode)


def _seconds(column: str, cell: str, problems: list[str]) -> float | None:
    try:
        seconds = float(cell) if cell.isascii() and "_" not in cell else math.nan
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        problems.append(f"{column} {_show(cell)} is not a number of seconds")
    elif seconds < 0:
        problems.append(f"{column} {_show(cell)} is negative")
    else:
        return seconds
    return None


def _show(text: str) -> str:
    """Quote a cell in one line of limited length."""
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")


def _messages(path: Path, bad: list[str]) -> list[str]:
    if len(bad) == 1:
        return [f"{path}: {bad[0]}"]
    more = [f"and {len(bad) - MAX_LISTED} more"] if len(bad) > MAX_LISTED else []
    return [f"{path}: {len(bad)} bad rows", *bad[:MAX_LISTED], *more]
