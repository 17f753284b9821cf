"""How many worker processes a command has: `--workers`, or else by the cores and the processes that share them."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

FEW_CLIPS = 200  # which are loaded in less time than it takes to start a process that loads them


def loading_workers(asked: int | None, processes: int = 1, clips: int | None = None) -> int:
    """Loading processes: as many as asked for, or, for each of several processes on a machine, its cores but one.

    Where so few `clips` are looked at once that it does not pay, there are none unless they are asked for.
    """
    if asked is not None:
        return asked
    return 0 if clips is not None and clips < FEW_CLIPS else max(0, num_cores() // processes - 1)


def pool_workers(asked: int | None, tasks: int | None = None) -> int:
    """Processes that decode or check: as many as asked for, or one for each core, and no more than there are tasks."""
    workers = asked or num_cores()
    return workers if tasks is None else min(workers, tasks)


def num_cores() -> int:
    """How many cores this process may use: those that it may run on, and no more than its container is granted."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, *_granted_cores())))


def _granted_cores(cgroups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> list[float]:
    """The quotas of this process's control groups and of those around them, in cores; cgroups(7). Linux only."""
    granted = [math.inf]
    try:
        lines = cgroups.read_text().splitlines()
    except OSError:
        return granted
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # version 2 has no controllers; where a container sees only its own group, that is the mount itself
        root = mount / "cpu" if controllers else mount
        innermost = root / inside.strip("/")
        for group in (innermost, *innermost.parents):
            if not group.is_relative_to(root):
                break
            with suppress(OSError, ValueError, ZeroDivisionError):
                if controllers:
                    quota, period = ((group / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
                else:
                    quota, period = (group / "cpu.max").read_text().split()
                if quota != "max" and int(quota) > 0:
                    granted.append(int(quota) / int(period))
    return granted
