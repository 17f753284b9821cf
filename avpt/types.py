"""The vocabulary that every layer shares; standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Modality = Literal["audio", "visual"]
Split = Literal["train", "val", "test"]
ScheduleName = Literal["step", "cosine", "constant"]
FrameCodec = Literal["jpeg", "raw"]  # avpt/media/codecs.py has an entry for each

MODALITIES: tuple[Modality, ...] = ("audio", "visual")
IN_WORDS: dict[Modality, str] = {"audio": "sound", "visual": "pictures"}  # what a clip has or lacks
CHANNELS: dict[Modality, int] = {"audio": 1, "visual": 3}  # of an encoder's input
TORCHVISION = ("resnet18", "resnet34", "resnet50")  # the architectures that are its; all others are timm's
SPLITS: tuple[Split, ...] = ("train", "val", "test")
HELD_OUT: tuple[Split, ...] = ("val", "test")
# bounds that options and the records made from them share
MOST_FRAMES = 100_000  # of one clip
MOST_SPECTROGRAM_FRAMES = 360_000  # an hour
MAX_PIXELS = 64_000_000  # of one frame, decoded or stored; a larger one is refused before it is allocated
LARGEST_IMAGE = 3072  # side in pixels
LARGEST_INPUT = 2**25  # values of one clip; a ResNet needs about 50 bytes of memory for each
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")  # of figures that avpt draws
PLAIN_SUFFIXES = frozenset({".csv", ".json", ".jsonl", ".md", ".html", *FIGURE_SUFFIXES})  # of what holds no weights
# in order of preference where several files have one name
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".avif", ".bmp", ".gif", ".jp2", ".pbm", ".pgm", ".ppm"),
    *(".pnm", ".tif", ".tiff", ".webp"),
)


@dataclass(frozen=True)
class Batch:
    """Clips on the device, ready for `model(*batch.inputs)`."""

    # audio (batch, 1, frame, mel) and / or visual (batch, frames, 3, height, width), and which are present (batch, 2)
    inputs: tuple[Tensor, ...]
    labels: Tensor  # (batch,) int64, or (batch, classes) float32 when multi-label
    positions: Tensor  # (batch,) int64, on the CPU: which clips of the split these are
    total: int = 0  # clips of the whole step where other processes hold some of them; 0 where these are all
    targets: Tensor | None = None  # (batch, classes) float32 shares of the classes, where clips are mixed
    draws: Tensor | None = None  # (batch,) int64 numbers of the epoch's draws, where a clip may be drawn repeatedly

    @property
    def rows(self) -> Tensor:
        """(batch,) int64, unique within an epoch: the rows of its record that belong to these clips."""
        return self.positions if self.draws is None else self.draws

    def part(self, clips: slice) -> Batch:
        """The batch of some of these clips."""
        inputs = tuple(values[clips] for values in self.inputs)
        targets, draws = (None if values is None else values[clips] for values in (self.targets, self.draws))
        return Batch(inputs, self.labels[clips], self.positions[clips], targets=targets, draws=draws)


class Folded(str):
    """A cell whose line breaks are ours and are shown; in any other cell they are escaped."""

    __slots__ = ()


class FilePath(str):
    """A cell that may lose its beginning where a table is too wide: files differ at the end of their paths."""

    __slots__ = ()


class Phrase(str):
    """A cell whose words stay on one line where the terminal has room for it, in a table of fewer columns."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """A titled grid of cells for people to read; the command line decides how it looks."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left: int = 1  # number of columns, from the left, that hold words; the others hold numbers


@dataclass(frozen=True)
class Report:
    """What a command did: the paths it wrote, the record that scripts read, tables for people.

    `problem` says what is wrong with the input, and the next step: it is shown last, with exit code 1. `text` is shown
    unchanged after the tables, and `words`, one sentence per line, folded to the terminal's width; `page` is Markdown,
    which a terminal renders and shows page by page.
    """

    summary: dict[str, Any]
    outputs: tuple[Path, ...] = ()
    tables: list[Table] = field(default_factory=list)
    problem: str | None = None
    text: str = ""
    words: str = ""
    page: str = ""
