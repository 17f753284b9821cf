"""A store held against its contract, file by file; nothing here writes.

N is the number of clips of a shard, F of its frames.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from avpt.data.clip import ClipSettings
from avpt.data.store import SCHEMA, Failure, Store, open_shard, shard_name, store_record
from avpt.errors import StoreError, listed
from avpt.outputs import sha256, sha256_json
from avpt.types import SPLITS

MOST = 1000  # problems that are kept; of the others only the number
SUM_TOLERANCE = 1e-9  # of a sum's own size: another machine may add in another order
SHARD_FILE = re.compile(r"((train|val|test)-\d{5,})\.(h5|json)")

Array = np.ndarray[Any, Any]
Record = dict[str, Any]
# make the shard again, or store.json; remove the file; start over; be allowed to read it
Remedy = Literal["shard", "store", "stray", "all", "access"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    shard: str  # or the store's own file
    clip: str  # its id; empty where it is not about one clip
    problem: str
    remedy: Remedy = "shard"


@dataclass(frozen=True)
class Contents:
    """What a store says of itself."""

    config: Record | None  # of settings.json; None where that is damaged: nothing can be held against it
    record: Record | None  # store.json; None where it is missing or damaged
    shards: list[str]  # those of store.json; without it, those that are there
    problems: list[Problem]


@dataclass(frozen=True)
class ShardTask:
    """One shard for a worker."""

    path: Path  # without a suffix
    config: Mapping[str, Any]
    num_classes: int | None  # None: not known
    deep: bool


@dataclass
class ShardCheck:
    """What was found in one shard."""

    name: str
    problems: list[Problem] = field(default_factory=list)
    num_problems: int = 0
    clips: int = 0
    frames: int = 0
    bytes: int = 0
    hashes: Array = field(default_factory=lambda: np.zeros(0, np.uint64))  # (N,) of the ids
    told: Record = field(default_factory=dict)  # the JSON beside the shard; empty where there is no sound one
    found: Record = field(default_factory=dict)  # the same, with what the shard itself says where that was computed

    def tell(self, problem: str, clip: str = "", *, remedy: Remedy = "shard") -> None:
        """Note a problem."""
        self.num_problems += 1
        if len(self.problems) < MOST:
            self.problems.append(Problem(self.name, clip, problem, remedy))


# --- the store's own files ---------------------------------------------------------------------------------------


def read_contents(folder: Path) -> Contents:
    """Read settings.json and store.json, and see which shards there are.

    Raises:
        StoreError: it is not a store, or a newer avpt wrote it.
    """
    if not (folder / "settings.json").exists():
        Store(folder)  # raises: it says what the path is instead
    settings, record = _read_json(folder / "settings.json"), _read_json(folder / "store.json")
    if any(isinstance(schema := values.get("schema"), int) and schema > SCHEMA for values in (settings, record)):
        raise StoreError(f"{folder} was written by a newer avpt; update avpt")
    if not _holds(_settings_are_sound, settings):
        return Contents(None, None, [], [Problem("settings.json", "", "is damaged", "all")])
    there = sorted({match[1] for path in folder.iterdir() if (match := SHARD_FILE.fullmatch(path.name))})
    if not _holds(_record_is_sound, record):
        state = "is damaged" if (folder / "store.json").exists() else "is not there: the store is unfinished"
        shards = [name for name in there if (folder / f"{name}.json").exists()]
        return Contents(settings["config"], None, shards, [Problem("store.json", "", state, "store")])
    shards = [name for split in SPLITS for name in record["splits"].get(split, {"shards": ()})["shards"]]
    strays = [Problem(name, "", "store.json does not name it", "stray") for name in there if name not in set(shards)]
    return Contents(settings["config"], record, shards, strays)


def _read_json(path: Path) -> Record:
    """The object in a file; empty where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _holds(is_sound: Callable[[Record], bool], record: Record) -> bool:
    try:
        return is_sound(record)
    except (KeyError, TypeError, AttributeError):  # something is missing, or not what it should be
        return False


def _settings_are_sound(settings: Record) -> bool:
    config = settings["config"]
    return (
        settings["schema"] == SCHEMA
        and isinstance(settings["inputs"]["manifest"], str)
        and all(type(config[name]) is int for name in ("mel_bins", "spectrogram_frames", "frame_size", "shard_size"))
        and config["audio_dtype"] in ("float16", "float32")
        and config["frame_codec"] in ("jpeg", "raw")
        and config["pad"] in ("zero", "repeat")
        and type(config["multi_label"]) is bool
    )


def _record_is_sound(record: Record) -> bool:
    names = {split: part["shards"] for split, part in record["splits"].items()}
    return (
        names == {split: [shard_name(split, i) for i in range(len(shards))] for split, shards in names.items()}
        and names.keys() <= set(SPLITS)
        and len(record["classes"]) > 0
        and all(type(name) is str and name for name in record["classes"])
        and type(record["fingerprint"]) is str
    )


def _shard_record_is_sound(record: Record) -> bool:
    sums = record["sums"]
    return (
        record["schema"] == SCHEMA
        and all(type(record[name]) is int for name in ("bytes", "clips"))
        and all(type(sums[name]) in (int, float) for name in ("count", "sum", "sum_of_squares"))
        and type(record["sha256"]) is str
        and all(type(row["id"]) is str for name in ("failures", "partial") for row in record[name])
    )


def check_store_files(folder: Path, contents: Contents, checks: Mapping[str, ShardCheck]) -> Iterator[Problem]:
    """Hold store.json and failures.csv against what the shards and the JSONs beside them say."""
    record, config = contents.record, contents.config
    if record is None or config is None or not all(name in checks and checks[name].told for name in contents.shards):
        return  # what is missing is told already
    if record["classes"] != sorted(set(record["classes"])):
        yield Problem("store.json", "", "its classes are not sorted, each once", "store")
    by_split: dict[str, list[ShardCheck]] = {}
    for name in contents.shards:
        by_split.setdefault(name.partition("-")[0], []).append(checks[name])

    def expected(kind: Literal["told", "found"]) -> Record:
        records = {split: [(c.name, getattr(c, kind)) for c in parts] for split, parts in by_split.items()}
        values = store_record({"config": config}, record["classes"], records)
        values = {name: value for name, value in values.items() if name in record}  # an older avpt has less to say
        hashes = {name: shard["sha256"] for parts in records.values() for name, shard in parts}
        del values["fingerprint"]
        return values | {"fingerprint": sha256_json([values, config, hashes])}

    told = expected("told")
    found = told if all(record.get(name) == value for name, value in told.items()) else expected("found")
    if record["fingerprint"] not in (told["fingerprint"], found["fingerprint"]):
        # which of them was changed can't be known, and `preprocess` would keep it
        problem = "its fingerprint is not that of settings.json, the classes and the shards"
        yield Problem("store.json", "", problem, "all")
    for name in sorted(told.keys() - {"fingerprint"}):
        if record.get(name) not in (told[name], found[name]):
            yield Problem("store.json", "", f"its {name}: not what the shards say ({_short(told[name])})", "store")
    for parts in by_split.values():
        for check in parts:
            num_rows, full = check.told["clips"] + len(check.told["failures"]), config["shard_size"]
            if not (num_rows == full or (check is parts[-1] and 0 < num_rows < full)):
                problem = f"its clips and failures are {num_rows} rows of the manifest; --shard-size is {full}"
                yield Problem(check.name, "", problem)
    for kind in ("failures", "partial"):
        rows = [row for name in contents.shards for row in checks[name].told[kind]]
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
            found = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        return "is missing"
    except (ValueError, csv.Error):
        return "is damaged"
    same = found == [columns, *([str(row.get(name)) for name in columns] for row in rows)]
    return "" if same else f"is not the list of the {len(rows)} rows that the shards' JSONs hold"


def find_duplicates(folder: Path, checks: Sequence[ShardCheck]) -> Iterator[Problem]:
    """Ids that occur more than once; an id itself is read only where hashes meet."""
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
    """The next step, from each shard or file and what it needs: `preprocess` makes what has no JSON to declare it."""
    needs = sorted(needs)
    remedies = {remedy for _, remedy in needs}
    if "all" in remedies:
        return "run its `avpt preprocess` again with --overwrite"
    if "access" in remedies:
        return "change its permissions and verify it again"
    files = {"store.json": None} if "store" in remedies else {}
    for name, remedy in needs:
        suffixes = {"shard": (".json",), "stray": (".h5", ".json")}.get(remedy, ())
        files |= dict.fromkeys(f"{name}{suffix}" for suffix in suffixes)
    there = [name for name in files if (folder / name).exists()]
    steps = [f"remove {listed(there)}"] if there else []
    return " and ".join(steps if remedies == {"stray"} else [*steps, "run its `avpt preprocess` again"])


# --- a shard -----------------------------------------------------------------------------------------------------


def check_shard(task: ShardTask) -> ShardCheck:
    """Check one shard and the JSON beside it; what a worker does, it never raises."""
    check = ShardCheck(task.path.name)
    try:
        _check_files(task, check)
    except StoreError:  # what it advises is the command's to say
        check.tell("it does not open as HDF5")
    except PermissionError:
        check.tell("its files may not be read", remedy="access")
    except Exception as error:  # whatever HDF5 makes of damaged bytes
        check.tell(f"it can't be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return check


def _check_files(task: ShardTask, check: ShardCheck) -> None:
    beside, shard = (task.path.with_name(f"{check.name}.{suffix}") for suffix in ("json", "h5"))
    missing = [path.name for path in (beside, shard) if not path.exists()]
    told: Record = {"partial": []} | _read_json(beside)  # which an older avpt does not write
    if missing or not _holds(_shard_record_is_sound, told):
        check.tell(f"{missing[0]} is missing" if missing else f"{beside.name} is damaged")
        return
    check.bytes, check.told, check.found = shard.stat().st_size, told, told | {"sha256": sha256(shard)}
    if check.bytes != told["bytes"]:
        check.tell(f"it has {check.bytes} bytes, its JSON says {told['bytes']}")
        return
    if check.found["sha256"] != told["sha256"]:
        check.tell("its sha256 is not the one in its JSON")
    with open_shard(shard) as file:
        if _layout_is_sound(file, task, check):
            _check_values(file, task, check)


def _layout_is_sound(file: h5py.File, task: ShardTask, check: ShardCheck) -> bool:
    """Check attributes, names, types and shapes; whether the values can be read by them."""
    config = task.config
    options = {name: config[name] for name in (*ClipSettings.__dataclass_fields__, "multi_label") if name in config}
    options["schema"] = SCHEMA
    for name in sorted(options.keys() | set(file.attrs)):
        value, wanted = file.attrs.get(name), options.get(name, config.get(name))
        if str(value) != str(wanted):
            check.tell(f"its attribute {name} is {value}, settings.json says {wanted}")

    clips, edges, size = (_shape(file, name)[0] for name in ("id", "visual/byte_offset", "visual/bytes"))
    classes = task.num_classes or _shape(file, "label")[-1]
    contract = {
        "id": f"text {(clips,)}",
        "label": f"uint8 {(clips, classes)}" if config["multi_label"] else f"int64 {(clips,)}",
        "audio/fbank": f"{config['audio_dtype']} {(clips, config['spectrogram_frames'], config['mel_bins'])}",
        "audio/num_frames": f"int32 {(clips,)}",
        "visual/clip_offset": f"int64 {(clips + 1,)}",
        "visual/time": f"float32 {(edges - 1,)}",
        "visual/byte_offset": f"int64 {(edges,)}",
        "visual/bytes": f"uint8 {(size,)}",
        "visual/size": f"int32 {(edges - 1, 2)}",
    }
    groups = [name for name in ("audio", "visual") if isinstance(file.get(name), h5py.Group)]
    members = {f"{group}/{name}" for group in groups for name in file[group]} | (set(file) - set(groups))
    for name in sorted(members - contract.keys()):
        check.tell(f"{name} is no part of a shard")
    wrong = {name: kind for name in contract if (kind := _kind(file, name, check.bytes)) != contract[name]}
    for name, kind in wrong.items():
        check.tell(f"{name} is {kind}, not {contract[name]}")
    return not wrong


def _shape(file: h5py.File, name: str) -> tuple[int, ...]:
    return getattr(file.get(name), "shape", None) or (0,)


def _kind(file: h5py.File, name: str, size: int) -> str:
    """Type and shape of a dataset that is a plain piece of this file; in words what else it is."""
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        return "missing"
    plain = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS and not dataset.external
    if not plain or dataset.file.filename != file.filename:
        return "compressed, in pieces or in another file"
    if not dataset.nbytes <= dataset.id.get_storage_size() <= size:
        return "larger than its bytes"
    text = h5py.check_string_dtype(dataset.dtype) == h5py.h5t.string_info("utf-8", None)
    return f"{'text' if text else dataset.dtype} {dataset.shape}"


def _check_values(file: h5py.File, task: ShardTask, check: ShardCheck) -> None:
    """Every value of a shard whose types and shapes are right."""
    names = _check_ids(file["id"][:], check)
    check.clips, check.frames = len(names), len(file["visual/time"])
    check.found["clips"] = check.clips
    if check.clips != check.told["clips"]:
        check.tell(f"it holds {check.clips} clips, its JSON says {check.told['clips']}")
    _check_labels(file["label"][:], names, task.num_classes, check)
    _check_sound(file, names, task.config, check)
    _check_pictures(file, names, task, check)


def _check_ids(ids: Array, check: ShardCheck) -> list[str]:
    """The names to tell the clips by: their ids, or the row of one without."""
    names = [value.decode(errors="replace") or f"row {row}" for row, value in enumerate(ids)]
    for name, value in zip(names, ids, strict=True):
        if not value or value.decode(errors="ignore").encode() != value:
            check.tell("its id is not UTF-8" if value else "its id is empty", name)
    digests = (hashlib.blake2b(value, digest_size=8).digest() for value in ids)
    check.hashes = np.frombuffer(b"".join(digests), dtype=np.uint64)
    return names


def _check_labels(labels: Array, names: Sequence[str], num_classes: int | None, check: ShardCheck) -> None:
    if labels.ndim == 2:
        for row in np.flatnonzero((labels > 1).any(axis=1)).tolist():
            check.tell("a label of it is neither 0 nor 1", names[row])
        for row in np.flatnonzero(~labels.any(axis=1)).tolist():
            check.tell("it has no label", names[row])
        return
    for row in np.flatnonzero((labels < 0) | (labels >= (num_classes or math.inf))).tolist():
        check.tell(f"its label is {labels[row]}, of {num_classes or 'some'} classes from 0", names[row])


def _check_sound(file: h5py.File, names: Sequence[str], config: Mapping[str, Any], check: ShardCheck) -> None:
    """Spectrograms, clip by clip, and their sums as `write_shard` computes them."""
    most, real = config["spectrogram_frames"], []
    for row, num_frames in enumerate(file["audio/num_frames"][:].tolist()):
        if not 0 <= num_frames <= most:
            check.tell(f"its audio/num_frames is {num_frames}, not 0 to {most}", names[row])
            continue
        fbank = file["audio/fbank"][row]
        if not np.isfinite(fbank).all():
            check.tell("its log-mel is not finite", names[row])
            continue
        if fbank[num_frames:].any() and (config["pad"] == "zero" or num_frames == 0):
            check.tell(f"its log-mel is not 0.0 behind frame {num_frames}, where its sound ends", names[row])
        values = fbank[:num_frames].astype(np.float64)
        real.append((values.size, float(values.sum()), float(np.square(values).sum())))
    count, total, squares = (math.fsum(column) for column in zip((0, 0.0, 0.0), *real, strict=True))
    check.found["sums"] = {"count": int(count), "sum": total, "sum_of_squares": squares}
    sizes = {"count": 0.0, "sum": math.sqrt(count * squares), "sum_of_squares": squares}
    for name, size in sizes.items():
        told, found = check.told["sums"][name], check.found["sums"][name]
        changed = check.found["sha256"] != check.told["sha256"]  # then this is told already
        if not (changed or abs(told - found) <= SUM_TOLERANCE * size):
            check.tell(f"the {name} of its log-mel is {found}, its JSON says {told}")


def _check_pictures(file: h5py.File, names: Sequence[str], task: ShardTask, check: ShardCheck) -> None:
    """Offsets, then the frames, clip by clip."""
    clips, edges = file["visual/clip_offset"][:].tolist(), file["visual/byte_offset"][:].tolist()
    if not _check_offsets("visual/clip_offset", clips, check.frames, names, check):
        return  # which frame is whose is not known
    owners = [name for name, (low, high) in zip(names, pairwise(clips), strict=True) for _ in range(low, high)]
    if not _check_offsets("visual/byte_offset", edges, len(file["visual/bytes"]), owners, check):
        return
    num_audio_frames = file["audio/num_frames"][:]
    with _overheard() as overheard:
        for row, (low, high) in enumerate(pairwise(clips)):
            if low == high and num_audio_frames[row] == 0:
                check.tell("it has neither sound nor pictures", names[row])
            times = file["visual/time"][low:high]
            if not (np.isfinite(times).all() and (np.diff(times) >= 0).all()):
                check.tell("the times of its frames are not finite, or go back", names[row])
            data = file["visual/bytes"][edges[low] : edges[high]]
            for number, (height, width) in enumerate(file["visual/size"][low:high].tolist()):
                start, end = (edge - edges[low] for edge in edges[low + number : low + number + 2])
                wrong, warning = _check_frame(data[start:end], height, width, task), overheard()
                if wrong := wrong or (warning and f"is damaged: {warning}"):
                    check.tell(f"its frame {number} {wrong}", names[row])


def _check_offsets(what: str, offsets: Sequence[int], end: int, names: Sequence[str], check: ShardCheck) -> bool:
    before = check.num_problems
    if offsets[0] != 0:
        check.tell(f"{what} starts at {offsets[0]}, not 0", *names[:1])
    for i, (low, high) in enumerate(pairwise(offsets)):
        if high < low:
            check.tell(f"{what} goes back from {low} to {high}", names[i])
    if offsets[-1] != end:
        check.tell(f"{what} ends at {offsets[-1]}, not {end}", *names[-1:])
    return check.num_problems == before


def _check_frame(frame: Array, height: int, width: int, task: ShardTask) -> str:
    """What is wrong with one stored frame; empty where nothing is."""
    largest = task.config["frame_size"]
    if not 0 < min(height, width) <= largest:
        return f"is {height} x {width}; its short side should be 1 to {largest}"
    if not len(frame):
        return "is empty"
    if task.config["frame_codec"] == "raw":
        needed = height * width * 3
        return "" if len(frame) == needed else f"has {len(frame)} bytes, not the {needed} of {height} x {width} pixels"
    data = frame.tobytes()
    if not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")):
        return "does not start and end as a JPEG does"
    return _decode(frame, height, width) if task.deep else ""


def _decode(frame: Array, height: int, width: int) -> str:
    import torch
    from torchvision.io import decode_jpeg

    size = jpeg_size(frame.tobytes())  # looked at first: a header may ask for any amount of memory
    if size != (height, width):
        return f"is a JPEG of {size[0]} x {size[1]}, not {height} x {width}"
    try:
        decode_jpeg(torch.from_numpy(frame))
    except RuntimeError as error:
        return f"does not decode: {str(error).rpartition(', ')[2]}"
    return ""


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width in the frame header (ITU-T T.81, B.2.2); 0 x 0 without one."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 9 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        at += 2 + length
    return 0, 0


@contextmanager
def _overheard() -> Iterator[Callable[[], str]]:
    """Keep what C prints to stderr: nowhere else does libjpeg tell of damage that it decodes all the same.

    Yields a function that returns what was printed since its last call.
    """
    with tempfile.TemporaryFile() as file:
        terminal, seen = os.dup(2), 0

        def overheard() -> str:
            nonlocal seen
            printed = os.pread(file.fileno(), 1 << 16, seen)
            seen += len(printed)
            return " ".join(printed.decode(errors="replace").split())

        os.dup2(file.fileno(), 2)
        try:
            yield overheard
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
