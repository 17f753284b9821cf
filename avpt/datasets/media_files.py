"""The media of a data set: which files lie in its folder, under which keys its rows find them."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
    empty: list[str]  # files of zero bytes, named as media
    others: list[str]  # other files in its subfolders that no clip is made of, and links that lead nowhere
    bare: list[str]  # folders without media, in which no others are named that have none either
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

    The key is a file's name or path without the suffix, or each image's path. A file of zero bytes is no media: it may
    have more of them later, and is listed then.
    """
    media = Media({kind: {} for kind in SUFFIXES}, [], [], [], [], [], "")
    listing = hashlib.sha256()
    filled: dict[str, bool] = {}  # folder -> whether there are media in it or below
    lost: list[tuple[str, str, str]] = []  # kind, key and file where another has both

    def add(kind: str, name: str, path: str) -> None:
        listing.update(os.fsencode(path) + b"\0")
        taken = media.files[kind].setdefault(name, path)
        if taken is not path:
            rank, other = (RANKS.get(_suffix(file), 0) for file in (path, taken))
            if rank < other:
                media.files[kind][name] = path
            if rank == other or key == "path":  # a known data set has a clip in several formats on purpose
                lost.append((kind, name, taken if rank < other else path))

    for inside, files in _walk(str(folder)):
        kinds, images = set(), []
        filled.setdefault(inside, not inside)
        for name, size in files:
            suffix, path = _suffix(name), inside + name
            kind = COLUMN_OF.get(suffix)
            if kind and size == 0:
                media.empty.append(path)
                continue
            kinds.add(None if size is None else kind)
            if size is not None and suffix in ("csv", "txt") and inside.count("/") < 2:
                media.tables.append(path)
            if size is None or kind is None or (kind != "frames" and key == "image"):
                media.others.extend([path] if inside else [])
            elif kind == "frames" and key != "image":
                images.append(path)
            else:
                add(kind, path if key == "image" else (name if key == "name" else path).rpartition(".")[0], path)
        if inside and images and kinds - {None} == {"frames"}:
            path = inside[:-1]
            add("frames", path.rpartition("/")[2] if key == "name" else path, path)
        elif inside:
            media.others.extend(images)
        if kinds - {None} and not (key == "image" and "frames" not in kinds):
            filled |= {inside[: i + 1]: True for i, character in enumerate(inside) if character == "/"}
    bare = [inside for inside in filled if not filled[inside] and filled[inside[: inside[:-1].rfind("/") + 1]]]
    twice = [(name, media.files[kind][name], path) for kind, name, path in lost]
    return replace(media, twice=twice, bare=[inside[:-1] for inside in bare], sha256=listing.hexdigest())


def _spellings(name: str) -> tuple[str, ...]:
    """A name, and the name in both of Unicode's encodings of accents: a copy of a folder may use the other."""
    return (name,) if name.isascii() else (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _walk(folder: str) -> Iterator[tuple[str, list[tuple[str, int | None]]]]:
    """("", "a/", "a/b/", ...) with the names of the files there and their sizes, in order.

    Links are followed, and have no size where they lead nowhere; hidden names are skipped.
    """
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(folder),))]
    while waiting:
        inside, above = waiting.pop()  # and the real paths of the folder and of those above it
        files: list[tuple[str, int | None]] = []
        folders = []
        with os.scandir(f"{folder}/{inside}") as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    status = entry.stat()
                except OSError:  # a link that is broken or circular
                    files.append((entry.name, None))
                    continue
                if stat.S_ISREG(status.st_mode):
                    files.append((entry.name, status.st_size))
                elif stat.S_ISDIR(status.st_mode):
                    real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
                    if not any(Path(one).is_relative_to(real) for one in above):  # it would be followed endlessly
                        folders.append((entry.name, real))
        yield inside, sorted(files)
        waiting += [(f"{inside}{name}/", (*above, real)) for name, real in sorted(folders, reverse=True)]
