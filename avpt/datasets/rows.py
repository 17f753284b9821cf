"""What all data sets share: the rows of their lists, with the bad lines among them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from avpt.datasets.media_files import Key, Media
from avpt.errors import ManifestError, listed
from avpt.types import Split

MAX_LISTED = 20  # bad lines that are listed one by one; the rest are counted
CLIP_SECONDS = 10  # if a list says only when a clip starts
MAX_SECONDS = 1e6  # no video is longer: a later time is a mistake

SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    "test": "test",
}
YOUTUBE_ID = re.compile(r"[\w-]+", re.ASCII)

T = TypeVar("T")


class BadLineError(Exception):
    """What is wrong with one line of a list; reading goes on with the next line."""


class Line(NamedTuple):
    """A line of a list."""

    path: str
    number: int
    cells: list[str]


@dataclass(frozen=True, slots=True)
class Row:
    """A clip as its data set describes it, before its media are looked up."""

    id: str
    label: str
    split: Split | None  # None: the hash of its group decides
    group: str  # the hash puts all clips of a group into one split
    names: tuple[str, ...]  # keys that its media may have, the most likely first
    whole: str = ""  # key of media that contain more than the clip
    times: tuple[str, str] = ("", "")  # when the clip starts and ends in them
    place: tuple[str, int] = ("", 0)  # list and line


@dataclass
class Source:
    """What the rows of a data set are read from, and the bad lines so far."""

    media: Media
    lists: tuple[Path, ...] = ()
    classes: Path | None = None  # of AudioSet
    test_fold: int = 5  # of ESC-50
    trimmed: bool = False  # a file named by a YouTube id alone holds the clip, not the video
    num_bad: int = 0
    messages: list[str] = field(default_factory=list)

    def bad(self, path: str, number: int, problem: str) -> None:
        """Note a bad line."""
        self.num_bad += 1
        if self.num_bad <= MAX_LISTED:
            self.messages.append(f"{path}: line {number}: {problem}")

    def check(self) -> None:
        """Raise a ManifestError that lists the bad lines, if there are any."""
        if self.num_bad == 1:
            raise ManifestError(self.messages[0])
        if self.num_bad:
            more = [f"and {self.num_bad - MAX_LISTED} more"] if self.num_bad > MAX_LISTED else []
            raise ManifestError(f"the lists have {self.num_bad} bad lines", *self.messages, *more)

    def parse(self, path: Path, parse: Callable[[Line], T | None], columns: tuple[str, ...] = ()) -> Iterator[T]:
        """Apply `parse` to each line; it returns None for a line to skip and raises BadLineError for a bad one.

        With `columns`, the first line names the columns, and `parse` gets the cells of these.
        """
        picked: list[int] | None = None
        width = 0
        for line in self._lines(path):
            try:
                if columns and picked is None:
                    picked, width = [line.cells.index(name) for name in columns if name in line.cells], len(line.cells)
                    if len(picked) < len(columns):
                        raise ManifestError(f"{path}: line {line.number} does not name columns {', '.join(columns)}")
                    continue
                cells = exactly(line, width) if picked else line.cells
                item = parse(line._replace(cells=[cells[i] for i in picked]) if picked else line)
            except BadLineError as error:
                self.bad(*line[:2], str(error))
            else:
                if item is not None:
                    yield item

    def _lines(self, path: Path) -> Iterator[Line]:
        try:
            if not path.is_file():
                raise ManifestError(f"{path}: is not a file, but a folder, a device or a pipe; name a list")
            data = path.read_bytes()
            reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True, skipinitialspace=True)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ManifestError(f"{path}: line {line}: not UTF-8; save the file as UTF-8") from None
        while True:
            number = reader.line_num + 1
            try:
                cells = [cell.strip() for cell in next(reader)]
            except StopIteration:
                return
            except csv.Error as error:
                self.bad(str(path), number, f"not CSV ({error}); look for a quote that is not closed or not doubled")
                if reader.line_num > number:
                    return  # an open quote swallowed lines, and where the next row starts is unknown
            else:
                if any(cells):
                    yield Line(str(path), number, cells)


@dataclass(frozen=True)
class Dataset:
    """How one data set is read."""

    rows: Callable[[Source], Iterator[Row]]
    lists: tuple[str, ...] = ()  # patterns of its lists' names; the first one that matches any file is used
    key: Key = "name"
    multi_label: bool = False
    stratified: bool = False  # whether the hash divides each class separately
    folds: int = 0  # that the data set itself has; 0: none
    group: str = ""  # finds in an id what folds keep together; empty: each clip by itself


def exactly(line: Line, count: int) -> list[str]:
    """The cells of a line, which must have `count`."""
    if len(line.cells) != count:
        raise BadLineError(f"has {len(line.cells)} cells, not {count}; put quotes around a cell with a comma")
    return line.cells


def one_of(cell: str, known: dict[str, T], what: str) -> T:
    """The value that a cell stands for."""
    if cell not in known:
        raise BadLineError(f"{what} {cell[:100]!r} is not one of {listed(list(known), 6)}")
    return known[cell]


def split_of_name(path: Path, words: dict[str, Split] = SPLIT_WORDS) -> Split:
    """The split that a list's name contains, as in `my_train.txt`."""
    splits = {words[word] for word in re.findall("[a-z]+", path.stem.lower()) if word in words}
    if len(splits) != 1:
        raise ManifestError(
            f"{path}: the name does not say which split this is; put one of the words {', '.join(words)} in it, "
            "as in my_train.txt"
        )
    return splits.pop()


def youtube_row(
    source: Source, line: Line, label: str, split: str, video: str, times: tuple[str, str], prefixes: Sequence[str] = ()
) -> Row:
    """The row of a part of a YouTube video, with all file names that downloaders use for it."""
    start = _seconds(times[0])
    end = _seconds(times[1]) if times[1] else start + CLIP_SECONDS
    if not YOUTUBE_ID.fullmatch(video):
        raise BadLineError(f"{video[:100]!r} is not a YouTube id")  # a spreadsheet turns -ab... into #NAME?
    if not label:
        raise BadLineError("label is empty")
    if end <= start:
        raise BadLineError(f"end {end:g} is not after start {start:g}")
    clip_id, written = f"{video}_{start:010.3f}", (f"{start:.3f}", f"{end:.3f}")
    stamps = [f"{1000 * start:.0f}_{1000 * end:.0f}"]
    if start.is_integer() and end.is_integer():
        first, last = int(start), int(end)
        clip_id, written = f"{video}_{first:06}", (str(first), str(last))
        stamps = [f"{first:06}_{last:06}", f"{first:06}", f"{first}_{last}", str(first), *stamps]
    names = [f"{prefix}{video}_{stamp}" for prefix in ("", *prefixes) for stamp in stamps]
    names += [prefix + video for prefix in prefixes] + [video] * source.trimmed
    whole = "" if source.trimmed else video
    known = one_of(split, SPLIT_WORDS, "split")
    return Row(clip_id, label, known, video, tuple(names), whole, written, line[:2])


def _seconds(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value < MAX_SECONDS:
        raise BadLineError(f"{cell[:100]!r} is not a number of seconds")
    return value
