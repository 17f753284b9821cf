"""Outputs that belong to one writer at a time: locks, which die with their process."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path

from avpt.errors import OutputError

log = logging.getLogger(__name__)

MOMENT = 2.0  # seconds; workers die a moment after their parent, and releasing a shared lock takes it alone for one
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of flock on some network file systems


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
def take_turn(path: Path) -> Iterator[None]:
    """Wait until no other writer of a part of `path` is in such a block; call it inside the `claim` of a part."""
    with ExitStack() as held:
        with lockless():
            held.enter_context(_locked(_lock_of(path.absolute(), "turn"), fcntl.LOCK_EX))
        yield


def sweep(paths: Iterable[Path]) -> None:
    """Remove temporary files that no process on any machine has locked: their writers were killed.

    For files that are not `shared`, call it inside the claim that their writers need.
    """
    for path in paths:
        with suppress(OSError), _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, create=False):
            pass


@contextmanager
def lockless() -> Iterator[None]:
    """Go on without a lock where the file system has none, of which `claim` has warned."""
    try:
        yield
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise


def _lock_of(path: Path, part: str) -> Path:
    """The lock file of a part, which is removed with that of the whole."""
    return path.with_name(f".{path.name}.lock.{part.replace(':', '-')}")


@contextmanager
def _locked(path: Path, how: int, patience: float = 0.0, create: bool = True) -> Iterator[None]:
    handle = lock(path, how, patience, create)
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


def lock(path: Path, how: int, patience: float = 0.0, create: bool = True) -> int:
    """Lock a file, which is made where it is missing unless `create` is off, and return its open handle.

    Args:
        path: the lock file.
        how: as flock(2) takes it.
        patience: seconds to wait where another process has it.
        create: make the file.

    Raises:
        BlockingIOError: another process has it.
        OSError: it can't be opened, or the file system has no locks.
    """
    deadline = time.monotonic() + patience
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT * create, 0o666)
        try:
            fcntl.flock(handle, how)
            with suppress(FileNotFoundError):  # its last owner may be removing it at this moment
                if os.fstat(handle).st_ino == path.stat().st_ino:
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
