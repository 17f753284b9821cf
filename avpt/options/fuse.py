"""The options of `avpt fuse-train`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from avpt.errors import ConfigError
from avpt.options.base import BALANCE, INPUTS, MISSING, MODEL, MOST_EPOCHS, NameOrClass, flag
from avpt.options.mask import MaskConfig
from avpt.options.train import TrainConfig

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
COSTS = {  # what each takes more than plain training: passes, memory; in the table of `avpt guide balancing` too
    "uniform": ("two heads", "two heads"),
    "mmpareto": ("1 backward pass of each encoder", "2 gradients of each encoder"),
    "umt": ("1 forward pass of each encoder", "weights of each encoder"),
    "agm": ("1 forward pass, 3 backward passes", "activations, 2 gradients of the model"),
    "pmr": ("1 backward pass of each encoder, a pass over train an epoch", "2 gradients of each encoder"),
    "dgl": ("3 passes of the fusion", "nothing"),
    "g2d": ("1 forward pass of each encoder", "weights of each encoder"),
    "ogm-ge": ("2 passes of the fusion", "nothing"),
    "ogm-ge-late": ("2 passes of the fusion", "nothing"),
    "opm": ("3 passes of the fusion", "nothing"),
    "relearning": ("a pass over train and val after some epochs", "weights of each encoder in main memory"),
    "smv": ("each clip up to 4 more times, a pass over train an epoch", "nothing"),
    "g-blend": ("the training 3 more times", "a second model with gradients and optimiser"),
}
OGM_GE: dict[str, Any] = {"ogm_alpha": 0.1, "ogm_window": (0, 50)}  # defaults of its own options
TAUGHT = ("umt", "g2d")  # which learn from stage-1 runs


def _costs() -> str:
    """What the methods cost, in a sentence; those that cost the same are named together."""
    alike: dict[str, list[str]] = {}
    for name, cost in COSTS.items():
        alike.setdefault(", ".join(dict.fromkeys(one for one in cost if one != "nothing")), []).append(name)
    return "; ".join(f"{', '.join(names)}: {words}" for words, names in alike.items())


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
            help="Method that keeps one modality from starving the other, or a class of your own. Passes and "
            f"memory beyond none: {_costs()}.",
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
    ogm_alpha: Annotated[
        float | None,
        Option(
            min=0,
            max=1000,
            help="With ogm-ge: how hard.",
            show_default=str(OGM_GE["ogm_alpha"]),
            rich_help_panel=BALANCE,
        ),
    ] = None
    ogm_window: Annotated[
        tuple[int, int] | None,
        Option(
            min=0,
            max=MOST_EPOCHS,
            help="With ogm-ge: first and last epoch in which it does, counted from 0.",
            metavar="FIRST LAST",
            show_default="{} {}".format(*OGM_GE["ogm_window"]),
            rich_help_panel=BALANCE,
        ),
    ] = None
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
        of_methods = ("balance_set", "balance_gamma", "teacher_audio", "teacher_visual", *OGM_GE)
        named = [name for name in of_methods if getattr(self, name) is not None]
        if self.balance == "none" and named:
            raise ConfigError(f"{flag(named[0])} is given, but --balance is none; name the method, or leave it out")
        if self.balance in BALANCING and self.balance not in TAUGHT:
            self.check_no_teacher()
        if self.balance == "ogm-ge":
            for name, default in OGM_GE.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, default)
        elif of_ogm_ge := [flag(name) for name in named if name in OGM_GE]:
            raise ConfigError(
                f"{of_ogm_ge[0]} goes with --balance ogm-ge alone, not with {self.balance}, whose options are set by "
                "--balance-set"
            )
        if self.ogm_window is not None and self.ogm_window[0] > self.ogm_window[1]:
            raise ConfigError(f"--ogm-window is {self.ogm_window[0]} {self.ogm_window[1]}; the first epoch comes first")
        if self.mask != "none" and self.confidence is None:
            raise ConfigError(
                f"--mask {self.mask} needs --confidence (write it with `avpt score-confidence`); "
                "--mask none trains without masking"
            )

    def check_no_teacher(self) -> None:
        """Refuse stage-1 runs that are named for a method that learns from none.

        Raises:
            ConfigError: there are.
        """
        if self.teacher_audio is not None or self.teacher_visual is not None:
            raise ConfigError(f"--balance {self.balance} learns from no stage-1 run; leave --teacher-... out")

    def idle(self) -> set[str]:
        """Options of another balancing method, or that are not given, change nothing."""
        idle = set() if self.balance == "ogm-ge" else {"ogm_alpha", "ogm_window"}
        idle |= set() if self.balance_set else {"balance_set"}
        return super().idle() | idle | (set() if self.balance_gamma is not None else {"balance_gamma"})

    @staticmethod
    def balance_options() -> set[str]:
        """The names of the options that say how the modalities are balanced, teachers included."""
        names = {field.name for field in dataclasses.fields(FuseConfig)}
        return {name for name in names if name.startswith(("balance", "ogm_", "teacher_"))} - {"balanced_sampling"}

    @property
    def given_to_balance(self) -> dict[str, Any]:
        """The balancing method's options that have an option to themselves, by the method's name for them."""
        given: dict[str, Any] = {"alpha": self.ogm_alpha, "window": self.ogm_window} if self.balance == "ogm-ge" else {}
        return given | ({} if self.balance_gamma is None else {"gamma": self.balance_gamma})
