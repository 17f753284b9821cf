"""Files that are complete or absent, outputs that belong to one writer, and whether an output can be reused."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from avpt.errors import OutputError
from avpt.files.checking import RecordError, check, read
from avpt.files.records import Provenance

log = logging.getLogger(__name__)

MOMENT = 2.0  # seconds; workers die a moment after their parent, and releasing a shared lock takes it alone for one
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of flock on some network file systems
COMPLETE = ("store.json", "summary.json")  # written last: they mark a folder as finished


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
                with _lockless():
                    held.callback(os.close, _lock(beside, fcntl.LOCK_SH))
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


def sweep(paths: Iterable[Path]) -> None:
    """Remove temporary files that no process on any machine has locked: their writers were killed.

    For files that are not `shared`, call it inside the claim that their writers need.
    """
    for path in paths:
        with suppress(OSError), _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, create=False):
            pass


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


@contextmanager
def claim(path: Path, part: str | None = None, beside: Iterable[Path] = ()) -> Iterator[None]:
    """Be the only writer of `path`, or of a part of it, while the block runs; the claim ends with the process.

    Writers of different parts may run together. A writer of the whole runs alone, and first removes what killed
    writers left.

    Args:
        path: a file or a folder.
        part: name of a part of the folder; None claims the whole.
        beside: other files that are written with it.

    Raises:
        OutputError: another process is writing it, or its folder can't be written.
    """
    path, beside = path.absolute(), tuple(beside)
    if not path.name:
        raise OutputError(f"{path} is a folder of the machine's own; choose another --out")
    for file in (path, *path.parents, *beside):
        if file.is_symlink() and not file.exists():
            raise OutputError(f"{file} is a link that leads nowhere; remove it or choose another --out")
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise OutputError(f"{file} is a device or a pipe; choose another --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            lock = path.with_name(f".{path.name}.lock")
            if part is None:
                locks.enter_context(_locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, patience=MOMENT))
                sweep(file.absolute().with_name(f".{file.name}.tmp") for file in (path, *beside))
            else:
                locks.enter_context(_locked(lock, fcntl.LOCK_SH | fcntl.LOCK_NB, patience=MOMENT))
                locks.enter_context(_locked(_lock_of(path, part), fcntl.LOCK_EX | fcntl.LOCK_NB))
            held = locks.pop_all()
    except BlockingIOError:
        raise OutputError(f"{path} is being written by another avpt; wait for it or choose another --out") from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise OutputError(f"{path} can't be written ({error.strerror}); choose another --out") from None
        log.warning("%s is on a file system without locks: see that nothing else writes it meanwhile", path)
        held = ExitStack()
    with held:
        yield


@contextmanager
def _lockless() -> Iterator[None]:
    """Go on without a lock where the file system has none, of which `claim` has warned."""
    try:
        yield
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise


def _lock_of(path: Path, part: str) -> Path:
    """The lock file of a part, which is removed with that of the whole."""
    return path.with_name(f".{path.name}.lock.{part.replace(':', '-')}")


def check_not_input(out: Path, *inputs: Path) -> None:
    """Check that an output is not one of the inputs, which `--overwrite` would destroy.

    Raises:
        OutputError: it is one.
    """
    for path in inputs:
        if os.path.realpath(path) == os.path.realpath(out):  # Path.resolve fails where links form a ring
            raise OutputError(f"{out} is what this command reads; choose another --out")


@contextmanager
def take_turn(path: Path) -> Iterator[None]:
    """Wait until no other writer of a part of `path` is in such a block; call it inside the `claim` of a part."""
    with ExitStack() as held:
        with _lockless():
            held.enter_context(_locked(_lock_of(path.absolute(), "turn"), fcntl.LOCK_EX))
        yield


@contextmanager
def _locked(path: Path, how: int, patience: float = 0.0, create: bool = True) -> Iterator[None]:
    handle = _lock(path, how, patience, create)
    try:
        yield
    finally:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for part in path.parent.glob(f"{escape(path.name)}.*"):
                if "." not in part.name.removeprefix(f"{path.name}."):  # a part's lock, which is held with this one
                    part.unlink(missing_ok=True)
            path.unlink(missing_ok=True)  # not while it is shared: others could not find the file any more
        except BlockingIOError:
            pass
        os.close(handle)


def _lock(path: Path, how: int, patience: float = 0.0, create: bool = True) -> int:
    deadline = time.monotonic() + patience
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT * create, 0o666)
        try:
            fcntl.flock(handle, how)
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)
            continue
        except BaseException as error:
            os.close(handle)
            if create and isinstance(error, OSError) and error.errno in WITHOUT_LOCKS:
                path.unlink(missing_ok=True)  # made by us, and of no use
            raise
        os.close(handle)  # its last owner removed the file between our two calls: take a fresh one


def differences(
    existing: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """What differs between two provenance records, each difference as `name: A there, B now`.

    An option that the existing record lacks counts as its default: it is younger than the record.
    """
    # through JSON, so that what was read back compares equal to what would be written
    existing, wanted, defaults = (json.loads(json.dumps(record)) for record in (existing, wanted, defaults or {}))
    options, inputs = defaults | existing["config"], existing["inputs"]
    pairs = [(name, options.get(name), value) for name, value in wanted["config"].items()]
    names = inputs.keys() | wanted["inputs"].keys()
    pairs += [(name, inputs.get(name), wanted["inputs"].get(name)) for name in names]
    return [
        f"{name}: {_short(old)} there, {_short(new)} now" for name, old, new in sorted(pairs, key=str) if old != new
    ]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def check_same(
    path: Path, existing: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> None:
    """Check that an existing output was made with the options and inputs that are wanted now.

    Raises:
        OutputError: it was not; the message says what differs.
    """
    if different := differences(existing, wanted, defaults):
        raise OutputError(
            f"{path} was made with other options or inputs ({'; '.join(different)}); "
            "choose another --out, or --overwrite to start over"
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


def is_there(path: Path) -> bool:
    """Whether there is a file already where one is to be written.

    Raises:
        OutputError: there is a folder.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; --out must name a file")
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
    return not overwrite


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
