"""Starting `avpt` as a process of its own, killing parts of it, and seeing that nothing of it is left."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from helpers import THREADS

PATIENCE = 120.0  # seconds that a process gets to come to the point where it is killed


def chance() -> random.Random:
    """What draws the moments of a test's kills; pytest shows its seed where the test fails.

    AVPT_KILL_SEED=N draws them again, as far as the machine is as fast.
    """
    seed = int(os.environ.get("AVPT_KILL_SEED", random.randrange(10**6)))
    print("AVPT_KILL_SEED =", seed)
    return random.Random(seed)


def wait_for(happened: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)


@contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m avpt ...` in a session of its own; nothing of it is left afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "avpt", *map(str, arguments)],
        env=os.environ | THREADS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in (process.pid, *session(process.pid)):  # whatever the test found, leave none behind
            kill(pid)
        process.communicate()


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """A signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def session(leader: int) -> dict[int, int]:
    """Processes of a session that still run, with their parents; the dead that wait to be collected do not count."""
    actual = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            actual[int(folder.name)] = int(fields[1])
    return actual


def fork_servers(leader: int) -> list[int]:
    """The process that the workers of a session are forked from."""
    actual = []
    for pid, parent in session(leader).items():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if parent == leader and b"multiprocessing.forkserver" in command:
            actual.append(pid)
    return actual


def workers(leader: int) -> list[int]:
    """The processes of a session that decode."""
    servers = fork_servers(leader)
    return [pid for pid, parent in session(leader).items() if parent in servers]


def killed(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and every process that it started ends with it."""
    assert process.pid in session(process.pid), "it ended before it could be killed"
    kill(process.pid)  # the one process, not its group: the workers must notice by themselves
    process.wait()
    wait_for(lambda: not session(process.pid), "the workers of a killed avpt to end", 15)


def stopped(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, list[str]]:
    """Ctrl-C reaches every process of the terminal's group, SIGTERM only the one."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    wait_for(lambda: not session(process.pid), "the workers of a stopped avpt to end", 15)
    return process.returncode, stderr.splitlines()


def to_go_on(word: str, *command: str | Path) -> str:
    """The last words of a command that was stopped."""
    again = shlex.join(["python", "-m", "avpt", *map(str, command)])
    return f"avpt: {word}; the same command again goes on from here: {again}"


def descendants(ancestor: int) -> list[int]:
    """Processes that this one started, and those that they did, and so on."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            parents[int(folder.name)] = int(fields[1])
    actual = [ancestor]
    for pid in actual:
        actual += [child for child, parent in parents.items() if parent == pid]
    return actual[1:]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
