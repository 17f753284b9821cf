"""The options of the commands that train models, and of masking by confidence."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from typer import Argument, Option

from avpt.errors import ConfigError
from avpt.options.base import (
    AUGMENTATION,
    BALANCE,
    HARDWARE,
    INPUTS,
    LARGEST_BATCH,
    MASKING,
    MISSING,
    MODEL,
    MOST_EPOCHS,
    OPTIMISER,
    OUTPUT,
    SCHEDULE,
    SELECTION,
    LoadingWorkers,
    NameOrClass,
    OutputConfig,
    Search,
    Seed,
    Transient,
    flag,
    whole_number,
)
from avpt.types import FIGURE_SUFFIXES, LARGEST_IMAGE, MOST_FRAMES, Modality, ScheduleName

MOST_VALUES = 1 << 33  # in the pictures of a step: no device has the memory for what is computed from more
IMAGE_SIZE, NUM_FRAMES = 224, 3  # the paper's
AUDIO_PATCH, VISUAL_PATCH = "32x8", "10"  # the paper's
FUSIONS = ("concat", "sum", "film", "gated")  # avpt/models/fusion.py has an entry for each
BALANCING = {  # the method that each name of --balance stands for, as a class of one's own is named
    "uniform": "avpt.training.balancing.uniform:Uniform",
    "mmpareto": "avpt.training.balancing.mmpareto:MMPareto",
    "umt": "avpt.training.balancing.umt:Umt",
    "agm": "avpt.training.balancing.agm:Agm",
    "pmr": "avpt.training.balancing.pmr:Pmr",
    "dgl": "avpt.training.balancing.dgl:Dgl",
    "g2d": "avpt.training.balancing.g2d:G2d",
    "ogm-ge": "avpt.training.balancing.ogm_ge:OgmGe",
    "ogm-ge-late": "avpt.training.balancing.ogm_ge:LateOgmGe",
    "opm": "avpt.training.balancing.opm:Opm",
    "relearning": "avpt.training.balancing.relearning:Relearning",
    "smv": "avpt.training.balancing.smv:Smv",
    "g-blend": "avpt.training.balancing.g_blend:GBlend",
}


class RatioOptions(TypedDict):
    """How much of a clip is masked: the arguments of `confidence.formulas.mask_ratios`."""

    mask: Literal["adaptive", "uniform", "none"]
    rule: Literal["dominant", "released"]
    ratio: dict[Modality, float]
    eta: float
    threshold: float


def _sides_of(patch: str | int, option: str, form: str) -> tuple[int, int]:
    """`32x8` -> (32, 8); `8` -> (8, 8), which records have as a number.

    Raises:
        ConfigError: it is neither.
    """
    height, cross, width = str(patch).partition("x")
    sides = whole_number(height), whole_number(width if cross else height)
    if min(sides) < 1:
        raise ConfigError(f"{option} is {patch!r}; it must be {form}")
    return sides


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskConfig(OutputConfig):
    """Confidence-driven masking: which inputs, how much, in what patches."""

    mask: Annotated[
        Literal["adaptive", "uniform", "none"],
        Option(
            help="How much of the surer modality is masked. adaptive: of each clip as much as its confidence says; "
            "uniform: of all clips the mean of that; none: nothing.",
            rich_help_panel=MASKING,
        ),
    ] = "adaptive"
    mask_rule: Annotated[
        Literal["dominant", "released"],
        Option(
            help="Which modality of a clip is masked. dominant: the one of which the model was surer; released: what "
            "the method's published code does.",
            rich_help_panel=MASKING,
        ),
    ] = "dominant"
    mask_ratio: Annotated[
        float,
        Option(
            min=0,
            max=1,
            help="Largest share of a clip that can be masked; the further apart the confidence of the two "
            "modalities, the closer to it.",
            rich_help_panel=MASKING,
        ),
    ] = 0.5
    mask_ratio_audio: Annotated[
        float | None,
        Option(min=0, max=1, help="The same for sound alone.", show_default="--mask-ratio", rich_help_panel=MASKING),
    ] = None
    mask_ratio_visual: Annotated[
        float | None,
        Option(min=0, max=1, help="The same for pictures alone.", show_default="--mask-ratio", rich_help_panel=MASKING),
    ] = None
    mask_eta: Annotated[
        float,
        Option(
            min=0,
            max=1_000_000,
            help="How soon masking sets in: the higher, the less the confidence of the two modalities has to differ "
            "for much to be masked; 0 masks nothing.",
            rich_help_panel=MASKING,
        ),
    ] = 1.0
    mask_threshold: Annotated[
        float,
        Option(
            min=0,
            max=1,
            help="How sure the model must be of a clip by a modality, from 0 to 1, for that to be masked; what is "
            "hardly recognised stays whole.",
            rich_help_panel=MASKING,
        ),
    ] = 0.5
    audio_patch: Annotated[
        str | None,
        Option(
            help="Size of a masked patch of a spectrogram: frames x mel bins, or one number for both.",
            metavar="SIZE",
            show_default=f"{AUDIO_PATCH}; in fuse-train that of --confidence",
            rich_help_panel=MASKING,
        ),
    ] = None
    visual_patch: Annotated[
        str | None,
        Option(
            help="Size of a masked patch of a picture: height x width in pixels, or one number for both.",
            metavar="SIZE",
            show_default=f"{VISUAL_PATCH}; in fuse-train that of --confidence",
            rich_help_panel=MASKING,
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.patch

    @staticmethod
    def mask_options() -> set[str]:
        """The names of the options that say what is masked."""
        return {f.name for f in dataclasses.fields(MaskConfig)} - {f.name for f in dataclasses.fields(OutputConfig)}

    def idle(self) -> set[str]:
        """The options that shape a mask change nothing without masking."""
        return super().idle() | (self.mask_options() - {"mask"} if self.mask == "none" else set())

    def record(self) -> dict[str, Any]:
        """With patches filled in, and written alike: `8` and `8x8` are the same."""
        return super().record() | {name: value for name, value in self.patches.items() if name not in self.idle()}

    @property
    def patches(self) -> dict[str, str | int]:
        """The patches as records have them."""
        (frames, bins), (height, width) = self.patch["audio"], self.patch["visual"]
        return {
            "audio_patch": f"{frames}x{bins}",
            "visual_patch": height if height == width else f"{height}x{width}",
        }

    @property
    def patch(self) -> dict[Modality, tuple[int, int]]:
        """(height, width) of a masked patch: (frames, mel bins) and (pixels, pixels)."""
        audio = AUDIO_PATCH if self.audio_patch is None else self.audio_patch
        visual = VISUAL_PATCH if self.visual_patch is None else self.visual_patch
        return {
            "audio": _sides_of(audio, "--audio-patch", "FRAMESxBINS, such as 32x8, or one number for both"),
            "visual": _sides_of(visual, "--visual-patch", "HEIGHTxWIDTH, such as 10x10, or one number for both"),
        }

    @property
    def ratio(self) -> dict[Modality, float]:
        """rho of each modality."""
        audio, visual = self.mask_ratio_audio, self.mask_ratio_visual
        return {
            "audio": self.mask_ratio if audio is None else audio,
            "visual": self.mask_ratio if visual is None else visual,
        }

    @property
    def ratio_options(self) -> RatioOptions:
        """What turns confidence into mask ratios, named as the arguments of the formulas."""
        return {
            "mask": self.mask,
            "rule": self.mask_rule,
            "ratio": self.ratio,
            "eta": self.mask_eta,
            "threshold": self.mask_threshold,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainConfig(OutputConfig):
    """How a model of one modality or two is trained."""

    seed: Seed = 0
    store: Annotated[Path, Argument(help="Store written by `avpt preprocess`.")]
    out: Annotated[Path, Option(help="Run folder to write.", rich_help_panel=OUTPUT)]
    epochs: Annotated[
        int, Option(min=1, max=MOST_EPOCHS, help="Passes over the training clips.", rich_help_panel=SCHEDULE)
    ] = 80
    batch_size: Annotated[int, Option(min=2, max=LARGEST_BATCH, help="Clips per step.", rich_help_panel=OPTIMISER)] = 64
    lr: Annotated[
        float,
        Option(min=0, max=1000, help="Learning rate, before --schedule lowers it.", rich_help_panel=OPTIMISER),
    ] = 1e-3
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"],
        Option(help="How weights are moved, as torch.optim names it.", rich_help_panel=OPTIMISER),
    ] = "sgd"
    momentum: Annotated[
        float,
        Option(min=0, max=1, help="With sgd: how much of a step goes on in the next.", rich_help_panel=OPTIMISER),
    ] = 0.9
    weight_decay: Annotated[
        float,
        Option(
            min=0,
            max=1000,
            help="How strongly weights are drawn towards 0, all but those of BatchNorm.",
            rich_help_panel=OPTIMISER,
        ),
    ] = 1e-4
    decay_norm: Annotated[
        bool, Option("--decay-norm", help="Draw those of BatchNorm towards 0 too.", rich_help_panel=OPTIMISER)
    ] = False
    encoder_lr_scale: Annotated[
        float,
        Option(min=0, max=1000, help="The encoders learn at this times --lr.", rich_help_panel=OPTIMISER),
    ] = 1.0
    freeze_encoders: Annotated[
        bool,
        Option(
            "--freeze-encoders",
            help="Leave the encoders as they are; train only what comes behind them.",
            rich_help_panel=OPTIMISER,
        ),
    ] = False
    ema: Annotated[
        float | None,
        Option(
            min=0,
            max=1,
            help="Measure and keep a moving average of the weights, of which this share stays at each step, such as "
            "0.999.",
            show_default="none",
            rich_help_panel=OPTIMISER,
        ),
    ] = None
    patience: Annotated[
        int | None,
        Option(
            min=1,
            max=MOST_EPOCHS,
            help="Stop after so many epochs without a better one.",
            show_default="never",
            rich_help_panel=SCHEDULE,
        ),
    ] = None
    label_smoothing: Annotated[
        float,
        Option(
            min=0,
            max=0.99,
            help="Share of each label that is spread over all classes.",
            rich_help_panel=OPTIMISER,
        ),
    ] = 0.0
    balanced_sampling: Annotated[
        bool,
        Option("--balanced-sampling", help="Draw clips so that classes come equally often.", rich_help_panel=SCHEDULE),
    ] = False
    schedule: Annotated[
        ScheduleName,
        Option(
            help="How the learning rate changes. step: it drops at --milestones; cosine: it falls smoothly to almost "
            "0; constant: it stays.",
            rich_help_panel=SCHEDULE,
        ),
    ] = "step"
    milestones: Annotated[
        str,
        Option(help="With step: epochs after which the rate drops, joined by commas.", rich_help_panel=SCHEDULE),
    ] = "60"
    lr_factor: Annotated[
        float,
        Option(min=0, max=1, help="With step: what each drop multiplies the rate by.", rich_help_panel=SCHEDULE),
    ] = 0.1
    warmup_epochs: Annotated[
        int,
        Option(
            min=0,
            max=MOST_EPOCHS,
            help="Epochs at the start over which the rate rises to --lr.",
            rich_help_panel=SCHEDULE,
        ),
    ] = 0
    image_size: Annotated[
        int | None,
        Option(
            min=8,
            max=LARGEST_IMAGE,
            help="Side of the frames fed to the encoder, in pixels.",
            show_default=f"as --visual was trained, or {IMAGE_SIZE}",
            rich_help_panel=INPUTS,
        ),
    ] = None
    num_frames: Annotated[
        int | None,
        Option(
            min=1,
            max=MOST_FRAMES,
            help="Frames fed per clip, from parts of equal length.",
            show_default=f"as --visual was trained, or {NUM_FRAMES}",
            rich_help_panel=INPUTS,
        ),
    ] = None
    crop_scale: Annotated[
        tuple[float, float],
        Option(
            min=0.01,
            max=1,
            help="Smallest and largest share of a frame that a random crop takes; `1 1` is the whole frame.",
            metavar="LOW HIGH",
            rich_help_panel=AUGMENTATION,
        ),
    ] = (0.08, 1.0)
    flip: Annotated[bool, Option(help="Mirror frames at random.", rich_help_panel=AUGMENTATION)] = True
    spec_augment: Annotated[
        tuple[int, int],
        Option(
            min=0,
            max=1_000_000,
            help="Hide a random band of the spectrogram of at most so many mel bins, and one of so many frames; `0 0` "
            "hides none.",
            metavar="BINS N",
            rich_help_panel=AUGMENTATION,
        ),
    ] = (0, 0)
    dynamics: Annotated[
        Literal["train", "eval"],
        Option(
            help="Where it is noted how sure the model is of each clip: in the training pass itself (train), or in a "
            "pass without augmentation after each epoch (eval), which takes longer.",
            rich_help_panel=OUTPUT,
        ),
    ] = "train"
    val_fraction: Annotated[
        float,
        Option(
            min=0.001,
            max=0.5,
            help="Share of the training clips to choose the best epoch by, where the store has no val split.",
            rich_help_panel=INPUTS,
        ),
    ] = 0.1
    workers: LoadingWorkers = None
    checkpoint_every: Annotated[
        int | None,
        Option(
            min=1,
            max=1_000_000_000,
            help="Steps between checkpoints, from which an interrupted run goes on.",
            show_default="an epoch",
            rich_help_panel=OUTPUT,
        ),
        Transient,
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        Option(help="Of the numbers in the training pass; fp16 on CUDA only.", rich_help_panel=HARDWARE),
    ] = "fp32"
    accumulate: Annotated[
        int,
        Option(
            min=1,
            max=LARGEST_BATCH,
            help="Parts that a batch is taken in, where memory is short; BatchNorm sees one at a time.",
            rich_help_panel=HARDWARE,
        ),
    ] = 1
    clip_grad: Annotated[
        float | None,
        Option(
            max=1_000_000_000,
            help="Scale larger gradients down to this norm.",
            show_default="never",
            rich_help_panel=OPTIMISER,
        ),
    ] = None
    channels_last: Annotated[
        bool,
        Option("--channels-last", help="Memory layout that is faster on some devices.", rich_help_panel=HARDWARE),
    ] = False
    compile: Annotated[
        bool, Option("--compile", help="Let torch compile the training pass.", rich_help_panel=HARDWARE)
    ] = False
    device: Annotated[
        str,
        Option(
            help="Where to compute: auto, cpu, cuda, cuda:1, mps, ...; what is written says which it was.",
            rich_help_panel=HARDWARE,
        ),
        Transient,
    ] = "auto"
    tensorboard: Annotated[
        bool,
        Option(
            "--tensorboard",
            help="Also write curves and inputs for TensorBoard, to OUT/tensorboard.",
            rich_help_panel=OUTPUT,
        ),
        Transient,
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise ConfigError(f"--clip-grad is {self.clip_grad:g}; it must be over 0, or left out for no clipping")
        if self.freeze_encoders and self.encoder_lr_scale != 1:
            raise ConfigError("--encoder-lr-scale does nothing beside --freeze-encoders; leave one out")
        if self.ema == 1:
            raise ConfigError("--ema is 1; the average would never move, it must be under 1")
        if 2 * self.accumulate > max(2, self.batch_size):
            raise ConfigError(
                f"--accumulate {self.accumulate} leaves parts of less than two clips at --batch-size "
                f"{self.batch_size}, and BatchNorm needs two"
            )
        side, count = self.pictures
        values = self.batch_size // self.accumulate * count * 3 * side**2
        if values > MOST_VALUES:
            raise ConfigError(
                f"--batch-size {self.batch_size}, --num-frames {count}, --image-size {side} "
                f"make up {values >> 28} GiB of pictures a step, over {MOST_VALUES >> 28}; make one of them smaller"
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
        """Options of other schedules and optimisers, and of encoders that are frozen, change nothing."""
        idle = set() if self.schedule == "step" else {"milestones", "lr_factor"}
        idle |= {"encoder_lr_scale"} if self.freeze_encoders else set()
        return super().idle() | idle | (set() if self.optimizer == "sgd" else {"momentum"})

    @property
    def pictures(self) -> tuple[int, int]:
        """The side of the frames that the encoder is fed, and how many of a clip."""
        return (
            IMAGE_SIZE if self.image_size is None else self.image_size,
            NUM_FRAMES if self.num_frames is None else self.num_frames,
        )

    @property
    def milestone_epochs(self) -> tuple[int, ...]:
        """`60,70` -> (60, 70)."""
        epochs = [whole_number(part.strip()) for part in self.milestones.split(",")]
        if min(epochs) < 0:
            raise ConfigError(f"--milestones is {self.milestones!r}; it must be epochs joined by commas, such as 60,70")
        return tuple(epochs)


@dataclass(frozen=True, kw_only=True, eq=False)
class FinetuneConfig(TrainConfig):
    """The options of `avpt finetune-unimodal`."""

    modality: Annotated[
        Modality, Option(help="What to train on: sound (audio) or pictures (visual).", rich_help_panel=INPUTS)
    ]
    init: Annotated[
        Path,
        Option(help="Encoder from `avpt init`, or the run folder of an earlier fine-tuning.", rich_help_panel=INPUTS),
    ]
    image_size: Annotated[
        int,
        Option(
            min=8,
            max=LARGEST_IMAGE,
            help="Side of the frames fed to the encoder, in pixels.",
            rich_help_panel=INPUTS,
        ),
    ] = IMAGE_SIZE
    num_frames: Annotated[
        int,
        Option(
            min=1,
            max=MOST_FRAMES,
            help="Frames fed per clip, from parts of equal length.",
            rich_help_panel=INPUTS,
        ),
    ] = NUM_FRAMES
    mixup: Annotated[
        float | None,
        Option(
            max=1000,
            help="Blend clips and their labels with one another, the more evenly the higher: alpha of the Beta "
            "distribution that the shares are drawn from.",
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
        """Options of the other modality's input change nothing."""
        pictures = {"image_size", "num_frames", "crop_scale", "flip"}
        return super().idle() | (pictures if self.modality == "audio" else {"spec_augment"})


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreConfig(MaskConfig):
    """The options of `avpt score-confidence`; the mask options only shape the preview, which patches are kept from."""

    audio: Annotated[Path, Option(help="Run folder of the audio fine-tuning.", rich_help_panel=INPUTS)]
    visual: Annotated[Path, Option(help="Run folder of the visual fine-tuning.", rich_help_panel=INPUTS)]
    out: Annotated[
        Path | None,
        Option(help="Confidence artifact to write (.safetensors).", show_default="only show", rich_help_panel=OUTPUT),
    ] = None
    skip_epochs: Annotated[
        int,
        Option(
            min=0,
            max=MOST_EPOCHS,
            help="Leave out so many epochs at the start of both runs, when they had learnt little.",
            rich_help_panel=INPUTS,
        ),
    ] = 0
    missing: Annotated[
        Literal["error", "skip"],
        Option(
            help="What to do where clips are in one run only: stop with an error, or skip them.", rich_help_panel=INPUTS
        ),
    ] = "error"
    csv: Annotated[
        Path | None,
        Option(help="Also write the confidence of each clip as CSV.", show_default="none", rich_help_panel=OUTPUT),
    ] = None
    plot: Annotated[
        Path | None,
        Option(
            help="Also draw a data map for each modality: confidence against variability, coloured by correctness "
            "(.png, .pdf or .svg).",
            show_default="none",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    select: Annotated[
        Literal["easy", "ambiguous", "hard"] | None,
        Option(
            help="Choose training clips: those of the highest confidence (easy), of the lowest (hard), or of the "
            "highest variability (ambiguous). --manifest gets them.",
            show_default="none",
            rich_help_panel=SELECTION,
        ),
    ] = None
    select_by: Annotated[
        Literal["both", "audio", "visual"],
        Option(
            help="Whose confidence or variability decides: that of one run (audio, visual), or the mean of both.",
            rich_help_panel=SELECTION,
        ),
    ] = "both"
    share: Annotated[
        float | None,
        Option(
            min=0,
            max=1,
            help="How much of the training clips --select takes.",
            show_default="0.33",
            rich_help_panel=SELECTION,
        ),
    ] = None
    manifest: Annotated[
        Path | None,
        Option(
            help="Manifest of the clips of --select to write (.csv), with all val and test clips of the runs' own "
            "manifest, so that `avpt preprocess` takes it.",
            show_default="none",
            rich_help_panel=SELECTION,
        ),
    ] = None
    export: Annotated[
        Literal["cartography", "cleanlab"] | None,
        Option(
            help="Write what another tool reads. cartography: allenai/cartography's training dynamics, of the training "
            "clips; cleanlab: labels and predicted probabilities, of the val and test clips. --export-to says where.",
            show_default="none",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    export_to: Annotated[
        Path | None, Option(help="Folder for --export.", show_default="none", rich_help_panel=OUTPUT)
    ] = None
    search: Search = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for one, other in (("select", "manifest"), ("manifest", "select"), ("export", "export_to")):
            if getattr(self, one) is not None and getattr(self, other) is None:
                raise ConfigError(f"{flag(one)} does nothing without {flag(other)}; add that, or leave it out")
        if self.export is None and self.export_to is not None:
            raise ConfigError("--export-to does nothing without --export; add that, or leave it out")
        if self.select is None and (self.share is not None or self.select_by != "both"):
            raise ConfigError("--share and --select-by do nothing without --select; add that, or leave them out")
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError(f"--share is {self.share:g}; it must be over 0 and at most 1")
        if self.plot is not None and self.plot.suffix.lower() not in FIGURE_SUFFIXES:
            raise ConfigError(f"--plot is {self.plot}; its name must end in one of {', '.join(FIGURE_SUFFIXES)}")
        if self.manifest is not None and self.manifest.suffix.lower() != ".csv":
            raise ConfigError(f"--manifest is {self.manifest}; its name must end in .csv")
        places = [("--out", self.out), ("--csv", self.csv), ("--plot", self.plot), ("--manifest", self.manifest)]
        taken: dict[str, str] = {}
        for option, path in [*places, ("--export-to", self.export_to)]:
            if path is not None and (first := taken.setdefault(os.path.realpath(path), option)) != option:
                raise ConfigError(f"{first} and {option} are both {path}; choose another for one of them")

    @property
    def selected_share(self) -> float:
        """The share of the training clips that `--select` takes."""
        return 0.33 if self.share is None else self.share

    def record(self) -> dict[str, Any]:
        """What shapes the statistics, and the patches, which `fuse-train` takes from here."""
        return {"skip_epochs": self.skip_epochs, "missing": self.missing, **self.patches}


@dataclass(frozen=True, kw_only=True, eq=False)
class FuseConfig(MaskConfig, TrainConfig):
    """The options of `avpt fuse-train`."""

    audio: Annotated[
        Path,
        Option(
            help="Run folder of the audio fine-tuning; or an encoder, for joint training without it (a baseline).",
            rich_help_panel=INPUTS,
        ),
    ]
    visual: Annotated[Path, Option(help="Run folder of the visual fine-tuning; or an encoder.", rich_help_panel=INPUTS)]
    confidence: Annotated[
        Path | None,
        Option(
            help="File from `avpt score-confidence`; masking needs it.", show_default="none", rich_help_panel=INPUTS
        ),
    ] = None
    fusion: Annotated[
        str,
        Option(
            help="How the features of sound and pictures meet: side by side (concat), as a sum, with the sound "
            "scaling and shifting the pictures (film) or letting them through (gated), or a class of your own.",
            metavar="NAME",
            autocompletion=lambda: FUSIONS,
            rich_help_panel=MODEL,
        ),
        NameOrClass(FUSIONS),
    ] = "concat"
    balance: Annotated[
        str,
        Option(
            help="Method that keeps one modality from starving the other, or a class of your own; "
            "`avpt guide balancing` has what each computes and costs.",
            metavar="NAME",
            autocompletion=lambda: ("none", *BALANCING),
            rich_help_panel=BALANCE,
        ),
        NameOrClass(("none", *BALANCING)),
    ] = "none"
    balance_set: Annotated[
        list[str] | None,
        Option(
            help="An option of the method, as in alpha=0.5; may be given several times.",
            metavar="NAME=VALUE",
            show_default="the method's own values",
            rich_help_panel=BALANCE,
        ),
    ] = None
    teacher_audio: Annotated[
        Path | None,
        Option(
            help="With umt and g2d: run folder of the audio fine-tuning that is learned from.",
            show_default="--audio",
            rich_help_panel=BALANCE,
        ),
    ] = None
    teacher_visual: Annotated[
        Path | None,
        Option(help="Likewise of the visual fine-tuning.", show_default="--visual", rich_help_panel=BALANCE),
    ] = None
    balance_gamma: Annotated[
        float | None,
        Option(
            min=0,
            max=1000,
            help="With mmpareto and uniform: factor of the encoders' gradients.",
            show_default="1.5 and 1",
            rich_help_panel=BALANCE,
        ),
    ] = None
    ogm_alpha: Annotated[float, Option(min=0, max=1000, help="With ogm-ge: how hard.", rich_help_panel=BALANCE)] = 0.1
    ogm_window: Annotated[
        tuple[int, int],
        Option(
            min=0,
            max=MOST_EPOCHS,
            help="With ogm-ge: first and last epoch in which it does, counted from 0.",
            metavar="FIRST LAST",
            rich_help_panel=BALANCE,
        ),
    ] = (0, 50)
    modality_dropout: Annotated[
        float,
        Option(
            min=0,
            max=1,
            help="Share of clips of which sound or pictures, drawn at random, are withheld.",
            rich_help_panel=MISSING,
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        settings = tuple(sorted(self.balance_set)) if self.balance_set else None  # their order changes nothing
        object.__setattr__(self, "balance_set", settings)
        of_methods = (self.balance_set, self.balance_gamma, self.teacher_audio, self.teacher_visual)
        if self.balance == "none" and any(value is not None for value in of_methods):
            raise ConfigError("options of a balancing method are given, but --balance is none; name the method")
        if self.ogm_window[0] > self.ogm_window[1]:
            raise ConfigError(f"--ogm-window is {self.ogm_window[0]} {self.ogm_window[1]}; the first epoch comes first")
        if self.mask != "none" and self.confidence is None:
            raise ConfigError(
                f"--mask {self.mask} needs --confidence (write it with `avpt score-confidence`); "
                "--mask none trains without masking"
            )

    def idle(self) -> set[str]:
        """Options of another balancing method, or that are not given, change nothing."""
        idle = set() if self.balance == "ogm-ge" else {"ogm_alpha", "ogm_window"}
        idle |= set() if self.balance_set else {"balance_set"}
        return super().idle() | idle | (set() if self.balance_gamma is not None else {"balance_gamma"})

    @property
    def given_to_balance(self) -> dict[str, Any]:
        """The balancing method's options that have an option to themselves, by the method's name for them."""
        given: dict[str, Any] = {"alpha": self.ogm_alpha, "window": self.ogm_window} if self.balance == "ogm-ge" else {}
        return given | ({} if self.balance_gamma is None else {"gamma": self.balance_gamma})
