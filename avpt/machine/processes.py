"""The processes of a job: which of them end together, what they may use, and signals held back for a while."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from avpt.errors import ConfigError

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MANY_FILES = 1 << 16  # open at a time: as many shards hold 8 million clips


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, and leave Ctrl-C to the parent. Linux only.

    Under forkserver the kernel takes the server for the parent, and that lives as long as any process that it forked.
    What closes when the process ends that asked for this one is its end of a pipe, so that is watched as well.
    """
    from multiprocessing import parent_process

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # inherited by fork: the parent's handler raises
    parent = os.getppid()
    signal_when_parent_dies(signal.SIGKILL)
    requester = parent_process()
    if sys.platform == "linux" and requester is not None:
        fcntl.fcntl(requester.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(requester.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(requester.sentinel, fcntl.F_SETFL, fcntl.fcntl(requester.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if (sys.platform == "linux" and os.getppid() != parent) or (requester is not None and not requester.is_alive()):
        os._exit(1)  # it died before the kernel was asked


def signal_when_parent_dies(number: signal.Signals) -> None:
    """Ask the kernel for this signal when the parent dies. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)


def open_file_limit() -> int:
    """Raise the limit of open files as far as this process may, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def start_forkserver(*preload: str) -> None:
    """Start the process that others are forked from, with these modules loaded, unless it already runs.

    It ignores Ctrl-C and SIGTERM, which its parent handles, and ends with its parent.
    """
    from multiprocessing import forkserver, set_forkserver_preload  # a command that forks nothing starts without it

    if getattr(forkserver._forkserver, "_forkserver_pid", None) is None:
        log.info("starting worker processes")  # which load torch anew
    set_forkserver_preload(list(preload))
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def begin_peak() -> int:
    """Begin to measure this process's peak memory, and return what it has now, in bytes. Linux only, 0 elsewhere."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak to the current use
    except OSError:
        return 0
    return _peak()


def peak_since(before: int) -> int:
    """Peak memory of this process in bytes since `begin_peak`, beyond what that returned as `before`."""
    return _peak() - before if before else 0


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def place_in_job() -> tuple[int, int, int | None, int | None]:
    """(rank, size, rank on this machine, size on this machine) as torchrun's environment says; alone (0, 1, 0, 1).

    The latter two are None where the environment does not hold them, as under srun.

    Raises:
        ConfigError: the environment makes no sense.
    """
    if not (os.environ.get("RANK") and os.environ.get("WORLD_SIZE")):
        return 0, 1, 0, 1
    place = [number_of(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    rank, size, local_rank, local_size = place
    assert rank is not None
    assert size is not None
    if rank >= size:
        raise ConfigError(
            f"RANK is {rank} where WORLD_SIZE is {size}; ranks count from 0, as torchrun sets them; unset both"
        )
    if local_size is not None and (local_size > size or (local_rank or 0) >= local_size):
        raise ConfigError(
            f"LOCAL_WORLD_SIZE is {local_size} where WORLD_SIZE is {size} and LOCAL_RANK {local_rank}; unset them"
        )
    return (rank, size, local_rank, local_size) if size > 1 else (0, 1, 0, 1)


def number_of(name: str, most: int = 10**9 - 1) -> int | None:
    """The number that a launcher left in the environment; None where it is unset or empty.

    Raises:
        ConfigError: it is not a number from 0 to `most`.
    """
    text = os.environ.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= most):
        raise ConfigError(
            f"{name} is {text[:100]!r} in the environment; it must be a number up to {most}, as torchrun sets it, "
            "or unset"
        )
    return int(text)


class InterruptedWork(Exception):  # noqa: N818, no error
    """Raised in a block of `hold_signals` that ends because of a signal."""


class Interruption:
    """The SIGTERM or Ctrl-C that arrived while signals were held back; false where none did."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def hold_signals() -> Iterator[Interruption]:
    """Hold SIGTERM and Ctrl-C back until the block ends, which can see in what is yielded whether one arrived.

    A second Ctrl-C does not wait. An error of the block goes before a signal that waits, unless it is InterruptedWork.
    Only the main thread gets signals; in other threads nothing is held back.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    handlers: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if interruption.number == number == signal.SIGINT:
            restore()
            signal.raise_signal(number)
        interruption.number = number

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            handlers[number] = signal.signal(number, note)
    try:
        yield interruption
    except InterruptedWork:
        restore()
        signal.raise_signal(interruption.number or signal.SIGTERM)
        raise
    finally:
        restore()
    if interruption.number is not None:
        signal.raise_signal(interruption.number)
