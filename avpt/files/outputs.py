"""Files that are complete or absent, and their checksums."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from avpt.errors import OutputError
from avpt.files.checking import RecordError, read
from avpt.files.locks import lock, lockless


@contextmanager
def atomic(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a path beside the final one to write to; flush it to disk and rename it if the block ends without an error.

    Write to that very path: a library that writes another file and renames it would leave that behind when killed.
    A file that others may be writing too (`shared`, with the same bytes) is written under a name of this process's
    own, and locked until it is done, so that `sweep` can distinguish it from what a killed process left.
    """
    path = path.absolute()
    own = f".{os.uname().nodename}-{os.getpid()}" if shared else ""
    beside = path.with_name(f".{path.name}{own}.tmp")
    with ExitStack() as held:
        try:
            if shared:
                with lockless():
                    held.callback(os.close, lock(beside, fcntl.LOCK_SH))
            yield beside
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)  # h5py puts a paragraph into strerror
            what = f"{path} can't be written ({reason}); mend that and run the same command again"
            raise OutputError(what) from error
        finally:
            beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name must survive a power cut too
    finally:
        os.close(folder)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a small text file, complete or not at all."""
    with atomic(path, shared=shared) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: object, *, shared: bool = False) -> None:
    """Write sorted, indented JSON; what UTF-8 can't encode, such as a byte of a file name, is escaped."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    write_text(path, re.sub("[\ud800-\udfff]", lambda match: json.dumps(match[0])[1:-1], text), shared=shared)


def read_record(path: Path, next_step: str, kind: Any = dict[str, Any]) -> dict[str, Any]:
    """Read a JSON object that avpt wrote, and check that it is a record of a kind.

    Raises:
        OutputError: it is missing or damaged; `next_step` says what to do then.
    """
    try:
        record: dict[str, Any] = read(path, kind)
    except FileNotFoundError:
        raise OutputError(f"{path} is missing; {next_step}") from None
    except RecordError as error:
        raise OutputError(f"{path} is damaged ({error}); {next_step}") from None
    return record


def sha256(path: Path) -> str:
    """The file's checksum in hexadecimal."""
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a file, but a folder, a device or a pipe; name a file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_if_there(path: Path) -> str:
    """The checksum of a file that another process may remove at any moment; empty where it can't be read."""
    try:
        return sha256(path)
    except OSError:
        return ""


def sha256_json(value: object) -> str:
    """The checksum of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_not_input(out: Path, *inputs: Path) -> None:
    """Check that an output is not one of the inputs, which `--overwrite` would destroy.

    Raises:
        OutputError: it is one.
    """
    for path in inputs:
        if os.path.realpath(path) == os.path.realpath(out):  # Path.resolve fails where links form a ring
            raise OutputError(f"{out} is what this command reads; choose another --out")
