"""Several runs on one store, each with its range of shards: the store is the one that a single run makes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers import STORE_OPTIONS, Experiment, avpt, done, failures_of, one_line, untimed
from kills import killed, running, wait_for
from worker_tasks import decode_or_not

from avpt.commands import _shards
from avpt.files.locks import claim

NAMES = ["train-00000", "train-00001", "train-00002", "val-00000", "val-00001", "test-00000", "test-00001"]  # in order
NONE_LACK = {"left_out": 0, "without_sound": 0, "without_pictures": 0}


def preprocess(experiment: Experiment, out: Path) -> tuple[str | Path, ...]:
    return ("preprocess", experiment.manifest, "--out", out, *STORE_OPTIONS, "--workers", "1")


def shards_of(store: Path) -> set[str]:
    return {path.stem for path in store.glob("*.h5")}


def left_behind(store: Path) -> list[Path]:
    return [path for folder in (store, store.parent) for path in folder.glob(".*")]


@pytest.mark.parametrize("ranges", [("0:1", "1:3", "3:"), ("5:7", "0:5"), ("3:4", ":3", "4:100"), (":",), ("0:7",)])
def test_ranges_one_after_the_other_make_the_store_of_a_single_run(
    experiment: Experiment, tmp_path: Path, ranges: tuple[str, ...]
) -> None:
    store = tmp_path / "store"
    for number, text in enumerate(ranges, 1):
        before = shards_of(store)
        done(*preprocess(experiment, store), "--shard-range", text)
        first, _, last = text.partition(":")
        made = NAMES[int(first or 0) : int(last or 100)]
        assert shards_of(store) - before == set(made)
        assert (store / "store.json").exists() == (number == len(ranges))
        assert not left_behind(store)
    assert untimed(store) == untimed(experiment.store)
    assert done(*preprocess(experiment, store)).stdout == f"{store}\n"


def test_ranges_at_the_same_time_make_the_store_of_a_single_run(experiment: Experiment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with ExitStack() as stack:
        processes = [
            stack.enter_context(running(*preprocess(experiment, store), "--quiet", "--shard-range", text))
            for text in ("0:1", "1:3", "3:")
        ]
        for process in processes:
            stdout, stderr = process.communicate(timeout=120)
            assert (process.returncode, stdout, stderr) == (0, f"{store}\n", "")
    assert untimed(store) == untimed(experiment.store)
    assert not left_behind(store)


def test_a_killed_range_is_finished_by_the_same_command_beside_another(experiment: Experiment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with claim(store, part="4:"):  # stands for a run that goes on
        with running(*preprocess(experiment, store), "--shard-range", "0:4") as process:
            wait_for(lambda: shards_of(store), "the first shard")
            killed(process)
        done(*preprocess(experiment, store), "--shard-range", "0:4")
        assert shards_of(store) == set(NAMES[:4])
    done(*preprocess(experiment, store), "--shard-range", "4:")
    assert untimed(store) == untimed(experiment.store)
    assert not left_behind(store)


def test_a_range_is_refused_while_the_whole_is_written_and_the_other_way_round(
    experiment: Experiment, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    command = preprocess(experiment, store)
    with claim(store):
        one_line(avpt(*command, "--shard-range", "0:1"), f"{store} is being written by another avpt")
    with claim(store, part="0:1"):
        one_line(avpt(*command), f"{store} is being written by another avpt")
        one_line(avpt(*command, "--overwrite"), f"{store} is being written by another avpt")
    assert not store.exists()
    assert not left_behind(store)


def test_the_same_range_twice_at_once_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with claim(store, part="0:1"):
        one_line(avpt(*preprocess(experiment, store), "--shard-range", "0:1"), "is being written by another avpt")
        done(*preprocess(experiment, store), "--shard-range", "1:2")
    assert shards_of(store) == {NAMES[1]}
    assert not left_behind(store)


def test_other_options_in_one_of_the_runs_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done(*preprocess(experiment, store), "--shard-range", "0:1")
    for name, value in (("--mel-bins", "33"), ("--shard-size", "4"), ("--limit", "30")):
        one_line(avpt(*preprocess(experiment, store), "--shard-range", "1:2", name, value), name[2:].replace("-", "_"))
    assert shards_of(store) == {NAMES[0]}


def test_a_range_beyond_the_end_does_nothing(experiment: Experiment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = done(*preprocess(experiment, store), "--shard-range", "7:9", "--json")
    expected = {"store": str(store), "clips": 0, "failures": 0, "partial": 0, "missing_shards": 7}
    assert result.json() == expected | NONE_LACK
    assert "--shard-range 7:9 holds none of the shards, which are 0:7" in result.stderr
    assert shards_of(store) == set()
    done(*preprocess(experiment, store), "--shard-range", "0:7")
    finished = untimed(store)
    record = done(*preprocess(experiment, store), "--shard-range", "100:", "--json").json()
    assert record["clips"] == 36  # of the store, which is whole
    assert untimed(store) == finished == untimed(experiment.store)


def test_a_part_tells_what_is_still_missing(experiment: Experiment, tmp_path: Path) -> None:
    command = preprocess(experiment, tmp_path / "store")
    for text, clips, missing in (("0:1", 8, 6), ("3:4", 8, 5), ("1:3", 10, 3)):  # 18 + 9 + 9 clips, 8 a shard
        result = done(*command, "--shard-range", text, "--json")
        record = result.json()
        assert (record["clips"], record["missing_shards"]) == (clips, missing)
        assert "holds none of the shards" not in result.stderr
    assert "missing_shards" not in done(*command, "--shard-range", "4:", "--json").json()


# Takes and gives up a part of the path many times; or writes the file at the path many times.
BESIDE = """
import sys, time
from pathlib import Path
from avpt.files.locks import claim
from avpt.files.outputs import atomic
path, part, turns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(turns):
    if part:
        with claim(path, part=part):
            pass
    else:
        with atomic(path, shared=True) as beside:
            with beside.open("wb") as file:
                for i in range(64):
                    file.write(bytes([i]) * 1024)
                    file.flush()
"""


def beside_each_other(path: Path, parts: tuple[str, ...], turns: int) -> None:
    """Runs the script in one process for each of the parts, at the same time."""
    with ExitStack() as stack:
        processes = []
        for part in parts:
            process = subprocess.Popen(
                [sys.executable, "-c", BESIDE, str(path), part, str(turns)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            _, stderr = process.communicate(timeout=60)
            assert (process.returncode, stderr) == (0, "")


def test_parts_that_come_and_go_are_never_refused(tmp_path: Path) -> None:
    beside_each_other(tmp_path / "store", ("0:1", "1:2"), 2000)
    assert list(tmp_path.iterdir()) == []
    with claim(tmp_path / "store"):  # nobody holds it
        pass


def test_two_that_write_the_same_file_at_once_both_succeed(tmp_path: Path) -> None:
    beside_each_other(tmp_path / "shard.h5", ("", ""), 200)
    assert [path.name for path in tmp_path.iterdir()] == ["shard.h5"]
    assert (tmp_path / "shard.h5").read_bytes() == b"".join(bytes([i]) * 1024 for i in range(64))


@pytest.mark.parametrize("text", ["", "x", "3:2", "1", "1:1", "-1:2", "1:2:3", "a:b", "1.5:2", "1 :2"])
def test_what_is_no_range_is_told(experiment: Experiment, tmp_path: Path, text: str) -> None:
    result = avpt(*preprocess(experiment, tmp_path / "store"), f"--shard-range={text}")
    one_line(result, f"--shard-range is {text!r}", "A:B" if text not in ("3:2", "1:1") else "B is the shard after")
    assert not (tmp_path / "store").exists()


def test_overwrite_does_not_go_with_it(experiment: Experiment, tmp_path: Path) -> None:
    result = avpt(*preprocess(experiment, tmp_path / "store"), "--shard-range", "0:1", "--overwrite")
    one_line(result, "--overwrite does not go with --shard-range")


def test_the_run_that_finishes_judges_the_failures(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    command = (*preprocess(experiment, store), "--max-failures", "0.05")
    with monkeypatch.context() as patched:
        patched.setattr(_shards, "decode_task", decode_or_not)
        part = done(*command, "--shard-range", "0:1", "--clip-timeout", "2", "--json")  # 2 of its 8 clips
    assert (
        part.json() == {"store": str(store), "clips": 6, "failures": 2, "partial": 0, "missing_shards": 6} | NONE_LACK
    )
    result = avpt(*command, "--shard-range", "1:")
    assert result.code == 1
    assert "2 of 36 clips failed" in result.error
    assert "--max-failures 0.05" in result.error
    assert not (store / "store.json").exists()
    assert len(failures_of(store)) == 2

    again = done(*command, "--shard-range", "1:", "--retry-failures", "--max-failures", "0.1")  # not its failures
    assert "2 of 36 clips failed" in again.stderr
    assert len(failures_of(store)) == 2
    done(*command, "--shard-range", "0:1", "--retry-failures")
    assert untimed(store) == untimed(experiment.store)


def test_shards_that_are_tried_again_unfinish_the_store_of_a_run_beside(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avpt.commands import preprocess as stage

    store = tmp_path / "store"
    command = (*preprocess(experiment, store), "--max-failures", "0.1")
    with monkeypatch.context() as patched:
        patched.setattr(_shards, "decode_task", decode_or_not)
        done(*command, "--shard-range", "0:1", "--clip-timeout", "2")
    make_missing = stage.make_missing

    def meanwhile(*arguments: object) -> None:
        make_missing(*arguments)  # type: ignore[arg-type]
        patched.undo()
        part = done(*command, "--shard-range", "0:1", "--retry-failures", "--json").json()
        assert "missing_shards" not in part  # it has all, and finishes the store

    with monkeypatch.context() as patched:
        patched.setattr(stage, "make_missing", meanwhile)
        done(*command, "--shard-range", "1:")
    assert untimed(store) == untimed(experiment.store)
