"""One loop for one stream or two: `model(*batch.inputs)`.

Where in an epoch confidence is measured belongs to the method: `--dynamics train` takes it from the training pass
itself, each clip before the step that learns from it, on augmented (and in stage 2 masked) input; `--dynamics eval`
takes it from one clean pass over the training clips after the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from avpt.errors import AvptError
from avpt.outputs import atomic
from avpt.training import objective
from avpt.types import Batch


class Batches(Protocol):
    """What the loop needs of a loader."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """One pass over the clips."""
        ...

    def __len__(self) -> int: ...


@dataclass
class Progress:
    """A run so far: everything that resuming needs besides model and optimiser."""

    records: list[dict[str, Any]] = field(default_factory=list)  # one per epoch, as in metrics.jsonl
    probability: list[Tensor] = field(default_factory=list)  # per epoch (clips,) float32
    correct: list[Tensor] = field(default_factory=list)  # per epoch (clips,) bool
    best_epoch: int = 0  # counted from 1; the first of equals
    best_value: float = -1.0
    best_model: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EpochDynamics:
    """Of one pass over the training clips, in the order of the split."""

    probability: Tensor  # (clips,) float32
    correct: Tensor  # (clips,) bool


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    num_clips: int,
    set_rate: Callable[[int], None],
) -> tuple[dict[str, float], EpochDynamics]:
    """One pass of training.

    Returns:
        Mean loss and accuracy over the clips, and the dynamics seen on the way.

    Raises:
        AvptError: the loss is not a number.
    """
    model.train()
    dynamics = EpochDynamics(torch.full((num_clips,), torch.nan), torch.zeros(num_clips, dtype=torch.bool))
    total = 0.0
    for step, batch in enumerate(batches):
        set_rate(step)
        logits = model(*batch.inputs)
        loss = objective.loss(logits, batch.labels)
        if not torch.isfinite(loss):
            raise AvptError(f"the loss is {loss.item()} at step {step + 1} of the epoch; lower --lr, with --overwrite")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * len(batch.labels)
        _record(dynamics, logits.detach(), batch)
    return {"loss": total / num_clips, "accuracy": float(dynamics.correct.double().mean())}, dynamics


@torch.inference_mode()
def measure_dynamics(model: nn.Module, batches: Iterable[Batch], num_clips: int) -> EpochDynamics:
    """One clean pass over the training clips."""
    model.eval()
    dynamics = EpochDynamics(torch.full((num_clips,), torch.nan), torch.zeros(num_clips, dtype=torch.bool))
    for batch in batches:
        _record(dynamics, model(*batch.inputs), batch)
    return dynamics


def _record(dynamics: EpochDynamics, logits: Tensor, batch: Batch) -> None:
    dynamics.probability[batch.positions] = objective.true_probability(logits, batch.labels).cpu()
    dynamics.correct[batch.positions] = objective.is_correct(logits, batch.labels).cpu()


@torch.inference_mode()
def evaluate(model: Any, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """All outputs of the model over a split, in its order, on the CPU; and `labels`."""
    model.eval()
    parts: list[dict[str, Tensor]] = []
    for batch in batches:
        outputs = model.outputs(*batch.inputs) | {"labels": batch.labels}
        parts.append({name: value.cpu() for name, value in outputs.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def fit(
    model: nn.Module,
    *,
    train: Batches,
    val: Batches,
    clean_train: Batches | None,
    num_clips: int,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int, int, int], float],
    epochs: int,
    checkpoint: Path,
    measure: Callable[[dict[str, Tensor]], dict[str, float]],
    after_epoch: Callable[[Progress, float], None],
) -> Progress:
    """Train until `epochs` passes are done, from the checkpoint where there is one.

    Args:
        model: on its device.
        train: shuffled, augmented batches.
        val: batches that the best epoch is chosen by.
        clean_train: the training clips without augmentation, for `--dynamics eval`; None records while training.
        num_clips: in the training split.
        optimizer: over the model's parameters.
        rate: learning rate from (epoch, step, steps per epoch).
        epochs: in all.
        checkpoint: file to resume from and to replace after every epoch.
        measure: metrics of one split from what `evaluate` returned.
        after_epoch: called with the progress and the epoch's seconds, after the checkpoint is safe.
    """
    progress = _resume(checkpoint, model, optimizer)
    for epoch in range(len(progress.records), epochs):
        began = time.perf_counter()

        def set_rate(step: int, epoch: int = epoch) -> None:
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch, step, len(train))

        try:
            learnt, dynamics = train_epoch(model, train.epoch(epoch), optimizer, num_clips, set_rate)
        except torch.OutOfMemoryError:
            raise AvptError("the device has too little memory; lower --batch-size, with --overwrite") from None
        if clean_train is not None:
            dynamics = measure_dynamics(model, clean_train.epoch(epoch), num_clips)
        values = measure(evaluate(model, val.epoch(epoch)))
        progress.probability.append(dynamics.probability)
        progress.correct.append(dynamics.correct)
        lr = optimizer.param_groups[0]["lr"]
        progress.records.append({"epoch": epoch + 1, "lr": lr, "train": learnt, "val": values})
        if objective.key_metric(values) > progress.best_value:
            progress.best_epoch, progress.best_value = epoch + 1, objective.key_metric(values)
            progress.best_model = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        _save(checkpoint, progress, model, optimizer)
        after_epoch(progress, time.perf_counter() - began)
    return progress


def _save(path: Path, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = {"progress": vars(progress), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with atomic(path) as beside:
        try:
            torch.save(state, beside)
        except RuntimeError as error:  # torch's word for what the disk says
            raise OSError(str(error)) from error


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    if not path.exists():
        return Progress()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its readers raise
        raise AvptError(f"{path} is damaged ({type(error).__name__}); --overwrite starts the run over") from None
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
