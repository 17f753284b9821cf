"""TensorBoard's curves of what `metrics.jsonl` and `timing.jsonl` hold, and inputs as the network sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from avpt.errors import AvptError
from avpt.training.state import Progress
from avpt.training.watch import Watcher


def need_tensorboard() -> None:
    """Check that TensorBoard's writer can be loaded.

    Raises:
        AvptError: it is not installed.
    """
    try:
        import tensorboard  # noqa: F401
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise AvptError("--tensorboard needs tensorboard; get it with `pip install 'avpt[tensorboard]'`") from None


class Curves(Watcher):
    """Writes one point per curve and a few pictures for each epoch; its steps are epochs, counted from 1."""

    def __init__(
        self, folder: Path, timings: Mapping[int, dict[str, Any]], pictures: Callable[[int], dict[str, Tensor]]
    ) -> None:
        self.folder, self.timings, self.pictures = folder, timings, pictures
        self.writer: Any = None

    def run_begun(self, progress: Progress) -> None:
        """Add the epochs that the files lack; what a killed run wrote beyond its checkpoint is purged."""
        from torch.utils.tensorboard import SummaryWriter

        written = min(last_epoch(self.folder), len(progress.records))
        complete = max(0, written - 1)  # the last may be there in part
        self.writer = SummaryWriter(str(self.folder), purge_step=complete + 1)
        for record in progress.records[complete:]:
            self._write(record, self.timings.get(record["epoch"], {}))
        self.writer.flush()

    def epoch_done(self, progress: Progress, timing: dict[str, Any]) -> None:
        """Add the points and pictures of an epoch."""
        self._write(progress.records[-1], timing)
        self.writer.flush()  # nothing may be left in buffers when loading processes are forked

    def _write(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        epoch = record["epoch"]
        for name, value in (_flat(record) | _flat({"timing": timing})).items():
            if name not in ("epoch", "timing/epoch") and value is not None:
                self.writer.add_scalar(name, value, epoch)
        for name, picture in self.pictures(epoch).items():
            self.writer.add_image(name, picture, epoch)


@contextmanager
def draw_curves(
    folder: Path, timings: Mapping[int, dict[str, Any]], pictures: Callable[[int], dict[str, Tensor]]
) -> Iterator[Curves]:
    """Write curves to event files in `folder`, which are closed when the block ends.

    Args:
        folder: made where it does not exist.
        timings: rows of `timing.jsonl` by epoch, for epochs that were done before.
        pictures: those of an epoch (from 1) by name, each (3, height, width) uint8.
    """
    curves = Curves(folder, timings, pictures)
    try:
        yield curves
    finally:
        if curves.writer is not None:
            curves.writer.close()


def last_epoch(folder: Path) -> int:
    """The last epoch of which event files hold anything that was not purged; 0 where there is none."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.compat.proto.event_pb2 import SessionLog

    last = 0
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("summary"):
                last = max(last, event.step)
            elif event.session_log.status == SessionLog.START:
                last = min(last, event.step - 1)
    return last


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"val": {"loss": 1}}` -> `{"val/loss": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
