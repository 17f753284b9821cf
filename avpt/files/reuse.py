"""Whether an output that is there can be reused, must be refused, or may be replaced."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from avpt.errors import OutputError
from avpt.files.checking import RecordError, check, read
from avpt.files.outputs import read_record, write_json
from avpt.files.records import Provenance

log = logging.getLogger(__name__)

COMPLETE = ("store.json", "summary.json")  # written last: they mark a folder as finished


def differences(
    existing: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """What differs between two provenance records, each difference as `name: A there, B now`.

    An option that a record lacks counts as its default: it is younger than that record, or recorded only where it is
    set.
    """
    # through JSON, so that what was read back compares equal to what would be written
    existing, wanted, defaults = (json.loads(json.dumps(record)) for record in (existing, wanted, defaults or {}))
    there, now = defaults | existing["config"], defaults | wanted["config"]
    names = wanted["config"].keys() | (existing["config"].keys() & defaults.keys())  # not those of another avpt
    pairs = [(name, there.get(name), now.get(name)) for name in names]
    inputs = existing["inputs"].keys() | wanted["inputs"].keys()
    pairs += [(name, existing["inputs"].get(name), wanted["inputs"].get(name)) for name in inputs]
    return [
        f"{name}: {_short(old)} there, {_short(new)} now" for name, old, new in sorted(pairs, key=str) if old != new
    ]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def check_same(
    path: Path,
    existing: Mapping[str, Any],
    wanted: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    option: str = "--out",
) -> None:
    """Check that an existing output was made with the options and inputs that are wanted now.

    `option` is the one that names the output.

    Raises:
        OutputError: it was not; the message says what differs.
    """
    if different := differences(existing, wanted, defaults):
        raise OutputError(
            f"{path} was made with other options or inputs ({'; '.join(different)}); "
            f"choose another {option}, or --overwrite to start over"
        )


def foreign(
    path: Path, by: str = "avpt", *, why: object = "", otherwise: str = "is damaged", option: str = "--out"
) -> OutputError:
    """The error for an output whose place is taken by a file that is not ours to replace.

    Args:
        path: the file.
        by: the program or command that would have written it.
        why: what speaks against that.
        otherwise: what else may have happened to the file.
        option: the option that names the output.
    """
    seen = f" ({why})" if why else ""
    return OutputError(f"{path} was not written by {by}{seen}, or {otherwise}; remove it or choose another {option}")


def is_there(path: Path, option: str = "--out") -> bool:
    """Whether there is a file already where one is to be written, as `option` says.

    Raises:
        OutputError: there is a folder.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; {option} must name a file")
    return path.exists()


def is_reused(
    path: Path, existing: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any], overwrite: bool
) -> bool:
    """Whether an existing file, which records how it was made, is reused; False where it is to be made anew.

    Args:
        path: the file.
        existing: `kind`, `config` and `inputs` as the file holds them.
        wanted: the same as it must hold them.
        defaults: of the options.
        overwrite: the caller means to start over.

    Raises:
        OutputError: it is of another kind, even with `overwrite`, because this command may read it; or it was made
            with other options or inputs.
    """
    if existing["kind"] != wanted["kind"]:
        raise OutputError(f"{path} holds a {existing['kind']}; remove it or choose another --out")
    if not overwrite:
        check_same(path, existing, wanted, defaults)
        say_there(path)
    return not overwrite


def say_there(path: Path) -> None:
    """Say that an output is finished already, so that the command has nothing to do."""
    log.info("%s was there already, made with the same options and inputs", path)


def reuse_record(
    path: Path, provenance: Mapping[str, Any], defaults: Mapping[str, Any], overwrite: bool, kind: Any
) -> dict[str, Any] | None:
    """The record in a JSON file that was made with the same options and inputs; None where it is to be made.

    Args:
        path: the file.
        provenance: `kind`, `config` and `inputs` as it must hold them.
        defaults: of the options.
        overwrite: the caller means to start over.
        kind: the type of record that it must hold.

    Raises:
        OutputError: something else is there.
    """
    if not is_there(path):
        return None
    try:
        existing: dict[str, Any] = read(path, kind)
    except RecordError as error:
        raise foreign(path, "this command", why=error) from None
    return existing if is_reused(path, existing, provenance, defaults, overwrite) else None


def check_existing(path: Path, content: Any, kind: Any) -> None:
    """Check that what an existing output says of itself is a record of a kind, so that it can be shown again.

    Raises:
        OutputError: it is damaged.
    """
    try:
        check(content, kind)
    except RecordError as error:
        raise OutputError(f"{path} is damaged ({error}); --overwrite makes it again") from None


def check_ours(path: Path, is_ours: Callable[[bytes], bool], by: str = "avpt", option: str = "--out") -> bytes | None:
    """The content of an existing file that does not record how it was made; None where there is no file.

    Args:
        path: the file.
        is_ours: decides by the content whether avpt may have written it.
        by: the program or command that would have written it.
        option: the option that names the output.

    Raises:
        OutputError: avpt can't have written it.
    """
    existing = path.read_bytes() if path.is_file() else None
    if path.is_dir() or (existing is not None and not is_ours(existing)):
        raise foreign(path, by, option=option)
    return existing


def must_write(path: Path, content: bytes, existing: bytes | None, other: str, *, option: str, overwrite: bool) -> bool:
    """Whether a file has yet to be written, because it does not have the content that it is to have.

    Args:
        path: the file.
        content: that it is to have.
        existing: the content that it has; None where there is no file.
        other: what to say of another content, such as "holds other answers".
        option: the option that names the output.
        overwrite: another content may be replaced.

    Raises:
        OutputError: another content is there.
    """
    if existing is not None and existing != content and not overwrite:
        raise OutputError(f"{path} {other}; choose another {option}, or --overwrite to replace it")
    if existing == content:
        log.info("%s was there already, with the same content", path)
    return existing != content


def look_into(path: Path, settings_file: str, owned: re.Pattern[str], overwrite: bool) -> dict[str, Any] | None:
    """Inspect an output folder before any work, and change nothing. Call it inside `claim`.

    Args:
        path: the folder.
        settings_file: path of the provenance record within the folder.
        owned: matches the relative path of every file that avpt may have written there.
        overwrite: the caller means to start over.

    Returns:
        The existing provenance record, or None where the caller starts from nothing.

    Raises:
        OutputError: it is not a folder, or holds anything else.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, not a folder; choose another --out")
    settings = path / settings_file
    foreign_files = [name for name in _files(path) if not owned.fullmatch(name)]
    for other, what in (("settings.json", "a store"), ("checkpoint/settings.json", "a run folder")):
        if other != settings_file and (path / other).exists():
            raise OutputError(f"{path} is {what}, which this command does not write; choose another --out")
    if foreign_files and (overwrite or not settings.exists()):
        raise OutputError(f"{path} holds files that avpt did not write ({_some(foreign_files)}); choose another --out")
    unclaimed = [name for name in _files(path) if not name.endswith(".tmp")]
    if unclaimed and not overwrite and not settings.exists():  # which avpt writes before anything else
        raise OutputError(
            f"{path} holds {_some(unclaimed)}, and no {settings_file} says whose they are; choose another --out, "
            "or --overwrite to remove them"
        )
    if overwrite or not settings.exists():
        return None
    return read_record(settings, "--overwrite starts over", Provenance)


def begin(path: Path, settings_file: str, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Make the folder and write its settings; what avpt left there is removed unless it is to be continued.

    Settings are removed last and written first: a kill at any moment leaves files only beside the settings that they
    were made with.
    """
    if path.exists() and (overwrite or not (path / settings_file).exists()):
        # `look_into` saw no files but avpt's; the folder itself stays, as it may be the working directory
        files = sorted(_files(path), key=lambda name: (name == settings_file, name not in COMPLETE))
        for name in files:
            (path / name).unlink()
    (path / settings_file).parent.mkdir(parents=True, exist_ok=True)
    write_json(path / settings_file, settings)


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def _files(path: Path) -> list[str]:
    return [str(file.relative_to(path)) for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
