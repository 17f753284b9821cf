"""Kill a training, stop it, run it longer: the same command finishes it, with bytes equal to an undisturbed run."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from conftest import Experiment, avpt, done, files_of, finetune, fuse
from kills import killed, running, stopped, wait_for

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
        assert stopped(process, number) == (code, [f"avpt: {word}; the same command again goes on from here"])
    assert epochs_done(run) >= 1
    assert not list(tmp_path.glob(".*"))
    assert "is unfinished" in avpt(*finetune(experiment, "visual", run), "--out", tmp_path / "next").error
