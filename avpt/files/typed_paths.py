"""The paths of inputs: as they were typed, in a file of their own, and as a manifest has them.

What is made has the same bytes wherever its inputs lie.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from avpt.files.checking import RecordError, read
from avpt.files.outputs import write_json
from avpt.files.records import TypedPath, TypedPaths
from avpt.files.reuse import foreign, is_there

NAME = "paths.json"  # in a folder; beside a file, its own name and .json


@dataclass(frozen=True)
class RecordedPath:
    """An input's path."""

    typed: str
    place: Path  # absolute: where that led to
    checksum: str | None  # None of what is not an input itself, such as the folder that a manifest's paths start from
    size: int | None  # in bytes, of a plain file


def write_paths(made: Path, inputs: Mapping[str, str], paths: Mapping[str, Path | None]) -> None:
    """Write the paths that something was made from.

    Args:
        made: the folder or file.
        inputs: the checksums of its inputs by name, as its own record has them.
        paths: as they were typed, by the same names; others stand for options that name no input.

    Raises:
        OutputError: the place is taken by a file that is not ours.
    """
    target = record_of(made)
    if is_there(target):
        try:
            read(target, TypedPaths)
        except RecordError as error:
            raise foreign(target, why=error) from None
    write_json(target, describe_paths(inputs, paths), shared=made.is_dir())


def describe_paths(inputs: Mapping[str, str], paths: Mapping[str, Path | None]) -> TypedPaths:
    """The record of the paths that something was made from; the arguments are those of `write_paths`."""
    record: dict[str, TypedPath] = {}
    for name, path in paths.items():
        if path is None:
            continue
        record[name] = {"path": str(path)}
        if name in inputs:
            record[name]["checksum"] = inputs[name]
        if path.is_file():
            record[name]["size"] = path.stat().st_size
    try:
        folder = str(Path.cwd())
    except OSError:  # it was removed meanwhile: no relative path leads anywhere
        folder = "/"
    return {"folder": folder, "paths": record}


def forget_paths(made: Path) -> None:
    """Remove the paths of a file that was there before, where what is made now has none to record."""
    try:
        read(record_of(made), TypedPaths)
    except (OSError, RecordError):
        return
    record_of(made).unlink(missing_ok=True)


def read_paths(made: Path) -> dict[str, RecordedPath]:
    """The paths that something was made from, by name; none where they were not recorded, or the record is damaged."""
    try:
        record = read(record_of(made), TypedPaths)
    except (OSError, RecordError):
        return {}
    return {
        name: RecordedPath(
            typed=one["path"],
            place=Path(os.path.normpath(Path(record["folder"], one["path"]))),
            checksum=one.get("checksum"),
            size=one.get("size"),
        )
        for name, one in record["paths"].items()
    }


def record_of(made: Path) -> Path:
    """Where the paths that something was made from are recorded."""
    return made / NAME if made.is_dir() else made.with_name(f"{made.name}.json")


def relative_path(start: Path, folder: Path) -> str:
    """The relative path from a manifest's folder to its media, links resolved where `..` would lead elsewhere."""
    short = os.path.relpath(folder, start)
    right = (start / short).exists() and (start / short).samefile(folder)
    return short if right else os.path.relpath(folder.absolute(), start.resolve())
