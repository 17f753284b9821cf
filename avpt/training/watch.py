"""Who looks on while a run goes on: its files, what the terminal shows, curves in a browser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from avpt.training.state import Batches, Clock, EpochState, Progress
from avpt.types import Batch


class Watcher:
    """Is told how a run goes on, and changes nothing about it; as it is here, it looks away.

    The first process of a job tells its own, so that sums over an epoch's clips are its share until the epoch is done.
    """

    def run_begun(self, progress: Progress) -> None:
        """The checkpoint, where there is one, has been read."""

    def epoch_begun(self, epoch: int, state: EpochState) -> None:
        """An epoch (from 0) begins, or goes on after `state.step` steps."""

    def step_done(self, epoch: int, state: EpochState, clock: Clock, positions: Tensor) -> None:
        """A step has been taken, on the clips at these positions (clips,) int64 of the training split."""

    def busy(self, what: str, done: int = 0, total: int = 0) -> None:
        """The run does something other than training steps: `done` of `total` batches, where it has batches."""

    def epoch_done(self, progress: Progress, timing: dict[str, Any]) -> None:
        """An epoch is over and saved; `timing` is its row of `timing.jsonl`."""

    def training_done(self, progress: Progress) -> None:
        """No epoch is to come, perhaps sooner than planned."""


class Watchers(Watcher):
    """Several that are told the same, in order."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers = watchers

    def run_begun(self, progress: Progress) -> None:
        """Tell each."""
        for watcher in self.watchers:
            watcher.run_begun(progress)

    def epoch_begun(self, epoch: int, state: EpochState) -> None:
        """Tell each."""
        for watcher in self.watchers:
            watcher.epoch_begun(epoch, state)

    def step_done(self, epoch: int, state: EpochState, clock: Clock, positions: Tensor) -> None:
        """Tell each."""
        for watcher in self.watchers:
            watcher.step_done(epoch, state, clock, positions)

    def busy(self, what: str, done: int = 0, total: int = 0) -> None:
        """Tell each."""
        for watcher in self.watchers:
            watcher.busy(what, done, total)

    def epoch_done(self, progress: Progress, timing: dict[str, Any]) -> None:
        """Tell each."""
        for watcher in self.watchers:
            watcher.epoch_done(progress, timing)

    def training_done(self, progress: Progress) -> None:
        """Tell each."""
        for watcher in self.watchers:
            watcher.training_done(progress)


def announced(batches: Batches, number: int, watcher: Watcher, what: str) -> Iterator[Batch]:
    """One pass over some clips, which is not training; a watcher is told of each batch."""
    for done, batch in enumerate(batches.epoch(number)):
        watcher.busy(what, done, len(batches))
        yield batch
