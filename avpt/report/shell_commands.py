"""The command that makes an artifact again, from what its header says."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avpt.options import Config, flag, parameter
from avpt.options.recorded import CONFIGS
from avpt.runs.lineage import Node

LINE = 76  # characters after which a command is broken

COMMANDS = {  # by what they write
    "store": "preprocess",
    "encoder": "init",
    "classifier": "finetune-unimodal",
    "confidence": "score-confidence",
    "fused": "fuse-train",
    "probe": "probe",
    "evaluation": "evaluate",
}
ARGUMENTS = {  # inputs that have no option's name before them, in their order
    "store": ("manifest",),
    "classifier": ("store",),
    "fused": ("store",),
    "probe": ("model", "store"),
    "evaluation": ("model", "store"),
}


def command_of(node: Node, origins: Mapping[str, Node | None], folder: Path) -> list[str]:
    """The words of the command that writes a node, to be run in `folder`.

    Only options that differ from their defaults are given. An input that was not found is a word in capitals.
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
            words += [option(config_type, field.name), place(field.name)]
        elif field.name in node.config and node.config[field.name] != _recorded(field.default):
            words += given(config_type, field.name, node.config[field.name])
    return [*words, "--out", os.path.relpath(node.path, folder)]


def given(config_type: type[Config], name: str, value: Any) -> list[str]:
    """An option as words."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [option(config_type, name) if value else f"--no-{flag(name)[2:]}"]
    values = [_word(item) for item in value] if isinstance(value, list) else [_word(value)]
    return [option(config_type, name), *values]


def option(config_type: type[Config], name: str) -> str:
    """What an option is called."""
    declared = parameter(config_type, name).param_decls or ()
    return next(iter(declared), flag(name))


def broken(words: list[str]) -> str:
    """A command in lines that a shell joins again; an option stays with its value."""
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


def _recorded(default: Any) -> Any:
    """A default as JSON has it."""
    return list(default) if isinstance(default, tuple) else default


def _word(value: Any) -> str:
    return repr(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else str(value)
