"""The options of the commands that show files and use trained models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from avpt.errors import ConfigError
from avpt.options.base import (
    HARDWARE,
    INPUTS,
    LARGEST_BATCH,
    MISSING,
    MODEL,
    OUTPUT,
    PIECES,
    ClipTimeout,
    Config,
    DecodingWorkers,
    Device,
    LoadingWorkers,
    OutputConfig,
    Seed,
    Suffix,
    WorkerMemory,
)
from avpt.types import PLAIN_SUFFIXES, Modality


@dataclass(frozen=True, kw_only=True, eq=False)
class InfoConfig(Config):
    """The options of `avpt info`."""

    path: Annotated[Path, Argument(help="A store, a run folder, an artifact, or an exported model.")]
    tensors: Annotated[
        bool,
        Option("--tensors", help="Of an artifact also every layer and tensor.", rich_help_panel=OUTPUT),
    ] = False


@dataclass(frozen=True, kw_only=True, eq=False)
class GuideConfig(Config):
    """The options of `avpt guide`."""

    topic: Annotated[str | None, Argument(help="A page of the manual.", show_default="list them")] = None


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodersConfig(Config):
    """The options of `avpt encoders`."""

    pattern: Annotated[
        str | None,
        Argument(help="A part of the name, or a pattern with * and ?, such as 'resnet*d'.", show_default="all"),
    ] = None


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateConfig(OutputConfig):
    """The options of `avpt evaluate`."""

    resumes = False

    seed: Seed = 0
    model: Annotated[Path, Argument(help="Run folder, whose best model counts, or a classifier or fused artifact.")]
    store: Annotated[Path, Argument(help="Store written by `avpt preprocess`; classes are matched by name.")]
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        Option(help="Which clips of the store.", show_default="val and test", rich_help_panel=INPUTS),
    ] = None
    ensemble: Annotated[
        Path | None,
        Option(
            help="A second classifier, of the other modality: judge both as one, by the mean of their "
            "log-probabilities. It needs no training, and is what joint training has to beat.",
            show_default="none",
            rich_help_panel=INPUTS,
        ),
    ] = None
    drop: Annotated[
        Modality | None,
        Option(
            help="Of a fused model: leave out sound (audio) or pictures (visual).",
            show_default="none",
            rich_help_panel=MISSING,
        ),
    ] = None
    noise: Annotated[
        Modality | None,
        Option(
            help="Add white noise to sound (audio) or pictures (visual), as much as --snr says.",
            show_default="none",
            rich_help_panel=MISSING,
        ),
    ] = None
    snr: Annotated[
        float | None,
        Option(
            min=-100,
            max=100,
            help="With --noise: how much stronger the signal is, in dB.",
            show_default="no noise",
            rich_help_panel=MISSING,
        ),
    ] = None
    per_class: Annotated[
        bool,
        Option(
            "--per-class",
            help="Also each class's count and accuracy; in the record the confusion matrix.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    batch_size: Annotated[
        int | None,
        Option(
            min=1, max=LARGEST_BATCH, help="Clips at a time.", show_default="as in training", rich_help_panel=HARDWARE
        ),
    ] = None
    out: Annotated[
        Path | None,
        Option(help="Record to write (.json).", show_default="only show", rich_help_panel=OUTPUT),
        Suffix((".json",)),
    ] = None
    predictions: Annotated[
        Path | None,
        Option(
            help="Also write what the model answers to each clip, as logits (.safetensors).",
            show_default="none",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    workers: LoadingWorkers = None
    device: Device = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and self.out == self.predictions:
            raise ConfigError("--out and --predictions are two files, a record and tensors; give each its own name")
        if self.ensemble is not None and self.drop is not None:
            raise ConfigError("--drop does not go with --ensemble; evaluate the model that is to stay by itself")
        if self.noise is not None and self.snr is None:
            raise ConfigError(f"--noise {self.noise} needs --snr, such as --snr 10")
        if self.noise is not None and self.noise == self.drop:
            raise ConfigError(f"--noise {self.noise} does nothing beside --drop {self.drop}; leave one out")

    def idle(self) -> set[str]:
        """The seed changes nothing without noise."""
        return super().idle() | ({"seed"} if self.snr is None else set())


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictConfig(OutputConfig):
    """The options of `avpt predict`."""

    resumes = False

    model: Annotated[Path, Argument(help="Run folder, whose best model counts, or a classifier or fused artifact.")]
    files: Annotated[
        list[Path] | None,
        Argument(help="Videos, sounds or images; of a folder every media file in it.", show_default=False),
    ] = None
    manifest: Annotated[
        Path | None,
        Option(
            help="Clips as the rows of a CSV, for parts of files, or for sound and pictures in files of their own; "
            "label and split may be missing.",
            show_default="none",
            rich_help_panel=INPUTS,
        ),
    ] = None
    root: Annotated[
        Path | None,
        Option(
            help="Folder that paths in --manifest start from.", show_default="the manifest's", rich_help_panel=INPUTS
        ),
    ] = None
    segment: Annotated[
        float | None,
        Option(
            min=0.1,
            max=100_000,
            help="Cut long files into pieces of so many seconds: an answer for each, and their mean.",
            show_default="the beginning of each file",
            rich_help_panel=PIECES,
        ),
    ] = None
    hop: Annotated[
        float | None,
        Option(
            min=0.01,
            max=100_000,
            help="Seconds from the start of a piece to the start of the next.",
            show_default="--segment",
            rich_help_panel=PIECES,
        ),
    ] = None
    top: Annotated[
        int, Option(min=1, max=1_000_000, help="Number of classes shown of each clip.", rich_help_panel=OUTPUT)
    ] = 5
    format: Annotated[
        Literal["table", "csv", "jsonl"] | None,
        Option(
            help="A table to look at, or a line a clip (csv, jsonl).",
            show_default="what --out ends in, else table",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    out: Annotated[
        Path | None, Option(help="File to write (.csv, .jsonl).", show_default="stdout", rich_help_panel=OUTPUT)
    ] = None
    workers: DecodingWorkers = None
    clip_timeout: ClipTimeout = 60.0
    worker_memory: WorkerMemory = 4.0
    device: Device = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.files and self.manifest is None:
            raise ConfigError("there is nothing to label; give media files, or --manifest")
        if self.files and self.manifest is not None:
            raise ConfigError("--manifest does not go with files beside it; give one or the other")
        if self.segment is not None and self.manifest is not None:
            raise ConfigError("--segment does not go with --manifest, whose start and end cut the clips; leave it out")
        if self.hop is not None and self.segment is None:
            raise ConfigError("--hop does nothing without --segment; add that, or leave it out")
        if self.root is not None and self.manifest is None:
            raise ConfigError("--root does nothing without --manifest; leave it out")
        if self.out is not None and self.output_format == "table":
            raise ConfigError("--out takes --format csv or jsonl; a table is for the terminal")
        Suffix((f".{self.output_format}",)).check("--out", self.out)

    @property
    def output_format(self) -> str:
        """The format of the answers: --format, or else what --out ends in."""
        suffix = "" if self.out is None else self.out.suffix[1:]
        return self.format or (suffix if suffix in ("csv", "jsonl") else "table")


STATES = ("torchvision", "timm")  # the formats that are a state dict
SUFFIXES = {"torchvision": ".safetensors", "timm": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportConfig(OutputConfig):
    """The options of `avpt export`."""

    resumes = False

    model: Annotated[Path, Argument(help="Run folder, whose best model counts, or an artifact.")]
    format: Annotated[
        Literal["torchvision", "timm", "onnx", "torch-export"],
        Option(
            help="torchvision, timm: weights for a network of theirs (.safetensors); onnx (.onnx); torch-export: for "
            "torch.export (.pt2).",
            rich_help_panel=OUTPUT,
        ),
    ]
    out: Annotated[Path, Option(help="File to write.", rich_help_panel=OUTPUT)]
    modality: Annotated[
        Modality | None,
        Option(
            help="Of a fused model only the encoder of sound (audio) or pictures (visual).",
            show_default="the whole model",
            rich_help_panel=MODEL,
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        others = PLAIN_SUFFIXES.union(SUFFIXES.values()) - {SUFFIXES[self.format]}
        if self.out.suffix.lower() in others:
            raise ConfigError(
                f"--format {self.format} writes {SUFFIXES[self.format]} files, and --out is {self.out}; rename it"
            )
