"""Kill it, stop it, run it longer: the same command finishes the work, with bytes equal to an undisturbed run."""

from __future__ import annotations

import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import STORE_OPTIONS, Experiment, avpt, done, files_of, finetune, forked, fuse

from avpt.data.clip import DecodedClip
from avpt.data.store import Failure
from avpt.engines.local import Crashed, Hung, run_isolated
from avpt.stages import preprocess as stage

PATIENCE = 60.0  # seconds that a process gets to come to the point where it is killed


def wait_for(happened: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)


@contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m avpt ...` in a session of its own; nothing of it is left afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "avpt", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        stray = session(process.pid)
        for pid in stray:  # whatever the test found, leave none behind
            os.kill(pid, signal.SIGKILL)


def session(leader: int) -> list[int]:
    """Processes of a session that still run; those that ended and wait to be collected do not count."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(int(folder.name))
    return found


def killed(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and every process that it started ends with it."""
    assert process.pid in session(process.pid), "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)  # the one process, not its group: the workers must notice by themselves
    process.wait()
    wait_for(lambda: not session(process.pid), "the workers of a killed avpt to end", 15)


# --- preprocess --------------------------------------------------------------------------------------------------


def preprocess(experiment: Experiment, out: Path) -> tuple[str | Path, ...]:
    return ("preprocess", experiment.manifest, "--out", out, *STORE_OPTIONS)


def test_a_killed_preprocess_is_finished_by_the_same_command(experiment: Experiment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for workers in ("1", "2"):
        goal = len(list(store.glob("*.h5"))) + 1

        def shard_more(goal: int = goal) -> bool:
            return len(list(store.glob("*.h5"))) >= goal

        with running(*preprocess(experiment, store), "--workers", workers) as process:
            wait_for(shard_more, "one more shard")
            time.sleep(random.uniform(0, 0.05))
            killed(process)
        for path in store.glob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))  # whole, or not there
    finished = {path: path.stat().st_mtime_ns for path in store.glob("train-*.json")}
    assert finished
    done(*preprocess(experiment, store), "--workers", "3")
    assert files_of(store) == files_of(experiment.store)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # nothing is done twice
    assert not list(tmp_path.glob(".*"))


# --- training ----------------------------------------------------------------------------------------------------


def training(experiment: Experiment, kind: str) -> tuple[str | Path, ...]:
    if kind == "fused":
        return (*fuse(experiment), "--confidence", experiment.confidence, "--mask-threshold", "0.1")
    return finetune(experiment, "visual", experiment.visual_init)


def epochs_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text(encoding="utf-8").count("\n") if metrics.exists() else 0


@pytest.mark.parametrize("kind", ["visual", "fused"])
def test_killed_training_is_finished_by_the_same_command(experiment: Experiment, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    command = (*training(experiment, kind), "--out", run)
    with running(*command, "--workers", "2") as process:
        wait_for(lambda: epochs_done(run) > 0, "the first epoch")
        killed(process)
    assert epochs_done(run) == 1
    assert not (run / "summary.json").exists()
    result = done(*command, "--workers", "0")
    assert "epoch 1  lr" not in result.stderr  # the first epoch is not trained again
    assert "epoch 2  lr" in result.stderr
    assert files_of(run) == files_of(getattr(experiment, kind))


CHECKPOINTS = ("--checkpoint-every", "2", "--epochs", "2", "--batch-size", "4")  # of ten steps
MODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": (
        "visual",
        ("--schedule", "step", "--milestones", "1", "--flip", "--crop-scale", "0.3", "1", "--num-frames", "2"),
    ),
    "layer": ("layer", ("--schedule", "cosine", "--warmup-epochs", "1", "--optimizer", "adam", "--dynamics", "eval")),
    "masked": ("fused", ("--schedule", "cosine", "--optimizer", "adamw", "--accumulate", "2")),
    "channel": ("audio", ("--spec-augment", "4", "6", "--clip-grad", "1", "--decay-norm", "--channels-last")),
    "film": ("fused", ("--fusion", "film", "--mask", "uniform", "--dynamics", "eval", "--warmup-epochs", "1")),
    "bf16": ("audio", ("--precision", "bf16", "--optimizer", "adam", "--schedule", "step", "--milestones", "1")),
}


@pytest.fixture(scope="module")
def layer_init(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with one ABRi alpha per layer."""
    init = tmp_path_factory.mktemp("layer") / "init.safetensors"
    done(
        *("init", "--modality", "audio", "--weights", experiment.visual, "--bn", "abri", "--abri", "layer"),
        *("--out", init),
    )
    return init


def mode(experiment: Experiment, layer_init: Path, name: str) -> tuple[str | Path, ...]:
    """A training command without --out."""
    kind, options = MODES[name]
    if kind == "layer":
        return (*finetune(experiment, "audio", layer_init), *CHECKPOINTS, *options)
    if kind == "audio":
        return (*finetune(experiment, "audio", experiment.audio_init), *CHECKPOINTS, *options)
    return (*training(experiment, kind), *CHECKPOINTS, *options)


def kill_somewhere(log: Path, run: Path, *command: str | Path) -> bool:
    """Start it, and SIGKILL it at a random moment after its first checkpoint; False where it ended before."""

    def saved() -> int:
        try:
            return (run / "checkpoint" / "last.pt").stat().st_mtime_ns
        except FileNotFoundError:  # not yet, or between two
            return 0

    before, pid = saved(), forked(log, *command)
    ended = False
    for _ in range(int(PATIENCE / 0.01)):
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if ended or saved() != before:
            break
        time.sleep(0.01)
    if not ended:
        time.sleep(random.uniform(0, 0.4))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    wait_for(lambda: not session(pid), "the workers of a killed avpt to end", 15)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, log.read_text(encoding="utf-8")
    return os.WIFSIGNALED(status)


def finished_after_kills(tmp_path: Path, *command: str | Path, kills: int) -> tuple[int, dict[str, bytes]]:
    """How often it was killed, of at most so many times, and the files that it left when it was done."""
    run = tmp_path / "killed"
    count = 0
    while count < kills and kill_somewhere(tmp_path / "log", run, *command, "--out", run, "--workers", str(count % 3)):
        count += 1
    done(*command, "--out", run)
    assert epochs_done(run) == 2
    return count, files_of(run)


@pytest.mark.parametrize("name", ["plain", "layer", "masked"])
def test_training_killed_at_any_step_comes_to_the_same_bytes(
    experiment: Experiment, layer_init: Path, tmp_path: Path, name: str
) -> None:
    command = mode(experiment, layer_init, name)
    done(*command, "--checkpoint-every", "7", "--out", tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    assert len(expected) == 7 + (MODES[name][0] == "fused")
    count, found = finished_after_kills(tmp_path, *command, kills=2)
    assert count > 0
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_training_killed_many_times_comes_to_the_same_bytes(
    experiment: Experiment, layer_init: Path, tmp_path: Path, name: str
) -> None:
    command = mode(experiment, layer_init, name)
    done(*command, "--out", tmp_path / "whole")
    count, rounds = 0, 0
    while count < 5:
        assert rounds < 10
        more, found = finished_after_kills(tmp_path, *command, kills=5 - count)
        assert found == files_of(tmp_path / "whole")
        count, rounds = count + more, rounds + 1
        shutil.rmtree(tmp_path / "killed")
    print(f"{name}: {count} kills")


def test_stopped_training_goes_on_with_the_command_that_it_names(
    experiment: Experiment, layer_init: Path, tmp_path: Path
) -> None:
    command = mode(experiment, layer_init, "plain")
    whole, run = tmp_path / "whole", tmp_path / "run of 'mine'"
    done(*command, "--out", whole)
    with running(*command, "--checkpoint-every", "100", "--out", run, "--quiet", "--overwrite") as process:
        wait_for(lambda: epochs_done(run) > 0, "the first epoch")
        time.sleep(random.uniform(0, 0.3))
        code, (line,) = stopped(process, signal.SIGTERM)
    assert code == 143
    assert line == to_go_on("terminated", *command, "--checkpoint-every", "100", "--out", run, "--quiet")
    _, python, *again = ["", *shlex.split(line.partition("from here: ")[2])]
    assert python == "python"
    subprocess.run([sys.executable, *again], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=PATIENCE)
    assert files_of(run) == files_of(whole)


def test_a_checkpoint_cut_short_costs_no_bytes(experiment: Experiment, layer_init: Path, tmp_path: Path) -> None:
    command = mode(experiment, layer_init, "layer")
    whole, run = tmp_path / "whole", tmp_path / "run"
    done(*command, "--out", whole)
    last = run / "checkpoint" / "last.pt"
    while not (last.exists() and last.with_name("previous.pt").exists()):  # one only where it had saved only once
        assert kill_somewhere(tmp_path / "log", run, *command, "--checkpoint-every", "1", "--out", run)
    os.truncate(last, last.stat().st_size // 3)
    result = done(*command, "--out", run)
    assert f"warning: {last} is damaged" in result.stderr
    assert files_of(run) == files_of(whole)


def test_a_kill_between_checkpoint_and_metrics_loses_nothing(experiment: Experiment, tmp_path: Path) -> None:
    run = shutil.copytree(experiment.visual, tmp_path / "run")
    for name in ("summary.json", "metrics.jsonl", "model.safetensors", "timing.jsonl"):
        (run / name).unlink()
    (run / ".model.safetensors.tmp").write_bytes(b"half a file")
    done(*training(experiment, "visual"), "--out", run)
    (run / ".model.safetensors.tmp").unlink(missing_ok=True)
    assert files_of(run) == files_of(experiment.visual)


def test_more_epochs_continue_a_constant_rate_run(experiment: Experiment, tmp_path: Path) -> None:
    longer, fresh = shutil.copytree(experiment.visual, tmp_path / "longer"), tmp_path / "fresh"
    command = (*training(experiment, "visual"), "--epochs", "3")
    result = done(*command, "--out", longer)
    assert "epoch 2  lr" not in result.stderr
    assert "epoch 3  lr" in result.stderr
    done(*command, "--out", fresh)
    assert epochs_done(longer) == 3
    assert files_of(longer) == files_of(fresh)
    told = avpt(*training(experiment, "visual"), "--out", longer)  # and back is another run
    assert told.code == 1
    assert "epochs: 3 there, 2 now" in told.error


def test_more_epochs_of_a_step_schedule_continue_too(experiment: Experiment, tmp_path: Path) -> None:
    command = (*training(experiment, "visual"), "--schedule", "step", "--milestones", "1")
    longer, fresh = tmp_path / "longer", tmp_path / "fresh"
    done(*command, "--epochs", "1", "--out", longer)
    done(*command, "--epochs", "2", "--out", longer)
    done(*command, "--epochs", "2", "--out", fresh)
    assert files_of(longer) == files_of(fresh)
    rates = [json.loads(line)["lr"] for line in (longer / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rates == pytest.approx([0.02, 0.002])


def test_more_epochs_with_other_options_are_refused(experiment: Experiment) -> None:
    before = files_of(experiment.visual)
    result = avpt(*training(experiment, "visual"), "--epochs", "3", "--lr", "0.5", "--out", experiment.visual)
    assert result.code == 1
    assert "lr: 0.02 there, 0.5 now" in result.error
    assert files_of(experiment.visual) == before


def test_more_epochs_under_cosine_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = (*training(experiment, "visual"), "--schedule", "cosine", "--out", run)
    done(*command, "--epochs", "1")
    before = files_of(run)
    result = avpt(*command, "--epochs", "2")
    assert result.code == 1
    assert "epochs: 1 there, 2 now" in result.error
    assert "--overwrite" in result.error
    assert files_of(run) == before


# --- told to stop ------------------------------------------------------------------------------------------------


def stopped(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, list[str]]:
    """Ctrl-C reaches every process of the terminal's group, SIGTERM only the one."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    wait_for(lambda: not session(process.pid), "the workers of a stopped avpt to end", 15)
    return process.returncode, stderr.splitlines()


def to_go_on(word: str, *command: str | Path) -> str:
    """The last words of a command that was stopped."""
    again = shlex.join(["python", "-m", "avpt", *map(str, command)])
    return f"avpt: {word}; the same command again goes on from here: {again}"


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_training_told_to_stop_says_how_to_go_on(
    experiment: Experiment, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    run = tmp_path / "run"
    command = (*training(experiment, "visual"), "--epochs", "50", "--out", run)
    with running(*command, "--workers", "1", "--quiet") as process:
        wait_for(lambda: epochs_done(run) > 0, "the first epoch")
        assert stopped(process, number) == (code, [to_go_on(word, *command, "--workers", "1", "--quiet")])
    assert epochs_done(run) >= 1
    assert not list(tmp_path.glob(".*"))
    assert "is unfinished" in avpt(*finetune(experiment, "visual", run), "--out", tmp_path / "next").error


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_preprocess_told_to_stop_says_how_to_go_on(
    experiment: Experiment, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    store = tmp_path / "store"
    command = (*preprocess(experiment, store), "--shard-size", "1")
    with running(*command, "--workers", "1", "--quiet") as process:
        wait_for(lambda: len(list(store.glob("*.h5"))) > 0, "the first shard")
        assert stopped(process, number) == (code, [to_go_on(word, *command, "--workers", "1", "--quiet")])
    assert not (store / "store.json").exists()
    assert not list(tmp_path.glob(".*"))
    assert done(*command, "--json").json()["clips"] == 36


# --- clips that hang or crash ------------------------------------------------------------------------------------


def act(task: str) -> str:
    """Runs in a worker."""
    if task == "hang":
        time.sleep(600)
    elif task == "abort":
        os.abort()
    elif task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif task == "exit":
        os._exit(3)
    return task.upper()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_hangs_or_crashes_costs_its_own_result_only(workers: int) -> None:
    good = [f"task {i}" for i in range(12)]
    tasks = ["kill", *good[:4], "hang", *good[4:8], "abort", *good[8:], "exit"]
    results = dict(run_isolated(act, tasks, workers=workers, timeout=1.5, preload="avpt.stages.preprocess"))
    assert {task: results[task] for task in good} == {task: task.upper() for task in good}
    assert results["hang"] == Hung("took longer than 1.5 s")
    assert results["abort"] == Crashed(f"the worker died (exit code -{int(signal.SIGABRT)})")
    assert results["kill"] == Crashed(f"the worker died (exit code -{int(signal.SIGKILL)})")
    assert results["exit"] == Crashed("the worker died (exit code 3)")
    assert len(results) == len(tasks)


def test_only_tasks_that_hang() -> None:
    results = list(run_isolated(act, ["hang"], workers=1, timeout=0.5, preload="avpt.stages.preprocess"))
    assert results == [("hang", Hung("took longer than 0.5 s"))]
    assert list(run_isolated(act, [], workers=1, timeout=0.5, preload="avpt.stages.preprocess")) == []


def decode_or_not(task: stage.Task) -> DecodedClip | Failure:
    """Stands in for `decode_task` in the workers: two clips of train are beyond decoding."""
    if task.clip.split == "train" and task.row in (2, 5):
        act("hang" if task.row == 2 else "kill")
    return stage.decode_task(task)


def test_clips_that_hang_or_crash_are_lines_in_failures_csv_and_can_be_tried_again(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    command = (*preprocess(experiment, store), "--shard-size", "18", "--workers", "2", "--max-failures", "0.1")
    with monkeypatch.context() as patched:
        patched.setattr(stage, "decode_task", decode_or_not)
        result = done(*command, "--clip-timeout", "3", "--json")
    assert result.json() == {"store": str(store), "clips": 34, "failures": 2}
    assert "2 of 36 clips failed" in result.stderr
    with (store / "failures.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["error"]) for row in rows] == [
        ("timeout", "took longer than 3 s"),
        ("crash", "the worker died (exit code -9)"),
    ]
    assert all(row["source"] and row["split"] == "train" for row in rows)
    before = files_of(store)
    assert done(*command).stdout == f"{store}\n"  # not tried again unasked
    assert files_of(store) == before

    undisturbed = tmp_path / "undisturbed"
    done(*preprocess(experiment, undisturbed), "--shard-size", "18")
    done(*command, "--retry-failures")
    assert files_of(store) == files_of(undisturbed)
