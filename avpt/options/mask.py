"""The options of masking by confidence, which scoring and joint training share."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from typer import Option

from avpt.errors import ConfigError
from avpt.options.base import MASKING, OutputConfig, whole_number
from avpt.types import Modality

AUDIO_PATCH, VISUAL_PATCH = "32x8", "10"  # the paper's


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
