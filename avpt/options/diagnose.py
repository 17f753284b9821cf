"""The options of the commands that show what happened to encoders and runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from avpt.errors import ConfigError
from avpt.options.base import (
    CHANNELS,
    COMMON,
    HARDWARE,
    INPUTS,
    LARGEST_BATCH,
    MOST_CLIPS,
    OUTPUT,
    Config,
    Device,
    LoadingWorkers,
    OutputConfig,
    Search,
    Suffix,
    Transient,
    WeightsKey,
    flag,
)
from avpt.types import LARGEST_IMAGE, MOST_FRAMES, Modality


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
            help="Which encoder of a file that holds two, and what it is fed of the store's clips: sound (audio) or "
            "pictures (visual).",
            show_default="its own",
            rich_help_panel=INPUTS,
        ),
    ] = None
    weights_key: WeightsKey = None
    arch: Annotated[
        str | None,
        Option(
            help="The network, of a file that does not say.",
            show_default="what fits",
            metavar="NAME",
            rich_help_panel=INPUTS,
        ),
    ] = None
    after: Annotated[
        Path | None,
        Option(help="The same encoder later on, to show beside it.", show_default="none", rich_help_panel=INPUTS),
    ] = None
    threshold: Annotated[
        list[float] | None,
        Option(
            min=0,
            max=1000,
            help="Count the channels below this in a column of the table; repeatable.",
            show_default="1e-10 1e-6 2e-5 1e-3",
            rich_help_panel=CHANNELS,
        ),
    ] = None
    abnormal_threshold: Annotated[
        float,
        Option(
            min=0,
            max=1000,
            help="A BatchNorm channel counts as abnormal where the numbers that it multiplies by and adds are both "
            "smaller than this: it passes hardly anything on.",
            rich_help_panel=CHANNELS,
        ),
    ] = 1e-6
    store: Annotated[
        Path | None,
        Option(help="Store whose clips are fed, to find dead channels.", show_default="none", rich_help_panel=INPUTS),
    ] = None
    split: Annotated[
        Literal["train", "val", "test"], Option(help="Which clips of --store.", rich_help_panel=INPUTS)
    ] = "train"
    clips: Annotated[
        int, Option(min=2, max=MOST_CLIPS, help="How many clips of --store, at most.", rich_help_panel=INPUTS)
    ] = 512
    dead_share: Annotated[
        float,
        Option(
            min=0.5,
            max=1,
            help="A channel counts as dead where at least so much of its output is zero.",
            rich_help_panel=CHANNELS,
        ),
    ] = 0.999
    zero: Annotated[
        float,
        Option(
            min=0,
            max=1000,
            help="Largest output that counts as zero; abnormal channels may leave tiny values.",
            rich_help_panel=CHANNELS,
        ),
    ] = 0.0
    batch_size: Annotated[
        int,
        Option(
            min=2,
            max=LARGEST_BATCH,
            help="Clips at a time; BatchNorm takes their own mean and variance.",
            rich_help_panel=HARDWARE,
        ),
    ] = 64
    image_size: Annotated[
        int | None,
        Option(
            min=8,
            max=LARGEST_IMAGE,
            help="Side of the frames of --store, in pixels.",
            show_default="as trained, or 224",
            rich_help_panel=INPUTS,
        ),
    ] = None
    num_frames: Annotated[
        int | None,
        Option(
            min=1,
            max=MOST_FRAMES,
            help="Frames per clip of --store.",
            show_default="as trained, or 3",
            rich_help_panel=INPUTS,
        ),
    ] = None
    plot: Annotated[
        Path | None, Option(help="Folder for figures, PNG and PDF.", show_default="none", rich_help_panel=OUTPUT)
    ] = None
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace the figures in --plot.", rich_help_panel=COMMON), Transient
    ] = False
    seed: Annotated[
        int,
        Option(min=0, max=2**63 - 1, help="The same number chooses the same clips of --store.", rich_help_panel=COMMON),
    ] = 0
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
        Modality | None,
        Option(
            help="Which encoder of a fused model: that of sound (audio) or pictures (visual).",
            show_default="the only one",
            rich_help_panel=INPUTS,
        ),
    ] = None
    stage1: Annotated[
        Path | None,
        Option(
            "--stage1",
            help="Of a fused run: the fine-tuning run that its encoder came from, or one that started as it did.",
            show_default="found by its checksum",
            rich_help_panel=INPUTS,
        ),
    ] = None
    out: Annotated[
        Path | None,
        Option(
            help="Probe artifact to write, features kept (.safetensors).",
            show_default="only show",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Option(
            min=1, max=LARGEST_BATCH, help="Clips at a time.", show_default="as in training", rich_help_panel=HARDWARE
        ),
    ] = None
    image_size: Annotated[
        int | None,
        Option(
            min=8,
            max=LARGEST_IMAGE,
            help="Side of the frames, in pixels.",
            show_default="as trained, or 224",
            rich_help_panel=INPUTS,
        ),
    ] = None
    num_frames: Annotated[
        int | None,
        Option(
            min=1,
            max=MOST_FRAMES,
            help="Frames per clip.",
            show_default="as trained, or 3",
            rich_help_panel=INPUTS,
        ),
    ] = None
    search: Search = None
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
        Option(
            help="Metric to show and test; repeatable.",
            show_default="all, of which accuracy or map is tested",
            rich_help_panel=INPUTS,
        ),
    ] = None
    against: Annotated[
        list[Path] | None,
        Option(
            help="Test groups against that of this run alone, as against a baseline; repeatable.",
            show_default="every pair",
            rich_help_panel=INPUTS,
        ),
    ] = None
    csv: Annotated[
        Path | None,
        Option(
            help="Also write one row per run (.csv); means and tests are in --markdown and --json.",
            show_default="none",
            rich_help_panel=OUTPUT,
        ),
        Suffix((".csv",)),
    ] = None
    markdown: Annotated[
        Path | None,
        Option(
            help="Also write means and spread by group, what differs, and the tests (.md).",
            show_default="none",
            rich_help_panel=OUTPUT,
        ),
        Suffix((".md", ".markdown")),
    ] = None
    plot: Annotated[
        Path | None, Option(help="Folder for the curves, PNG and PDF.", show_default="none", rich_help_panel=OUTPUT)
    ] = None
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace what is there.", rich_help_panel=COMMON), Transient
    ] = False
    search: Search = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportConfig(Config):
    """The options of `avpt report`."""

    runs: Annotated[
        list[Path],
        Argument(
            help="Run folders of one experiment, or folders of runs; what they were made from is found. Confidence "
            "files that none of them was made with are shown where they are named here too."
        ),
    ]
    out: Annotated[Path, Option(help="Page to write (.html).", rich_help_panel=OUTPUT), Suffix((".html", ".htm"))]
    title: Annotated[
        str | None,
        Option(help="Title of the page.", show_default="the name of the runs' folder", rich_help_panel=OUTPUT),
    ] = None
    clips: Annotated[int, Option(min=0, max=64, help="Number of clips shown of each kind.", rich_help_panel=OUTPUT)] = 4
    search: Search = None
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace another page that is there.", rich_help_panel=COMMON), Transient
    ] = False
