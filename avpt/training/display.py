"""What stderr shows of a training run: a live table on a terminal, plain lines elsewhere, nothing when silenced."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import Tensor

from avpt.machine.progress import LINE_EVERY, alone, console
from avpt.text import format_count
from avpt.training.state import Clock, EpochState, Progress
from avpt.training.watch import Watcher

if TYPE_CHECKING:
    from rich.console import Group

log = logging.getLogger(__name__)

DRAW_EVERY = 0.5  # seconds between two states of the table, each of which costs training some 5 ms
EPOCHS_SHOWN = 10  # the latest; the best is shown besides
LONGEST_LINE = 100  # characters that an epoch's line stays under
OTHER_LINES = 9  # of the terminal, that the table's rows leave free

HEADS = {
    "loss": ("val", "loss"),
    "accuracy": ("val", "acc."),
    "map": ("val", "mAP"),
    "audio_accuracy": ("audio", "acc."),
    "visual_accuracy": ("visual", "acc."),
}


@contextmanager
def display(
    epochs: int, steps: int, timings: Mapping[int, dict[str, Any]], metrics: Sequence[str], encoders: Sequence[str]
) -> Iterator[Watcher]:
    """Show a run while the block runs; the last state of the table stays on the terminal.

    Args:
        epochs: number of epochs of the run.
        steps: number of steps of an epoch that has no further clips.
        timings: rows of `timing.jsonl` by epoch (from 1), for epochs that were done before.
        metrics: names of the metrics on val that are shown; the second chooses the best epoch.
        encoders: names of the encoders whose gradient norms are shown.
    """
    if not log.isEnabledFor(logging.INFO):
        yield Watcher()
    elif sys.stderr.isatty() and not console().is_dumb_terminal:
        table = _Table(epochs, steps, timings, metrics, encoders)
        with alone(), table.live:
            try:
                yield table
            except BaseException:
                table.end(f"stopped after step {table.step} of {table.steps}")
                raise
            table.end(f"done after {_duration(time.monotonic() - table.began)}")
    else:
        yield _Lines(epochs, steps, timings, metrics, encoders)


class _Board(Watcher):
    """Keeps the numbers to show. The cost of a step depends on its own clips, not on how many an epoch has."""

    every = DRAW_EVERY

    def __init__(
        self,
        epochs: int,
        steps: int,
        timings: Mapping[int, dict[str, Any]],
        metrics: Sequence[str],
        encoders: Sequence[str],
    ) -> None:
        self.epochs, self.steps, self.metrics, self.encoders = epochs, steps, metrics, encoders
        self.timings = dict(timings)  # of finished epochs, as their records
        self.records: list[dict[str, Any]] = []
        self.best_epoch = 0
        self.began = self.looked = time.monotonic()
        self.step, self.doing, self.over = 0, "starting", False
        self.clips, self.loss, self.correct = 0, 0.0, 0  # of the current epoch, sums over its clips so far
        self.unseen: list[Tensor] = []  # positions of the clips of steps that are not in these sums yet
        self.state: EpochState | None = None
        self.clock = Clock()
        self.norms: dict[str, float] = {}
        self.paces: list[tuple[int, float]] = [(0, 0.0), (0, 0.0)]  # steps and their seconds: last epoch, this one
        self.other_seconds = 0.0  # that an epoch takes besides its steps

    def look(self) -> None:
        """Show the numbers as they are."""

    def run_begun(self, progress: Progress) -> None:
        self.records, self.best_epoch = list(progress.records), progress.best_epoch
        last = self.timings.get(len(self.records), {})
        self.other_seconds = last.get("seconds", 0.0) - last.get("training_seconds", 0.0)
        self._look_sometimes(now=True)

    def epoch_begun(self, epoch: int, state: EpochState) -> None:
        seen = (state.loss != 0) | (state.probability != 0)
        self.clips, self.correct = int(seen.sum()), int(state.correct.sum())
        self.loss = float(state.loss.double().sum())
        self.step, self.norms, self.doing = state.step, state.mean_norms(), "waiting for the first step"
        self.clock = Clock(first_step=state.step)
        self._look_sometimes(now=True)

    def step_done(self, epoch: int, state: EpochState, clock: Clock, positions: Tensor) -> None:
        self.unseen.append(positions)
        self.step, self.state, self.clock, self.doing = state.step, state, clock, ""
        self.paces[1] = state.step - clock.first_step, clock.training
        self.steps = clock.steps or self.steps
        self._look_sometimes()

    def busy(self, what: str, done: int = 0, total: int = 0) -> None:
        self.doing = f"{what}, batch {done + 1} of {total}" if total else what
        self._look_sometimes(now=not done)

    def epoch_done(self, progress: Progress, timing: dict[str, Any]) -> None:
        self.records, self.best_epoch = list(progress.records), progress.best_epoch
        self.timings[timing["epoch"]] = timing
        self.other_seconds = timing["seconds"] - timing["training_seconds"]
        self.paces = [self.paces[1], (0, 0.0)]
        self.clips, self.step, self.doing, self.clock, self.norms = 0, 0, "", Clock(), {}
        self.unseen, self.state = [], None

    def training_done(self, progress: Progress) -> None:
        self.epochs = len(progress.records)

    def _look_sometimes(self, now: bool = False) -> None:
        if now or time.monotonic() - self.looked >= self.every:
            self.looked = time.monotonic()
            self._add_up()
            self.look()

    def _add_up(self) -> None:
        """Take the latest steps into the numbers; the device is asked for theirs no more often than they are shown."""
        if self.state is None:
            return
        self.state.read()
        for positions in self.unseen:
            self.clips += len(positions)
            self.loss += float(self.state.loss[positions].sum())
            self.correct += int(self.state.correct[positions].sum())
        self.norms, self.unseen, self.state = self.state.mean_norms(), [], None

    def left(self) -> str:
        """About how long the run still takes, in words; empty where that can't be estimated."""
        steps, seconds = (sum(values) for values in zip(*self.paces, strict=True))
        to_go = self.epochs - len(self.records)
        if self.over or not steps or not to_go:
            return ""
        return f"{_duration((to_go * self.steps - self.step) * seconds / steps + to_go * self.other_seconds)} left"

    def place(self) -> str:
        """How far the run has come, in words."""
        if len(self.records) == self.epochs:
            return ", ".join(filter(None, [format_count(self.epochs, "epoch"), self.doing]))
        doing = self.doing or f"step {self.step} of {self.steps}"
        return ", ".join(filter(None, [f"epoch {len(self.records) + 1} of {self.epochs}", doing, self.left()]))

    def current(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The current epoch, as rows of `metrics.jsonl` and `timing.jsonl`; its val is still to come."""
        train = {"loss": self.loss / self.clips, "accuracy": self.correct / self.clips} if self.clips else {}
        epoch = len(self.records) + 1
        record = {"epoch": epoch, "train": train, "val": {}, "gradient_norm": self.norms}
        return record, self.clock.row(epoch)


class _Lines(_Board):
    """One line per epoch, and one every ten seconds in between."""

    every = LINE_EVERY

    def _look_sometimes(self, now: bool = False) -> None:
        super()._look_sometimes()  # lines are not redrawn, so none is urgent

    def look(self) -> None:
        parts, further = [self.place()], []
        if self.clips and not self.doing:
            record, timing = self.current()
            parts += [f"loss {_loss(record['train']['loss'])}", f"acc. {record['train']['accuracy']:.3f}"]
            further = self._pace(record, timing)
        log.info(_line(parts, further))

    def epoch_done(self, progress: Progress, timing: dict[str, Any]) -> None:
        super().epoch_done(progress, timing)
        record = progress.records[-1]
        train, val, (loss, learnt, *alone) = record["train"], record["val"], self.metrics
        parts = [f"epoch {record['epoch']}", f"loss {_loss(train['loss'])}", f"acc. {train['accuracy']:.3f}"]
        parts += [f"val loss {_loss(val[loss])}", f"{HEADS[learnt][1]} {val[learnt]:.3f}"]
        parts += [f"{HEADS[name][0]} {val[name]:.3f}" for name in alone]
        further = [self.left(), f"best {self.best_epoch}"]
        if factors := record.get("gradient_factor"):
            further += [f"factor {' '.join(f'{name} {factor:.3g}' for name, factor in factors.items())}"]
        log.info(_line(parts, [*further, *self._pace(record, timing)]))
        self.looked = time.monotonic()

    def _pace(self, record: dict[str, Any], timing: dict[str, Any]) -> list[str]:
        norms = [f"{name} {norm:.3g}" for name, norm in record["gradient_norm"].items()]
        parts = []
        if timing["clips"]:
            parts += [f"{timing['clips_per_second']:.1f} clips/s", f"waiting {timing['waiting']:.0%}"]
        return parts + ([f"gradient {' '.join(norms)}"] if norms else [])


def _line(parts: Sequence[str], further: Sequence[str]) -> str:
    """A line of these parts, and of further ones as far as they fit: the run folder's records have them all."""
    line = "  ".join(parts)
    for part in filter(None, further):
        longer = f"{line}  {part}"
        line = longer if len(longer) < LONGEST_LINE else line
    return line


def _loss(value: float) -> str:
    return f"{value:.4f}" if value < 1000 else f"{value:.3g}"


class _Table(_Board):
    """A table of the latest epochs and the best, in 80 columns.

    It is drawn between steps: a thread that drew it could hold a lock while loading processes are forked.
    """

    def __init__(self, *run: Any) -> None:
        from rich.live import Live

        super().__init__(*run)
        self.live = Live(console=console(), get_renderable=self.drawing, auto_refresh=False, redirect_stdout=False)

    def look(self) -> None:
        self.live.refresh()

    def epoch_done(self, progress: Progress, timing: dict[str, Any]) -> None:
        super().epoch_done(progress, timing)
        self._look_sometimes(now=True)

    def end(self, how: str) -> None:
        """Leave the last state of the table, which says how the run ended."""
        self.over, self.doing = True, how
        self._add_up()
        self.look()

    def drawing(self) -> Group:
        """The table, and under it what the run is doing."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for i, head in enumerate(self._heads()):
            grid.add_column("\n".join(head), justify="left" if i == 1 else "right", no_wrap=True)
        shown = max(1, min(EPOCHS_SHOWN, console().height - OTHER_LINES))
        latest = self.records[-shown:]
        if self.best_epoch and self.best_epoch < latest[0]["epoch"]:
            latest = [self.records[self.best_epoch - 1], *latest]
        for record in latest:
            best = record["epoch"] == self.best_epoch
            grid.add_row(*self._cells(record, self.timings.get(record["epoch"], {})), style="bold" if best else "")
        if len(self.records) < self.epochs and (self.clips or not self.over):
            grid.add_row(*self._cells(*self.current()))
        by = " ".join(HEADS[self.metrics[1]])
        return Group(grid, Text(f" {self.place()}"), Text(f" * best so far, by {by}" if self.best_epoch else ""))

    def _heads(self) -> list[tuple[str, str]]:
        heads = [("", "epoch"), ("", ""), ("train", "loss"), ("train", "acc."), *(HEADS[name] for name in self.metrics)]
        return [*heads, ("clips", "/s"), ("data", "wait"), *((name, "grad.") for name in self.encoders)]

    def _cells(self, record: dict[str, Any], timing: dict[str, Any]) -> list[str]:
        def cell(values: Mapping[str, Any], name: str, form: str) -> str:
            value = values.get(name)
            return "" if value is None else format(value, form if value < 1000 else ".3g")  # at most 8 characters

        learnt, val, norms = record["train"], record["val"], record["gradient_norm"]
        cells = [str(record["epoch"]), "*" if record["epoch"] == self.best_epoch else ""]
        cells += [cell(learnt, "loss", ".4f"), cell(learnt, "accuracy", ".3f")]
        cells += [cell(val, name, ".4f" if name == "loss" else ".3f") for name in self.metrics]
        cells += [cell(timing, "clips_per_second", ".1f"), cell(timing, "waiting", ".0%")]
        return cells + [cell(norms, name, "#.3g") for name in self.encoders]


def _duration(seconds: float) -> str:
    """`1:02:03`, with days before it where there are any."""
    return str(timedelta(seconds=round(seconds)))
