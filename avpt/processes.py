"""Worker processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, and leave Ctrl-C to the parent. Linux only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # inherited by fork: the parent's handler raises
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


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
