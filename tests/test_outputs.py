"""What a killed writer leaves behind is gone once the same command has finished; what a living one writes stays."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    ARCH,
    PATCHES,
    STORE_OPTIONS,
    Experiment,
    digit_rows,
    done,
    finetune,
    fork,
    fuse,
    touch,
    write_manifest,
)

from avpt.commands import _shards
from avpt.files.locks import claim, sweep, take_turn
from avpt.files.outputs import atomic, write_text

Command = tuple[str | Path, ...]

CLOCKS = ("timing.jsonl", "last.pt")  # which differ from run to run
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
HERE = ("--workers", "0", "--device", "cpu")
RANDOM = ("--arch", ARCH, "--weights", "random")


# --- real kills --------------------------------------------------------------------------------------------------


def in_a_copy(prepare: Callable[[], None], command: Command) -> bool:
    """Run a command in a copy of this process; whether it was killed."""

    def run() -> int:
        prepare()
        done(*command)
        return 0

    pid = fork(run)
    _, status = os.waitpid(pid, 0)
    assert status == 0 or os.WIFSIGNALED(status), status
    return status != 0


def killed_before(number: int, folder: Path, command: Command) -> bool:
    """It kills itself just before its n-th operation on a file below a folder; False where it ends sooner."""

    def prepare() -> None:
        left = number

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in OPERATIONS and str(arguments[0]).startswith(str(folder)):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)

    return in_a_copy(prepare, command)


def killed_in_a_write(size: int, command: Command) -> bool:
    """The kernel kills it in the midst of writing a file that is longer, whatever library writes it."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return in_a_copy(prepare, command)


def all_of(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden or not, with its content where that is the same each time."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and path.name not in CLOCKS else None
        for path in folder.rglob("*")
        if path.name != "timing.json"  # not there where all had been made when it was killed
    }


def decode_here(function: Callable[[Any], Any], tasks: Iterable[Any], **_: object) -> Iterator[tuple[Any, Any]]:
    """Stands in for the pool of workers, which would have to be started anew each time."""
    return ((task, function(task)) for task in tasks)


def commands(experiment: Experiment, name: str, inputs: Path, out: Path) -> list[Command]:
    """The commands that make something in a folder, one after the other."""
    rows = [row for row in digit_rows() if row["label"] == "0" and row["split"] != "test"]  # two shards
    preprocess = ("preprocess", write_manifest(inputs / "manifest.csv", rows), "--out", out / "store", *STORE_OPTIONS)
    runs = ("--audio", experiment.audio, "--visual", experiment.visual)
    both = (out / "it.json", "--predictions", out / "it.safetensors")
    evaluate = ("evaluate", experiment.fused, experiment.store, *HERE, "--per-class", "--out", *both)
    tables = ("--csv", out / "it.csv", "--markdown", out / "it.md", "--plot", out / "figures")
    made: dict[str, list[Command]] = {
        "manifest": [("manifest", "folder", touch(inputs / "media", "a/1.mp4", "b/2.mp4"), "--out", out / "it.csv")],
        "store": [preprocess],
        "ranges": [(*preprocess, "--shard-range", text) for text in ("0:1", "1:")],
        "init": [("init", "--modality", "audio", *RANDOM, "--out", out / "it.safetensors")],
        "finetune": [(*finetune(experiment, "visual", experiment.visual_init), "--out", out / "run")],
        "score": [("score-confidence", *runs, *PATCHES, "--out", out / "it.safetensors", "--csv", out / "it.csv")],
        "fuse": [(*fuse(experiment), "--confidence", experiment.confidence, "--out", out / "run")],
        "evaluate": [evaluate],
        "probe": [("probe", experiment.audio, experiment.store, *HERE, "--out", out / "it.safetensors")],
        "compare": [("compare", experiment.visual, experiment.audio, *tables)],
        "report": [("report", experiment.fused, "--out", out / "it.html")],
        "export": [
            ("export", experiment.audio, "--format", kind, "--out", out / f"it.{ending}")
            for kind, ending in (("timm", "safetensors"), ("torch-export", "pt2"))
        ],
    }
    return made[name]


QUICK = ("manifest", "score")
SLOW = ("store", "ranges", "init", "finetune", "fuse", "evaluate", "probe", "compare", "report", "export")


def and_slowly(*quick: Any, slow: Iterable[Any]) -> list[Any]:
    return [*quick, *(pytest.param(*one, marks=pytest.mark.slow) for one in slow)]


@pytest.mark.parametrize("name", and_slowly(*QUICK, slow=zip(SLOW, strict=True)))
def test_a_kill_before_any_operation_on_a_file_leaves_nothing_behind(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(_shards, "run_isolated", decode_here)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    undisturbed.mkdir()
    for command in commands(experiment, name, tmp_path, undisturbed):
        done(*command)
    goal = all_of(undisturbed)
    for number in itertools.count(1):
        out.mkdir()
        killed = False
        for command in commands(experiment, name, tmp_path, out):
            killed |= killed_before(number, out, command)
            done(*command)
        assert all_of(out) == goal, number
        shutil.rmtree(out)
        if not killed:
            break
    print("moments:", number - 1)
    assert number > 8


@pytest.mark.parametrize(
    ("name", "size"),
    and_slowly(
        *(("manifest", 10), ("ranges", 300), ("ranges", 20_000), ("score", 400), ("init", 1_000_000)),
        *(("evaluate", 1000), ("finetune", 2_000_000)),  # more than the model, less than a checkpoint
        slow=(("init", 0), ("finetune", 10), ("finetune", 1_000_000), ("evaluate", 3000), ("export", 1_000_000)),
    ),
)
def test_a_kill_in_the_midst_of_a_write_leaves_nothing_behind(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    monkeypatch.setattr(_shards, "run_isolated", decode_here)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    undisturbed.mkdir()
    out.mkdir()
    for command in commands(experiment, name, tmp_path, undisturbed):
        done(*command)
    kills = 0
    for command in commands(experiment, name, tmp_path, out):
        kills += killed_in_a_write(size, command)
        done(*command)
    assert kills
    assert all_of(out).keys() == all_of(undisturbed).keys()


def test_nothing_is_left_where_the_work_had_been_done_before(experiment: Experiment, tmp_path: Path) -> None:
    """Killed while it made the same file again; then it need not be made at all."""
    (command,) = commands(experiment, "score", tmp_path, tmp_path / "out")
    done(*command)
    goal = all_of(tmp_path / "out")
    assert killed_in_a_write(400, (*command, "--overwrite"))
    assert all_of(tmp_path / "out").keys() - goal.keys()
    done(*command)
    assert all_of(tmp_path / "out") == goal


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "a.txt", []

    def sync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), path.exists()))

    monkeypatch.setattr(os, "fsync", sync)  # which tests/conftest.py has made do nothing
    write_text(path, "whole")
    assert synced == [(tmp_path / ".a.txt.tmp", False), (tmp_path, True)]
    assert path.read_text() == "whole"


# --- those who are dead, and those who are not -------------------------------------------------------------------


@contextmanager
def being_written(path: Path, host: str = "elsewhere") -> Iterator[Path]:
    """A temporary file of a living writer of another machine, whose process can't be looked up."""
    beside = path.with_name(f".{path.name}.{host}-7.tmp")
    with beside.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        file.write(b"half")
        file.flush()
        yield beside


def left(path: Path, host: str = "elsewhere", process: int = 8) -> Path:
    """A temporary file of a writer that was killed."""
    beside = path.with_name(f".{path.name}.{host}-{process}.tmp")
    beside.write_bytes(b"half")
    return beside


def test_a_shard_that_is_being_written_is_told_from_one_that_was(tmp_path: Path) -> None:
    with being_written(tmp_path / "a.h5") as live:
        with atomic(tmp_path / "b.h5", shared=True) as ours:
            ours.write_bytes(b"whole")
            with ours.open("rb") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert sorted(tmp_path.iterdir()) == [live, tmp_path / "b.h5"]
    with (tmp_path / "b.h5").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is nobody's any more


def test_ranges_clear_away_what_is_theirs_and_the_last_all(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shards, "run_isolated", decode_here)
    store, host = tmp_path / "store", os.uname().nodename
    command = ("preprocess", experiment.manifest, "--out", store, *STORE_OPTIONS)
    done(*command, "--shard-range", "6:")  # the last of test
    own = [left(store / "train-00000.h5", host), left(store / "train-00001.json"), left(store / "train-00000.json")]
    own += [left(store / "train-00000.h5", process=os.getppid())]  # its number is another's now
    others = [left(store / "val-00000.h5"), left(store / "train-00002.json", host)]
    ours, theirs = being_written(store / "train-00001.h5"), being_written(store / "test-00000.h5", host)
    with ours as beside, theirs as live, claim(store, part="4:6"):  # whoever it is, of an overlapping range too
        done(*command, "--shard-range", "0:2")
        assert not [path for path in own if path.exists()]
        assert all(path.exists() for path in (*others, beside, live))
    done(*command, "--shard-range", "2:4")
    assert not others[1].exists()
    with being_written(store / "train-00001.h5") as beside:
        done(*command, "--shard-range", "4:6")
        assert (store / "store.json").exists()
        assert [path for path in store.iterdir() if path.name.startswith(".")] == [beside]
    done(*command)
    finished = {path.name for path in store.iterdir() if path.name != "timing.json"}
    assert finished == {path.name for path in experiment.store.iterdir() if path.name != "timing.json"}
    assert list(tmp_path.iterdir()) == [store]


def test_locks_of_parts_go_with_that_of_the_whole(tmp_path: Path) -> None:
    store = tmp_path / "store"
    dead = [tmp_path / name for name in (".store.lock", ".store.lock.0-1", ".store.lock.3-", ".store.lock.turn")]
    other = [tmp_path / name for name in (".store.lock.b.lock", ".storey.lock", ".store.2-3.lock")]  # of other outputs
    for path in (*dead, *other):
        path.touch()
    with claim(store, part="1:2"):
        with claim(store, part="2:3"), take_turn(store):
            assert (tmp_path / ".store.lock.turn").exists()
        assert (tmp_path / ".store.lock.1-2").exists()
        assert (tmp_path / ".store.lock.0-1").exists()  # nobody can tell yet, nor need
    assert sorted(tmp_path.iterdir()) == sorted(other)
    for path in dead:
        path.touch()
    with claim(store):
        pass
    assert sorted(tmp_path.iterdir()) == sorted(other)


def test_a_claim_clears_away_what_was_begun_of_its_files(tmp_path: Path) -> None:
    manifest, missing, other = (tmp_path / name for name in ("manifest.csv", "manifest.missing.csv", "other.csv"))
    for path in (manifest, missing, other):
        path.with_name(f".{path.name}.tmp").touch()
    with claim(manifest, beside=(missing,)):
        write_text(manifest, "id\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.csv.tmp", "manifest.csv"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    out, others = tmp_path / "store", tmp_path / ".other.tmp"
    others.write_text("being written by another machine")
    for part in (None, "0:1"):
        with claim(out, part=part), take_turn(out):
            write_text(tmp_path / "shard", "content", shared=True)
            sweep([others])
    assert (tmp_path / "shard").read_text() == "content"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.tmp", "shard"]
    assert caplog.text.count("is on a file system without locks") == 2
