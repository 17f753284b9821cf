"""The command that makes an artifact again, derived from its header."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avpt.options import Config, flag, parameter
from avpt.options.older_records import CONFIGS
from avpt.runs.lineage import Node

LINE = 76  # the longest line of a command, characters

COMMANDS = {  # by the kind of artifact that they write
    "store": "preprocess",
    "encoder": "init",
    "classifier": "finetune-unimodal",
    "confidence": "score-confidence",
    "fused": "fuse-train",
    "probe": "probe",
    "evaluation": "evaluate",
}
ARGUMENTS = {  # inputs that are positional, in their order
    "store": ("manifest",),
    "classifier": ("store",),
    "fused": ("store",),
    "probe": ("model", "store"),
    "evaluation": ("model", "store"),
}


def command_of(node: Node, origins: Mapping[str, Node | None], folder: Path) -> list[str]:
    """The words of the command that writes a node, to be run in `folder`.

    Only options that differ from their defaults are named. An input that was not found is a word in capitals.
    """
    name, config_type = COMMANDS[node.kind], CONFIGS[node.kind]

    def place(what: str) -> str:
        origin = origins.get(what)
        return os.path.relpath(origin.path, folder) if origin is not None else what.upper()

    arguments = ARGUMENTS.get(node.kind, ())
    words = ["avpt", name, *map(place, arguments)]
    inputs = [what for what in node.inputs if what not in arguments]
    for field in dataclasses.fields(config_type):
        if field.name in inputs:
            words += [option_name(config_type, field.name), place(field.name)]
        elif field.name in node.config and node.config[field.name] != _as_recorded(field.default):
            words += write_option(config_type, field.name, node.config[field.name])
    return [*words, "--out", os.path.relpath(node.path, folder)]


def write_option(config_type: type[Config], name: str, value: Any) -> list[str]:
    """Write an option and its value as words."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [option_name(config_type, name) if value else f"--no-{flag(name)[2:]}"]
    values = [_format_value(item) for item in value] if isinstance(value, list) else [_format_value(value)]
    return [option_name(config_type, name), *values]


def option_name(config_type: type[Config], name: str) -> str:
    """The name of an option on the command line."""
    declared = parameter(config_type, name).param_decls or ()
    return next(iter(declared), flag(name))


def break_lines(words: list[str]) -> str:
    """Break a command into lines that a shell joins again; an option stays with its value."""
    lines: list[str] = []
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups or not groups[-1][0].startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    for group in groups:
        text = shlex.join(group)
        if lines and len(lines[-1]) + 1 + len(text) <= LINE:
            lines[-1] += f" {text}"
        else:
            lines.append(text if not lines else f"  {text}")
    return " \\\n".join(lines)


def _as_recorded(default: Any) -> Any:
    """Convert a default to what JSON makes of it."""
    return list(default) if isinstance(default, tuple) else default


def _format_value(value: Any) -> str:
    return repr(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else str(value)
