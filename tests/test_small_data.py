"""What goes wrong on few clips is said, once, with what to set."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from helpers import ARCH, Experiment, done, finetune, fuse, summary

from avpt.loading.masking import count_masked
from avpt.options import FinetuneConfig
from avpt.runs.training_run import warn_of_few_steps
from avpt.training.metrics import informative


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger("avpt").setLevel(logging.INFO)
    caplog.clear()
    return caplog


@pytest.mark.parametrize(
    ("clips", "batch_size", "says"),
    [
        (640, 64, ""),
        (240, 64, "240 clips has only 4 step(s) at --batch-size 64; set --batch-size 16, which makes 15, and more"),
        (90, 64, "set --batch-size 8, which makes 12, and more --epochs"),
        (40, 8, "40 clips has only 5 step(s) at --batch-size 8; set --batch-size 4, which makes 10, and more --epochs"),
        (90, 16, "90 clips has only 6 step(s) at --batch-size 16; set --batch-size 8, which makes 12"),
        (75, 64, "set --batch-size 8, which makes 10, and more --epochs"),
        (18, 8, "18 clips has only 3 step(s) at --batch-size 8; set more --epochs (`avpt guide small-data`)"),
    ],
)
def test_few_steps(warnings: pytest.LogCaptureFixture, clips: int, batch_size: int, says: str) -> None:
    config = FinetuneConfig(store=Path("s"), out=Path("o"), init=Path("i"), modality="audio", batch_size=batch_size)
    warn_of_few_steps(config, -(-clips // batch_size), clips)
    assert len(warnings.messages) == bool(says)
    assert says in warnings.text


@pytest.mark.parametrize(
    ("ratios", "patch", "says"),
    [
        ([0.1, 0.2], (16, 16), "16x16 cuts the 64x64 input into 16 patches, so that small ratios mask nothing"),
        ([0.01, 0.0], (16, 16), "into 16 patches: every ratio is less than one of them, so that nothing is masked"),
        ([0.01, 0.0], (16, 16), "; set --visual-patch 8"),
        ([0.009, 0.009], (6, 6), "into 100 patches: every ratio is less than one of them, so that nothing is masked"),
        ([0.009, 0.009], (6, 6), "; set --visual-patch 3"),
        ([1.0, 0.2], (8, 8), "into 64 patches: 1 clip(s) lose all of them; set a lower --mask-ratio or --mask-eta"),
        ([0.3, 0.2], (8, 8), ""),
        ([0.0, 0.0], (8, 8), ""),
    ],
)
def test_patches_that_mask_nothing_or_everything(
    warnings: pytest.LogCaptureFixture, ratios: list[float], patch: tuple[int, int], says: str
) -> None:
    count_masked("visual", torch.tensor(ratios), (64, 64), patch)
    assert len(warnings.messages) == bool(says)
    assert says in warnings.text


def test_confidence_that_masks_nothing(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"val": {"accuracy": 0.0}, "test": None, "best_epoch": 1, "epochs": 1}
    monkeypatch.setattr("avpt.runs.training_run.train", lambda *_: record)
    options = ("--confidence", experiment.confidence, "--mask-threshold", "1", "--out", tmp_path / "run")
    result = done(*fuse(experiment), *options)
    assert result.stderr.count("nothing is masked, as all ratios are 0: the surest confidence is 0.") == 1
    assert "--mask-threshold 1; set a lower one" in result.stderr


def test_abri_where_both_branches_are_equal(experiment: Experiment, tmp_path: Path) -> None:
    def said(name: str, *options: str | Path) -> bool:
        out = tmp_path / f"{name}.safetensors"
        return "is as new" in done("init", "--modality", "visual", *options, "--out", out).stderr

    assert said("random", "--weights", "random", "--bn", "abri")
    assert said("zeros", "--arch", ARCH, "--weights", "random", "--bn", "abri")  # some start at 0, as blocks end there
    assert said("blend", "--weights", "random", "--bn", "blend")
    assert not said("kept", "--weights", "random")
    assert said("again", "--weights", tmp_path / "kept.safetensors", "--bn", "abri")
    assert not said("trained", "--arch", ARCH, "--weights", experiment.visual, "--bn", "abri")


def test_the_best_five_of_five_classes_are_not_shown(experiment: Experiment) -> None:
    assert informative(["loss", "top5"], 5) == ["loss"]
    assert informative(["loss", "top5"], 6) == ["loss", "top5"]
    again = done(*finetune(experiment, "audio", experiment.audio_init), "--out", experiment.audio)
    assert "macro_f1" in again.stderr
    assert "top5" not in again.stderr
    shown = done("info", experiment.audio).stdout
    assert "metrics.test.macro_f1" in shown
    assert "top5" not in shown
    assert summary(experiment.audio)["test"]["top5"] == 1.0
    here = ("evaluate", experiment.audio, experiment.store, "--workers", "0", "--device", "cpu")
    evaluated = done(*here)
    assert "macro f1" in evaluated.stdout + evaluated.stderr
    assert "top5" not in evaluated.stdout + evaluated.stderr
    assert done(*here, "--json").json()["test"]["top5"] == 1.0
    compared = done("compare", experiment.fused)
    assert "top5" not in compared.stdout
    assert "top5" in done("compare", experiment.fused, "--metric", "top5").stdout
    assert "top5" in done("compare", experiment.fused, "--json").json()["groups"][0]["test"]
