"""Options, each declared once: the command line, the library call and the provenance record read them here."""

import dataclasses
import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast, get_args, get_type_hints

from typer import Argument, Option
from typer.models import ParameterInfo

from avpt.errors import ConfigError
from avpt.types import Modality

AUGMENTATION = "Augmentation"  # a heading in help; also so that --no-flip takes no room beside the other options


class Transient:
    """Marks an option that can't change the result: it is not recorded and not compared."""


def type_hints(config_type: "type[Config]") -> dict[str, Any]:
    """Each field's annotation, with the Option or Argument and the markers that go with it."""
    return _evaluated(cast(Hashable, config_type))


@cache
def _evaluated(config_type: Any) -> dict[str, Any]:
    return get_type_hints(config_type, include_extras=True)  # evaluates source text: once a class, not once a field


def parameter(config_type: "type[Config]", name: str) -> ParameterInfo:
    """The Typer Option or Argument that declares the field."""
    metadata = type_hints(config_type)[name].__metadata__
    return next(item for item in metadata if isinstance(item, ParameterInfo))


def flag(name: str) -> str:
    """`mask_ratio` -> `--mask-ratio`."""
    return "--" + name.replace("_", "-")


def bounds(info: ParameterInfo) -> str:
    """The range of a numeric option in words; empty where it has none."""
    if info.min is not None and info.max is not None:
        return f"{info.min:g} to {info.max:g}"
    return f"{info.min:g} or more" if info.min is not None else ""


def allows(config_type: "type[Config]", name: str, value: Any) -> bool:
    """Whether an option could have had a value that some file says it had."""
    kind, info = get_args(type_hints(config_type)[name])[0], parameter(config_type, name)
    if get_args(kind):
        return value in get_args(kind)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        return kind is bool and isinstance(value, bool)
    if isinstance(value, str):
        return True
    low = -math.inf if info.min is None else info.min
    return bool(math.isfinite(value) and low <= value <= (math.inf if info.max is None else info.max))


def _names_path(kind: Any) -> bool:
    """Whether a field holds a path or several: Path, Path | None, list[Path] | None."""
    return kind is Path or any(map(_names_path, get_args(kind)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Config:
    """What every command takes. Ranges are applied here, to library callers too."""

    json: Annotated[bool, Option("--json", help="Print the summary record as one JSON line."), Transient] = False
    quiet: Annotated[bool, Option("--quiet", help="No progress, logs or tables on stderr."), Transient] = False
    debug: Annotated[bool, Option("--debug", help="Show the traceback of an error."), Transient] = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, info = getattr(self, field.name), parameter(type(self), field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            for number in numbers:
                if isinstance(number, bool) or not isinstance(number, int | float):
                    continue
                low = -math.inf if info.min is None else info.min
                high = math.inf if info.max is None else info.max
                if not (math.isfinite(number) and low <= number <= high):
                    raise ConfigError(f"{flag(field.name)} is {number:g}; it must be {bounds(info) or 'finite'}")

    def record(self) -> dict[str, Any]:
        """The options that can change the result. Paths are left out: the stage records what they held."""
        recorded = {}
        for field in dataclasses.fields(self):
            kind, *metadata = get_args(type_hints(type(self))[field.name])
            if Transient not in metadata and not _names_path(kind):
                recorded[field.name] = getattr(self, field.name)
        return {name: value for name, value in recorded.items() if name not in self.idle()}

    def idle(self) -> set[str]:
        """Options that change nothing beside the others as they are."""
        return set()

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of every option that has one."""
        return {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING and f.init}


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputConfig(Config):
    """A command that writes files."""

    goes_on: ClassVar[bool] = True  # where it was interrupted, and does not start over

    seed: Annotated[int, Option(min=0, max=2**63 - 1, help="Fixes everything that is random.")] = 0
    overwrite: Annotated[
        bool, Option("--overwrite", help="Start over: remove what avpt wrote at --out."), Transient
    ] = False


@dataclass(frozen=True, kw_only=True, eq=False)
class InfoConfig(Config):
    """`avpt info`."""

    path: Annotated[Path, Argument(help="A store, a run folder, an artifact, or an exported model.")]


@dataclass(frozen=True, kw_only=True, eq=False)
class VerifyConfig(Config):
    """`avpt verify`."""

    store: Annotated[Path, Argument(help="Store written by `avpt preprocess`.")]
    deep: Annotated[bool, Option("--deep", help="Decode each JPEG too.")] = False
    workers: Annotated[int | None, Option(min=1, help="Checking processes.", show_default="cores"), Transient] = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ManifestConfig(OutputConfig):
    """`avpt manifest`."""

    name: Annotated[
        Literal["kinetics-sounds", "vggsound", "audioset", "crema-d", "esc50", "image-folder", "folder"],
        Argument(help="The data set; folder and image-folder are class folders, perhaps in train, val, test."),
    ]
    folder: Annotated[Path, Argument(help="Where its media lie, at any depth.")]
    out: Annotated[Path, Option(help="Manifest to write (.csv).")]
    seed: Annotated[
        int, Option(min=0, max=2**63 - 1, help="Taken like everywhere; nothing here is random."), Transient
    ] = 0
    lists: Annotated[
        list[Path] | None,
        Option("--list", help="A list that the data set ships; repeatable.", show_default="those in FOLDER"),
    ] = None
    classes: Annotated[
        Path | None,
        Option(help="AudioSet: class_labels_indices.csv.", show_default="the one in FOLDER or beside a list"),
    ] = None
    trimmed: Annotated[
        bool, Option("--trimmed", help="Files named by a YouTube id alone hold the clip, not the whole video.")
    ] = False
    test_fold: Annotated[int | None, Option(min=1, max=5, help="ESC-50: the fold to test on.", show_default="5")] = None
    val_fraction: Annotated[
        float,
        Option(min=0, max=0.9, help="Carved from train by a hash of the YouTube id, ESC-50's src_file, else the id."),
    ] = 0.0
    test_fraction: Annotated[
        float | None,
        Option(min=0, max=0.9, help="The same where there is no test split.", show_default="0; crema-d 0.1"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        folders = self.name in ("image-folder", "folder")
        youtube = self.name in ("kinetics-sounds", "vggsound", "audioset")
        official = not folders and (self.name != "crema-d" or bool(self.lists))
        for option, unfit, why in (
            ("--list", self.lists and folders, "its folders say which clips there are"),
            ("--classes", self.classes and self.name != "audioset", "only AudioSet's lists need one"),
            ("--trimmed", self.trimmed and not youtube, "its files are not named by YouTube ids"),
            ("--test-fold", self.test_fold is not None and self.name != "esc50", "only ESC-50 has folds"),
            ("--test-fraction", self.test_fraction is not None and official, "its lists say which clips are test"),
        ):
            if unfit:
                raise ConfigError(f"{option} does not go with {self.name}: {why}; leave it out")
        if self.test_share + self.val_fraction >= 1:
            raise ConfigError(
                f"--test-fraction {self.test_share:g} and --val-fraction {self.val_fraction:g} leave nothing for train"
            )

    @property
    def fold(self) -> int:
        """The test fold of ESC-50."""
        return 5 if self.test_fold is None else self.test_fold

    @property
    def test_share(self) -> float:
        """What the hash gives to the test split; CREMA-D's lists hold out a tenth."""
        if self.test_fraction is not None:
            return self.test_fraction
        return 0.1 if self.name == "crema-d" and not self.lists else 0.0

    def record(self) -> dict[str, Any]:
        """With defaults filled in: 5 given is 5 left out."""
        return super().record() | {"test_fold": self.fold, "test_fraction": self.test_share}


@dataclass(frozen=True, kw_only=True, eq=False)
class PreprocessConfig(OutputConfig):
    """`avpt preprocess`."""

    manifest: Annotated[Path, Argument(help="CSV of clips: id, label, split, video / audio / frames, start, end.")]
    out: Annotated[Path, Option(help="Folder of the store.")]
    root: Annotated[
        Path | None,
        Option(help="Folder that the manifest's paths start from.", show_default="the manifest's"),
    ] = None
    seed: Annotated[
        int, Option(min=0, max=2**63 - 1, help="Taken like everywhere; nothing here is random."), Transient
    ] = 0
    sample_rate: Annotated[int, Option(min=1000, max=384000, help="Hz of the resampled sound.")] = 16000
    mel_bins: Annotated[int, Option(min=4, max=1024, help="Mel filters of the spectrogram.")] = 128
    spectrogram_frames: Annotated[int, Option(min=1, help="10 ms frames a clip is padded or cut to.")] = 1024
    pad: Annotated[
        Literal["zero", "repeat"], Option(help="Short clips: log-mel 0.0 behind, or the sound repeated.")
    ] = "zero"
    audio_dtype: Annotated[Literal["float16", "float32"], Option(help="Type of the stored log-mel.")] = "float16"
    fps: Annotated[float, Option(min=0.001, max=1000, help="Frames kept per second.")] = 1.0
    max_frames: Annotated[int, Option(min=1, help="Frames kept per clip at most.")] = 10
    frame_size: Annotated[int, Option(min=1, help="Short side of a stored frame is scaled down to this.")] = 256
    frame_codec: Annotated[Literal["jpeg", "raw"], Option(help="How frames are stored.")] = "jpeg"
    frame_accuracy: Annotated[
        Literal["exact", "keyframe"],
        Option(help="The frame on screen, or the last key frame before it: several times faster."),
    ] = "exact"
    allow_missing: Annotated[
        Literal["none", "audio", "visual", "either"],
        Option(help="Keep clips whose sound or picture is broken, with what is left."),
    ] = "none"
    on_truncated: Annotated[
        Literal["keep", "fail"],
        Option(help="Streams that end over 10 % before their container says: kept and reported, or failed."),
    ] = "keep"
    shard_size: Annotated[int, Option(min=1, help="Manifest rows per shard.")] = 128
    multi_label: Annotated[bool, Option("--multi-label", help="`label` holds several names joined by `;`.")] = False
    limit: Annotated[int | None, Option(min=1, help="Only the first rows of the manifest.", show_default="all")] = None
    workers: Annotated[int | None, Option(min=1, help="Decoding processes.", show_default="cores"), Transient] = None
    clip_timeout: Annotated[float, Option(min=0.1, help="Seconds before a clip counts as hung."), Transient] = 60.0
    worker_memory: Annotated[
        float,
        Option(min=0.05, help="GiB that a worker may take for a clip, before the clip counts as failed."),
        Transient,
    ] = 4.0
    max_failures: Annotated[
        float, Option(min=0, max=1, help="Share of clips that may fail before the command does."), Transient
    ] = 0.05
    retry_failures: Annotated[
        bool, Option("--retry-failures", help="Try the clips of failures.csv again."), Transient
    ] = False
    shard_range: Annotated[
        str | None,
        Option(
            help="Only shards A to B - 1 of all splits, for job arrays; the run that finds all finishes the store.",
            metavar="A:B",
            show_default="all",
        ),
        Transient,
    ] = None
    engine: Annotated[
        Literal["local", "ray"],
        Option(help="Decode on this machine, or on a Ray cluster that shares --out."),
        Transient,
    ] = "local"
    ray_address: Annotated[
        str | None, Option(help="Of the cluster's head node.", show_default="RAY_ADDRESS, or this machine's"), Transient
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.shards
        if self.shard_range is not None and self.overwrite:
            raise ConfigError(
                "--overwrite does not go with --shard-range, whose runs share one store; remove the store instead"
            )
        if self.ray_address is not None and self.engine != "ray":
            raise ConfigError("--ray-address does nothing without --engine ray; add that, or leave it out")

    @property
    def shards(self) -> slice:
        """`2:5` -> shards 2, 3 and 4."""
        first, colon, last = (":" if self.shard_range is None else self.shard_range).partition(":")
        if not colon or not all(end.isdecimal() or not end for end in (first, last)):
            raise ConfigError(f"--shard-range is {self.shard_range!r}; it must be A:B, such as 0:10, 10:20 or 20:")
        shards = slice(int(first or 0), int(last) if last else None)
        if shards.stop is not None and shards.stop <= shards.start:
            raise ConfigError(f"--shard-range is {self.shard_range!r}; B is the shard after the last, over A")
        return shards


@dataclass(frozen=True, kw_only=True, eq=False)
class InitConfig(OutputConfig):
    """`avpt init`."""

    modality: Annotated[Modality, Option(help="What the encoder will be fed.")]
    out: Annotated[Path, Option(help="Encoder artifact to write (.safetensors).")]
    arch: Annotated[Literal["resnet18", "resnet34", "resnet50"], Option(help="torchvision architecture.")] = "resnet18"
    weights: Annotated[
        str,
        Option(help="imagenet, random, or a file: safetensors, PyTorch checkpoint, avpt artifact or run folder."),
    ] = "imagenet"
    bn: Annotated[
        Literal["keep", "reset", "reset-abnormal", "abri"],
        Option(help="What happens to pre-trained BatchNorm."),
    ] = "keep"
    abri: Annotated[Literal["channel", "layer"], Option(help="One ABRi alpha per channel or per layer.")] = "channel"
    alpha: Annotated[float, Option(help="ABRi: initial share of the pre-trained branch.")] = 0.5
    abnormal_threshold: Annotated[float, Option(min=0, help="A BatchNorm channel below this is abnormal.")] = 1e-6
    conv1: Annotated[
        Literal["sum", "mean", "random"], Option(help="First convolution across 1 and 3 input channels.")
    ] = "sum"

    def idle(self) -> set[str]:
        """ABRi's own options without ABRi."""
        return super().idle() | (set() if self.bn == "abri" else {"abri", "alpha"})


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskConfig(OutputConfig):
    """Confidence-driven masking: which inputs, how much, in what patches."""

    mask: Annotated[
        Literal["adaptive", "uniform", "none"],
        Option(help="A ratio per clip, the mean ratio for all, or nothing."),
    ] = "adaptive"
    mask_rule: Annotated[
        Literal["dominant", "released"],
        Option(help="Mask the easier modality, or what the released code does."),
    ] = "dominant"
    mask_ratio: Annotated[float, Option(min=0, max=1, help="rho, the asymptote of the ratio.")] = 0.5
    mask_ratio_audio: Annotated[
        float | None, Option(min=0, max=1, help="rho of sound.", show_default="--mask-ratio")
    ] = None
    mask_ratio_visual: Annotated[
        float | None, Option(min=0, max=1, help="rho of pictures.", show_default="--mask-ratio")
    ] = None
    mask_eta: Annotated[float, Option(min=0, help="eta, how fast the ratio grows with the difference.")] = 1.0
    mask_threshold: Annotated[
        float, Option(min=0, max=1, help="tau, the confidence from which a modality may be masked.")
    ] = 0.5
    audio_patch: Annotated[str, Option(help="Masked patch of the spectrogram, frames x mel bins.")] = "32x8"
    visual_patch: Annotated[int, Option(min=1, help="Side of a masked patch of a frame, pixels.")] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.patch

    def idle(self) -> set[str]:
        """The shape of a mask without masking."""
        masking = {f.name for f in dataclasses.fields(MaskConfig)} - {f.name for f in dataclasses.fields(OutputConfig)}
        return super().idle() | (masking - {"mask"} if self.mask == "none" else set())

    @property
    def patch(self) -> dict[Modality, tuple[int, int]]:
        """(height, width) of a masked patch: (frames, mel bins) and (pixels, pixels)."""
        frames, _, bins = self.audio_patch.partition("x")
        if not (frames.isdecimal() and bins.isdecimal() and int(frames) and int(bins)):
            raise ConfigError(f"--audio-patch is {self.audio_patch!r}; it must be FRAMESxBINS, such as 32x8")
        return {"audio": (int(frames), int(bins)), "visual": (self.visual_patch, self.visual_patch)}

    @property
    def ratio(self) -> dict[Modality, float]:
        """rho of each modality."""
        audio, visual = self.mask_ratio_audio, self.mask_ratio_visual
        return {
            "audio": self.mask_ratio if audio is None else audio,
            "visual": self.mask_ratio if visual is None else visual,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainConfig(OutputConfig):
    """How a model is trained, one stream or two."""

    store: Annotated[Path, Argument(help="Store written by `avpt preprocess`.")]
    out: Annotated[Path, Option(help="Run folder to write.")]
    epochs: Annotated[int, Option(min=1, help="Passes over the training split.")] = 80
    batch_size: Annotated[int, Option(min=2, help="Clips per step.")] = 64
    lr: Annotated[float, Option(min=0, help="Peak learning rate.")] = 1e-3
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], Option(help="torch.optim's.")] = "sgd"
    momentum: Annotated[float, Option(min=0, max=1, help="Of sgd.")] = 0.9
    weight_decay: Annotated[float, Option(min=0, help="Not on BatchNorm and alpha.")] = 1e-4
    decay_norm: Annotated[bool, Option("--decay-norm", help="Weight decay on BatchNorm and alpha too.")] = False
    encoder_lr_scale: Annotated[float, Option(min=0, help="What the encoders' rate is multiplied by.")] = 1.0
    freeze_encoders: Annotated[
        bool, Option("--freeze-encoders", help="Leave the encoders as they are; train what is behind them.")
    ] = False
    ema: Annotated[
        float | None,
        Option(min=0, max=1, help="Keep a moving average of the weights, of this decay.", show_default="none"),
    ] = None
    patience: Annotated[
        int | None, Option(min=1, help="Stop after so many epochs without a better one.", show_default="never")
    ] = None
    label_smoothing: Annotated[float, Option(min=0, max=0.99, help="Share of each label that all classes get.")] = 0.0
    balanced_sampling: Annotated[
        bool, Option("--balanced-sampling", help="Draw clips so that classes come equally often.")
    ] = False
    schedule: Annotated[Literal["step", "cosine", "constant"], Option(help="Learning rate over epochs.")] = "step"
    milestones: Annotated[str, Option(help="Epochs after which a step schedule drops, joined by commas.")] = "60"
    lr_factor: Annotated[float, Option(min=0, max=1, help="What a step schedule multiplies by.")] = 0.1
    warmup_epochs: Annotated[int, Option(min=0, help="Epochs of linear warm-up, step by step.")] = 0
    image_size: Annotated[int, Option(min=8, help="Side of the frames fed to the encoder, pixels.")] = 224
    num_frames: Annotated[int, Option(min=1, help="Frames per clip, one from each equal segment.")] = 3
    crop_scale: Annotated[
        tuple[float, float],
        Option(min=0.01, max=1, help="Area of random crops; `1 1` is the whole frame.", rich_help_panel=AUGMENTATION),
    ] = (0.08, 1.0)
    flip: Annotated[bool, Option(help="Random horizontal flips.", rich_help_panel=AUGMENTATION)] = True
    spec_augment: Annotated[
        tuple[int, int],
        Option(
            min=0,
            help="Widest masks: mel bins, frames. `0 0` is none.",
            metavar="FREQ TIME",
            rich_help_panel=AUGMENTATION,
        ),
    ] = (0, 0)
    dynamics: Annotated[
        Literal["train", "eval"],
        Option(help="Confidence from the training pass, or a clean pass after each epoch."),
    ] = "train"
    val_fraction: Annotated[
        float, Option(min=0.001, max=0.5, help="Carved from train where the store has no val split.")
    ] = 0.1
    workers: Annotated[
        int | None,
        Option(min=0, help="Loading processes; 0 loads in the main one.", show_default="cores - 1"),
        Transient,
    ] = None
    checkpoint_every: Annotated[
        int | None, Option(min=1, help="Steps from one checkpoint to the next.", show_default="an epoch"), Transient
    ] = None
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Option(help="Of the training pass; fp16 on CUDA only.")] = (
        "fp32"
    )
    accumulate: Annotated[
        int, Option(min=1, help="Parts that a batch is taken in, where memory is short; BatchNorm sees one at a time.")
    ] = 1
    clip_grad: Annotated[
        float | None, Option(help="Largest norm of the gradient, over 0.", show_default="not clipped")
    ] = None
    channels_last: Annotated[bool, Option("--channels-last", help="Memory layout that is faster on some devices.")] = (
        False
    )
    compile: Annotated[bool, Option("--compile", help="Let torch compile the training pass.")] = False
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1, mps, ...; artifacts say which"), Transient] = "auto"
    tensorboard: Annotated[
        bool, Option("--tensorboard", help="Curves and inputs for TensorBoard, in OUT/tensorboard."), Transient
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise ConfigError(f"--clip-grad is {self.clip_grad:g}; it must be over 0, or left out for no clipping")
        if self.ema == 1:
            raise ConfigError("--ema is 1; the average would never move, it must be under 1")
        if 2 * self.accumulate > max(2, self.batch_size):
            raise ConfigError(
                f"--accumulate {self.accumulate} leaves parts of less than two clips at --batch-size "
                f"{self.batch_size}, and BatchNorm needs two"
            )
        if self.warmup_epochs > self.epochs:
            raise ConfigError(f"--warmup-epochs {self.warmup_epochs} is more than --epochs {self.epochs}")
        if self.balanced_sampling and self.dynamics == "train":
            raise ConfigError(
                "--balanced-sampling repeats and skips clips, so confidence can't be taken from the training pass; "
                "add --dynamics eval"
            )
        _ = self.milestone_epochs
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ConfigError(f"--crop-scale is {self.crop_scale[0]:g} {self.crop_scale[1]:g}; the smaller comes first")

    def idle(self) -> set[str]:
        """What another schedule or optimiser would look at."""
        idle = set() if self.schedule == "step" else {"milestones", "lr_factor"}
        idle |= {"encoder_lr_scale"} if self.freeze_encoders else set()
        return super().idle() | idle | (set() if self.optimizer == "sgd" else {"momentum"})

    @property
    def milestone_epochs(self) -> tuple[int, ...]:
        """`60,70` -> (60, 70)."""
        parts = [part.strip() for part in self.milestones.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise ConfigError(f"--milestones is {self.milestones!r}; it must be epochs joined by commas, such as 60,70")
        return tuple(int(part) for part in parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class FinetuneConfig(TrainConfig):
    """`avpt finetune-unimodal`."""

    modality: Annotated[Modality, Option(help="Stream to train on.")]
    init: Annotated[Path, Option(help="Encoder artifact, or the run folder of an earlier fine-tuning.")]
    mixup: Annotated[
        float | None,
        Option(
            help="Mix clips with one another; alpha of the Beta distribution.",
            show_default="none",
            rich_help_panel=AUGMENTATION,
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixup is not None and self.mixup <= 0:
            raise ConfigError(f"--mixup is {self.mixup:g}; it must be over 0, or left out for no mixing")
        if self.mixup is not None and self.dynamics == "train":
            raise ConfigError(
                "--mixup shows the model no clip as it is, so confidence can't be taken from the training pass; "
                "add --dynamics eval"
            )

    def idle(self) -> set[str]:
        """The other modality's input."""
        pictures = {"image_size", "num_frames", "crop_scale", "flip"}
        return super().idle() | (pictures if self.modality == "audio" else {"spec_augment"})


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreConfig(MaskConfig):
    """`avpt score-confidence`; the mask options only shape the preview."""

    audio: Annotated[Path, Option(help="Run folder of the audio fine-tuning.")]
    visual: Annotated[Path, Option(help="Run folder of the visual fine-tuning.")]
    out: Annotated[
        Path | None, Option(help="Confidence artifact to write (.safetensors).", show_default="only show")
    ] = None
    skip_epochs: Annotated[int, Option(min=0, help="Epochs at the start that do not count.")] = 0
    missing: Annotated[Literal["error", "skip"], Option(help="Clips that one side lacks.")] = "error"
    csv: Annotated[Path | None, Option(help="Also write the statistics as CSV.", show_default="none")] = None

    def record(self) -> dict[str, Any]:
        """Only what shapes the statistics."""
        return {"skip_epochs": self.skip_epochs, "missing": self.missing}


@dataclass(frozen=True, kw_only=True, eq=False)
class FuseConfig(MaskConfig, TrainConfig):
    """`avpt fuse-train`."""

    audio: Annotated[Path, Option(help="Stage-1 run folder, or an encoder artifact (joint-training baseline).")]
    visual: Annotated[Path, Option(help="Stage-1 run folder, or an encoder artifact.")]
    confidence: Annotated[
        Path | None, Option(help="Written by `avpt score-confidence`; masking needs it.", show_default="none")
    ] = None
    fusion: Annotated[Literal["concat", "sum", "film", "gated"], Option(help="How the features meet.")] = "concat"
    balance: Annotated[Literal["none", "ogm-ge"], Option(help="Hold back the encoder that is ahead (baseline).")] = (
        "none"
    )
    ogm_alpha: Annotated[float, Option(min=0, help="OGM-GE: how hard.")] = 0.1
    ogm_window: Annotated[
        tuple[int, int], Option(min=0, help="OGM-GE: first and last epoch, from 0.", metavar="FIRST LAST")
    ] = (0, 50)
    modality_dropout: Annotated[
        float,
        Option(min=0, max=1, help="Share of clips of which either modality is withheld.", rich_help_panel=AUGMENTATION),
    ] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance == "ogm-ge" and self.freeze_encoders:
            raise ConfigError(
                "--balance ogm-ge changes gradients of the encoders; with --freeze-encoders there are none"
            )
        if self.ogm_window[0] > self.ogm_window[1]:
            raise ConfigError(f"--ogm-window is {self.ogm_window[0]} {self.ogm_window[1]}; the first epoch comes first")
        if self.mask != "none" and self.confidence is None:
            raise ConfigError(
                f"--mask {self.mask} needs --confidence (write it with `avpt score-confidence`); "
                "--mask none trains without masking"
            )

    def idle(self) -> set[str]:
        """OGM-GE's own options without it."""
        return super().idle() | (set() if self.balance == "ogm-ge" else {"ogm_alpha", "ogm_window"})


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateConfig(OutputConfig):
    """`avpt evaluate`."""

    goes_on = False

    model: Annotated[Path, Argument(help="Run folder, whose best model counts, or a classifier or fused artifact.")]
    store: Annotated[Path, Argument(help="Store written by `avpt preprocess`; classes are matched by name.")]
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        Option(help="Which clips.", show_default="val and test"),
    ] = None
    drop: Annotated[
        Modality | None, Option(help="Of a fused model: this modality's features are zero.", show_default="none")
    ] = None
    noise: Annotated[
        Modality | None, Option(help="Add white noise to this modality, at --snr.", show_default="none")
    ] = None
    snr: Annotated[
        float | None, Option(min=-100, max=100, help="Signal to noise ratio in dB.", show_default="no noise")
    ] = None
    per_class: Annotated[
        bool, Option("--per-class", help="Also each class's count and accuracy; in the record the confusion matrix.")
    ] = False
    batch_size: Annotated[int | None, Option(min=1, help="Clips at a time.", show_default="as in training")] = None
    out: Annotated[Path | None, Option(help="Record to write (.json).", show_default="only show")] = None
    predictions: Annotated[
        Path | None, Option(help="Also write each clip's logits (.safetensors).", show_default="none")
    ] = None
    workers: Annotated[
        int | None,
        Option(min=0, help="Loading processes; 0 loads in the main one.", show_default="cores - 1"),
        Transient,
    ] = None
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1, mps, ..."), Transient] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise is not None and self.snr is None:
            raise ConfigError(f"--noise {self.noise} needs --snr, such as --snr 10")
        if self.noise is not None and self.noise == self.drop:
            raise ConfigError(f"--noise {self.noise} does nothing beside --drop {self.drop}; leave one out")

    def idle(self) -> set[str]:
        """The seed without noise."""
        return super().idle() | ({"seed"} if self.snr is None else set())


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictConfig(OutputConfig):
    """`avpt predict`."""

    goes_on = False

    model: Annotated[Path, Argument(help="Run folder, whose best model counts, or a classifier or fused artifact.")]
    files: Annotated[
        list[Path] | None,
        Argument(help="Videos, sounds or images; of a folder every media file in it.", show_default=False),
    ] = None
    manifest: Annotated[
        Path | None,
        Option(
            help="Clips as a manifest's rows, for segments and for sound and pictures in files of their own; "
            "label and split may be missing.",
            show_default="none",
        ),
    ] = None
    root: Annotated[
        Path | None, Option(help="Folder that paths in --manifest start from.", show_default="the manifest's")
    ] = None
    top: Annotated[int, Option(min=1, help="Classes shown of each clip.")] = 5
    format: Annotated[
        Literal["table", "csv", "jsonl"] | None,
        Option(help="A table to look at, or a line a clip.", show_default="what --out ends in, else table"),
    ] = None
    out: Annotated[Path | None, Option(help="File to write (.csv, .jsonl).", show_default="stdout")] = None
    seed: Annotated[
        int, Option(min=0, max=2**63 - 1, help="Taken like everywhere; nothing here is random."), Transient
    ] = 0
    workers: Annotated[int | None, Option(min=1, help="Decoding processes.", show_default="cores"), Transient] = None
    clip_timeout: Annotated[float, Option(min=0.1, help="Seconds before a clip counts as hung."), Transient] = 60.0
    worker_memory: Annotated[
        float,
        Option(min=0.05, help="GiB that a worker may take for a clip, before the clip counts as failed."),
        Transient,
    ] = 4.0
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1, mps, ..."), Transient] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.files and self.manifest is None:
            raise ConfigError("there is nothing to label; give media files, or --manifest")
        if self.files and self.manifest is not None:
            raise ConfigError("--manifest does not go with files beside it; give one or the other")
        if self.root is not None and self.manifest is None:
            raise ConfigError("--root does nothing without --manifest; leave it out")
        if self.out is not None and self.written_as == "table":
            raise ConfigError("--out takes --format csv or jsonl; a table is for the terminal")

    @property
    def written_as(self) -> str:
        """The format, where none is given that of --out's suffix."""
        suffix = "" if self.out is None else self.out.suffix[1:]
        return self.format or (suffix if suffix in ("csv", "jsonl") else "table")


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportConfig(OutputConfig):
    """`avpt export`."""

    goes_on = False

    model: Annotated[Path, Argument(help="Run folder, whose best model counts, or an artifact.")]
    format: Annotated[
        Literal["torchvision", "onnx", "torch-export"],
        Option(help="A ResNet's state dict (.safetensors), ONNX (.onnx), or torch.export (.pt2)."),
    ]
    out: Annotated[Path, Option(help="File to write.")]
    modality: Annotated[
        Modality | None, Option(help="Of a fused model: only this encoder.", show_default="the whole model")
    ] = None
    seed: Annotated[
        int, Option(min=0, max=2**63 - 1, help="Taken like everywhere; nothing here is random."), Transient
    ] = 0
