"""Options declared as typed fields of a frozen dataclass: what a config is, and what is read from its fields."""

import dataclasses
import math
import os
from collections.abc import Hashable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast, get_args, get_origin, get_type_hints

from typer import Option
from typer.models import ParameterInfo

from avpt.errors import ConfigError
from avpt.text import shortened

# The groups of options in help, in the order in which it shows them
INPUTS = "Inputs"
SPLITS = "Splits"
PIECES = "Pieces of long files"
SOUND = "Sound"
PICTURES = "Pictures"
FAILURES = "Clips that fail"
MODEL = "Model"
CHANNELS = "Abnormal and dead channels"
MISSING = "With a modality missing or noisy"
MASKING = "Masking"
BALANCE = "Balancing the modalities"
SELECTION = "Selecting clips"
OPTIMISER = "Optimiser"
SCHEDULE = "Schedule"
AUGMENTATION = "Augmentation"
OUTPUT = "Output"
HARDWARE = "Hardware"
COMMON = "Common"
PANELS = (
    *(INPUTS, SPLITS, PIECES, SOUND, PICTURES, FAILURES, MODEL, CHANNELS, MISSING),
    *(MASKING, SELECTION, BALANCE, OPTIMISER, SCHEDULE, AUGMENTATION, OUTPUT, HARDWARE, COMMON),
)


class Transient:
    """Marks an option that can't change the result: it is not recorded and not compared."""


@dataclass(frozen=True)
class NameOrClass:
    """Marks an option that takes one of some names, or a class of the user's own as `package.module:Class`."""

    names: tuple[str, ...]

    def check(self, option: str, value: str) -> None:
        """Refuse what is neither.

        Raises:
            ConfigError: it is not one of the names, and has no colon with something on either side.
        """
        module, _, class_name = value.partition(":")
        if value not in self.names and not (module and class_name):
            near = [f"did you mean {name}? " for name in get_close_matches(value, self.names, n=1)]
            raise ConfigError(
                f"{option} {shortened(value, 40)!r} is not one of {', '.join(self.names)}; {''.join(near)}"
                "a class of your own is package.module:Class"
            )


@dataclass(frozen=True)
class Suffix:
    """Marks the path of an output that is text, of which the name alone says what it is.

    What is there already is judged by its content, by who writes it.
    """

    names: tuple[str, ...]

    def check(self, option: str, path: Path | None) -> None:
        """Refuse a new file whose name says something else, or nothing.

        Raises:
            ConfigError: it does.
        """
        if path is not None and path.suffix.lower() not in self.names and not os.path.lexists(path):
            raise ConfigError(f"{option} is {path}; its name must end in {' or '.join(self.names)}")


def type_hints(config_type: "type[Config]") -> dict[str, Any]:
    """Each field's annotation, with the Option or Argument and the markers that go with it."""
    return _evaluated(cast(Hashable, config_type))


@cache
def _evaluated(config_type: Any) -> dict[str, Any]:
    return get_type_hints(config_type, include_extras=True)  # evaluates source text: once per class, not once per field


def parameter(config_type: "type[Config]", name: str) -> ParameterInfo:
    """The Typer Option or Argument that declares the field."""
    metadata = type_hints(config_type)[name].__metadata__
    return next(item for item in metadata if isinstance(item, ParameterInfo))


def flag(name: str) -> str:
    """`mask_ratio` -> `--mask-ratio`."""
    return "--" + name.replace("_", "-")


def choices(config_type: "type[Config]", name: str) -> tuple[str, ...]:
    """The words that an option takes; none where it takes any."""
    kind, *metadata = get_args(type_hints(config_type)[name])
    if named := [item.names for item in metadata if isinstance(item, NameOrClass)]:
        return named[0]
    kinds = (kind, *get_args(kind))
    return next((get_args(one) for one in kinds if get_origin(one) is Literal), ())


def taken_once(config_type: "type[Config]") -> list[str]:
    """The options that name a part of the method, as they are typed: a second one would replace the first unseen."""
    hints = type_hints(config_type)
    return [flag(name) for name, hint in hints.items() if any(isinstance(one, NameOrClass) for one in get_args(hint))]


def bounds(info: ParameterInfo, highest: float = math.inf) -> str:
    """The range of a numeric option in words; empty where it has none. An upper end above `highest` is left out."""
    if info.min is not None and info.max is not None and info.max <= highest:
        return f"{_in_full(info.min)} to {_in_full(info.max)}"
    return f"{_in_full(info.min)} or more" if info.min is not None else ""


def _in_full(number: float) -> str:
    """A number without exponent, 1000000, not 1e+06; of a very long one the middle is left out."""
    return shortened(str(number), 40) if isinstance(number, int) else f"{number:g}"


def whole_number(text: str) -> int:
    """The number that a part of an option's value spells; -1 where it is none, or longer than any option takes."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1


def expand_home(path: str) -> str:
    """A path with the home for `~`, which a shell leaves alone in --out=~/store; an unknown user's `~` stays."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path's own raises


def _expanded(value: Any) -> Any:
    """A path or several with `~` expanded; anything else as it is."""
    if isinstance(value, list | tuple):
        return type(value)(map(_expanded, value))
    return Path(expand_home(str(value))) if isinstance(value, Path) else value


def allows(config_type: "type[Config]", name: str, value: Any) -> bool:
    """Whether a value that a file records is one that the option can have."""
    kind, info = get_args(type_hints(config_type)[name])[0], parameter(config_type, name)
    if type(None) in get_args(kind):
        if value is None:
            return True
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    if get_args(kind):
        return value in get_args(kind)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        return kind is bool and isinstance(value, bool)
    if isinstance(value, str):
        return True
    low = -math.inf if info.min is None else info.min
    return bool(low <= value <= (math.inf if info.max is None else info.max) and math.isfinite(value))


def _names_path(kind: Any) -> bool:
    """Whether a field holds a path or several: Path, Path | None, list[Path] | None."""
    return kind is Path or any(map(_names_path, get_args(kind)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Config:
    """The options of every command. Ranges are applied here, to library callers too."""

    json: Annotated[
        bool,
        Option("--json", help="Print the results as one line of JSON, for scripts.", rich_help_panel=COMMON),
        Transient,
    ] = False
    quiet: Annotated[
        bool,
        Option("--quiet", "-q", help="No progress, messages or tables on stderr.", rich_help_panel=COMMON),
        Transient,
    ] = False
    debug: Annotated[
        bool, Option("--debug", help="Show where in the program an error arose.", rich_help_panel=COMMON), Transient
    ] = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, info = _expanded(getattr(self, field.name)), parameter(type(self), field.name)
            object.__setattr__(self, field.name, value)
            for item in get_args(type_hints(type(self))[field.name]):
                if isinstance(item, NameOrClass | Suffix):
                    item.check(flag(field.name), value)
            numbers = value if isinstance(value, tuple | list) else (value,)
            for number in numbers:
                if isinstance(number, bool) or not isinstance(number, int | float):
                    continue
                low = -math.inf if info.min is None else info.min
                high = math.inf if info.max is None else info.max
                if not (low <= number <= high and math.isfinite(number)):
                    raise ConfigError(
                        f"{flag(field.name)} is {_in_full(number)}; it must be {bounds(info) or 'finite'}"
                    )

    def record(self) -> dict[str, Any]:
        """The options that can change the result. Paths are left out: the command records what they held."""
        recorded = {}
        for field in dataclasses.fields(self):
            kind, *metadata = get_args(type_hints(type(self))[field.name])
            if Transient not in metadata and not _names_path(kind):
                recorded[field.name] = getattr(self, field.name)
        return {name: value for name, value in recorded.items() if name not in self.idle()}

    def idle(self) -> set[str]:
        """The names of options that change nothing beside the values of the others."""
        return set()

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of every option that has one."""
        return {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING and f.init}


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputConfig(Config):
    """The options of every command that writes files."""

    resumes: ClassVar[bool] = True  # the command continues where it was interrupted

    overwrite: Annotated[
        bool,
        Option("--overwrite", help="Start over: remove what avpt wrote at --out.", rich_help_panel=COMMON),
        Transient,
    ] = False


# The upper ends of ranges are far beyond what anyone means, and low enough that nothing overflows, hangs or swaps
MOST_WORKERS = 1024
MOST_CLIPS = 1_000_000_000
MOST_EPOCHS = 100_000
LARGEST_BATCH = 65_536

# options that several commands share
Seed = Annotated[
    int,
    Option(
        min=0,
        max=2**63 - 1,
        help="The same number draws the same random numbers: the same command gives the same result.",
        rich_help_panel=COMMON,
    ),
]
WeightsKey = Annotated[
    str | None,
    Option(
        help="Which of several weights in a file: the key that they are under, or the prefix of their keys.",
        show_default="the only ones that fit",
        rich_help_panel=MODEL,
    ),
]
LoadingWorkers = Annotated[
    int | None,
    Option(
        min=0,
        max=MOST_WORKERS,
        help="Processes that load clips; 0 loads them in the main process.",
        show_default="cores - 1",
        rich_help_panel=HARDWARE,
    ),
    Transient,
]
DecodingWorkers = Annotated[
    int | None,
    Option(
        min=1,
        max=MOST_WORKERS,
        help="Processes that decode clips; one at least, so that a clip that hangs can be given up.",
        show_default="cores",
        rich_help_panel=HARDWARE,
    ),
    Transient,
]
Device = Annotated[
    str, Option(help="Where to compute: auto, cpu, cuda, cuda:1, mps, ...", rich_help_panel=HARDWARE), Transient
]
Search = Annotated[
    list[Path] | None,
    Option(
        "--search",
        help="A further folder to look for what the runs were made from, by checksums; repeatable.",
        show_default="none",
        rich_help_panel=INPUTS,
    ),
]
ClipTimeout = Annotated[
    float,
    Option(
        min=0.1, max=1_000_000, help="Seconds after which a clip counts as hung, and fails.", rich_help_panel=FAILURES
    ),
    Transient,
]
WorkerMemory = Annotated[
    float,
    Option(
        min=0.05,
        max=65_536,
        help="GiB of memory that a worker may take; a clip that needs more fails.",
        rich_help_panel=FAILURES,
    ),
    Transient,
]
