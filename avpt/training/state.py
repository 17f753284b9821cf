"""How far a run has come: its epochs so far, the steps of the current one, and where its time goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
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


class NotFiniteError(Exception):
    """The loss or a gradient is infinite or not a number.

    `positions` are the clips of the step, `to_blame` those of them whose own loss is not finite, `damaged` those whose
    input already is not.
    """

    def __init__(self, problem: str, taken: Taken, losses: Tensor) -> None:
        super().__init__(problem)
        self.step, self.positions = taken.step, taken.positions
        self.to_blame = self.positions[~losses[taken.rows].isfinite()]
        self.damaged = self.positions[~taken.intact().cpu()]


@dataclass(frozen=True)
class Taken:
    """A step that was taken, whose numbers are on the device until they are read."""

    step: int  # of the epoch, from 0
    positions: Tensor  # (clips,) int64, on the CPU, and their rows
    rows: Tensor
    losses: Tensor  # (parts,) what each part's gradients are of; empty where that is not looked at
    norms: Mapping[str, Tensor]  # of the gradients that reach each encoder
    rest: Tensor  # the norm of all other gradients
    intact: Callable[[], Tensor]  # (clips,) bool: whose input is finite


@dataclass
class Unread:
    """What the device has that the CPU has not seen yet: each look at it waits until all kernels so far are done."""

    clips: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)  # rows, loss, probability, correct
    steps: list[Taken] = field(default_factory=list)
    lost: NotFiniteError | None = None  # the first step whose numbers were not finite, once they were read


@dataclass
class EpochState:
    """The results of an epoch after some of its steps; `read` them before looking."""

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

    @cached_property
    def unread(self) -> Unread:
        """What is still on the device; no field, as no checkpoint has it."""
        return Unread()

    def record(self, logits: Tensor, batch: Batch) -> None:
        """Record how sure the model is of each clip of a batch, and the loss without smoothing."""
        loss = objective.clip_losses(logits.float(), batch.labels, batch.targets)
        right = metrics.is_correct(logits, batch.labels)
        self.unread.clips.append((batch.rows, loss, objective.true_probability(logits, batch.labels), right))

    def read(self) -> None:
        """Fetch what the device has of the steps so far, in as few copies as there are kinds of it."""
        clips, steps = self.unread.clips, self.unread.steps
        if clips:
            rows, *results = (torch.cat(parts) for parts in zip(*clips, strict=True))
            for whole, values in zip((self.loss, self.probability, self.correct), results, strict=True):
                whole[rows] = values.cpu()
            clips.clear()
        if not steps:
            return
        numbers = torch.cat([torch.stack([*taken.norms.values(), taken.rest]) for taken in steps]).tolist()
        losses = torch.cat([taken.losses for taken in steps]).tolist()
        for taken in steps:
            own, numbers = numbers[: len(taken.norms) + 1], numbers[len(taken.norms) + 1 :]
            parts, losses = losses[: len(taken.losses)], losses[len(taken.losses) :]
            wrong = [f"loss is {loss}" for loss in parts if not math.isfinite(loss)]
            if not wrong and not all(map(math.isfinite, own)):
                wrong = ["gradient is not finite"]
            if wrong:
                self.unread.lost = self.unread.lost or NotFiniteError(wrong[0], taken, self.loss)
            elif self.unread.lost is None:
                self.add_norms(dict(zip(taken.norms, own, strict=False)))
        steps.clear()

    def add_norms(self, norms: Mapping[str, float]) -> None:
        """Add the norms of a step's gradients to the sums."""
        self.norms = {name: self.norms.get(name, 0.0) + norm for name, norm in norms.items()}

    def check(self) -> None:
        """Read everything; all processes do so after the same steps.

        Raises:
            NotFiniteError: the loss, or a gradient, of a step was not a number.
        """
        self.read()
        if self.unread.lost is not None:
            raise self.unread.lost

    def merged(self, world: World) -> EpochState:
        """The epoch's results over the clips of all processes."""
        self.check()
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
