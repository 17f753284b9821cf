"""A progress bar on a terminal, plain lines elsewhere, nothing when logs are silenced; always on stderr.

Where nothing else moves on a terminal, as while torch is loaded, a line with the seconds shows that the program lives.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from avpt.types import Batch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

log = logging.getLogger(__name__)

LINE_EVERY = 10.0  # seconds between plain lines
PATIENCE = 1.0  # seconds that pass before a terminal shows that the program lives
DOTS = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"  # one after the other


@cache
def console() -> Console:
    """The one console for stderr, shared with the log handler so that bar and lines do not break each other up."""
    from rich.console import Console

    return Console(stderr=True)


class _Sign:
    """A line below the messages that shows how long the program has been at it."""

    def __init__(self) -> None:
        self.began, self.drawn = time.monotonic(), 0

    def drawing(self) -> Text:
        """The line; an empty one at first, as most commands are done soon."""
        from rich.text import Text

        seconds = time.monotonic() - self.began
        self.drawn += 1
        return Text(f"{DOTS[self.drawn % len(DOTS)]} {seconds:.0f} s" if seconds >= PATIENCE else "")

    def start(self) -> None:
        """Show it, and keep it moving in a thread."""
        from rich.live import Live

        self.live: Live = Live(console=console(), get_renderable=self.drawing, transient=True, redirect_stdout=False)
        self.live.start()

    def stop(self) -> None:
        """Remove it."""
        self.live.stop()


_sign: _Sign | None = None  # of the command that runs


@contextmanager
def alive() -> Iterator[None]:
    """Show on a terminal, while the block runs and nothing else moves there, that the program is at it."""
    global _sign
    if not (log.isEnabledFor(logging.INFO) and sys.stderr.isatty()) or console().is_dumb_terminal:
        yield
        return
    sign = _sign = _Sign()
    sign.start()
    try:
        yield
    finally:
        _sign = None
        sign.stop()


@contextmanager
def alone() -> Iterator[None]:
    """Keep that line away while something else moves on the terminal."""
    sign = _sign
    if sign is not None:
        sign.stop()
    try:
        yield
    finally:
        if sign is not None:
            sign.start()


@contextmanager
def track(total: int, what: str, *, can_fail: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show how far a count of clips has come, with rate, ETA and, where some `can_fail`, failures.

    Yields a function `show(done, failed)` to call with running totals.
    """
    if not log.isEnabledFor(logging.INFO):
        yield lambda done, failed: None
    elif sys.stderr.isatty():
        with alone(), _bar(total, what, can_fail) as show:
            yield show
    else:
        yield _lines(total, what, can_fail)


def track_batches(batches: Iterable[Batch], total: int, what: str) -> Iterator[Batch]:
    """Yield batches, and show how many clips have come so far."""
    with track(total, what, can_fail=False) as show:
        done = 0
        show(done, 0)
        for batch in batches:
            yield batch
            done += len(batch.labels)
            show(done, 0)


class _Rate:
    """Clips per second since the first one was done: neither clips done by an earlier run nor the start-up count."""

    def __init__(self) -> None:
        self.calls, self.first, self.began = 0, 0, 0.0

    def __call__(self, done: int) -> float:
        self.calls += 1
        if self.calls <= 2:  # the state at the start, then the first clip
            self.first, self.began = done, time.monotonic()
        return (done - self.first) / max(time.monotonic() - self.began, 1e-9)


@contextmanager
def _bar(total: int, what: str, can_fail: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        *([TextColumn("{task.fields[failed]} failed")] if can_fail else []),
    )
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(what, total=total, rate="", failed=0)
        rate = _Rate()

        def show(done: int, failed: int) -> None:
            progress.update(task, completed=done, rate=f"{rate(done):.1f}/s", failed=failed)

        yield show


def _lines(total: int, what: str, can_fail: bool) -> Callable[[int, int], None]:
    rate, last = _Rate(), time.monotonic()

    def show(done: int, failed: int) -> None:
        nonlocal last
        speed = rate(done)
        if time.monotonic() - last < LINE_EVERY and done < total:
            return
        last = time.monotonic()
        parts = [f"{done} of {total}", *([f"{speed:.1f}/s"] if speed > 0 else [])]
        if done < total:
            parts.append(f"{(total - done) / speed:.0f} s left" if speed > 0 else "time left unknown")
        log.info("%s: %s", what, ", ".join([*parts, *([f"{failed} failed"] if can_fail else [])]))

    return show
