"""The commands that make the artifacts of an experiment again, derived from their headers."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avpt.errors import AvptError
from avpt.files.artifacts import read_header
from avpt.files.typed_paths import RecordedPath, read_paths
from avpt.options import Config, flag, parameter
from avpt.options.older_records import CONFIGS
from avpt.report.experiment import Experiment
from avpt.runs.lineage import LEVELS_UP, Node

LINE = 76  # the longest line of a command, characters

SIZES = ("image_size", "num_frames")

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


def find_folder(experiment: Experiment, page: Path, manifests: Iterable[Path] = ()) -> Path:
    """The folder to run the commands in: the page's, or else the innermost one that holds all that they make.

    They lead out of it nowhere, so that they can be run in another folder too. A manifest that lies far from the rest,
    as beside its clips, is not made again.
    """
    page = Path(os.path.normpath(page))
    made = [node.path for node in experiment.nodes if node.kind in COMMANDS]
    base = page
    if not all(path.is_relative_to(page) for path in made):
        base = Path(os.path.commonpath([path.parent for path in made]))
    near = (base, *base.parents[:LEVELS_UP])
    for manifest in manifests:
        shared = Path(os.path.commonpath([base, manifest.parent]))
        base = shared if shared in near and not shared.is_mount() else base
    return base


def command_of(
    node: Node, origins: Mapping[str, Node | None], folder: Path, files: Mapping[str, Path] | None = None
) -> list[str]:
    """The words of the command that writes a node, to be run in `folder`.

    Only options that differ from their defaults are named. An input that was not found is a word in capitals.

    Args:
        node: that is to be made again.
        origins: the nodes that it was made from, by the names of the inputs.
        folder: that relative paths start from.
        files: the inputs that no command makes.
    """
    name, config_type = COMMANDS[node.kind], CONFIGS[node.kind]
    typed, options = read_paths(node.path), _options_of(node)

    def place(what: str) -> str:
        origin = origins.get(what)
        if origin is not None:
            return os.path.relpath(origin.path, folder)
        if files is not None and what in files:
            return place_file(files[what], typed.get(what), folder)
        return what.upper()

    arguments = ARGUMENTS.get(node.kind, ())
    words = ["avpt", name, *map(place, arguments)]
    inputs = [what for what in node.inputs if what not in arguments]
    for field in dataclasses.fields(config_type):
        if field.name in inputs:
            words += [option_name(config_type, field.name), place(field.name)]
        elif field.name in options and options[field.name] != _as_recorded(field.default):
            words += write_option(config_type, field.name, options[field.name])
        elif field.name in typed and field.name not in node.inputs:  # a path that is no input, such as --root
            there = typed[field.name]
            words += [option_name(config_type, field.name), place_file(there.place, there, folder)]
    return [*words, "--out", os.path.relpath(node.path, folder)]


def command_of_page(experiment: Experiment, folder: Path, page: Path, options: Sequence[str]) -> list[str]:
    """The words of the command that writes the page, to be run in `folder`; there too if it lies elsewhere."""
    page = Path(os.path.normpath(page))
    runs = sorted(experiment.order, key=lambda path: experiment.order[path])
    out = os.path.relpath(page, folder) if page.is_relative_to(folder) else page.name
    return ["avpt", "report", *(os.path.relpath(run, folder) for run in runs), *options, "--out", out]


def _options_of(node: Node) -> dict[str, Any]:
    """The options that a node was made with; a run on sound has the sizes of pictures in its model's spec alone."""
    sizes: dict[str, Any] = {}
    if node.kind == "classifier" and node.files:
        try:
            spec = read_header(node.files[0])[0].spec.get("input")
        except AvptError:
            spec = None
        sizes = {name: spec[name] for name in SIZES if name in spec} if isinstance(spec, dict) else {}
    return sizes | node.config


def place_file(file: Path, typed: RecordedPath | None, folder: Path) -> str:
    """The path of a file that no command makes: as it was typed, or absolute where that would not lead there."""
    below = os.path.relpath(file, folder) if file.is_relative_to(folder) else None
    if typed is not None and typed.place == file and (Path(typed.typed).is_absolute() or below == typed.typed):
        return typed.typed
    return os.fspath(file) if below is None else below


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
    info = parameter(config_type, name)
    declared = [word for word in (info.default, *(info.param_decls or ())) if str(word).startswith("--")]
    return str(next(iter(declared), flag(name)))  # Typer keeps the first name that is declared as `default`


def break_lines(words: list[str]) -> str:
    """Break a command into lines that a shell joins again; an option stays with its value."""
    return join_lines(list(map(shlex.quote, words)))


def join_lines(words: list[str], indent: str = "") -> str:
    """Join words that are quoted already to a command of several lines, each indented."""
    lines: list[str] = []
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups or not groups[-1][0].startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    for group in groups:
        text = " ".join(group)
        if lines and len(lines[-1]) + 1 + len(text) <= LINE:
            lines[-1] += f" {text}"
        else:
            lines.append(f"{indent}{text}" if not lines else f"{indent}  {text}")
    return " \\\n".join(lines)


def _as_recorded(default: Any) -> Any:
    """Convert a default to what JSON makes of it."""
    return list(default) if isinstance(default, tuple) else default


def _format_value(value: Any) -> str:
    return repr(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else str(value)
