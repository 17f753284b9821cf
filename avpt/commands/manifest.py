"""`avpt manifest`: a known data set's own lists and media become a manifest."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

from avpt.commands._gather_clips import UNFIT, GatheredClips, gather, shown_of
from avpt.datasets import DATASETS, audioset
from avpt.datasets.media_files import SUFFIXES, Media, find_media
from avpt.datasets.rows import Dataset, Source
from avpt.errors import ManifestError, listed
from avpt.files.checking import RecordError, read
from avpt.files.locks import claim
from avpt.files.outputs import sha256, write_json, write_text
from avpt.files.records import ManifestRecord
from avpt.files.reuse import check_same, foreign, is_there, say_there
from avpt.files.typed_paths import describe_paths, relative_path
from avpt.machine.set_aside import describe_torn, torn_groups
from avpt.options import ManifestConfig
from avpt.store.spelling import warn_of_lookalikes
from avpt.text import for_sheet, format_count
from avpt.types import SPLITS, Report, Table

log = logging.getLogger(__name__)

COLUMNS = ("id", "label", "split", *SUFFIXES, "start", "end", "recording")
MISSING = ".missing.csv"  # ends the name of the list of clips whose media are missing
MISSING_COLUMNS = ("id", "split", "label", "list", "line")
IMAGES = "left out, as they hold images and no clips: %s; `avpt manifest image-folder` takes each image as a clip"
MOST_CLASSES = 50  # that the table of classes shows
NO_FOLD = {"folds": None, "fold": None}  # in a record that is compared with another, which may have them


def run(config: ManifestConfig) -> Report:
    """Match the clips that a data set lists with the media that are there; leave a finished manifest alone."""
    dataset, out = DATASETS[config.name], config.out
    if not config.folder.is_dir():
        what = "the class folders" if config.name in ("folder", "image-folder") else f"the media of {config.name}"
        raise ManifestError(f"{config.folder} is not a folder; give the one that {what} lie in")
    media = find_media(config.folder, dataset.key)
    lists, classes = find_lists(config, dataset, media), find_classes(config, media)
    base = partial(relative_path, out.absolute().parent, config.folder)
    inputs = {f"list {number} {path.name}": sha256(path) for number, path in enumerate(lists, 1)}
    inputs |= {"classes": sha256(classes)} if classes else {}
    typed = {f"list {number} {path.name}": path for number, path in enumerate(config.lists or (), 1)}
    paths = describe_paths(inputs, {"folder": config.folder, "classes": config.classes, **typed})
    outs = [out] if config.folds is None else [fold_path(out, fold, config.folds) for fold in fold_numbers(config)]
    with ExitStack() as claims:
        for path in outs:
            claims.enter_context(claim(path, beside=(missing_of(path), record_of(path))))
        inputs |= {"folder": base(), "media": media.sha256}
        earlier = [read_record(path) for path in outs]
        settings: list[dict[str, Any]] = [
            {"schema": 1, "config": config.record() | fold, "inputs": inputs} for fold in fold_records(config)
        ]
        if not config.overwrite:
            for path, record, wanted in zip(outs, earlier, settings, strict=True):
                if record and path.exists():  # else it was removed, and is made again
                    check_same(path, record, wanted | {"config": NO_FOLD | wanted["config"]}, config.defaults())
            there = [
                record["summary"] for path, record in zip(outs, earlier, strict=True) if record and whole(path, record)
            ]
            if len(there) == len(outs):
                for path in outs:
                    say_there(path)
                return report(outs, there)
        warn_of_passed_over(config, dataset, media)
        source = Source(media, lists, classes, config.fold, config.trimmed)
        folds = gather(config, dataset, source, inputs["folder"])
        summaries = [summarise(dataset, media, gathered) for gathered in folds]
        for path, gathered, summary, record, wanted in zip(outs, folds, summaries, earlier, settings, strict=True):
            write(path, gathered, {**wanted, **paths, "summary": summary}, record["files"] if record else {})
        warn(config, outs[0], media, folds[0])
        warn_of_lookalikes(list(summaries[0]["by_class"]))
        warn_of_torn_groups(dataset, lists, folds)
        warn_of_gaps(config, summaries)
        return report(outs, summaries)


def fold_numbers(config: ManifestConfig) -> range:
    """The numbers of the folds, from 1."""
    return range(1, (config.folds or 0) + 1)


def fold_records(config: ManifestConfig) -> list[dict[str, int]]:
    """What the record of each manifest has of folds: nothing where there are none."""
    return [{"folds": len(fold_numbers(config)), "fold": fold} for fold in fold_numbers(config)] or [{}]


def fold_path(out: Path, fold: int, folds: int) -> Path:
    """`manifest.csv` -> `manifest-fold1.csv`; with zeros before the number where there are ten or more."""
    return out.with_name(f"{out.stem}-fold{fold:0{len(str(folds))}}{out.suffix}")


def whole(out: Path, record: Mapping[str, Any]) -> bool:
    """Whether the files of a manifest are as they were written."""
    return all(digest(path) == record["files"].get(path.name) for path in (out, missing_of(out)))


def find_lists(config: ManifestConfig, dataset: Dataset, media: Media) -> tuple[Path, ...]:
    """The lists given, or else those that lie in the folder under their usual names."""
    if lacking := [path for path in config.lists or () if not path.is_file()]:
        raise ManifestError(f"{lacking[0]}: no such file; --list names a list that ships with {config.name}")
    if config.lists or not dataset.lists:
        return tuple(config.lists or ())
    paths = [config.folder / name for name in media.tables if not name.endswith(MISSING)]
    paths = [path for path in paths if path.absolute() != config.out.absolute() and not record_of(path).exists()]
    for pattern in dataset.lists:
        named = [path for path in paths if re.fullmatch(pattern, path.name.lower())]
        if named:
            log.info("lists: %s", ", ".join(map(str, named)))
            return tuple(named)
    raise ManifestError(f"{config.folder} and the folders in it hold no list of {config.name}; name one with --list")


def find_classes(config: ManifestConfig, media: Media) -> Path | None:
    """AudioSet's names of labels: the file given, or the one in the folder or beside a list."""
    if config.name != "audioset":
        return None
    usual = [config.folder / name for name in media.tables if Path(name).name == audioset.CLASSES_FILE]
    usual += [path.with_name(audioset.CLASSES_FILE) for path in config.lists or ()]
    for path in [config.classes] if config.classes else usual:
        if path.is_file():
            return path
    raise ManifestError(f"{config.classes or audioset.CLASSES_FILE}: no such file; name it with --classes")


def names_of(label: str, multi_label: bool) -> list[str]:
    """The names of the classes in a label cell."""
    return label.split(audioset.SEPARATOR) if multi_label else [label]


def summarise(dataset: Dataset, media: Media, gathered: GatheredClips) -> dict[str, Any]:
    """What --json prints, but for the path; and the clips of each class, by split."""
    by_class: dict[str, Counter[str]] = {}
    for _, label, split, *_ in gathered.clips:
        for name in names_of(label, dataset.multi_label):
            by_class.setdefault(name, Counter())[split] += 1
    present, missing = Counter(clip[2] for clip in gathered.clips), Counter(row[1] for row in gathered.missing)
    return {
        "clips": len(gathered.clips),
        "missing": len(gathered.missing),
        "unlisted": len(media.names - gathered.used),
        "unfit": len(gathered.unfit),
        "classes": len(by_class),
        "multi_label": dataset.multi_label,
        "splits": {
            split: {"listed": present[split] + missing[split], "found": present[split], "missing": missing[split]}
            for split in SPLITS
            if present[split] + missing[split]
        },
        "by_class": {name: {split: by_class[name][split] for split in SPLITS} for name in sorted(by_class)},
    }


def write(out: Path, gathered: GatheredClips, record: dict[str, Any], known: Mapping[str, str]) -> None:
    """Write the list of missing clips, the manifest, and last the record that declares both finished."""
    missing = [tuple(map(for_sheet, row)) for row in gathered.missing]
    texts = {missing_of(out): table(MISSING_COLUMNS, missing), out: table(COLUMNS, gathered.clips)}
    files = {path.name: hashlib.sha256(text.encode()).hexdigest() for path, text in texts.items() if text}
    for path in texts:
        # a file that already has its new content is of a run that was killed before it wrote the record
        if path.exists() and digest(path) not in (known.get(path.name), files.get(path.name)):
            raise foreign(path, otherwise="changed since")
    for path, text in texts.items():
        if text:
            write_text(path, text)
        else:
            path.unlink(missing_ok=True)
    write_json(record_of(out), record | {"files": files})


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as CSV, with the columns that any row fills; nothing where there are no rows."""
    filled = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    text = io.StringIO()
    csv.writer(text).writerows([row[i] for i in filled] for row in (columns, *rows) if filled)
    return text.getvalue()


def read_record(out: Path) -> dict[str, Any] | None:
    """The record that an earlier run left beside the manifest, None where there is none."""
    path = record_of(out)
    is_there(out)
    if not path.exists():
        return None
    try:
        return cast(dict[str, Any], read(path, ManifestRecord))
    except RecordError as error:
        raise foreign(path, "avpt manifest", why=error) from None


def record_of(out: Path) -> Path:
    """`manifest.csv.json`, as a CSV has no room for its provenance."""
    return out.with_name(f"{out.name}.json")


def missing_of(out: Path) -> Path:
    """`manifest.missing.csv`."""
    return out.with_name(out.stem + MISSING)


def digest(path: Path) -> str | None:
    """The checksum of a file, None where there is none."""
    return sha256(path) if path.is_file() else None


def warn_of_passed_over(config: ManifestConfig, dataset: Dataset, media: Media) -> None:
    """Warn of files that hold nothing and, in class folders, of all that no clip is made of."""
    passed = [(media.empty, "file", "of zero bytes")]
    if dataset.key != "name":  # a known data set has lists and notes beside its media
        passed += [(media.bare, "folder", "without clips"), (media.others, "file", "that no clip is made of")]
    what = [f"{format_count(len(paths), kind)} {how} ({listed(paths, 3)})" for paths, kind, how in passed if paths]
    if what:
        log.warning("passed over in %s: %s", config.folder, "; ".join(what))


def warn(config: ManifestConfig, out: Path, media: Media, gathered: GatheredClips) -> None:
    """Warn of clips that are left out, and of media that lie there twice."""
    if missing := gathered.missing:
        few = listed([row[0] for row in missing], 3)
        share = f"{len(missing)} of {len(missing) + len(gathered.clips)} clips"
        log.warning("%s are not below %s (%s); see %s", share, config.folder, few, missing_of(out))
    if unfit := gathered.unfit:
        share = f"{len(unfit)} of {len(unfit) + len(gathered.clips)} clips"
        log.warning("%s are left out for their names (%s): %s; rename them", share, UNFIT, shown_of(unfit))
    if DATASETS[config.name].key != "name" and (keys := sorted(media.names - gathered.used)):
        alone = [key for key in keys if key in media.files["frames"] and config.name == "folder"]
        if films := [key for key in keys if key not in alone]:
            log.warning("in no class folder, and left out: %s (%s)", format_count(len(films), "clip"), listed(films, 3))
        if alone:
            log.warning(IMAGES, listed(alone, 3))
    if twice := [(taken, other) for key, taken, other in media.twice if key in gathered.used]:
        clips = format_count(len(twice), "clip")
        more = [str(other) for _, other in twice[1:]]
        rest = f"; left out likewise: {listed(more)}; rename what is not the same clip" if more else ""
        log.warning("more than once there: %s; of %s and %s the first is taken%s", clips, *twice[0], rest)


def warn_of_torn_groups(dataset: Dataset, lists: Sequence[Path], folds: Sequence[GatheredClips]) -> None:
    """Warn of groups that lie in several splits: those of --group-by, or else those that the data set's names tell."""
    own = re.compile(dataset.group)
    for gathered in folds:
        tied = ((clip[-1] or (match[0] if (match := own.search(clip[0])) else ""), clip[2]) for clip in gathered.clips)
        if torn := torn_groups(tied):
            hint = f'; --group-by "{dataset.group}" keeps them together' if dataset.group and not lists else ""
            log.warning("%s%s", describe_torn(torn), hint)
            return


def warn_of_gaps(config: ManifestConfig, summaries: Sequence[Mapping[str, Any]]) -> None:
    """Warn of classes that a split lacks: what train lacks can't be learnt, what the others lack can't be measured."""
    asked = {"train"} | ({"val"} if config.val_fraction else set())
    asked |= {"test"} if config.test_share or config.folds else set()
    for number, summary in enumerate(summaries, 1):
        fold = "" if config.folds is None else f" of fold {number}"
        if "test" not in summary["splits"] and "test" not in asked:
            log.warning("there is no test split, so that nothing can be measured; --test-fraction 0.2 sets one aside")
        for split in SPLITS:
            if split in asked or split in summary["splits"]:
                lacking = [name for name, counts in summary["by_class"].items() if not counts[split]]
                if lacking:
                    message = "%s%s has no clip of %d of %d classes (%s)"
                    log.warning(message, split, fold, len(lacking), summary["classes"], listed(lacking, 3))


def class_table(out: Path, summary: Mapping[str, Any]) -> list[Table]:
    """Clips of each class by split; of many classes, those alone that some split lacks."""
    by_class = {
        name: {split: counts.get(split, 0) for split in SPLITS} for name, counts in summary.get("by_class", {}).items()
    }
    splits = [split for split in SPLITS if any(counts[split] for counts in by_class.values())]
    shown, title = by_class, "clips by class"
    if len(by_class) > MOST_CLASSES:
        shown = {name: counts for name, counts in by_class.items() if not all(counts[split] for split in splits)}
        shown = dict(list(shown.items())[:MOST_CLASSES])
        title = f"classes that a split has no clip of ({len(shown)} shown; {record_of(out).name} counts all)"
    rows = [(name, *(str(counts[split] or "-") for split in splits)) for name, counts in shown.items()]
    return [Table(title, ("", *splits), rows)] if rows else []


def report(outs: Sequence[Path], summaries: Sequence[Mapping[str, Any]]) -> Report:
    """Clips per split, what was left over on either side, clips per class; of folds, the clips per split of each."""
    summary = summaries[0]
    classes = "one class" if summary["classes"] == 1 else f"{summary['classes']} classes"
    title = f"{format_count(summary['clips'], 'clip')} of {classes}; {summary['unlisted']} unlisted on disk"
    if summary["multi_label"]:
        title += "; several labels a clip: preprocess them with --multi-label"
    shown = {name: value for name, value in summary.items() if name != "by_class"}  # which the record has
    if len(outs) == 1:
        columns = ("listed", "found", "missing")
        splits = [(split, summary["splits"][split]) for split in SPLITS if split in summary["splits"]]
        rows = [(split, *(str(counts[column]) for column in columns)) for split, counts in splits]
        tables = [Table(title, ("split", *columns), rows), *class_table(outs[0], summary)]
        return Report({"manifest": str(outs[0]), **shown}, tuple(outs), tables)
    present = [split for split in SPLITS if any(split in one["splits"] for one in summaries)]
    found = [[one["splits"].get(split, {}).get("found", 0) for split in present] for one in summaries]
    rows = [(out.name, *map(str, counts)) for out, counts in zip(outs, found, strict=True)]
    del shown["splits"]
    folds = [{"manifest": str(out), "splits": one["splits"]} for out, one in zip(outs, summaries, strict=True)]
    tables = [Table(title, ("manifest", *present), rows), test_table(outs[0], summaries)]
    return Report({"folds": folds, **shown}, tuple(outs), tables)


def test_table(out: Path, summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Test clips of each class by fold; of many classes, those alone whose folds differ most."""
    counts = {
        name: [one.get("by_class", {}).get(name, {}).get("test", 0) for one in summaries]
        for name in summaries[0].get("by_class", {})
    }
    names, title = list(counts), "test clips by class and fold"
    if len(names) > MOST_CLASSES:
        names = sorted(names, key=lambda name: min(counts[name]) - max(counts[name]))[:MOST_CLASSES]
        title += f" (the {MOST_CLASSES} most uneven; {record_of(out).name} and the others count all)"
    rows = [(name, *(str(count or "-") for count in counts[name])) for name in names]
    return Table(title, ("", *map(str, range(1, len(summaries) + 1))), rows)
