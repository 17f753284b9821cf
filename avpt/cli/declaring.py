"""A config becomes the options of a command: each as its field declares it, in the order and the words of help."""

from __future__ import annotations

import copy
import dataclasses
import inspect as signatures
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from avpt import options

METAVARS = {bool: "", int: "N", float: "NUM", Path: "PATH", str: "TEXT"}  # short, so that there is room for the help
MOST_SHOWN = 10_000  # an upper end of a range that is higher only keeps out what nobody means


def config_of(body: Callable[[Any], Any]) -> type[options.Config]:
    """The config that a command takes, by the annotation of its one parameter."""
    config_type: type[options.Config] = get_type_hints(body, localns={"options": options})["settings"]
    return config_type


def declare(config_type: type[options.Config], callback: Callable[..., None]) -> Any:
    """Typer's command that calls back with the values of a config's fields."""
    hints = options.type_hints(config_type)
    parameters = [
        signatures.Parameter(
            field.name,
            signatures.Parameter.KEYWORD_ONLY,
            default=signatures.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=Annotated[hints[field.name].__origin__, _as_shown(config_type, field)],
        )
        for field in _in_order(config_type)
    ]
    callback.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(callback)
    return typer.main.get_command(app)


def _in_order(config_type: type[options.Config]) -> list[dataclasses.Field[Any]]:
    """The fields in the order of the help text: arguments, then group by group, in each the command's own first."""
    depth = {name: i for i, base in enumerate(config_type.__mro__) for name in signatures.get_annotations(base)}

    def place(field: dataclasses.Field[Any]) -> tuple[int, bool, int]:
        panel = options.parameter(config_type, field.name).rich_help_panel
        group = -1 if panel is None else options.PANELS.index(panel)
        return group, group >= 0 and field.default is not dataclasses.MISSING, depth[field.name]

    return sorted(dataclasses.fields(config_type), key=place)


def _as_shown(config_type: type[options.Config], field: dataclasses.Field[Any]) -> Any:
    """The declared option as help shows it: a short word for its type, choices, range and default as text.

    The config itself refuses a value out of range, with exit code 1.
    """
    name = field.name
    info = copy.copy(options.parameter(config_type, name))
    info.show_choices = False  # a list of them would be broken in the middle of a word
    choices = options.choices(config_type, name)
    if not all(re.search(rf"(?<![\w-]){choice}(?![\w-])", str(info.help)) for choice in choices):
        info.help = f"{info.help} [dim]({', '.join(choices)})[/dim]"
    if text := options.bounds(info, highest=MOST_SHOWN):
        info.help = f"{info.help} [dim]({text})[/dim]"
    info.min = info.max = None
    if isinstance(field.default, tuple):
        typed = " ".join(f"{value:g}" for value in field.default)
        info.help, info.show_default = f"{info.help} [dim]\\[default: {typed}][/dim]", False
    if isinstance(info, OptionInfo) and info.metavar is None:
        kind = options.type_hints(config_type)[name].__origin__
        kinds = {kind, *get_args(kind), *(inner for part in get_args(kind) for inner in get_args(part))}
        info.metavar = "WORD" if choices else next(word for one, word in METAVARS.items() if one in kinds)
    return info
