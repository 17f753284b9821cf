"""The media of a data set: which files lie in its folder, under which keys its rows find them."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avpt.types import IMAGE_SUFFIXES

SUFFIXES = {  # of media, by manifest column; of two files with one name, the suffix that comes first is taken
    "video": (
        *("mp4", "mkv", "webm", "mov", "avi", "m4v", "mpg", "mpeg"),
        *("wmv", "3gp", "ogv", "flv", "ts", "mts", "m2ts"),
    ),
    "audio": ("wav", "flac", "aif", "aiff", "ogg", "oga", "opus", "m4a", "mp3", "aac", "wma", "ac3", "amr"),
    "frames": tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES),
}
COLUMN_OF = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
RANKS = {suffix: rank for rank, suffix in enumerate(COLUMN_OF)}

Key = Literal["name", "path", "image"]


@dataclass(frozen=True)
class Media:
    """The media in a folder and below; every path is relative to it."""

    files: dict[str, dict[str, str]]  # video, audio, frames -> key -> path
    tables: list[str]  # .csv and .txt files in the folder and its subfolders: some may be lists
    twice: list[tuple[str, str, str]]  # key, and two files with it: the one in use, the other
    sha256: str  # of all their paths

    @property
    def names(self) -> set[str]:
        """All keys."""
        return set().union(*self.files.values())

    def find(self, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        """(key, path) by kind. A video takes precedence over extracted frames, whose rate is unknown."""
        matches: dict[str, tuple[str, str]] = {}
        for kind, paths in self.files.items():
            for name in names if paths and not (kind == "frames" and "video" in matches) else ():
                if key := next((spelling for spelling in _spellings(name) if spelling in paths), None):
                    matches[kind] = key, paths[key]
                    break
        return matches


def find_media(folder: Path, key: Key) -> Media:
    """List the media below a folder; a folder with images and no other media holds the frames of a clip.

    The key is a file's name or path without the suffix, or each image's path.
    """
    media = Media({kind: {} for kind in SUFFIXES}, [], [], "")
    listing = hashlib.sha256()

    def add(kind: str, name: str, path: str) -> None:
        listing.update(os.fsencode(path) + b"\0")
        taken = media.files[kind].setdefault(name, path)
        if taken is not path:
            rank, other = (RANKS.get(_suffix(file), 0) for file in (path, taken))
            if rank < other:
                media.files[kind][name] = path
            if rank == other or key == "path":  # a known data set has a clip in several formats on purpose
                media.twice.append((name, *((path, taken) if rank < other else (taken, path))))

    for inside, names in _walk(str(folder)):
        kinds = set()
        for name in names:
            suffix, path = _suffix(name), inside + name
            kind = COLUMN_OF.get(suffix)
            kinds.add(kind)
            if kind == "frames" and key == "image":
                add(kind, path, path)
            elif kind in ("video", "audio") and key != "image":
                add(kind, (name if key == "name" else path).rpartition(".")[0], path)
            elif suffix in ("csv", "txt") and inside.count("/") < 2:
                media.tables.append(path)
        if inside and key != "image" and kinds - {None} == {"frames"}:
            path = inside[:-1]
            add("frames", path.rpartition("/")[2] if key == "name" else path, path)
    return Media(media.files, media.tables, media.twice, listing.hexdigest())


def _spellings(name: str) -> tuple[str, ...]:
    """A name, and the name in both of Unicode's encodings of accents: a copy of a folder may use the other."""
    return (name,) if name.isascii() else (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """("", "a/", "a/b/", ...) with the file names there, in order; links are followed, hidden names skipped."""
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(folder),))]
    while waiting:
        inside, above = waiting.pop()  # and the real paths of the folder and of those above it
        files, folders = [], []
        with os.scandir(f"{folder}/{inside}") as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = Path(entry.path)  # which raises no error for links that are broken or circular
                if path.is_file():
                    files.append(entry.name)
                elif path.is_dir():
                    real = os.path.realpath(path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
                    if not any(Path(one).is_relative_to(real) for one in above):  # it would be followed endlessly
                        folders.append((entry.name, real))
        yield inside, sorted(files)
        waiting += [(f"{inside}{name}/", (*above, real)) for name, real in sorted(folders, reverse=True)]
