"""All that a checkpoint holds of a run, how it is saved, and how a run resumes from it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from avpt.errors import AvptError
from avpt.training import runtime
from avpt.training.checkpoint import load_checkpoint, save_checkpoint
from avpt.training.passes import Stepping
from avpt.training.state import EpochState, Progress, new_epoch
from avpt.training.watch import Watcher
from avpt.training.world import World

log = logging.getLogger(__name__)

LOSABLE = ("the weights", "BatchNorm's running statistics", "the averaged weights", "the optimiser's sums")


@dataclass
class RunState:
    """A run after some of its steps: what learns, its results so far, where they are saved, and its watcher."""

    model: nn.Module
    average: AveragedModel | None  # of the weights
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    checkpoint: Path  # replaced by each save
    watcher: Watcher
    world: World
    job: dict[str, Any]  # processes and their steps per epoch, and what else the bytes of the result depend on
    begun_by: dict[str, Any]  # the job that saved the checkpoint; this one where there is no checkpoint
    epoch: EpochState  # this process's share of it
    progress: Progress = field(default_factory=Progress)

    @property
    def judged(self) -> nn.Module:
        """What is evaluated and kept as the best: the average of the weights, where there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def parts(self) -> dict[str, Any]:
        """What learns, by its names in a checkpoint."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts if self.average is None else parts | {"average": self.average}

    def take_back(self, saved: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.progress, self.epoch = Progress(**saved["progress"]), EpochState(**saved["epoch"])
        self.begun_by = saved["job"]

    def not_finite_error(self, what: str, advice: str = "lower --lr, with --overwrite") -> AvptError:
        """The error that ends a run whose numbers are no longer finite."""
        last = f"the last checkpoint is {self.checkpoint}" if self.checkpoint.exists() else "nothing was saved yet"
        return AvptError(f"{what}; {last}; {advice}")


def new_run(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stepping: Stepping,
    checkpoint: Path,
    watcher: Watcher,
    world: World,
    *,
    num_clips: int,
    num_steps: int,
) -> RunState:
    """A run that has not begun, on the model's device; `num_steps` is the number of steps in an epoch."""
    device = next(model.parameters()).device
    job = {"processes": world.size, "steps": num_steps, **runtime.environment(device)}
    scaler = torch.amp.GradScaler(device.type, enabled=stepping.precision == "fp16")
    epoch = new_epoch(num_clips)
    return RunState(model, stepping.average, optimizer, scaler, checkpoint, watcher, world, job, job, epoch)


def resume(run: RunState) -> bool:
    """Resume from the checkpoint, and return whether there is one.

    Raises:
        AvptError: it can't be used, or another process has another one.
    """
    resumed = load_checkpoint(run.checkpoint, run.take_back)
    _check_resumed(run)
    if not run.world.is_first:  # what was done before is counted by the first process alone
        run.epoch = run.epoch.without_clips()
    return resumed


def save(run: RunState) -> None:
    """Replace the checkpoint.

    Raises:
        AvptError: something in it is not a number.
    """
    run.watcher.busy("saving")
    merged = run.epoch.merged(run.world)
    done = len(run.progress.records)
    after = f"step {run.epoch.step} of epoch {done + 1}" if run.epoch.step else f"epoch {done}"
    first_bad = run.world.least(first_not_finite(run))
    if first_bad < len(LOSABLE):
        raise run.not_finite_error(f"{LOSABLE[first_bad]} are no longer numbers after {after}")
    if run.world.is_first:
        states = {name: part.state_dict() for name, part in run.parts.items()}
        record = {"progress": vars(run.progress), "epoch": vars(merged), "job": run.job}
        save_checkpoint(run.checkpoint, record | states)


def first_not_finite(run: RunState) -> int:
    """Which of LOSABLE, by index, is the first to hold an infinite value or NaN; their count where all are finite."""
    sums = [value for state in run.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    averages = [] if run.average is None else run.average.state_dict().values()
    for number, tensors in enumerate((run.model.parameters(), run.model.buffers(), averages, sums)):
        if not all(bool(values.isfinite().all()) for values in tensors):
            return number
    return len(LOSABLE)


def _check_resumed(run: RunState) -> None:
    """Check that all processes resume from one place, and that its steps still mean the same.

    Another device, number of threads or version of torch leads to a warning: their kernels round differently.
    """
    checkpoint, begun_by, job = run.checkpoint, run.begun_by, run.job
    place = len(run.progress.records), run.epoch.step
    if place != run.world.first(lambda: place):
        raise AvptError(f"{checkpoint} is not the same everywhere; --out must be where all machines see it")
    for name in ("device", "threads", "torch"):
        if begun_by.get(name, job[name]) != job[name]:  # older checkpoints do not record it
            message = (
                "%s was made with %s %s, going on with %s: the result is not that of an undisturbed run to the bit"
            )
            log.warning(message, checkpoint, name, begun_by[name], job[name])
    if begun_by["processes"] == job["processes"]:
        return
    was, now = begun_by["processes"], job["processes"]
    if run.epoch.step and begun_by["steps"] != job["steps"]:
        raise AvptError(
            f"{checkpoint} was made by {was} process(es) that took {begun_by['steps']} steps an epoch, "
            f"{now} take {job['steps']}; start {was}, or --overwrite"
        )
    log.warning("%s was made by %d process(es); going on with %d changes the result", checkpoint, was, now)
