"""`avpt preprocess`: a manifest and its media become a store."""

from __future__ import annotations

import csv
import io
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from avpt.commands._shards import Job, Shard, make_shard, make_shards, plan_shards, source_of
from avpt.errors import ManifestError, StoreError, listed
from avpt.files.checking import RecordError, read
from avpt.files.locks import claim, sweep, take_turn
from avpt.files.outputs import read_record, write_json, write_text
from avpt.files.records import SelectionRecord
from avpt.files.reuse import begin, check_same, look_into, say_there
from avpt.files.typed_paths import record_of, write_paths
from avpt.machine.progress import track
from avpt.machine.set_aside import describe_torn, torn_groups
from avpt.machine.workers import pool_workers
from avpt.media.clip import FRAME_SHIFT, LOSSES, TROUBLES, ClipSettings, failed, kind_of
from avpt.media.pointers import is_pointer
from avpt.options import PreprocessConfig
from avpt.store.json_files import StoreRecord
from avpt.store.manifest import LABEL_SEPARATOR, Clip, Manifest, read_manifest
from avpt.store.store import Failure, Store, read_shard_record, store_record
from avpt.text import for_sheet, format_count
from avpt.types import HELD_OUT, IN_WORDS, MODALITIES, SPLITS, Modality, Report, Table

log = logging.getLogger(__name__)

OWNED = re.compile(
    r"(settings|store|timing|paths)\.json|(failures|partial|lacking)\.csv|(train|val|test)-\d{5,}\.(h5|json)|\..*\.tmp"
)
GIB = 2**30

Records = Mapping[str, dict[str, Any]]  # of the finished shards, by name


def run(config: PreprocessConfig) -> Report:
    """Decode every clip of the manifest, shard by shard; a shard that is already there is kept."""
    manifest = read_manifest(config.manifest, root=config.root, multi_label=config.multi_label)
    if not config.multi_label and any(LABEL_SEPARATOR in name for name in manifest.classes):
        log.warning("some labels hold %r; --multi-label takes them for several each", LABEL_SEPARATOR)
    clips = manifest.clips[: config.limit]
    check_pointers(config, clips)
    warn_of_untrained(config.manifest, clips)
    if torn := torn_groups((source_of(clip), clip.split) for clip in clips):
        log.warning("%s", describe_torn(torn))
    shards = plan_shards(clips, config.shard_size)
    mine = shards[config.shards]
    out = config.out
    settings: dict[str, Any] = {
        "schema": 1,
        "config": config.record(),
        "inputs": {"manifest": manifest.sha256},
    }
    turn = partial(take_turn, out) if config.shard_range else nullcontext
    with claim(out, part=config.shard_range):
        with turn():
            begun = look_into(out, "settings.json", OWNED, config.overwrite)
            if begun is None:
                begin(out, "settings.json", settings, config.overwrite)
            else:
                check_same(out, begun, settings, config.defaults())
            settings = begun or settings  # a store is continued as it was begun, by an older avpt too
            if config.retry_failures:
                forget_failures(out, mine)
            records = read_records(out, mine)
            missing = [shard for shard in mine if shard.name not in records]
            if missing:
                (out / "store.json").unlink(missing_ok=True)  # from here on the store is unfinished
                (out / "lacking.csv").unlink(missing_ok=True)
                write_paths(out, settings["inputs"], {"manifest": config.manifest, "root": config.root})
        if missing:
            make_missing(config, settings["config"], manifest, mine, missing, records)
        with turn():
            lacking = [shard.name for shard in shards if not (out / f"{shard.name}.json").exists()]
            whole = all((out / name).exists() for name in ("store.json", "failures.csv", "partial.csv"))
            if not lacking:
                records = read_records(out, shards)
                lacking = [shard.name for shard in shards if shard.name not in records]
            sweep(left_in(out, mine if lacking else None))
            if lacking:
                return report_part(config, len(shards), read_records(out, mine), lacking)
            if whole and not missing:
                say_there(out)
            if not whole:
                write_table(out / "failures.csv", shards, records, "failures")
                write_table(out / "partial.csv", shards, records, "partial")
                check_failures(config, shards, records)
                write_json(out / "store.json", store_record(settings, manifest.classes, by_split(shards, records)))
            list_lacking(out, records)
        return report(out, settings["config"], records)


def warn_of_untrained(path: Path, clips: Sequence[Clip]) -> None:
    """Warn of classes that training would refuse: those of val and test of which train has no clip."""
    why = "are they misspelt?"
    if is_selection(path):
        why = "`avpt score-confidence --select` chose none of them; raise its --share"
    labels = {split: {label for clip in clips if clip.split == split for label in clip.labels} for split in SPLITS}
    for split in HELD_OUT:
        if labels["train"] and (lacking := sorted(labels[split] - labels["train"])):
            message = "%s has clips of classes that train lacks (%s); training will refuse them: %s"
            log.warning(message, split, listed(lacking), why)


def is_selection(manifest: Path) -> bool:
    """Whether `score-confidence` wrote a manifest, as the record beside it says."""
    try:
        return bool(read(record_of(manifest), SelectionRecord)["kind"] == "selection")
    except (OSError, RecordError):
        return False


def check_pointers(config: PreprocessConfig, clips: Sequence[Clip]) -> None:
    """See that no file of the manifest is a pointer, which Git leaves in place of files that Git LFS keeps elsewhere.

    Raises:
        ManifestError: some are; it says how many.
    """
    paths = {path for clip in clips for path in (clip.video, clip.audio, clip.frames) if path is not None}
    if pointers := sorted(str(path) for path in paths if is_pointer(path)):
        raise ManifestError(
            f"{config.manifest}: {len(pointers)} of its {len(paths)} files are Git LFS pointers in place of the files "
            f"({listed(pointers, 1)}); run `git lfs pull` there"
        )


def left_in(out: Path, shards: list[Shard] | None) -> list[Path]:
    """Files that are being written, or were when their writer was killed: those of some shards, or all of them."""
    own = None if shards is None else tuple(f".{shard.name}." for shard in shards)
    return [path for path in out.glob(".*.tmp") if own is None or path.name.startswith(own)]


def forget_failures(out: Path, shards: list[Shard]) -> None:
    """Remove the records of shards that have failures, so that these are made again."""
    for shard in shards:
        record = read_shard_record(out / shard.name)
        if record is not None and any(failed(row["error"]) for row in record["failures"]):
            (out / f"{shard.name}.json").unlink()


def read_records(out: Path, shards: list[Shard]) -> Records:
    """The records of the shards that are finished."""
    records = ((shard.name, read_shard_record(out / shard.name)) for shard in shards)
    return {name: record for name, record in records if record is not None}


def make_missing(
    config: PreprocessConfig,
    recorded: dict[str, Any],
    manifest: Manifest,
    mine: list[Shard],
    missing: list[Shard],
    records: Records,
) -> None:
    """Make the shards that are not there, on this machine or on a cluster, and show the progress."""
    total, left = (sum(len(shard.clips) for shard in part) for part in (mine, missing))
    done, lost = total - left, count_failed(records[shard.name] for shard in mine if shard.name in records)
    began = time.perf_counter()
    with track(total, "preprocess") as show:
        show(done, lost)
        for clip_failed in outcomes(config, recorded, manifest, missing):
            done, lost = done + 1, lost + clip_failed
            show(done, lost)
    seconds = time.perf_counter() - began
    timing = {"seconds": round(seconds, 3), "clips": left, "clips_per_second": round(left / seconds, 2)}
    if not config.shard_range:
        write_json(config.out / "timing.json", timing)


def outcomes(
    config: PreprocessConfig, recorded: dict[str, Any], manifest: Manifest, shards: list[Shard]
) -> Iterator[bool]:
    """Make shards; yields for every clip that is done whether it failed."""
    clip_settings = {name: recorded[name] for name in ClipSettings.__dataclass_fields__ if name in recorded}
    job = Job(
        out=config.out.absolute(),
        classes=manifest.classes,
        settings=ClipSettings(**clip_settings),
        attributes=clip_settings | {"multi_label": config.multi_label},
        workers=pool_workers(config.workers),
        timeout=config.clip_timeout,
        memory=int(config.worker_memory * GIB),
    )
    if config.engine == "local":
        yield from make_shards(job, shards)
        return
    from avpt.engines.cluster import run_on_ray

    for done in run_on_ray(make_shard, job, shards, address=config.ray_address, workers=config.workers):
        yield from done


def count_failed(records: Iterable[Mapping[str, Any]]) -> int:
    """How many clips of some shards failed; not those that were left out because that was asked for."""
    return sum(failed(row["error"]) for record in records for row in record["failures"])


def by_split(shards: list[Shard], records: Records) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Per split, each shard's name and record."""
    splits: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for shard in shards:
        splits.setdefault(shard.split, []).append((shard.name, records[shard.name]))
    return splits


def write_table(path: Path, shards: list[Shard], records: Records, name: str) -> None:
    """Write `failures.csv`, one line per row left out, or `partial.csv`, one per remark on a row that was kept."""
    text = io.StringIO()
    columns = list(Failure.__dataclass_fields__)
    writer = csv.writer(text)
    writer.writerow(columns)
    for shard in shards:
        writer.writerows([for_sheet(row[column]) for column in columns] for row in records[shard.name][name])
    write_text(path, text.getvalue())


def check_failures(config: PreprocessConfig, shards: list[Shard], records: Records) -> None:
    """Warn of clips that failed or lack something; stop where more failed than --max-failures.

    Raises:
        StoreError: they did.
    """
    num_rows = sum(len(shard.clips) for shard in shards)
    tables = {
        name: [Failure(**row) for shard in shards for row in records[shard.name][name]]
        for name in ("partial", "failures")
    }
    lacking = [row for row in tables["partial"] if kind_of(row.error) in LOSSES]
    others = [row for row in tables["partial"] if kind_of(row.error) not in LOSSES]
    left_out = [row for row in tables["failures"] if not failed(row.error)]
    for name, rows, what in (
        ("partial", others, "to be looked at"),
        ("partial", lacking, "kept in part"),
        ("failures", left_out, "left out, as --require asks"),
        ("failures", [row for row in tables["failures"] if failed(row.error)], "failed"),
    ):
        if not rows:
            continue
        clips = dict.fromkeys((row.stage if name == "failures" else kind_of(row.error), row.id) for row in rows)
        kinds = Counter(kind for kind, _ in clips)
        first = rows[0]
        message = (
            f"{len({row.id for row in rows})} of {num_rows} clips {what} "
            f"({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}), first {first.id} "
            f"({first.source}): {first.error}; all are in {config.out / name}.csv"
        )
        if what == "failed" and len(rows) / num_rows > config.max_failures:
            raise StoreError(
                f"{message}. That is more than --max-failures {config.max_failures:g}: "
                "mend the clips and --retry-failures, or raise it"
            )
        log.warning("%s", message)


def count_lacking(records: Iterable[Mapping[str, Any]]) -> dict[Modality, int]:
    """How many clips have no sound, and no pictures; an older avpt does not record that."""
    known = [record.get("lacking", {}) for record in records]
    return {modality: sum(each.get(modality, 0) for each in known) for modality in MODALITIES}


def list_lacking(out: Path, records: Records) -> None:
    """List the clips without sound or pictures in lacking.csv where other clips have these, and warn of them, once.

    Training on sound would refuse such a store, but not one in which no clip has pictures.
    """
    clips, counts = sum(record["clips"] for record in records.values()), count_lacking(records.values())
    some = [modality for modality in MODALITIES if 0 < counts[modality] < clips]
    if not some or (out / "lacking.csv").exists():
        return
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "split", "lacks"])
    names: dict[Modality, list[str]] = {modality: [] for modality in some}
    for split, index in Store(out).indices.items():
        for modality in some:
            ids = [index.ids[i] for i in index.lacking(modality)]
            names[modality] += ids
            writer.writerows((for_sheet(clip_id), split, IN_WORDS[modality]) for clip_id in ids)
    write_text(out / "lacking.csv", text.getvalue())
    log.warning(
        "of %d clips %s; all are in %s, and training needs what they lack: --require %s --overwrite leaves them out",
        clips,
        ", ".join(f"{len(ids)} have no {IN_WORDS[m]} ({listed(ids, 3)})" for m, ids in names.items()),
        out / "lacking.csv",
        "both" if len(some) > 1 else some[0],
    )


def summarise_kept(records: Records) -> tuple[dict[str, int], dict[str, float]]:
    """How many clips partial.csv names, by kind, and how the lengths of clips compare with what is stored of them."""
    clips = {(kind_of(row["error"]), row["id"]) for record in records.values() for row in record["partial"]}
    counts = Counter(kind for kind, _ in clips)
    known = [record.get("lengths", {}) for record in records.values()]  # an older avpt does not write them
    lengths = {name: sum(each.get(name, 0) for each in known) for name in ("longer", "shorter")}
    lengths["longest"] = max((each.get("longest", 0.0) for each in known), default=0.0)
    return {kind: counts[kind] for kind in TROUBLES if counts[kind]}, lengths


def tables_of(kinds: Mapping[str, int], lengths: Mapping[str, float], config: Mapping[str, Any]) -> list[Table]:
    """What partial.csv says of clips, by kind, and which have other lengths than are stored, with the options."""
    tables = [
        Table("clips in partial.csv, by what is noted of them", ("", "meaning", "clips"), rows, left=2)
        for rows in [[(kind, TROUBLES[kind], str(count)) for kind, count in kinds.items()]]
        if rows
    ]
    rows = []
    if lengths["longer"]:
        until = f"longer, up to {lengths['longest']:g} s"
        rows.append((until, "--spectrogram-frames, --max-frames", f"{lengths['longer']:g}"))
    if lengths["shorter"]:
        rows.append(("far shorter", "--spectrogram-frames, --pad repeat", f"{lengths['shorter']:g}"))
    seconds = config["spectrogram_frames"] * FRAME_SHIFT
    title = f"kept are {seconds:g} s of sound and {config['max_frames']} pictures, {config['fps']:g} a second"
    return [*tables, Table(title, ("clips that are", "to change it", "clips"), rows, left=2)] if rows else tables


def describe(counts: Mapping[str, int], records: Records) -> tuple[str, dict[str, int]]:
    """How many clips there are, failed and so on, in words; and those of the numbers that are not in `counts`."""
    lost, lacking = count_failed(records.values()), count_lacking(records.values())
    left_out = counts["failures"] - lost
    parts = [format_count(counts["clips"], "clip"), f"{lost} failed", *([f"{left_out} left out"] if left_out else [])]
    parts += [f"{count} without {IN_WORDS[modality]}" for modality, count in lacking.items() if count]
    more = {"left_out": left_out, "without_sound": lacking["audio"], "without_pictures": lacking["visual"]}
    return ", ".join([*parts, f"{counts['partial']} noted in partial.csv"]), more


def report(out: Path, config: Mapping[str, Any], records: Records) -> Report:
    """Show what a finished store holds."""
    step = "remove it and run the same command again, which makes it anew"
    record = {"partial": 0} | read_record(out / "store.json", step, StoreRecord)
    clips = sum(split["clips"] for split in record["splits"].values())
    splits = [(name, record["splits"][name]) for name in SPLITS if name in record["splits"]]
    rows = [(name, str(split["clips"]), str(len(split["shards"]))) for name, split in splits]
    if clips and (empty := [name for name, split in splits if not split["clips"]]):
        log.warning("no clip of %s is left, see %s", listed(empty), out / "failures.csv")
    kinds, lengths = summarise_kept(records)
    counts = {"clips": clips, "failures": record["failures"], "partial": record["partial"]}
    title, more = describe(counts, records)
    summary = {"store": str(out)} | counts | more
    return Report(
        summary=summary | {"partial_kinds": kinds} | lengths,
        outputs=(out,),
        tables=[Table(title, ("split", "clips", "shards"), rows), *tables_of(kinds, lengths, config)],
    )


def report_part(config: PreprocessConfig, num_shards: int, made: Records, lacking: list[str]) -> Report:
    """Show what one of several runs did for a store that still lacks the shards of others."""
    if not made:
        log.warning("--shard-range %s holds none of the shards, which are 0:%d", config.shard_range, num_shards)
    counts = {
        "clips": sum(record["clips"] for record in made.values()),
        "failures": sum(len(record["failures"]) for record in made.values()),
        "partial": sum(len({row["id"] for row in record["partial"]}) for record in made.values()),
    }
    described, more = describe(counts, made)
    title = f"shards {config.shard_range} of 0:{num_shards}: {described}"
    rows = [("to be made by other ranges", str(len(lacking))), ("these are", listed(lacking, 3))]
    return Report(
        {"store": str(config.out), **counts, **more, "missing_shards": len(lacking)},
        (config.out,),
        [Table(title, ("shards", ""), rows)],
    )
