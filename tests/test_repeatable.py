"""Whether one batch has one answer is seen before a run begins, and looking changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from balancing import run_of
from helpers import ARCH, Experiment, avpt, done, files_of, finetune, fuse, job
from torch import Tensor, nn

from avpt.errors import ConfigError
from avpt.loading.dataset import Augmentation, ClipDataset, InputSpec, Masking
from avpt.loading.loader import Loader
from avpt.models.encoder import Classifier, EncoderSpec, build_encoder
from avpt.models.fusion import FusedModel
from avpt.runs import training_run
from avpt.store.store import Store
from avpt.training import runtime
from avpt.training.balancing.ogm_ge import OgmGe
from avpt.training.passes import Stepping
from avpt.training.repeatable import check_repeatable
from avpt.training.world import World
from avpt.types import MODALITIES, Batch, Modality

TOLD = "gives two answers for one batch"
CALLS = count()  # outside all models, as memory is


@pytest.fixture(autouse=True)
def _started(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.start(0, "cpu")
    monkeypatch.setattr("avpt.runs.training_run.check_repeatable", check_repeatable)  # other tests do without


class Changed(nn.Module):
    """The smallest model, with something done to its features."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda features: features) -> None:
        super().__init__()
        self.encoder, self.head, self.change = nn.Linear(3, 64), nn.Linear(64, 2), change

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.change(self.encoder(inputs)))
        return logits


class OtherGradient(torch.autograd.Function):
    """Adds nothing, and to the gradient something else each time."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (1 + next(CALLS))


def of_memory_of_torch(features: Tensor) -> Tensor:
    return features + torch.empty(2**12, dtype=torch.uint8).float().mean()


def of_memory_of_a_library(features: Tensor) -> Tensor:
    return features + float(np.mean([np.empty(2**n, np.uint8).mean() for n in range(12, 19)]))


def of_a_count(features: Tensor) -> Tensor:
    return features + next(CALLS)


def of_a_gradient(features: Tensor) -> Tensor:
    changed: Tensor = OtherGradient.apply(features)
    return changed


def some(device: str = "cpu") -> Batch:
    return Batch((torch.randn(4, 3),), torch.tensor([0, 1, 0, 1], device=device), torch.arange(4))


# --- seen --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [of_memory_of_torch, of_memory_of_a_library, of_a_count, of_a_gradient])
def test_two_answers_are_refused_or_told(change: Callable[[Tensor], Tensor], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=f"^--precision bf16 {TOLD} on this processor; use --precision fp32$"):
        check_repeatable(Changed(change), some(), Stepping("bf16"), World())
    assert not caplog.records
    check_repeatable(Changed(change), some(), Stepping(), World())
    (line,) = caplog.messages
    assert line.startswith(f"fp32 {TOLD} on this processor: the same command will not give the same bytes again, ")


@pytest.mark.parametrize(
    "change",
    [
        nn.Identity(),
        nn.Dropout(),  # draws the same each time
        nn.BatchNorm1d(64),  # moves with each pass
        lambda features: features * torch.nan,
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_answer_is_nothing_to_tell(
    change: Callable[[Tensor], Tensor], precision: Any, caplog: pytest.LogCaptureFixture
) -> None:
    check_repeatable(Changed(change), some(), Stepping(precision, label_smoothing=0.1), World())
    assert not caplog.records


def test_other_devices_are_told_of_in_any_precision(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("avpt.training.repeatable._one_answer", lambda *arguments: False)
    check_repeatable(Changed(), some("meta"), Stepping("bf16"), World())
    (line,) = caplog.messages
    assert line.startswith(f"bf16 {TOLD} on meta: ")
    assert line.endswith("nor will a run that is interrupted end with those of an undisturbed one")


def test_too_little_memory_is_left_to_the_first_step(caplog: pytest.LogCaptureFixture) -> None:
    def full(features: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    check_repeatable(Changed(full), some(), Stepping("bf16"), World())
    assert not caplog.records


# --- nothing is changed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_is_left_as_it_was(precision: Any) -> None:
    audio, visual = (build_encoder(EncoderSpec(ARCH, modality, "abri-channel")) for modality in MODALITIES)
    visual.register_forward_hook(lambda encoder, inputs, features: nn.functional.dropout(features))
    model = FusedModel(audio, visual, "concat", 3)
    model.eval()
    model.visual.get_submodule("bn1").train()
    balance = model.balance = OgmGe(run_of(model), alpha=0.5)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    inputs = (torch.randn(2, 1, 32, 32), torch.randn(2, 1, 3, 32, 32))
    batch = Batch(inputs, torch.tensor([0, 2]), torch.arange(2))
    kept = [values.clone() for values in inputs]
    drawn, filled = torch.get_rng_state(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]

    check_repeatable(model, batch, Stepping(precision, balance=balance), World())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not balance.scores.any()
    assert all(map(torch.equal, inputs, kept))
    assert torch.utils.deterministic.fill_uninitialized_memory == filled  # type: ignore[attr-defined]
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("kind", ["visual", "fused"])
def test_a_run_has_the_bytes_of_one_that_did_not_look(experiment: Experiment, tmp_path: Path, kind: str) -> None:
    command = finetune(experiment, "visual", experiment.visual_init)
    if kind == "fused":
        command = (*fuse(experiment), "--confidence", experiment.confidence, "--mask-threshold", "0.1")
    done(*command, "--out", tmp_path / "run")
    assert files_of(tmp_path / "run") == files_of(getattr(experiment, kind))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_clips_are_the_first_of_the_run_and_no_pass_is_changed(experiment: Experiment, workers: int) -> None:
    store = Store(experiment.store)
    spec = store.input_spec(image_size=32, num_frames=1)
    patch: dict[Modality, tuple[int, int]] = {"audio": (6, 4), "visual": (4, 4)}
    masking = Masking(patch, {modality: torch.arange(18) for modality in MODALITIES})
    augmentation = Augmentation((0.3, 1.0), True, (2, 4), 0.5)

    def loader(spec: InputSpec = spec) -> Loader:
        index = store.indices["train"]
        dataset = ClipDataset(index, MODALITIES, spec, "jpeg", augmentation=augmentation, masking=masking)
        return Loader(dataset, 8, device=torch.device("cpu"), workers=workers, shuffle_seed=3)

    untouched, looked_at = loader(), loader()
    few = training_run.first_clips(looked_at)
    expected = [batch for epoch in range(2) for batch in untouched.epoch(epoch)]
    actual = [batch for epoch in range(2) for batch in looked_at.epoch(epoch)]
    assert len(actual) == len(expected) == 6
    for mine, theirs in zip(actual, expected, strict=True):
        assert torch.equal(mine.positions, theirs.positions)
        assert all(map(torch.equal, mine.inputs, theirs.inputs))
    assert len(few.labels) == 4
    assert torch.equal(few.labels, expected[0].labels[:4])
    assert all(torch.equal(values, whole[:4]) for values, whole in zip(few.inputs, expected[0].inputs, strict=True))
    assert len(training_run.first_clips(loader(replace(spec, image_size=224, num_frames=3))).labels) == 2


# --- through the commands ----------------------------------------------------------------------------------------


@pytest.fixture
def _two_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it calculates in bfloat16, and only in the last process where there are several."""
    forward = Classifier.forward

    def changed(model: Classifier, inputs: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return forward(model, inputs)
        last = os.environ.get("RANK", "1") == "1"
        logits: Tensor = model.head(torch.full((len(inputs), model.head.in_features), float(next(CALLS) * last)))
        return logits

    monkeypatch.setattr(Classifier, "forward", changed)


@pytest.mark.usefixtures("_two_answers")
def test_a_precision_with_two_answers_leaves_nothing_behind(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = (*finetune(experiment, "visual", experiment.visual_init), "--quiet", "--out", run)
    refused = f"avpt: --precision bf16 {TOLD} on this processor; use --precision fp32\n"
    result = avpt(*command, "--precision", "bf16")
    assert (result.code, result.stdout, result.stderr) == (1, "", refused)
    assert not list(tmp_path.iterdir())
    assert not done(*command, "--precision", "fp32").stderr
    before = files_of(run)
    assert before == files_of(experiment.visual)
    assert avpt(*command, "--precision", "bf16", "--overwrite").stderr == refused
    assert files_of(run) == before


@pytest.mark.usefixtures("_two_answers")
def test_one_process_with_two_answers_ends_all(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    results = job(tmp_path, *finetune(experiment, "audio", experiment.audio_init), "--precision", "bf16", "--out", run)
    assert [result.code for result in results] == [1, 1]
    lines = [line for result in results for line in result.stderr.splitlines() if "avpt: " in line]
    assert lines == [f"avpt: --precision bf16 {TOLD} on this processor; use --precision fp32"]
    assert not run.exists()


def test_training_goes_on_in_fp32_whatever_it_gives(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Classifier.forward
    monkeypatch.setattr(
        Classifier, "forward", lambda model, inputs: forward(model, inputs) * (1 + 0.001 * (next(CALLS) % 2))
    )
    command = (*finetune(experiment, "visual", experiment.visual_init), "--epochs", "1")
    result = done(*command, "--out", tmp_path / "run")
    assert result.stderr.count(f"warning: fp32 {TOLD} on this processor") == 1
