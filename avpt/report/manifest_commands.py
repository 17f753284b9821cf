"""The commands that make the manifests of an experiment again, derived from the records beside them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from avpt.errors import ConfigError
from avpt.files.checking import RecordError, read
from avpt.files.outputs import sha256_if_there
from avpt.files.records import ManifestRecord
from avpt.files.typed_paths import read_paths, record_of
from avpt.options import ManifestConfig
from avpt.report.experiment import Experiment
from avpt.report.shell_commands import option_name, place_file, write_option

LISTS = "list "  # the inputs of these names are what --list names, in their order


def find_manifests(experiment: Experiment) -> dict[Path, ManifestRecord]:
    """The manifests that `avpt manifest` wrote and that nothing has changed since, with the records beside them."""
    files = [files["manifest"] for files in experiment.files.values() if "manifest" in files]
    found = {}
    for path in dict.fromkeys(files):
        try:
            record = read(record_of(path), ManifestRecord)
        except (OSError, RecordError):
            continue
        if record["files"].get(path.name) == sha256_if_there(path):
            found[path] = record
    return found


def command_of_manifest(manifest: Path, record: ManifestRecord, folder: Path) -> list[str] | None:
    """The words of the command that writes a manifest, to be run in `folder`; None where its record can't tell."""
    config, inputs, typed = record["config"], record["inputs"], read_paths(manifest)
    options: Mapping[str, object] = {**config}
    lists = [name for name in inputs if name.startswith(LISTS)]
    out = _out_of(manifest, options)
    if out is None or "folder" not in inputs or (lists and not typed):  # an older avpt did not note what was typed
        return None
    media = Path(os.path.normpath(manifest.parent / inputs["folder"]))
    words = [str(options.get("name")), place_file(media, typed.get("folder"), folder)]
    given = [typed[name] for name in sorted(lists, key=_number) if name in typed]
    for one in given:
        words += [option_name(ManifestConfig, "lists"), place_file(one.place, one, folder)]
    if classes := typed.get("classes"):
        words += [option_name(ManifestConfig, "classes"), place_file(classes.place, classes, folder)]
    plain = _plain_record(options, [one.place for one in given])
    if plain is None:
        return None
    for field in dataclasses.fields(ManifestConfig):
        if field.name in options and options[field.name] != plain.get(field.name):
            words += write_option(ManifestConfig, field.name, options[field.name])
    return ["avpt", "manifest", *words, "--out", os.path.relpath(out, folder)]


def _plain_record(options: Mapping[str, object], lists: Sequence[Path]) -> Mapping[str, object] | None:
    """What the record would have if no option had been given, which depends on the data set."""
    known = {"name": options.get("name"), "folds": options.get("folds"), "lists": list(lists) or None}
    try:
        return ManifestConfig(folder=Path(), out=Path("m.csv"), **known).record()  # type: ignore[arg-type]
    except (ConfigError, TypeError):
        return None


def _out_of(manifest: Path, options: Mapping[str, object]) -> Path | None:
    """What --out named: of one of several folds the name without the fold's number."""
    folds, fold = options.get("folds"), options.get("fold")
    if not (isinstance(folds, int) and isinstance(fold, int)):
        return manifest
    ending = f"-fold{fold:0{len(str(folds))}}"
    stem = manifest.stem.removesuffix(ending)
    return None if stem == manifest.stem else manifest.with_name(f"{stem}{manifest.suffix}")


def _number(name: str) -> int:
    number = name.removeprefix(LISTS).partition(" ")[0]
    return int(number) if number.isdecimal() else 0
