"""The options of `avpt init`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from avpt.options.base import CHANNELS, MODEL, OUTPUT, OutputConfig, Seed, expand_home
from avpt.types import Modality


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
        Literal["resnet18", "resnet34", "resnet50"],
        Option(help="The network, as torchvision names it.", rich_help_panel=MODEL),
    ] = "resnet18"
    weights: Annotated[
        str,
        Option(
            help="What it starts from: imagenet, random, or a file: safetensors, PyTorch checkpoint, avpt artifact or "
            "run folder.",
            rich_help_panel=MODEL,
        ),
    ] = "imagenet"
    bn: Annotated[
        Literal["keep", "reset", "reset-abnormal", "abri"],
        Option(
            help="What becomes of the pre-trained BatchNorm layers. keep: nothing; reset: all start anew; "
            "reset-abnormal: only channels that multiply by almost 0; abri: each gets a new branch beside the old one.",
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
            help="With --bn abri: share of the old branch in that mix when training starts.",
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

    def idle(self) -> set[str]:
        """ABRi's own options change nothing without ABRi."""
        return super().idle() | (set() if self.bn == "abri" else {"abri", "alpha"})
