"""The options that both training commands share, and those of training one encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from avpt.errors import ConfigError
from avpt.options.base import (
    AUGMENTATION,
    HARDWARE,
    INPUTS,
    LARGEST_BATCH,
    MOST_EPOCHS,
    OPTIMISER,
    OUTPUT,
    SCHEDULE,
    LoadingWorkers,
    OutputConfig,
    Seed,
    Transient,
    whole_number,
)
from avpt.types import LARGEST_IMAGE, MOST_FRAMES, Modality, ScheduleName

MOST_VALUES = 1 << 33  # in the pictures of a step: no device has the memory for what is computed from more
IMAGE_SIZE, NUM_FRAMES = 224, 3  # the paper's


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
        Literal["fp32", "tf32", "bf16", "fp16"],
        Option(help="Of the numbers in the training pass; tf32 and fp16 on CUDA only.", rich_help_panel=HARDWARE),
    ] = "fp32"
    fast: Annotated[
        bool,
        Option(
            "--fast",
            help="On CUDA take the fastest kernels, which need not give the same result again.",
            rich_help_panel=HARDWARE,
        ),
    ] = False
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
