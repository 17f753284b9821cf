"""Kill a training, stop it, run it longer: the same command finishes it, with bytes equal to an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
from curves import assert_curves_say_what_the_files_say
from helpers import ARCH, Experiment, avpt, done, files_of, finetune, forked, fuse
from kills import PATIENCE, chance, killed, running, session, stopped, to_go_on, wait_for

# --- training ----------------------------------------------------------------------------------------------------


def training(experiment: Experiment, kind: str) -> tuple[str | Path, ...]:
    if kind == "fused":
        return (*fuse(experiment), "--confidence", experiment.confidence, "--mask-threshold", "0.1")
    return finetune(experiment, "visual", experiment.visual_init)


def epochs_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text(encoding="utf-8").count("\n") if metrics.exists() else 0


@pytest.mark.parametrize("kind", ["visual", pytest.param("fused", marks=pytest.mark.slow)])  # "masked" below is fused
def test_killed_training_is_finished_by_the_same_command(experiment: Experiment, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    command = (*training(experiment, kind), "--out", run)
    with running(*command, "--workers", "2") as process:
        wait_for(lambda: epochs_done(run) > 0, "the first epoch")
        killed(process)
    assert epochs_done(run) == 1
    assert not (run / "summary.json").exists()
    result = done(*command, "--workers", "0")
    assert "epoch 1  loss" not in result.stderr  # the first epoch is not trained again
    assert "epoch 2  loss" in result.stderr
    assert files_of(run) == files_of(getattr(experiment, kind))


CHECKPOINTS = ("--checkpoint-every", "2", "--epochs", "2", "--batch-size", "4")  # of ten steps
MODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": (
        "visual",
        ("--schedule", "step", "--milestones", "1", "--flip", "--crop-scale", "0.3", "1", "--num-frames", "2"),
    ),
    "layer": ("layer", ("--schedule", "cosine", "--warmup-epochs", "1", "--optimizer", "adam", "--dynamics", "eval")),
    "masked": ("fused", ("--schedule", "cosine", "--optimizer", "adamw", "--accumulate", "2", "--tensorboard")),
    "channel": ("audio", ("--spec-augment", "4", "6", "--clip-grad", "1", "--decay-norm", "--channels-last")),
    "film": ("fused", ("--fusion", "film", "--mask", "uniform", "--dynamics", "eval", "--warmup-epochs", "1")),
    "balanced": (
        "fused",
        (
            *("--balance", "ogm-ge", "--ogm-alpha", "0.8", "--modality-dropout", "0.4", "--ema", "0.8"),
            *("--accumulate", "2", "--tensorboard"),
        ),
    ),
    "mixed": (
        "visual",
        (
            *("--mixup", "0.4", "--balanced-sampling", "--dynamics", "eval", "--patience", "1"),
            *("--label-smoothing", "0.1", "--encoder-lr-scale", "0.5", "--flip", "--crop-scale", "0.3", "1"),
        ),
    ),
    "bf16": ("audio", ("--precision", "bf16", "--optimizer", "adam", "--schedule", "step", "--milestones", "1")),
}


@pytest.fixture(scope="module")
def layer_init(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with one ABRi alpha per layer."""
    init = tmp_path_factory.mktemp("layer") / "init.safetensors"
    done(
        *("init", "--modality", "audio", "--arch", ARCH, "--weights", experiment.visual, "--bn", "abri"),
        *("--abri", "layer", "--out", init),
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


def kill_somewhere(moments: random.Random, log: Path, run: Path, *command: str | Path) -> bool:
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
        time.sleep(moments.uniform(0, 0.4))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    wait_for(lambda: not session(pid), "the workers of a killed avpt to end", 15)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, log.read_text(encoding="utf-8")
    return os.WIFSIGNALED(status)


def finished_after_kills(tmp_path: Path, *command: str | Path, kills: int) -> tuple[int, dict[str, bytes]]:
    """How often it was killed, of at most so many times, and the files that it left when it was done."""
    run = tmp_path / "killed"
    count, moments = 0, chance()
    while count < kills and kill_somewhere(
        moments, tmp_path / "log", run, *command, "--out", run, "--workers", str(count % 3)
    ):
        count += 1
    done(*command, "--out", run)
    assert epochs_done(run) == 2
    if "--tensorboard" in command:
        assert_curves_say_what_the_files_say(run)
    return count, files_of(run)


@pytest.mark.parametrize(
    "name",
    ["masked", "mixed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("plain", "layer", "balanced"))],
)
def test_training_killed_at_any_step_comes_to_the_same_bytes(
    experiment: Experiment, layer_init: Path, tmp_path: Path, name: str
) -> None:
    command = mode(experiment, layer_init, name)
    done(*command, "--checkpoint-every", "7", "--out", tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    assert len(expected) == 7 + (MODES[name][0] == "fused")
    count, actual = finished_after_kills(tmp_path, *command, kills=2)
    assert count > 0
    assert actual == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_training_killed_many_times_comes_to_the_same_bytes(
    experiment: Experiment, wide: Experiment, layer_init: Path, tmp_path: Path, name: str
) -> None:
    command = mode(wide if name == "bf16" else experiment, layer_init, name)
    done(*command, "--out", tmp_path / "whole")
    count, rounds = 0, 0
    while count < 5:
        assert rounds < 10
        more, actual = finished_after_kills(tmp_path, *command, kills=5 - count)
        assert actual == files_of(tmp_path / "whole")
        count, rounds = count + more, rounds + 1
        shutil.rmtree(tmp_path / "killed")
    print(f"{name}: {count} kills")


def test_stopped_training_goes_on_with_the_command_that_it_names(
    experiment: Experiment, layer_init: Path, tmp_path: Path
) -> None:
    command, moments = mode(experiment, layer_init, "plain"), chance()
    whole, run = tmp_path / "whole", tmp_path / "run of 'mine'"
    done(*command, "--out", whole)
    with running(*command, "--checkpoint-every", "100", "--out", run, "--quiet", "--overwrite") as process:
        wait_for(lambda: epochs_done(run) > 0, "the first epoch")
        time.sleep(moments.uniform(0, 0.3))
        code, (line,) = stopped(process, signal.SIGTERM)
    assert code == 143
    assert line == to_go_on("terminated", *command, "--checkpoint-every", "100", "--out", run, "--quiet")
    python, *again = shlex.split(line.partition("from here: ")[2])
    assert [python, *again[:2]] == ["python", "-m", "avpt"]
    done(*again[2:])
    assert files_of(run) == files_of(whole)


def test_a_checkpoint_cut_short_costs_no_bytes(experiment: Experiment, layer_init: Path, tmp_path: Path) -> None:
    command, moments = mode(experiment, layer_init, "layer"), chance()
    whole, run = tmp_path / "whole", tmp_path / "run"
    done(*command, "--out", whole)
    last = run / "checkpoint" / "last.pt"
    while not (last.exists() and last.with_name("previous.pt").exists()):  # one only where it had saved only once
        assert kill_somewhere(moments, tmp_path / "log", run, *command, "--checkpoint-every", "1", "--out", run)
    os.truncate(last, last.stat().st_size // 3)
    result = done(*command, "--out", run)
    assert f"warning: {last} is damaged" in result.stderr
    assert files_of(run) == files_of(whole)


def test_a_kill_between_checkpoint_and_metrics_loses_nothing(experiment: Experiment, tmp_path: Path) -> None:
    run = shutil.copytree(experiment.visual, tmp_path / "run")
    for name in ("summary.json", "metrics.jsonl", "model.safetensors", "timing.jsonl"):
        (run / name).unlink()
    for name in (".model.safetensors.tmp", ".timing.jsonl.tmp", "checkpoint/.last.pt.tmp"):
        (run / name).write_bytes(b"half a file")
    done(*training(experiment, "visual"), "--out", run)
    assert files_of(run) == files_of(experiment.visual)
    assert not list(run.rglob(".*"))


def test_more_epochs_continue_a_constant_rate_run(experiment: Experiment, tmp_path: Path) -> None:
    longer, fresh = shutil.copytree(experiment.visual, tmp_path / "longer"), tmp_path / "fresh"
    command = (*training(experiment, "visual"), "--epochs", "3")
    result = done(*command, "--out", longer)
    assert "epoch 2  loss" not in result.stderr
    assert "epoch 3  loss" in result.stderr
    done(*command, "--out", fresh)
    assert epochs_done(longer) == 3
    assert files_of(longer) == files_of(fresh)
    refusal = avpt(*training(experiment, "visual"), "--out", longer)  # and back is another run
    assert refusal.code == 1
    assert "epochs: 3 there, 2 now" in refusal.error


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


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.slow),  # as where it goes on, above
    ],
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
