"""What stands in for a worker's task: it hangs, dies or eats the memory.

A worker imports the module of its function, and a fresh one does so again: this one imports little.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from avpt.commands import _shards
from avpt.media.clip import DecodedClip
from avpt.store.store import Failure
from avpt.store.verification.findings import ShardCheck
from avpt.store.verification.shard import ShardTask, check_shard

MIB = 2**20


def act(task: str) -> str:
    """Runs in a worker."""
    if task == "hang":
        time.sleep(600)
    elif task == "abort":
        os.abort()
    elif task == "segfault":
        ctypes.string_at(0)
    elif task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif task == "exit":
        os._exit(3)
    elif task == "raise":
        raise ValueError("no")
    return task.upper()


def decode_or_not(task: _shards.Task) -> DecodedClip | Failure:
    """Stands in for `decode_task` in the workers: two clips of train are beyond decoding."""
    if task.clip.split == "train" and task.row in (2, 5):
        act("hang" if task.row == 2 else "segfault")
    return _shards.decode_task(task)


def hand_over_half(marker: Path) -> bytes:
    """Runs in a worker, which is killed in the midst of handing its result over; the first one only."""
    whole = Connection._send  # type: ignore[attr-defined]

    def half(pipe: Connection, data: Any, *rest: Any) -> None:
        if len(data) < MIB:
            whole(pipe, data, *rest)
            return
        os.write(pipe.fileno(), bytes(data[: MIB // 16]))
        os.kill(os.getpid(), signal.SIGKILL)

    if marker.name == "victim" and not marker.exists():
        marker.touch()
        Connection._send = half  # type: ignore[attr-defined]
    return bytes(4 * MIB)


def decode_or_eat(task: _shards.Task) -> DecodedClip | Failure:
    """Stands in for `decode_task`: three clips of train take all the memory that there is, each in its own way."""
    eat = {0: eat_numpy, 1: eat_torch, 2: eat_bytes}.get(task.row) if task.clip.split == "train" else None
    if eat is None:
        return _shards.decode_task(task)
    with mock.patch("avpt.media.decode.decode_clip", eat):
        return _shards.decode_task(task)


def eat_numpy(*_: Any) -> Any:
    return [np.ones(MIB) for _ in itertools.count()]


def eat_torch(*_: Any) -> Any:
    return [sys.modules["torch"].ones(MIB) for _ in itertools.count()]


def eat_bytes(*_: Any) -> Any:
    return [bytearray(10 * MIB) for _ in itertools.count()]


def decode_or_starve(marker: Path | None, task: _shards.Task) -> DecodedClip | Failure:
    """Stands in for `decode_task`: one clip of train finds no memory, the first time only where there is a marker."""
    if task.clip.split != "train" or task.row != 4 or (marker is not None and marker.exists()):
        if marker is not None and task.clip.split == "train" and task.row == 4:
            marker.with_name("second").write_text(str(os.getpid()), encoding="utf-8")
        return _shards.decode_task(task)
    if marker is not None:
        marker.write_text(str(os.getpid()), encoding="utf-8")
    with mock.patch("avpt.media.decode.decode_clip", starve):
        return _shards.decode_task(task)


def starve(*_: Any) -> Any:
    raise MemoryError


def crash_or_hang(crashes: str, hangs: str, task: ShardTask) -> ShardCheck:
    """Stands in for `check_shard`: one shard kills its worker, one keeps it busy."""
    if task.path.name in (crashes, hangs):
        act("kill" if task.path.name == crashes else "hang")
    return check_shard(task)
