"""The options of `avpt score-confidence`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from avpt.errors import ConfigError
from avpt.options.base import INPUTS, MOST_EPOCHS, OUTPUT, SELECTION, Search, Suffix, flag
from avpt.options.mask import MaskConfig
from avpt.types import FIGURE_SUFFIXES


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
        Option(
            help="Also write the confidence of each clip as CSV (.csv).", show_default="none", rich_help_panel=OUTPUT
        ),
        Suffix((".csv",)),
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
        Suffix((".csv",)),
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
