"""The options of `avpt init`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from avpt.errors import ConfigError
from avpt.options.base import OutputConfig, expand_home, whole_number
from avpt.types import MOST_SPECTROGRAM_FRAMES, Modality


@dataclass(frozen=True, kw_only=True, eq=False)
class InitConfig(OutputConfig):
    """The options of `avpt init`."""

    modality: Annotated[Modality, Option(help="What the encoder will be fed.")]
    out: Annotated[Path, Option(help="Encoder artifact to write (.safetensors).")]
    arch: Annotated[
        str,
        Option(
            help="resnet18, resnet34 or resnet50 of torchvision, or any of timm's, which `avpt encoders` lists.",
            metavar="NAME",
        ),
    ] = "resnet18"
    input_size: Annotated[
        str | None,
        Option(
            help="For an architecture that takes one size alone, as ViT does: height x width of pictures, or frames x "
            "mel bins of spectrograms.",
            metavar="HEIGHTxWIDTH",
            show_default="that of its weights, or 1024x128",
        ),
    ] = None
    weights: Annotated[
        str,
        Option(
            help="imagenet (torchvision's), pretrained (timm's or torchvision's), random, or a file: safetensors, "
            "PyTorch checkpoint, avpt artifact or run folder."
        ),
    ] = "imagenet"
    bn: Annotated[
        Literal["keep", "reset", "reset-abnormal", "abri"],
        Option(help="What happens to pre-trained BatchNorm."),
    ] = "keep"
    abri: Annotated[Literal["channel", "layer"], Option(help="One ABRi alpha per channel or per layer.")] = "channel"
    alpha: Annotated[float, Option(min=0, max=1, help="ABRi: initial share of the pre-trained branch.")] = 0.5
    abnormal_threshold: Annotated[
        float, Option(min=0, max=1000, help="A BatchNorm channel below this is abnormal.")
    ] = 1e-6
    conv1: Annotated[
        Literal["sum", "mean", "random"], Option(help="First convolution across 1 and 3 input channels.")
    ] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", expand_home(self.weights))  # a path, or a word without `~`
        _ = self.size

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
        """ABRi's own options change nothing without ABRi, nor does a size that was not given."""
        idle = super().idle() | (set() if self.bn == "abri" else {"abri", "alpha"})
        return idle | ({"input_size"} if self.input_size is None else set())
