"""The options of `avpt init`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from avpt.errors import ConfigError
from avpt.options.base import CHANNELS, MODEL, OUTPUT, OutputConfig, Seed, WeightsKey, expand_home, whole_number
from avpt.types import MOST_SPECTROGRAM_FRAMES, Modality


@dataclass(frozen=True, kw_only=True, eq=False)
class InitConfig(OutputConfig):
    """The options of `avpt init`."""

    seed: Seed = 0
    modality: Annotated[
        Modality,
        Option(help="What the encoder will be fed: sound (audio) or pictures (visual).", rich_help_panel=MODEL),
    ]
    out: Annotated[Path, Option(help="Encoder artifact to write (.safetensors).", rich_help_panel=OUTPUT)]
    arch: Annotated[
        str | None,
        Option(
            help="The network: resnet18, resnet34 or resnet50 of torchvision, or any of timm's; `avpt encoders` lists "
            "them.",
            show_default="what an artifact of avpt says, else resnet18",
            metavar="NAME",
            rich_help_panel=MODEL,
        ),
    ] = None
    input_size: Annotated[
        str | None,
        Option(
            help="Of a network that takes inputs of one size alone, as ViT does: height x width of pictures, or frames "
            "x mel bins of spectrograms.",
            metavar="SIZE",
            show_default="that of its weights, or 1024x128",
            rich_help_panel=MODEL,
        ),
    ] = None
    weights: Annotated[
        str,
        Option(
            help="What it starts from: imagenet (torchvision's weights), pretrained (timm's or torchvision's), random, "
            "or a file: safetensors, PyTorch checkpoint, avpt artifact or run folder.",
            rich_help_panel=MODEL,
        ),
    ] = "imagenet"
    weights_key: WeightsKey = None
    bn: Annotated[
        Literal["keep", "reset", "reset-abnormal", "blend", "abri"],
        Option(
            help="What becomes of the pre-trained BatchNorm layers. keep: nothing; reset: all start anew; "
            "reset-abnormal: only channels that multiply by almost 0; blend: each is mixed with a new one, once; abri: "
            "each gets a new branch beside the old one, and the mix is learnt.",
            rich_help_panel=MODEL,
        ),
    ] = "keep"
    abri: Annotated[
        Literal["channel", "layer"],
        Option(
            help="With --bn abri: how old and new branch are mixed is learnt for each channel, or for each layer.",
            rich_help_panel=MODEL,
        ),
    ] = "channel"
    alpha: Annotated[
        float,
        Option(
            min=0,
            max=1,
            help="With --bn abri or blend: share of the old branch in that mix when training starts.",
            rich_help_panel=MODEL,
        ),
    ] = 0.5
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
    conv1: Annotated[
        Literal["sum", "mean", "random"],
        Option(
            help="How a first layer for 3 colour channels is made to take 1, and the reverse: by the sum or the mean "
            "of its weights, or by random ones.",
            rich_help_panel=MODEL,
        ),
    ] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", expand_home(self.weights))  # a path, or a word without `~`
        _ = self.size
        if self.weights_key is not None and self.weights in ("imagenet", "pretrained", "random"):
            raise ConfigError(f"--weights-key is for a file, and --weights is {self.weights}")

    @property
    def size(self) -> tuple[int, int] | None:
        """--input-size as (height, width), or (frames, mel bins)."""
        if self.input_size is None:
            return None
        height, _, width = self.input_size.partition("x")
        sides = whole_number(height), whole_number(width)
        if not all(0 < side <= MOST_SPECTROGRAM_FRAMES for side in sides):
            raise ConfigError(f"--input-size is {self.input_size!r:.40}; it must be HEIGHTxWIDTH, such as 224x224")
        return sides

    def idle(self) -> set[str]:
        """ABRi's own options change nothing without a mix; nor does a size or a key that is not named."""
        unnamed = {name for name in ("input_size", "weights_key") if getattr(self, name) is None}
        mixing = {"abri": set[str](), "blend": {"abri"}}  # what plays no part in it
        return super().idle() | unnamed | mixing.get(self.bn, {"abri", "alpha"})
