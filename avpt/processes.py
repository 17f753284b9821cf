"""The processes of a job and their workers, who dies with whom, and signals that wait for a good moment."""

from __future__ import annotations

import ctypes
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

from avpt.errors import AvptError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MANY_FILES = 1 << 16  # open at a time: as many shards hold 8 million clips


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, and leave Ctrl-C to the parent. Linux only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # inherited by fork: the parent's handler raises
    parent = os.getppid()
    signal_when_parent_dies(signal.SIGKILL)
    if sys.platform == "linux" and os.getppid() != parent:
        os._exit(1)


def signal_when_parent_dies(number: signal.Signals) -> None:
    """Ask the kernel for this signal when the parent dies. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)


def open_file_limit() -> int:
    """How many files this process may have open, once it has asked for all that it may get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin_peak() -> int:
    """Bytes that this process has in memory; from here on its peak is measured. Linux only, 0 elsewhere."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak to what there is
    except OSError:
        return 0
    return _peak()


def peak_since(before: int) -> int:
    """The most that this process has had in memory since `begin_peak`, beyond what it had then."""
    return _peak() - before if before else 0


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def place_in_job() -> tuple[int, int, int, int]:
    """(rank, size, rank on this machine, size on this machine) as torchrun's environment says; alone (0, 1, 0, 1)."""
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    if not names.keys() <= os.environ.keys():
        return 0, 1, 0, 1
    texts = {name: os.environ[name] for name in names}
    if wrong := [name for name, text in texts.items() if not (text.isascii() and text.isdecimal() and len(text) < 10)]:
        raise AvptError(
            f"{wrong[0]} is {texts[wrong[0]]!r} in the environment, and not a number as torchrun sets it; unset it"
        )
    rank, size, local_rank, local_size = map(int, texts.values())
    if rank >= size or local_rank >= local_size or local_size > size:
        told = " ".join(f"{name}={text}" for name, text in texts.items())
        raise AvptError(f"the environment says {told}, which no process of a job can have; unset them")
    return rank, size, local_rank, local_size


class InterruptedWork(Exception):  # noqa: N818, no error
    """What is raised in a block of `held_back` that ends because of a signal."""


class Interruption:
    """SIGTERM or Ctrl-C that came while they were held back."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def held_back() -> Iterator[Interruption]:
    """Let SIGTERM and Ctrl-C wait until the end of the block, which looks at what it is given.

    A second Ctrl-C does not wait. The block's own errors go before a signal that waits, but for InterruptedWork.
    Only the main thread gets signals; in others nothing is held back.
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
