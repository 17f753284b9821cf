"""The clips that a data set lists, matched with the media that are there, each in its split."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from avpt.commands._segments import cut_clips
from avpt.datasets import DATASETS
from avpt.datasets.dividing import divide_into_folds, split_by_hash, stratify
from avpt.datasets.media_files import SUFFIXES, Media
from avpt.datasets.rows import Dataset, Row, Source
from avpt.errors import ConfigError, ManifestError, listed
from avpt.options import ManifestConfig
from avpt.store.manifest import CONTROL
from avpt.types import Split

log = logging.getLogger(__name__)

SURROGATES = re.compile(r"[\ud800-\udfff]")  # what Python has in place of bytes that are not UTF-8
UNFIT = "white space at an end, control characters or bytes that are not UTF-8"


@dataclass
class GatheredClips:
    """What became of the rows of a data set."""

    clips: list[tuple[str, ...]] = field(default_factory=list)  # cells of the manifest
    unfit: list[str] = field(default_factory=list)  # names of clips that exist but that no manifest can hold
    missing: list[tuple[str, ...]] = field(default_factory=list)  # cells of the list of missing clips
    sought: tuple[str, ...] = ()  # keys of the first missing clip
    used: set[str] = field(default_factory=set)  # keys of the media that clips took
    official: set[Split] = field(default_factory=set)  # splits that the data set itself assigns


def gather(config: ManifestConfig, dataset: Dataset, source: Source, base: str) -> list[GatheredClips]:
    """Every clip once, in the order of the lists, with its split and its media: for each fold anew, if there are."""
    gathered = GatheredClips()
    rows, plans = plan_splits(config, dataset, source)
    prefix = "" if base == "." else f"{base}/"
    first: dict[str, tuple[str, Split | None, tuple[str, int]]] = {}
    for row in rows:
        label, split, (path, line) = first.get(row.id, (None, None, row.place))
        if label is None:
            first[row.id] = row.label, row.split, row.place
            add_clip(gathered, source.media, row, prefix, " ".join(plan[row.id] for plan in plans))
        elif (label, split) != (row.label, row.split):
            here = f"is in {row.split} here, but in {split}"
            if label != row.label:
                here = f"has the label {row.label} here, but {label}"
            source.bad(*row.place, f"{row.id} {here} in line {line} of {path}; take one of the two lines out")
    source.check()
    check_gathered(config, gathered, source.media)
    if config.segment is not None:
        folder = config.out.absolute().parent
        gathered.clips = cut_clips(
            gathered.clips, folder, config.segment, config.hop or config.segment, config.last_piece
        )
    clips_of = Counter(clip[-1] for clip in gathered.clips)  # by recording; one that has a single clip is not written
    gathered.clips = [(*clip[:-1], clip[-1] if clips_of[clip[-1]] > 1 else "") for clip in gathered.clips]
    return [of_fold(gathered, number) for number in range(len(plans))]


def plan_splits(
    config: ManifestConfig, dataset: Dataset, source: Source
) -> tuple[list[Row], list[Mapping[str, Split]]]:
    """The rows of a data set, and the split of each by its id: once, or once for each fold.

    Raises:
        ConfigError: there are fewer groups than folds; or the data set has splits of its own.
    """
    shares = config.test_share, config.val_fraction
    if config.folds and dataset.folds:
        sources = [Source(source.media, source.lists, test_fold=fold) for fold in range(1, dataset.folds + 1)]
        rows = list(dataset.rows(source))
        of_folds = [[*dataset.rows(each)] for each in sources]
        return rows, [{row.id: split_by_hash(row, *shares) for row in reversed(fold)} for fold in of_folds]
    rows = list(dataset.rows(source))
    expression = config.group_by or (dataset.group if config.folds else "")
    if expression:
        rows = group_rows(rows, expression)
    if config.folds is None:
        stratified = dataset.stratified or (config.group_by is not None and not config.lists)
        chosen = stratify(rows, *shares) if stratified else {}
        return rows, [{row.id: chosen.get(row.id) or split_by_hash(row, *shares) for row in reversed(rows)}]
    if any(row.split for row in rows):
        raise ConfigError("--folds does not go with folders that are splits already; leave it out")
    if rows and (count := len({row.group for row in rows})) < config.folds:
        what = "groups" if expression else "clips"
        raise ConfigError(f"--folds is {config.folds}, but there are only {count} {what}; lower it")
    fold_of = divide_into_folds(rows, config.folds)
    plans: list[Mapping[str, Split]] = []
    for number in range(config.folds):
        divided = [replace(row, split="test" if fold_of[row.id] == number else "train") for row in rows]
        plans.append(stratify(divided, 1 / config.folds, config.val_fraction))
    return rows, plans


def of_fold(gathered: GatheredClips, number: int) -> GatheredClips:
    """What was gathered, with the splits of one fold: until then a clip has those of all folds, with spaces between."""
    clips = [(*clip[:2], clip[2].split(" ")[number], *clip[3:]) for clip in gathered.clips]
    missing = [(row[0], row[1].split(" ")[number], *row[2:]) for row in gathered.missing]
    return replace(gathered, clips=clips, missing=missing)


def group_rows(rows: list[Row], expression: str) -> list[Row]:
    """Rows grouped by what an expression matches in their ids: its first group, or else the whole match.

    Raises:
        ConfigError: it matches nothing, or the same everywhere.
    """
    found = [re.search(expression, row.id) for row in rows]
    names = ["" if match is None else (match[1] if match.re.groups else match[0]) or "" for match in found]
    if alone := [row.id for row, name in zip(rows, names, strict=True) if not name]:
        if len(alone) == len(rows):
            raise ConfigError(f"--group-by {expression} matches no clip's path, such as {alone[0]}; mend it")
        log.warning("--group-by matches nothing in %d of %d paths (%s)", len(alone), len(rows), listed(alone, 3))
    if rows and len(set(names)) == 1:
        what = f"{names[0]} in every clip's path"
        raise ConfigError(f"--group-by {expression} finds {what}, so that there is one group alone; mend it")
    return [replace(row, group=name or row.group) for row, name in zip(rows, names, strict=True)]


def add_clip(gathered: GatheredClips, media: Media, row: Row, prefix: str, split: str) -> None:
    """Find a clip's media, and add the clip with its split, or those of all folds."""
    times = ("", "")
    if row.split:
        gathered.official.add(row.split)
    files = media.find(row.names)
    if not files and row.whole:
        files, times = media.find((row.whole,)), row.times
        files.pop("frames", None)  # which of them the clip is made of is unknown
    if files:
        gathered.used.update(key for key, _ in files.values())
        paths = (prefix + files[kind][1] if kind in files else "" for kind in SUFFIXES)
        clip = (row.id, row.label, split, *paths, *times, row.group)
        if unfit := next((cell for cell in clip if not fits(cell)), None):
            gathered.unfit.append(unfit)
        else:
            gathered.clips.append(clip)
    else:
        gathered.sought = gathered.sought or tuple(filter(None, (*row.names, row.whole)))
        gathered.missing.append((row.id, split, row.label, Path(row.place[0]).name, str(row.place[1])))


def check_gathered(config: ManifestConfig, gathered: GatheredClips, media: Media) -> None:
    """Refuse what shows only when all rows are known.

    Raises:
        ManifestError: no clip has its media, or a name that a manifest can hold.
        ConfigError: a split is to be carved that the data set already has.
    """
    if not gathered.clips:
        what = "no media that are named like those of " + config.name
        if DATASETS[config.name].key != "name":
            what = "no folder for each class with clips in it"
        if gathered.unfit:
            what = f"only names that can't be in a manifest ({UNFIT}; {shown_of(gathered.unfit)})"
        elif gathered.missing:
            what = f"none of {len(gathered.missing)} clips; the first would be {', '.join(gathered.sought)}"
        endings = "; ".join(f"{kind} .{', .'.join(suffixes)}" for kind, suffixes in SUFFIXES.items())
        if config.name == "folder" and media.files["frames"]:
            endings += "; `avpt manifest image-folder` takes images one by one"
        raise ManifestError(f"{config.folder} and the folders below hold {what} (looked for {endings})")
    if config.test_share and gathered.official:
        raise ConfigError("--test-fraction does not go with folders that are splits already; leave it out")
    if config.val_fraction and "val" in gathered.official:
        raise ConfigError("--val-fraction does not go with a val split that is there already; leave it out")


def fits(cell: str) -> bool:
    """Whether a cell is the same when it is read back from a manifest."""
    return cell == cell.strip() and (cell.isprintable() or not (CONTROL.search(cell) or SURROGATES.search(cell)))


def shown_of(unfit: Sequence[str]) -> str:
    """The first few names, with odd characters escaped."""
    return listed(list(map(repr, unfit)), 3)
