"""The options of the commands that show what happened to encoders and runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from avpt.errors import ConfigError
from avpt.options.base import (
    LARGEST_BATCH,
    MOST_CLIPS,
    Config,
    Device,
    LoadingWorkers,
    OutputConfig,
    Transient,
    UnusedSeed,
    flag,
)
from avpt.types import LARGEST_IMAGE, MOST_FRAMES, Modality

Search = Annotated[
    list[Path] | None,
    Option(
        "--search",
        help="Folder to find inputs in, by their checksums, besides what is around; repeatable.",
        show_default="none",
    ),
]


@dataclass(frozen=True, kw_only=True, eq=False)
class InspectConfig(Config):
    """The options of `avpt inspect`."""

    encoder: Annotated[
        Path,
        Argument(help="imagenet, or a file: safetensors, PyTorch checkpoint, avpt artifact or run folder."),
    ]
    modality: Annotated[
        Modality | None,
        Option(
            help="Which encoder of a file that holds two; what the store's clips are fed as.", show_default="its own"
        ),
    ] = None
    arch: Annotated[
        Literal["resnet18", "resnet34", "resnet50"] | None,
        Option(help="Of a file that does not say.", show_default="what fits"),
    ] = None
    after: Annotated[Path | None, Option(help="The same encoder later on, to show beside it.", show_default="none")] = (
        None
    )
    threshold: Annotated[
        list[float] | None,
        Option(
            min=0,
            max=1000,
            help="Of abnormal channels, for the table; repeatable.",
            show_default="1e-10 1e-6 2e-5 1e-3",
        ),
    ] = None
    abnormal_threshold: Annotated[
        float, Option(min=0, max=1000, help="The one that dead channels and the record's `abnormal` go by.")
    ] = 1e-6
    store: Annotated[
        Path | None, Option(help="Store whose clips are fed, to find dead channels.", show_default="none")
    ] = None
    split: Annotated[Literal["train", "val", "test"], Option(help="Which clips.")] = "train"
    clips: Annotated[int, Option(min=2, max=MOST_CLIPS, help="How many, at most.")] = 512
    dead_share: Annotated[
        float, Option(min=0.5, max=1, help="A channel is dead where so much of its activation is zero.")
    ] = 0.999
    zero: Annotated[
        float,
        Option(min=0, max=1000, help="An activation up to this counts as zero: tiny gammas may leave tiny values."),
    ] = 0.0
    batch_size: Annotated[
        int, Option(min=2, max=LARGEST_BATCH, help="Clips at a time, whose own statistics BatchNorm takes.")
    ] = 64
    image_size: Annotated[
        int | None, Option(min=8, max=LARGEST_IMAGE, help="Side of frames, pixels.", show_default="as trained, or 224")
    ] = None
    num_frames: Annotated[
        int | None, Option(min=1, max=MOST_FRAMES, help="Frames per clip.", show_default="as trained, or 3")
    ] = None
    plot: Annotated[Path | None, Option(help="Folder for figures, PNG and PDF.", show_default="none")] = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the figures in --plot."), Transient] = False
    seed: Annotated[int, Option(min=0, max=2**63 - 1, help="Chooses the clips.")] = 0
    workers: LoadingWorkers = None
    device: Device = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "num_frames"):
            if self.store is None and getattr(self, name) is not None:
                raise ConfigError(f"{flag(name)} is for clips; say with --store whose")

    @property
    def thresholds(self) -> list[float]:
        """The thresholds of the table, the lowest first."""
        return sorted(set(self.threshold or (1e-10, 1e-6, 2e-5, 1e-3)))


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeConfig(OutputConfig):
    """The options of `avpt probe`."""

    resumes = False

    model: Annotated[Path, Argument(help="Run folder, whose best model counts, or an artifact with an encoder.")]
    store: Annotated[Path, Argument(help="Store written by `avpt preprocess`.")]
    modality: Annotated[
        Modality | None, Option(help="Which encoder of a fused model.", show_default="the only one")
    ] = None
    stage1: Annotated[
        Path | None,
        Option("--stage1", help="Of a fused run: what its encoder started from.", show_default="found by its checksum"),
    ] = None
    out: Annotated[
        Path | None, Option(help="Probe artifact to write, features kept (.safetensors).", show_default="only show")
    ] = None
    batch_size: Annotated[
        int | None, Option(min=1, max=LARGEST_BATCH, help="Clips at a time.", show_default="as in training")
    ] = None
    image_size: Annotated[
        int | None, Option(min=8, max=LARGEST_IMAGE, help="Side of frames, pixels.", show_default="as trained, or 224")
    ] = None
    num_frames: Annotated[
        int | None, Option(min=1, max=MOST_FRAMES, help="Frames per clip.", show_default="as trained, or 3")
    ] = None
    search: Search = None
    seed: UnusedSeed = 0
    workers: LoadingWorkers = None
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True, eq=False)
class CompareConfig(Config):
    """The options of `avpt compare`."""

    runs: Annotated[
        list[Path], Argument(help="Run folders, or folders of runs; runs that differ in the seed alone make a group.")
    ]
    metric: Annotated[
        list[str] | None,
        Option(help="Metric to show and test; repeatable.", show_default="all, of which accuracy or map is tested"),
    ] = None
    csv: Annotated[
        Path | None,
        Option(help="Also write a row a run; means and tests are in --markdown and --json.", show_default="none"),
    ] = None
    markdown: Annotated[
        Path | None,
        Option(help="Also write means and spread by group, what differs, and the tests.", show_default="none"),
    ] = None
    plot: Annotated[Path | None, Option(help="Folder for the curves, PNG and PDF.", show_default="none")] = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace what is there."), Transient] = False
    search: Search = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportConfig(Config):
    """The options of `avpt report`."""

    runs: Annotated[
        list[Path],
        Argument(help="Run folders of one experiment, or folders of runs; what they were made from is found."),
    ]
    out: Annotated[Path, Option(help="Page to write (.html).")]
    title: Annotated[str | None, Option(help="Of the page.", show_default="the name of the runs' folder")] = None
    clips: Annotated[int, Option(min=0, max=64, help="Clips shown of each kind.")] = 4
    search: Search = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace another page that is there."), Transient] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise ConfigError(f"--out is {self.out}, and the page is HTML; name a .html file")
