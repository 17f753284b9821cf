"""How far a run has come: its epochs so far, the steps of the current one, and where its time goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from avpt.training import metrics, objective
from avpt.training.world import World
from avpt.types import Batch


class Batches(Protocol):
    """What the loop needs of a loader."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """One pass over the clips, from batch `start` on."""
        ...

    def __len__(self) -> int: ...


@dataclass
class EpochState:
    """The results of an epoch after some of its steps."""

    probability: Tensor  # (clips,) float32 of the true class, 0 where not yet seen
    correct: Tensor  # (clips,) bool
    loss: Tensor  # (clips,) float32: a sum would depend on the order in which processes and resumed parts are added
    step: int = 0  # steps taken
    skipped: int = 0  # of these, by the scaler of fp16, because a gradient was too large for it
    norms: dict[str, float] = field(default_factory=dict)  # of the gradients that reach each encoder, sums over steps
    factors: dict[str, float] = field(
        default_factory=dict
    )  # of each encoder's gradients, by the balancing method; sums over steps
    further: Tensor | None = None  # clips that a balancing method adds, (n, 3) int64: `Loader`; their rows come last

    def record(self, logits: Tensor, batch: Batch) -> None:
        """Record how sure the model is of each clip of a batch, and the loss without smoothing."""
        self.loss[batch.rows] = objective.clip_losses(logits.float(), batch.labels, batch.targets).cpu()
        self.probability[batch.rows] = objective.true_probability(logits, batch.labels).cpu()
        self.correct[batch.rows] = metrics.is_correct(logits, batch.labels).cpu()

    def merged(self, world: World) -> EpochState:
        """The epoch's results over the clips of all processes."""
        return replace(
            self,
            probability=world.sum(self.probability),
            correct=world.sum(self.correct.to(torch.uint8)).bool(),
            loss=world.sum(self.loss),
        )

    def plain(self, num_clips: int) -> EpochState:
        """The results without those of further clips."""
        kept = slice(num_clips)
        return replace(self, probability=self.probability[kept], correct=self.correct[kept], loss=self.loss[kept])

    def without_clips(self) -> EpochState:
        """The same step of the epoch, none of whose clips this process has seen."""
        clean = new_epoch(len(self.loss))
        return replace(self, probability=clean.probability, correct=clean.correct, loss=clean.loss)

    def mean_norms(self) -> dict[str, float]:
        """The mean norm of each encoder's gradients, over the steps that were not skipped."""
        return {name: total / (self.step - self.skipped) for name, total in self.norms.items()}


def new_epoch(num_clips: int, further: Tensor | None = None) -> EpochState:
    """An epoch that has not begun; it may have further clips beside the plain ones."""
    rows = num_clips if further is None else num_clips + len(further)
    return EpochState(torch.zeros(rows), torch.zeros(rows, dtype=torch.bool), torch.zeros(rows), further=further)


@dataclass
class Progress:
    """A run so far: everything that resuming needs besides model and optimiser."""

    records: list[dict[str, Any]] = field(default_factory=list)  # one per epoch, as in metrics.jsonl
    probability: list[Tensor] = field(default_factory=list)  # per epoch (clips,) float32
    correct: list[Tensor] = field(default_factory=list)  # per epoch (clips,) bool
    best_epoch: int = 0  # counted from 1; the first of equals
    best_value: float = -1.0
    best_model: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Clock:
    """Where an epoch's time goes; no result depends on it."""

    first_step: int = 0  # steps taken before the run was resumed, which another clock timed
    steps: int = 0  # of the epoch; 0 until that is known
    began: float = field(default_factory=time.perf_counter)
    clips: int = 0  # handed to training, in all processes
    waiting: float = 0.0  # seconds that training waited for batches
    trained: float | None = None  # seconds of the training pass, once it is over
    evaluated: float = 0.0  # seconds of the passes after it

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and add up how long training waited for each."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            self.waiting += time.perf_counter() - asked
            if batch is None:
                return
            self.clips += batch.total or len(batch.labels)
            yield batch

    @property
    def seconds(self) -> float:
        """Seconds since the epoch began, or was resumed."""
        return time.perf_counter() - self.began

    @property
    def training(self) -> float:
        """Seconds of the training pass so far."""
        return self.seconds if self.trained is None else self.trained

    def row(self, epoch: int) -> dict[str, Any]:
        """An epoch (from 1) as `timing.jsonl` has it; rates are of the training pass, None where no step was left."""
        training = self.training
        row = {
            "epoch": epoch,
            "seconds": round(self.seconds, 3),
            "training_seconds": round(training, 3),
            "evaluation_seconds": round(self.evaluated, 3),
            "clips": self.clips,
            "clips_per_second": round(self.clips / training, 2) if self.clips else None,
            "waiting": round(self.waiting / training, 4) if self.clips else None,
        }
        return row | ({"resumed_at_step": self.first_step} if self.first_step else {})
