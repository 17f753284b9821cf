"""How many worker processes a command has, by `--workers` or by the cores, and whether threads find cores at all."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

FEW_CLIPS = 200  # which are loaded in less time than it takes to start a process that loads them
BUSY = 2  # processes that want each core, over the last minute; avpt's own command before this one leaves fewer


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


def why_threads_wait(threads: int) -> str:
    """What keeps some of so many threads from running, which the others then wait for; empty if nothing does.

    Whoever has set OMP_NUM_THREADS has decided already.
    """
    if threads < 2 or "OMP_NUM_THREADS" in os.environ:
        return ""
    if threads > (granted := num_cores()):
        return f"{granted} core(s) are all that this process may use"
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]  # both of the machine, also in a container
    return f"{load:.0f} processes share the {cores} cores of this machine" if load > BUSY * cores else ""


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
