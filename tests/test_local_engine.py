"""Whatever is killed, crashes, hangs, eats the memory or fills the disk: no clip is lost but the one that did it."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    STORE_OPTIONS,
    THREADS,
    Experiment,
    Result,
    avpt,
    digit_rows,
    done,
    failures_of,
    files_of,
    untimed,
    write_manifest,
)
from kills import (
    chance,
    fork_servers,
    kill,
    killed,
    running,
    session,
    stopped,
    to_go_on,
    wait_for,
    workers,
)
from media import grey_png
from worker_tasks import MIB, act, decode_or_eat, decode_or_not, decode_or_starve, hand_over_half

from avpt.commands import _shards
from avpt.engines.local import Crashed, Hung, run_isolated
from avpt.errors import AvptError

GOOD = [f"task {i}" for i in range(12)]


def preprocess(experiment: Experiment, out: Path) -> tuple[str | Path, ...]:
    return ("preprocess", experiment.manifest, "--out", out, *STORE_OPTIONS)


# --- killed from outside -----------------------------------------------------------------------------------------


def test_a_killed_preprocess_is_finished_by_the_same_command(experiment: Experiment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    moments = chance()
    for count in ("1", "2"):
        goal = len(list(store.glob("*.h5"))) + 1

        def shard_more(goal: int = goal) -> bool:
            return len(list(store.glob("*.h5"))) >= goal

        with running(*preprocess(experiment, store), "--workers", count) as process:
            wait_for(shard_more, "one more shard")
            time.sleep(moments.uniform(0, 0.05))
            killed(process)
        for path in store.glob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))  # whole, or not there
    finished = {path: path.stat().st_mtime_ns for path in store.glob("train-*.json")}
    assert finished
    done(*preprocess(experiment, store), "--workers", "3")
    assert untimed(store) == untimed(experiment.store)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # nothing is done twice
    assert not list(tmp_path.glob(".*"))


def test_workers_killed_at_work_or_idle_and_their_server_cost_no_clip(tmp_path: Path) -> None:
    rows = [row | {"id": f"{i}-{j}"} for i in range(12) for j, row in enumerate(digit_rows())]
    manifest = write_manifest(tmp_path / "manifest.csv", rows)
    options = ("preprocess", manifest, *STORE_OPTIONS, "--out")
    store = tmp_path / "store"
    with running(*options, store, "--workers", "2") as process:

        def next_shard() -> None:
            goal = len(list(store.glob("*.h5"))) + 1
            wait_for(lambda: process.poll() is not None or len(list(store.glob("*.h5"))) >= goal, "one more shard")
            assert process.poll() is None, f"it ended before all kills were done: {process.communicate()[1]}"

        next_shard()
        kill(workers(process.pid)[0])
        next_shard()
        kill(process.pid, signal.SIGSTOP)  # no tasks any more: its workers come to rest
        time.sleep(0.2)
        for pid in workers(process.pid):
            kill(pid)
        kill(process.pid, signal.SIGCONT)
        next_shard()
        for pid in fork_servers(process.pid):
            kill(pid)
        next_shard()
        for pid in workers(process.pid):
            kill(pid)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        wait_for(lambda: not session(process.pid), "what it started to end", 15)
    assert "Traceback" not in stderr
    assert failures_of(store) == []
    undisturbed = tmp_path / "undisturbed"
    done(*options, undisturbed)
    assert untimed(store) == untimed(undisturbed)


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_killed_while_it_hands_over_its_result_harms_no_other(tmp_path: Path, count: int) -> None:
    tasks = [tmp_path / name for name in ("first", "victim", "third", "fourth")]
    results = dict(run_isolated(hand_over_half, tasks, workers=count, timeout=50, preload="avpt.media.decode"))
    assert (tmp_path / "victim").exists()
    assert results == dict.fromkeys(tasks, bytes(4 * MIB))


def test_workers_that_cannot_begin_are_told() -> None:
    with pytest.raises(AvptError, match="the workers die before they begin"):
        list(run_isolated(_Undigestible(), GOOD, workers=2, timeout=5, preload="avpt.media.decode"))


class _Undigestible:
    """A function that kills whoever unpickles it."""

    def __call__(self, task: str) -> str:
        return task

    def __reduce__(self) -> tuple[Any, ...]:
        return os.kill, (_Itself(), signal.SIGKILL)


class _Itself:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getpid, ()


@pytest.mark.slow
def test_kill_upon_kill_of_parents_and_workers_at_random_moments(tmp_path: Path) -> None:
    moments = chance()
    rows = [row | {"id": f"{i}-{j}"} for i in range(40) for j, row in enumerate(digit_rows())]
    options = ("preprocess", write_manifest(tmp_path / "manifest.csv", rows), *STORE_OPTIONS, "--out")
    undisturbed, store = tmp_path / "undisturbed", tmp_path / "store"
    done(*options, undisturbed)
    kills = {"parent": 0, "worker": 0, "all workers": 0, "idle workers": 0, "fork server": 0}
    stores = 0
    for count in itertools.cycle(("1", "2", "3")):
        if kills["parent"] >= 24 and min(kills.values()) >= 4:
            break
        with running(*options, store, "--workers", count) as process:
            early = moments.random() < 0.2
            if early:
                time.sleep(moments.uniform(0, 3))
            else:
                for _ in range(moments.randrange(4)):
                    if not one_more_shard(process, store):
                        break
                    time.sleep(moments.uniform(0, 0.05))
                    victim = moments.choice(list(kills)[1:])
                    kills[victim] += kill_some(process.pid, victim, moments)
                one_more_shard(process, store)
                time.sleep(moments.uniform(0, 0.1))
            if process.poll() is None:
                killed(process)
                kills["parent"] += 1
            else:
                assert process.returncode == 0, process.communicate()[1]
        if (store / "store.json").exists():
            assert untimed(store) == untimed(undisturbed)
            shutil.rmtree(store)
            stores += 1
    done(*options, store)
    assert untimed(store) == untimed(undisturbed)
    assert not list(tmp_path.glob(".*"))
    print("kills:", kills, "stores that were finished:", stores + 1)


def one_more_shard(process: subprocess.Popen[str], store: Path) -> bool:
    """Wait for it; False where the process ends."""
    goal = len(list(store.glob("*.h5"))) + 1
    wait_for(lambda: process.poll() is not None or len(list(store.glob("*.h5"))) >= goal, "one more shard")
    return process.poll() is None


def kill_some(leader: int, victim: str, moments: random.Random) -> bool:
    """Kill some process of a session; whether there was one."""
    if victim == "idle workers":
        kill(leader, signal.SIGSTOP)
        time.sleep(0.2)
    actual = fork_servers(leader) if victim == "fork server" else workers(leader)
    for pid in moments.sample(actual, min(1, len(actual))) if victim == "worker" else actual:
        kill(pid)
    if victim == "idle workers":
        kill(leader, signal.SIGCONT)
    return bool(actual)


# Kills itself just before it touches the store for the n-th time: opens, renames or removes a file of it.
KILLED_AT = """
import os, signal, sys
def watch(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(store):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    left, store = int(sys.argv.pop(1)), sys.argv[-1]
    sys.addaudithook(watch)
    from avpt.cli import app
    app()
"""


@pytest.mark.slow
def test_a_kill_before_any_operation_on_a_file_is_made_good(experiment: Experiment, tmp_path: Path) -> None:
    script = tmp_path / "killed_at.py"
    script.write_text(KILLED_AT, encoding="utf-8")
    rows = [row for row in digit_rows() if row["label"] == "0"]
    manifest = write_manifest(tmp_path / "manifest.csv", rows)
    options = ("preprocess", str(manifest), *STORE_OPTIONS, "--out")
    undisturbed = tmp_path / "undisturbed"
    done(*options, undisturbed)
    for number in itertools.count(1):
        store = tmp_path / f"store-{number}"
        process = subprocess.run(
            [sys.executable, script, str(number), *options, store],
            env=os.environ | THREADS,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert not (store / "store.json").exists() or untimed(store) == untimed(undisturbed)
        done(*options, store)
        assert untimed(store) == untimed(undisturbed), number
    print("moments:", number - 1)
    assert number > 30


# --- told to stop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_preprocess_told_to_stop_says_how_to_go_on(
    experiment: Experiment, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    store = tmp_path / "store"
    command = (*preprocess(experiment, store), "--shard-size", "1")
    with running(*command, "--workers", "1", "--quiet") as process:
        wait_for(lambda: list(store.glob("*.h5")), "the first shard")
        assert stopped(process, number) == (code, [to_go_on(word, *command, "--workers", "1", "--quiet")])
    assert not (store / "store.json").exists()
    assert not list(tmp_path.glob(".*"))
    assert done(*command, "--json").json()["clips"] == 36


# --- clips that hang or crash ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_a_task_that_hangs_or_crashes_costs_its_own_result_only(count: int) -> None:
    tasks = ["kill", *GOOD[:4], "hang", *GOOD[4:8], "abort", "raise", *GOOD[8:], "segfault", "exit"]
    results = dict(run_isolated(act, tasks, workers=count, timeout=1.5, preload="avpt.media.decode"))
    assert {task: results[task] for task in GOOD} == {task: task.upper() for task in GOOD}
    assert results["hang"] == Hung("took longer than 1.5 s")
    assert results["abort"] == Crashed("the worker died 3 times (SIGABRT)")
    assert results["segfault"] == Crashed("the worker died 3 times (SIGSEGV)")
    assert results["kill"] == Crashed("the worker died 3 times (SIGKILL)")
    assert results["exit"] == Crashed("the worker died 3 times (exit code 3)")
    assert results["raise"] == Crashed("ValueError: no")
    assert len(results) == len(tasks)


def test_only_tasks_that_hang() -> None:
    results = list(run_isolated(act, ["hang"], workers=1, timeout=0.5, preload="avpt.media.decode"))
    assert results == [("hang", Hung("took longer than 0.5 s"))]
    assert list(run_isolated(act, [], workers=1, timeout=0.5, preload="avpt.media.decode")) == []


def test_results_that_nobody_waits_for_end_their_workers() -> None:
    before = session(os.getsid(0))
    results = run_isolated(act, ["now", "hang", "hang"], workers=2, timeout=60, preload="avpt.media.decode")
    assert next(results) == ("now", "NOW")
    results.close()
    servers = set(fork_servers_of_this_process())
    wait_for(
        lambda: not [pid for pid, parent in session(os.getsid(0)).items() if parent in servers and pid not in before],
        "the workers to end",
    )


def fork_servers_of_this_process() -> list[int]:
    return [
        pid
        for pid, parent in session(os.getsid(0)).items()
        if parent == os.getpid() and b"multiprocessing.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_clips_that_hang_or_crash_are_lines_in_failures_csv_and_can_be_tried_again(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    command = (*preprocess(experiment, store), "--shard-size", "18", "--workers", "2", "--max-failures", "0.1")
    with monkeypatch.context() as patched:
        patched.setattr(_shards, "decode_task", decode_or_not)
        result = done(*command, "--clip-timeout", "3", "--json")
    assert result.json().items() >= {"store": str(store), "clips": 34, "failures": 2, "partial": 0}.items()
    assert "2 of 36 clips failed" in result.stderr
    rows = failures_of(store)
    assert [(row["stage"], row["error"]) for row in rows] == [
        ("timeout", "took longer than 3 s"),
        ("crash", "the worker died 3 times (SIGSEGV)"),
    ]
    assert all(row["source"] and row["split"] == "train" for row in rows)
    before = files_of(store)
    assert done(*command).stdout == f"{store}\n"  # not tried again unasked
    assert files_of(store) == before

    undisturbed = tmp_path / "undisturbed"
    done(*preprocess(experiment, undisturbed), "--shard-size", "18")
    done(*command, "--retry-failures")
    assert files_of(store) == files_of(undisturbed)


# --- memory ------------------------------------------------------------------------------------------------------


def test_clips_that_need_more_than_worker_memory_are_lines_in_failures_csv(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shards, "decode_task", decode_or_eat)
    store = tmp_path / "store"
    options = ("--shard-size", "18", "--workers", "2", "--worker-memory", "0.3", "--max-failures", "0.1")
    done(*preprocess(experiment, store), *options)
    rows = failures_of(store)
    assert [row["stage"] for row in rows] == ["crash"] * 3
    assert all("--worker-memory" in row["error"] for row in rows), rows
    assert np.ones(50 * MIB, dtype=np.uint8).all()  # the bound is the workers' alone


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_clip_that_found_no_memory_is_tried_again_in_a_fresh_worker(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    marker = tmp_path / "first"
    monkeypatch.setattr(_shards, "decode_task", partial(decode_or_starve, marker))
    done(*preprocess(experiment, tmp_path / "store"), "--workers", count)
    assert failures_of(tmp_path / "store") == []
    assert marker.read_text(encoding="utf-8") != (tmp_path / "second").read_text(encoding="utf-8")  # processes
    assert untimed(tmp_path / "store") == untimed(experiment.store)


def test_a_clip_that_never_finds_memory_is_one_line_that_says_what_to_do(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    command = (*preprocess(experiment, store), "--shard-size", "18", "--workers", "1", "--max-failures", "0.1")
    with monkeypatch.context() as patched:
        patched.setattr(_shards, "decode_task", partial(decode_or_starve, None))
        done(*command, "--worker-memory", "1.5")
    (row,) = failures_of(store)
    assert row["stage"] == "crash"
    for words in ("1.5 GiB", "--worker-memory", "--retry-failures"):
        assert words in row["error"]
    done(*command, "--worker-memory", "3", "--retry-failures")  # as it says
    assert failures_of(store) == []


@pytest.mark.parametrize("gibibytes", ["0.05", "0.1"])
def test_a_picture_larger_than_worker_memory_is_a_line_in_failures_csv(tmp_path: Path, gibibytes: str) -> None:
    large = grey_png(tmp_path / "large.png", 7000)
    small = grey_png(tmp_path / "small.png", 70)
    rows = [{"id": path.stem, "label": "a", "split": "train", "frames": str(path)} for path in (large, small)]
    command = ("preprocess", write_manifest(tmp_path / "manifest.csv", rows), *STORE_OPTIONS, "--max-failures", "1")
    store = tmp_path / "store"
    record = done(*command, "--out", store, "--worker-memory", gibibytes, "--workers", "1", "--json").json()
    (row,) = failures_of(store)
    assert record["clips"] == 1
    assert row["id"] == "large"
    assert "--worker-memory" in row["error"], row
    done(*command, "--out", store, "--workers", "1", "--retry-failures")
    assert failures_of(store) == []


# --- a full disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 pages."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, pages_left: int) -> None:
    """Take all room but so many pages."""
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes((free.f_bavail - pages_left) * free.f_frsize))


def full_disk_is_told(result: Result, disk: Path) -> None:
    assert result.code == 1
    assert "No space left on device" in result.error
    assert "run the same command again" in result.error
    assert str(disk / "store") in result.error
    assert not list(disk.rglob("*.tmp"))
    assert not list(disk.glob(".*"))
    assert not (disk / "store" / "store.json").exists()


@pytest.mark.parametrize("pages_left", [1, 6, 10, 17, 24])
def test_a_full_disk_stops_it_and_room_lets_it_go_on(experiment: Experiment, small_disk: Path, pages_left: int) -> None:
    fill(small_disk, pages_left)
    command = preprocess(experiment, small_disk / "store")
    full_disk_is_told(avpt(*command, "--workers", "1"), small_disk)
    full_disk_is_told(avpt(*command, "--workers", "1"), small_disk)
    (small_disk / "filler").unlink()
    done(*command, "--workers", "2")
    assert untimed(small_disk / "store") == untimed(experiment.store)


@pytest.mark.parametrize(("pages_left", "name"), [(0, "failures.csv"), (1, "partial.csv"), (2, "store.json")])
def test_a_disk_that_is_full_at_the_very_end_lets_it_go_on_too(
    experiment: Experiment, small_disk: Path, pages_left: int, name: str
) -> None:
    store = small_disk / "store"
    shutil.copytree(experiment.store, store)
    for last in ("failures.csv", "partial.csv", "store.json"):
        (store / last).unlink()
    fill(small_disk, pages_left)
    result = avpt(*preprocess(experiment, store))
    full_disk_is_told(result, small_disk)
    assert name in result.error
    (small_disk / "filler").unlink()
    done(*preprocess(experiment, store))
    assert untimed(store) == untimed(experiment.store)
