"""Checking a store's own files against its shards, and what to do about problems."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from avpt.errors import listed
from avpt.files.checking import RecordError
from avpt.files.outputs import sha256_json
from avpt.store.json_files import Failure, read_settings, read_store
from avpt.store.shard_layout import open_shard
from avpt.store.store import Store, store_record
from avpt.store.verification.findings import Problem, Record, Remedy, ShardCheck
from avpt.text import for_sheet
from avpt.types import SPLITS

SHARD_FILE = re.compile(r"((train|val|test)-\d{5,})\.(h5|json)")


@dataclass(frozen=True)
class Contents:
    """What a store's own files say."""

    config: Record | None  # of settings.json; None if it is damaged, when nothing else can be checked
    record: Record | None  # store.json; None if it is missing or damaged
    shards: list[str]  # those in store.json; without it, those on disk
    problems: list[Problem]


def read_contents(folder: Path) -> Contents:
    """Read settings.json and store.json, and list the shards.

    Raises:
        StoreError: it is not a store, or a newer avpt wrote it.
    """
    if not (folder / "settings.json").exists():
        Store(folder)  # raises an error that says what the path is instead
    try:
        config = cast(Record, read_settings(folder)["config"])
    except RecordError as error:
        return Contents(None, None, [], [Problem("settings.json", "", f"is damaged ({error})", "all")])
    there = sorted({match[1] for path in folder.iterdir() if (match := SHARD_FILE.fullmatch(path.name))})
    try:
        record = cast(Record, read_store(folder))
    except (FileNotFoundError, RecordError) as error:
        there = [name for name in there if (folder / f"{name}.json").exists()]
        state = f"is damaged ({error})" if isinstance(error, RecordError) else "is not there: the store is unfinished"
        return Contents(config, None, there, [Problem("store.json", "", state, "store")])
    shards = [name for split in SPLITS for name in record["splits"].get(split, {"shards": ()})["shards"]]
    strays = [Problem(name, "", "store.json does not name it", "stray") for name in there if name not in set(shards)]
    return Contents(config, record, shards, strays)


def check_store_files(folder: Path, contents: Contents, checks: Mapping[str, ShardCheck]) -> Iterator[Problem]:
    """Check store.json, failures.csv and partial.csv against the shards and the JSONs beside them."""
    record, config = contents.record, contents.config
    if record is None or config is None:
        return  # which is reported already
    if not all(name in checks and checks[name].declared for name in contents.shards):
        return  # what is missing is reported already
    if record["classes"] != sorted(set(record["classes"])):
        yield Problem("store.json", "", "its classes are not sorted, each once", "store")
    by_split: dict[str, list[ShardCheck]] = {}
    for name in contents.shards:
        by_split.setdefault(name.partition("-")[0], []).append(checks[name])

    def expected(kind: Literal["declared", "computed"]) -> Record:
        records = {split: [(c.name, getattr(c, kind)) for c in parts] for split, parts in by_split.items()}
        values = store_record({"config": config}, record["classes"], records)
        values = {name: value for name, value in values.items() if name in record}  # an older avpt writes fewer values
        hashes = {name: shard["sha256"] for parts in records.values() for name, shard in parts}
        del values["fingerprint"]
        return values | {"fingerprint": sha256_json([values, config, hashes])}

    declared = expected("declared")
    same = all(record.get(name) == value for name, value in declared.items())
    computed = declared if same else expected("computed")
    if record["fingerprint"] not in (declared["fingerprint"], computed["fingerprint"]):
        # which of them was changed is unknown, and `preprocess` would keep it
        problem = "its fingerprint is not that of settings.json, the classes and the shards"
        yield Problem("store.json", "", problem, "all")
    for name in sorted(declared.keys() - {"fingerprint"}):
        if record.get(name) not in (declared[name], computed[name]):
            problem = f"its {name}: not what the shards say ({_short(declared[name])})"
            yield Problem("store.json", "", problem, "store")
    for parts in by_split.values():
        for check in parts:
            num_rows, full = check.declared["clips"] + len(check.declared["failures"]), config["shard_size"]
            if not (num_rows == full or (check is parts[-1] and 0 < num_rows < full)):
                problem = f"its clips and failures are {num_rows} rows of the manifest; --shard-size is {full}"
                yield Problem(check.name, "", problem)
    for kind in ("failures", "partial"):
        rows = [row for name in contents.shards for row in checks[name].declared[kind]]
        if (rows or kind == "failures" or (folder / f"{kind}.csv").exists()) and (
            wrong := _check_table(folder / f"{kind}.csv", rows)
        ):
            yield Problem(f"{kind}.csv", "", wrong, "store")


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) < 100 else f"{text[:100]}..."


def _check_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(Failure.__dataclass_fields__)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        return "is missing"
    except (ValueError, csv.Error):
        return "is damaged"
    expected = [[str(row.get(name)) for name in columns] for row in rows]
    shown = [list(map(for_sheet, row)) for row in expected]  # an older avpt wrote the cells as they are
    same = lines in ([columns, *shown], [columns, *expected])
    return "" if same else f"is not the list of the {len(rows)} rows that the shards' JSONs hold"


def find_duplicates(folder: Path, checks: Sequence[ShardCheck]) -> Iterator[Problem]:
    """Ids that occur more than once; the ids themselves are read only if their hashes are equal."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *(check.hashes for check in checks)])
    starts = np.cumsum([0, *(len(check.hashes) for check in checks)])
    order = np.argsort(hashes, kind="stable")

    @cache
    def ids_of(number: int) -> list[bytes]:
        with open_shard(folder / f"{checks[number].name}.h5") as file:
            return list(file["id"][:])

    for i in np.flatnonzero(np.diff(hashes[order]) == 0):
        (one, first), (other, second) = (
            (number, ids_of(number)[position - starts[number]])
            for position in order[i : i + 2]
            for number in [int(np.searchsorted(starts, position, side="right")) - 1]
        )
        if first == second:
            where = "twice in this shard" if one == other else f"in {checks[one].name} too"
            clip = second.decode(errors="replace")
            yield Problem(checks[other].name, clip, f"its id is {where}", "shard" if one == other else "all")


def advice(folder: Path, needs: Iterable[tuple[str, Remedy]]) -> str:
    """The next step, from each shard or file and what it needs; `preprocess` makes every shard that has no JSON."""
    needs = sorted(needs)
    remedies = {remedy for _, remedy in needs}
    if "all" in remedies:
        return "run its `avpt preprocess` again with --overwrite"
    if "access" in remedies:
        return "see that they can be read (permissions, the disk) and verify it again"
    files = {"store.json": None} if "store" in remedies else {}
    for name, remedy in needs:
        suffixes = {"shard": (".json",), "stray": (".h5", ".json")}.get(remedy, ())
        files |= dict.fromkeys(f"{name}{suffix}" for suffix in suffixes)
    there = [name for name in files if (folder / name).exists()]
    steps = [f"remove {listed(there)}"] if there else []
    return " and ".join(steps if remedies == {"stray"} else [*steps, "run its `avpt preprocess` again"])
