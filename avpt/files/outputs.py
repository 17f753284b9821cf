"""Files that are complete or absent, outputs that belong to one writer, and what makes an output the same."""

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

MOMENT = 2.0  # seconds; workers die a moment after their parent, and who gives up a shared lock has it alone for one
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what flock says on some network file systems
COMPLETE = ("store.json", "summary.json")  # written last: they declare a folder finished


@contextmanager
def atomic(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a path beside the final one to write to; flush it to disk and rename it when the block ends well.

    Write to it as it is: a library that puts another file in its place leaves that one behind where it is killed.
    A file that others may be writing too (`shared`, with the same bytes) is written under a name of this process's
    own, and locked until it is done, so that `sweep` can tell it from what a killed process left.
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
        os.fsync(folder)  # the new name too must survive a power cut
    finally:
        os.close(folder)


def sweep(paths: Iterable[Path]) -> None:
    """Remove temporary files that no process has locked, on whatever machine: whoever wrote them was killed.

    Where files are not `shared`, call it inside the claim that their writers need.
    """
    for path in paths:
        with suppress(OSError), _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, create=False):
            pass


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a small text file, complete or not at all."""
    with atomic(path, shared=shared) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: object, *, shared: bool = False) -> None:
    """Write sorted, indented JSON; what UTF-8 lacks, a byte of some file's name, is escaped."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    write_text(path, re.sub("[\ud800-\udfff]", lambda found: json.dumps(found[0])[1:-1], text), shared=shared)


def read_record(path: Path, next_step: str, kind: Any = dict[str, Any]) -> dict[str, Any]:
    """Read a JSON object that avpt wrote, a typed record of some kind.

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
    """Be the only writer of `path`, or of a part of it, while the block runs; the claim dies with the process.

    Writers of different parts go together, a writer of the whole goes with none, and clears away what was left by
    those that were killed.

    Args:
        path: a file or a folder.
        part: of a folder, by a name.
        beside: files that are written with it.

    Raises:
        OutputError: another process writes it, or its folder can't be written.
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
    """Go on where the file system has no locks: `claim` has told it."""
    try:
        yield
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise


def _lock_of(path: Path, part: str) -> Path:
    """Where the lock of a part lies; it goes with that of the whole."""
    return path.with_name(f".{path.name}.lock.{part.replace(':', '-')}")


def apart(out: Path, *inputs: Path) -> None:
    """See that an output is none of the inputs, which `--overwrite` would destroy.

    Raises:
        OutputError: it is.
    """
    for path in inputs:
        if os.path.realpath(path) == os.path.realpath(out):  # Path's own fails where links go round in a ring
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
                if "." not in part.name.removeprefix(f"{path.name}."):  # a lock that none can have without this one
                    part.unlink(missing_ok=True)
            path.unlink(missing_ok=True)  # whoever shares it would go on with a file that nobody else can find
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
    found: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """What differs between two provenance records, each as `name: A there, B now`.

    An option that the record found does not have counts as its default: it is younger than the record.
    """
    # through JSON, so that what was read back compares equal to what would be written
    found, wanted, defaults = (json.loads(json.dumps(record)) for record in (found, wanted, defaults or {}))
    options, inputs = defaults | found["config"], found["inputs"]
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
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> None:
    """See that an output that is there was made with the options and inputs that are wanted now.

    Raises:
        OutputError: it was not, and what differs.
    """
    if different := differences(found, wanted, defaults):
        raise OutputError(
            f"{path} was made with other options or inputs ({'; '.join(different)}); "
            "choose another --out, or --overwrite to start over"
        )


def foreign(
    path: Path, by: str = "avpt", *, why: object = "", otherwise: str = "is damaged", option: str = "--out"
) -> OutputError:
    """The error for an output whose place is taken by a file that is not ours to replace.

    Args:
        path: of the file.
        by: who would have written it.
        why: it is not.
        otherwise: what else may have become of it.
        option: that names the output.
    """
    seen = f" ({why})" if why else ""
    return OutputError(f"{path} was not written by {by}{seen}, or {otherwise}; remove it or choose another {option}")


def is_there(path: Path) -> bool:
    """Whether something is where a file is to be written.

    Raises:
        OutputError: a folder is.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; --out must name a file")
    return path.exists()


def is_reused(
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any], overwrite: bool
) -> bool:
    """Whether a file that is there, and says how it was made, was made in just this way; False where to make it anew.

    Args:
        path: the file.
        found: `kind`, `config` and `inputs` as it holds them.
        wanted: the same as it must hold them.
        defaults: of the options.
        overwrite: the caller means to start over.

    Raises:
        OutputError: it is of another kind, whatever `overwrite` says, for it may be what this command reads; or it was
            made in another way.
    """
    if found["kind"] != wanted["kind"]:
        raise OutputError(f"{path} holds a {found['kind']}; remove it or choose another --out")
    if not overwrite:
        check_same(path, found, wanted, defaults)
    return not overwrite


def reuse_record(
    path: Path, provenance: Mapping[str, Any], defaults: Mapping[str, Any], overwrite: bool, kind: Any
) -> dict[str, Any] | None:
    """A JSON file that is already there and was made in just this way, or None to make it.

    Args:
        path: the file.
        provenance: `kind`, `config` and `inputs` as it must hold them.
        defaults: of the options.
        overwrite: the caller means to start over.
        kind: of typed record that it must be.

    Raises:
        OutputError: something else is there.
    """
    if not is_there(path):
        return None
    try:
        found: dict[str, Any] = read(path, kind)
    except RecordError as error:
        raise foreign(path, "this command", why=error) from None
    return found if is_reused(path, found, provenance, defaults, overwrite) else None


def check_found(path: Path, content: Any, kind: Any) -> None:
    """See that what an output that is there says of itself can be shown again: that it is a typed record of some kind.

    Raises:
        OutputError: it is damaged.
    """
    try:
        check(content, kind)
    except RecordError as error:
        raise OutputError(f"{path} is damaged ({error}); --overwrite makes it again") from None


def check_ours(path: Path, is_ours: Callable[[bytes], bool], by: str = "avpt", option: str = "--out") -> bytes | None:
    """What is where a file goes that does not say how it was made, None where nothing is.

    Args:
        path: of the file.
        is_ours: tells by its content whether avpt may have written it.
        by: who would have.
        option: that names the output.

    Raises:
        OutputError: it is not ours.
    """
    found = path.read_bytes() if path.is_file() else None
    if path.is_dir() or (found is not None and not is_ours(found)):
        raise foreign(path, by, option=option)
    return found


def must_write(path: Path, content: bytes, found: bytes | None, other: str, *, option: str, overwrite: bool) -> bool:
    """Whether a file's content has yet to be written over what was `found` there.

    Args:
        path: of the file.
        content: that it is to have.
        found: what it has; None where there is none.
        other: what to say of another content, such as "holds other answers".
        option: that names the output.
        overwrite: another content may be replaced.

    Raises:
        OutputError: another content is there.
    """
    if found is not None and found != content and not overwrite:
        raise OutputError(f"{path} {other}; choose another {option}, or --overwrite to replace it")
    return found != content


def look_into(path: Path, settings_file: str, owned: re.Pattern[str], overwrite: bool) -> dict[str, Any] | None:
    """Look at an output folder before any work; nothing is changed. Call it inside `claim`.

    Args:
        path: the folder.
        settings_file: where in it its provenance record lies.
        owned: matches the relative path of every file that avpt may have written there.
        overwrite: the caller means to start over.

    Returns:
        The provenance record that is there, or None where the caller starts from nothing.

    Raises:
        OutputError: it is not a folder, or holds anything else.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, not a folder; choose another --out")
    settings = path / settings_file
    foreign = [name for name in _files(path) if not owned.fullmatch(name)]
    for other, what in (("settings.json", "a store"), ("checkpoint/settings.json", "a run folder")):
        if other != settings_file and (path / other).exists():
            raise OutputError(f"{path} is {what}, which this command does not write; choose another --out")
    if foreign and (overwrite or not settings.exists()):
        raise OutputError(f"{path} holds files that avpt did not write ({_some(foreign)}); choose another --out")
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
    """Make the folder and say what it is; what avpt left there is removed unless it is taken up again.

    Settings go last when files are removed, and come first when they are made: a kill at any moment leaves
    files only beside the settings that they were made with.
    """
    if path.exists() and (overwrite or not (path / settings_file).exists()):
        # `look_into` found no files but avpt's; the folder itself may be the one we stand in
        files = sorted(_files(path), key=lambda name: (name == settings_file, name not in COMPLETE))
        for name in files:
            (path / name).unlink()
    (path / settings_file).parent.mkdir(parents=True, exist_ok=True)
    write_json(path / settings_file, settings)


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def _files(path: Path) -> list[str]:
    return [str(file.relative_to(path)) for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
