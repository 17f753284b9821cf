"""`avpt preprocess`: a manifest and its media become a store."""

from __future__ import annotations

import csv
import io
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from avpt.config import PreprocessConfig
from avpt.data.clip import ClipSettings
from avpt.data.manifest import LABEL_SEPARATOR, Manifest, read_manifest
from avpt.data.store import Failure, read_shard_record, store_record
from avpt.errors import StoreError, listed
from avpt.outputs import (
    begin,
    claim,
    differences,
    look_into,
    read_record,
    refuse,
    sweep,
    take_turn,
    write_json,
    write_text,
)
from avpt.processes import num_cores
from avpt.progress import track
from avpt.shards import Job, Shard, make_shard, make_shards, plan_shards
from avpt.text import for_sheet
from avpt.types import SPLITS, Report, Table

log = logging.getLogger(__name__)

OWNED = re.compile(
    r"(settings|store|timing)\.json|(failures|partial)\.csv|(train|val|test)-\d{5,}\.(h5|json)|\..*\.tmp"
)
GIB = 2**30

Records = Mapping[str, dict[str, Any]]  # of the shards that are there, by name


def run(config: PreprocessConfig) -> Report:
    """Decode every clip of the manifest, shard by shard; a shard that is already there is kept."""
    manifest = read_manifest(config.manifest, root=config.root, multi_label=config.multi_label)
    if not config.multi_label and any(LABEL_SEPARATOR in name for name in manifest.classes):
        log.warning("some labels hold %r; --multi-label takes them for several each", LABEL_SEPARATOR)
    shards = plan_shards(manifest.clips[: config.limit], config.shard_size)
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
            found = look_into(out, "settings.json", OWNED, config.overwrite)
            if found is None:
                begin(out, "settings.json", settings, config.overwrite)
            elif different := differences(found, settings, config.defaults()):
                raise refuse(out, different)
            settings = found or settings  # a store goes on as it was begun, by an older avpt too
            if config.retry_failures:
                forget_failures(out, mine)
            records = read_records(out, mine)
            missing = [shard for shard in mine if shard.name not in records]
            if missing:
                (out / "store.json").unlink(missing_ok=True)  # from here on the store is unfinished
        if missing:
            make_missing(config, settings["config"], manifest, mine, missing, records)
        with turn():
            lacking = [shard.name for shard in shards if not (out / f"{shard.name}.json").exists()]
            whole = all((out / name).exists() for name in ("store.json", "failures.csv", "partial.csv"))
            if not lacking and not whole:
                records = read_records(out, shards)
                lacking = [shard.name for shard in shards if shard.name not in records]
            sweep(left_in(out, mine if lacking else None))
            if lacking:
                return report_part(config, len(shards), read_records(out, mine), lacking)
            if not whole:
                write_table(out / "failures.csv", shards, records, "failures")
                write_table(out / "partial.csv", shards, records, "partial")
                check_failures(config, shards, records)
                write_json(out / "store.json", store_record(settings, manifest.classes, by_split(shards, records)))
        return report(out)


def left_in(out: Path, shards: list[Shard] | None) -> list[Path]:
    """Files that are being written, or were when their writer was killed: of some shards, or all that there are."""
    own = None if shards is None else tuple(f".{shard.name}." for shard in shards)
    return [path for path in out.glob(".*.tmp") if own is None or path.name.startswith(own)]


def forget_failures(out: Path, shards: list[Shard]) -> None:
    """Take back the shards that have failures."""
    for shard in shards:
        record = read_shard_record(out / shard.name)
        if record is not None and record["failures"]:
            (out / f"{shard.name}.json").unlink()


def read_records(out: Path, shards: list[Shard]) -> Records:
    """The records of the shards that are there."""
    found = ((shard.name, read_shard_record(out / shard.name)) for shard in shards)
    return {name: record for name, record in found if record is not None}


def make_missing(
    config: PreprocessConfig,
    recorded: dict[str, Any],
    manifest: Manifest,
    mine: list[Shard],
    missing: list[Shard],
    records: Records,
) -> None:
    """Make the shards that are not there, on this machine or on a cluster, and show how far it is."""
    total, left = (sum(len(shard.clips) for shard in part) for part in (mine, missing))
    done, failed = total - left, sum(len(records[s.name]["failures"]) for s in mine if s.name in records)
    began = time.perf_counter()
    with track(total, "preprocess") as show:
        show(done, failed)
        for clip_failed in outcomes(config, recorded, manifest, missing):
            done, failed = done + 1, failed + clip_failed
            show(done, failed)
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
        workers=config.workers or num_cores(),
        timeout=config.clip_timeout,
        memory=int(config.worker_memory * GIB),
    )
    if config.engine == "local":
        yield from make_shards(job, shards)
        return
    from avpt.engines.cluster import run_on_ray

    for done in run_on_ray(make_shard, job, shards, address=config.ray_address, workers=config.workers):
        yield from done


def by_split(shards: list[Shard], records: Records) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Per split, each shard's name and record."""
    splits: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for shard in shards:
        splits.setdefault(shard.split, []).append((shard.name, records[shard.name]))
    return splits


def write_table(path: Path, shards: list[Shard], records: Records, name: str) -> None:
    """`failures.csv`, a line for every row left out, or `partial.csv`, for what rows were kept without."""
    text = io.StringIO()
    columns = list(Failure.__dataclass_fields__)
    writer = csv.writer(text)
    writer.writerow(columns)
    for shard in shards:
        writer.writerows([for_sheet(row[column]) for column in columns] for row in records[shard.name][name])
    write_text(path, text.getvalue())


def check_failures(config: PreprocessConfig, shards: list[Shard], records: Records) -> None:
    """Warn of clips that failed or lack something; stop where more failed than --max-failures."""
    num_rows = sum(len(shard.clips) for shard in shards)
    for name, what in (("partial", "kept in part"), ("failures", "failed")):
        rows = [Failure(**row) for shard in shards for row in records[shard.name][name]]
        if not rows:
            continue
        stages = ", ".join(f"{count} {stage}" for stage, count in Counter(row.stage for row in rows).most_common())
        first = rows[0]
        told = (
            f"{len({row.id for row in rows})} of {num_rows} clips {what} ({stages}), first {first.id} "
            f"({first.source}): {first.error}; all are in {config.out / name}.csv"
        )
        if name == "failures" and len(rows) > config.max_failures * num_rows:
            raise StoreError(
                f"{told}. That is more than --max-failures {config.max_failures:g}: "
                "mend the clips and --retry-failures, or raise it"
            )
        log.warning("%s", told)


def report(out: Path) -> Report:
    """The record of a finished store."""
    record = read_record(out / "store.json", "remove it and run the same command again, which makes it anew")
    clips = sum(split["clips"] for split in record["splits"].values())
    splits = [(name, record["splits"][name]) for name in SPLITS if name in record["splits"]]
    rows = [(name, str(split["clips"]), str(len(split["shards"]))) for name, split in splits]
    title = f"{clips} clips, {record['failures']} failed, {record['partial']} kept in part"
    return Report(
        summary={"store": str(out), "clips": clips, "failures": record["failures"], "partial": record["partial"]},
        outputs=(out,),
        tables=[Table(title, ("split", "clips", "shards"), rows)],
    )


def report_part(config: PreprocessConfig, num_shards: int, made: Records, lacking: list[str]) -> Report:
    """What one of several runs did for a store that still lacks the shards of others."""
    if not made:
        log.warning("--shard-range %s holds none of the shards, which are 0:%d", config.shard_range, num_shards)
    summary = {
        "store": str(config.out),
        "clips": sum(record["clips"] for record in made.values()),
        "failures": sum(len(record["failures"]) for record in made.values()),
        "partial": sum(len({row["id"] for row in record["partial"]}) for record in made.values()),
    }
    title = "shards {} of 0:{}: {clips} clips, {failures} failed, {partial} kept in part"
    rows = [("to be made by other ranges", str(len(lacking))), ("these are", listed(lacking, 3))]
    return Report(
        summary | {"missing_shards": len(lacking)},
        (config.out,),
        [Table(title.format(config.shard_range, num_shards, **summary), ("shards", ""), rows)],
    )
