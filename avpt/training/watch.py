"""What follows a run while it trains: its files, the display on the terminal, curves in a browser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from avpt.training.state import Batches, Clock, EpochState, Progress
from avpt.types import Batch


class Watcher:
    """Is notified of a run's progress and changes nothing about it; this one ignores everything.

    The first process of a job notifies its own watcher, so that sums over an epoch's clips cover its share of them
    until the epoch is done.
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
        """No further epoch will come, perhaps earlier than planned."""


class Watchers(Watcher):
    """Several watchers that are notified of the same, in order."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers = watchers

    def run_begun(self, progress: Progress) -> None:
        """Notify each of them."""
        for watcher in self.watchers:
            watcher.run_begun(progress)

    def epoch_begun(self, epoch: int, state: EpochState) -> None:
        """Notify each of them."""
        for watcher in self.watchers:
            watcher.epoch_begun(epoch, state)

    def step_done(self, epoch: int, state: EpochState, clock: Clock, positions: Tensor) -> None:
        """Notify each of them."""
        for watcher in self.watchers:
            watcher.step_done(epoch, state, clock, positions)

    def busy(self, what: str, done: int = 0, total: int = 0) -> None:
        """Notify each of them."""
        for watcher in self.watchers:
            watcher.busy(what, done, total)

    def epoch_done(self, progress: Progress, timing: dict[str, Any]) -> None:
        """Notify each of them."""
        for watcher in self.watchers:
            watcher.epoch_done(progress, timing)

    def training_done(self, progress: Progress) -> None:
        """Notify each of them."""
        for watcher in self.watchers:
            watcher.training_done(progress)


def announce_batches(batches: Batches, number: int, watcher: Watcher, what: str) -> Iterator[Batch]:
    """Yield the batches of one pass without training, and notify a watcher of each."""
    for done, batch in enumerate(batches.epoch(number)):
        watcher.busy(what, done, len(batches))
        yield batch
