"""The store: HDF5 shards that plain h5py can read, and the small JSON files that describe them.

N is the number of clips of a shard, F of its frames.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from avpt.errors import StoreError
from avpt.files.checking import RecordError
from avpt.files.content_kinds import but_what
from avpt.files.outputs import atomic, sha256_json, write_json
from avpt.files.records import InputSpec
from avpt.media.clip import ClipSettings, DecodedClip
from avpt.store.json_files import SCHEMA as SCHEMA
from avpt.store.json_files import Failure as Failure
from avpt.store.json_files import SplitRecord, read_settings, read_shard, read_store
from avpt.store.json_files import shard_name as shard_name
from avpt.store.shard_files import ShardFiles
from avpt.store.shard_layout import Array, inspect_layout, open_shard, wrong_audio_lengths, wrong_labels, wrong_offsets
from avpt.types import MODALITIES, SPLITS, Modality, Split

log = logging.getLogger(__name__)

MIN_STD = 1e-3  # below it a log-mel is constant (a store of silence), and dividing by it would only amplify rounding


def write_shard(
    path: Path,
    *,
    ids: Sequence[str],
    labels: Array,
    clips: Sequence[DecodedClip],
    failures: Sequence[Failure],
    partial: Sequence[Failure],
    settings: Mapping[str, Any],
    lengths: Mapping[str, float] | None = None,
    sources: Sequence[str] = (),
) -> None:
    """Write one shard (`path` without a suffix) and, last, the JSON beside it that declares it complete.

    Args:
        ids: of the clips that are kept, in manifest order.
        labels: (N,) int64 class indices, or (N, classes) uint8 when multi-label.
        clips: the decoded clips.
        failures: the rows that were left out.
        partial: the troubles of clips that are kept.
        settings: attributes of the file. The bytes depend on these arguments alone.
        lengths: how many clips are longer or far shorter than what is stored of a clip.
        sources: what each segment was cut from; empty if no clip is a segment.
    """
    fields = ClipSettings.__dataclass_fields__
    clip_settings = ClipSettings(**{name: value for name, value in settings.items() if name in fields})
    fbank_shape = (len(clips), clip_settings.spectrogram_frames, clip_settings.mel_bins)
    fbank = np.zeros(fbank_shape, dtype=clip_settings.audio_dtype)
    for row, clip in enumerate(clips):
        fbank[row] = clip.fbank
    num_frames = np.array([clip.num_audio_frames for clip in clips], dtype=np.int32)
    frames = [frame for clip in clips for frame in clip.frames]

    # in memory first: HDF5 crashes on a full disk
    with h5py.File("shard", "w", driver="core", backing_store=False) as file:
        file.attrs["schema"] = SCHEMA
        for name, value in sorted(settings.items()):
            if value is not None:  # HDF5 has no None; a missing attribute means the default
                file.attrs[name] = value
        file.create_dataset("id", data=list(ids), shape=(len(ids),), dtype=h5py.string_dtype())
        file["label"] = labels
        if any(sources):
            file.create_dataset("source", data=list(sources), shape=(len(ids),), dtype=h5py.string_dtype())
        file["audio/fbank"] = fbank
        file["audio/num_frames"] = num_frames
        file["visual/clip_offset"] = _offsets(len(clip.frames) for clip in clips)
        file["visual/time"] = _joined([clip.times for clip in clips], (0,), np.float32)
        file["visual/byte_offset"] = _offsets(len(frame) for frame in frames)
        file["visual/bytes"] = np.frombuffer(b"".join(frames), dtype=np.uint8)
        file["visual/size"] = _joined([clip.sizes for clip in clips], (0, 2), np.int32)
        file.flush()
        image = file.id.get_file_image()
    with atomic(path.with_name(f"{path.name}.h5"), shared=True) as beside:
        beside.write_bytes(image)
    real = (clip_fbank[:n].astype(np.float64) for clip_fbank, n in zip(fbank, num_frames, strict=True))
    sums = [(values.size, float(values.sum()), float(np.square(values).sum())) for values in real]
    lacking = {modality: sum(modality in clip.lacking for clip in clips) for modality in MODALITIES}
    record = {
        "schema": SCHEMA,
        "clips": len(clips),
        "bytes": len(image),
        "sha256": hashlib.sha256(image).hexdigest(),
        "sums": {
            "count": sum(count for count, _, _ in sums),
            "sum": math.fsum(total for _, total, _ in sums),
            "sum_of_squares": math.fsum(squares for _, _, squares in sums),
        },
        "failures": [asdict(failure) for failure in failures],
        "partial": [asdict(trouble) for trouble in partial],
        **({"lengths": dict(lengths)} if lengths else {}),
        **({"lacking": lacking} if any(lacking.values()) else {}),
    }
    write_json(path.with_name(f"{path.name}.json"), record, shared=True)


def _offsets(lengths: Iterable[int]) -> Array:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _joined(parts: list[Array], empty: tuple[int, ...], dtype: type) -> Array:
    return np.concatenate([np.zeros(empty, dtype), *parts]).astype(dtype)


def read_shard_record(path: Path) -> dict[str, Any] | None:
    """The JSON beside a finished shard (`path` has no suffix), or None if the shard must be made."""
    try:
        record = read_shard(path)
        return record if record["bytes"] == path.with_name(f"{path.name}.h5").stat().st_size else None
    except (FileNotFoundError, RecordError):  # other errors are raised: a file that can't be read may be intact
        return None


def normalisation(records: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Mean and standard deviation of all log-mel values but padding, from each shard's sums in shard order.

    Returns (0, 1) if there is no audio, and a standard deviation of 1 if the audio is constant (silence).
    """
    count = total = squares = 0.0
    for record in records:
        count += record["sums"]["count"]
        total += record["sums"]["sum"]
        squares += record["sums"]["sum_of_squares"]
    if not count:
        return 0.0, 1.0
    mean = total / count
    std = math.sqrt(max(squares / count - mean * mean, 0.0))
    if std < MIN_STD:
        log.warning("the sound of the training clips is constant (silence?): it is normalised with a deviation of 1")
        std = 1.0
    return mean, std


def store_record(
    settings: Mapping[str, Any],
    classes: Sequence[str],
    shards: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]],
) -> dict[str, Any]:
    """The content of `store.json`, from the name and record of every shard of each split."""
    splits = {
        split: {"shards": [name for name, _ in parts], "clips": sum(record["clips"] for _, record in parts)}
        for split, parts in shards.items()
    }
    mean, std = normalisation([record for _, record in shards.get("train", ())])
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "classes": list(classes),
        "multi_label": bool(settings["config"]["multi_label"]),
        "splits": splits,
        "normalisation": {"mean": mean, "std": std},
        "failures": sum(len(record["failures"]) for parts in shards.values() for _, record in parts),
        "partial": sum(
            len({row["id"] for row in record["partial"]}) for parts in shards.values() for _, record in parts
        ),
    }
    hashes = {name: shard["sha256"] for parts in shards.values() for name, shard in parts}
    return record | {"fingerprint": sha256_json([record, settings["config"], hashes])}


@dataclass(frozen=True)
class SplitIndex:
    """Where each clip of a split is stored, and its labels and lengths; all in memory."""

    ids: list[str]
    labels: np.ndarray[Any, Any]  # (clips,) int64 or (clips, classes) uint8
    shard: np.ndarray[Any, Any]  # (clips,) int64, index into `shards`
    row: np.ndarray[Any, Any]  # (clips,) int64, row in that shard
    num_audio_frames: np.ndarray[Any, Any]  # (clips,) int32
    num_visual_frames: np.ndarray[Any, Any]  # (clips,) int64
    shards: ShardFiles
    sources: tuple[str, ...] = ()  # of each clip, what it is a segment of, or ""; empty if no clip is a segment

    def __len__(self) -> int:
        return len(self.ids)

    def lacking(self, modality: Modality) -> Array:
        """(K,) int64, the positions of the clips that do not have a modality."""
        return np.flatnonzero((self.num_audio_frames if modality == "audio" else self.num_visual_frames) == 0)

    def take(self, keep: Array) -> SplitIndex:
        """An index of the clips at positions `keep` alone."""
        return SplitIndex(
            [self.ids[i] for i in keep],
            self.labels[keep],
            self.shard[keep],
            self.row[keep],
            self.num_audio_frames[keep],
            self.num_visual_frames[keep],
            self.shards,
            tuple(self.sources[i] for i in keep) if self.sources else (),
        )


class Store:
    """A finished store, opened for reading.

    Raises:
        StoreError: it is missing, not a store, unfinished, or written by a newer avpt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            what = f"is not a folder{but_what(path)}" if path.exists() else "does not exist"
            raise StoreError(f"{path} {what}; a store is a folder, which `avpt preprocess` makes")
        if not (path / "settings.json").exists():
            raise StoreError(f"{path} is not a store{but_what(path)}; make one with `avpt preprocess`")
        if not (path / "store.json").exists():
            raise StoreError(f"{path} is unfinished; run its `avpt preprocess` again, it goes on where it stopped")
        try:
            settings = read_settings(path)
        except RecordError as error:
            step = "run its `avpt preprocess` again with --overwrite"
            raise StoreError(f"{path}/settings.json is damaged ({error}); {step}") from None
        try:
            record = read_store(path)
        except RecordError as error:
            step = "remove it and run its `avpt preprocess` again"
            raise StoreError(f"{path}/store.json is damaged ({error}); {step}") from None
        self.settings = cast(dict[str, Any], settings["config"])
        self.inputs = cast(dict[str, str], settings["inputs"])
        self.classes = record["classes"]
        self.multi_label = record["multi_label"]
        self.splits: Mapping[Split, SplitRecord] = record["splits"]
        self.mean, self.std = record["normalisation"]["mean"], record["normalisation"]["std"]
        self.failures, self.partial = record["failures"], record.get("partial", 0)
        self.fingerprint = record["fingerprint"]
        if self.multi_label != settings["config"]["multi_label"]:
            raise StoreError(
                f"{path}: settings.json and store.json differ in multi_label; look at it with `avpt verify`"
            )

    def input_spec(self, image_size: int, num_frames: int) -> InputSpec:
        """How its clips become a model's input; a store leaves the image size and number of frames open."""
        names = InputSpec.__dataclass_fields__.keys() & self.settings.keys()
        stored = {name: self.settings[name] for name in names}
        return InputSpec(**stored, mean=self.mean, std=self.std, image_size=image_size, num_frames=num_frames)

    @cached_property
    def indices(self) -> dict[Split, SplitIndex]:
        """The index of every split that the store has."""
        return {split: self._index(split) for split in SPLITS if split in self.splits}

    def _index(self, split: Split) -> SplitIndex:
        ids: list[str] = []
        sources: list[str] = []
        paths = [self.path / f"{name}.h5" for name in self.splits[split]["shards"]]
        label_shape = (0, len(self.classes)) if self.multi_label else (0,)
        empty: dict[str, Array] = {
            "label": np.zeros(label_shape, np.uint8 if self.multi_label else np.int64),
            "audio": np.zeros(0, np.int32),
            "visual": np.zeros(0, np.int64),
            "shard": np.zeros(0, np.int64),
            "row": np.zeros(0, np.int64),
        }
        columns = {name: [part] for name, part in empty.items()}
        files = ShardFiles(
            paths,
            self.settings["audio_dtype"],
            (self.settings["spectrogram_frames"], self.settings["mel_bins"]),
        )
        for number, path in enumerate(paths):
            try:
                num_bytes = read_shard(path.with_suffix(""))["bytes"]
            except FileNotFoundError:
                num_bytes = -1
            except RecordError as error:
                beside = path.with_suffix(".json")
                raise StoreError(
                    f"{beside} is damaged ({error}); remove it and run its `avpt preprocess` again"
                ) from None
            if not path.exists() or path.stat().st_size != num_bytes:
                raise StoreError(f"{path} is missing or truncated; run its `avpt preprocess` again")
            rows, shard_sources, parts = self._read_shard(path, number, files)
            for name, values in parts.items():
                columns[name].append(values)
            sources += shard_sources
            columns["shard"].append(np.full(len(rows), number))
            columns["row"].append(np.arange(len(rows)))
            ids += rows
        if len(ids) != self.splits[split]["clips"] or len(set(ids)) < len(ids):
            problem = f"store.json lists {self.splits[split]['clips']} {split} clips, the shards hold {len(set(ids))}"
            raise StoreError(f"{self.path}: {problem}; look at it with `avpt verify`")
        joined = {name: np.concatenate(parts) for name, parts in columns.items()}
        return SplitIndex(
            ids=ids,
            labels=joined["label"],
            shard=joined["shard"],
            row=joined["row"],
            num_audio_frames=joined["audio"],
            num_visual_frames=joined["visual"],
            shards=files,
            sources=tuple(sources) if any(sources) else (),
        )

    def _read_shard(self, path: Path, number: int, files: ShardFiles) -> tuple[list[str], list[str], dict[str, Array]]:
        """Read the ids, sources, labels and lengths of a shard's clips, after checking its layout.

        Raises:
            StoreError: something in the shard is wrong, or it can't be read.
        """
        with open_shard(path) as file:
            try:
                datasets, wrong = inspect_layout(file, self.settings, len(self.classes))
                if wrong:
                    raise StoreError(f"{path}: {wrong[0]}; look at it with `avpt verify`")
                files.locate(number, datasets)
                ids = [str(clip_id) for clip_id in datasets["id"].asstr()[:]]
                sources = [""] * len(ids)
                if "source" in datasets:
                    sources = [sys.intern(name) for name in datasets["source"].asstr()[:]]
                labels, num_frames = datasets["label"][:], datasets["audio/num_frames"][:]
                offsets, frames = datasets["visual/clip_offset"][:], len(datasets["visual/time"])
            except (StoreError, MemoryError):
                raise
            except Exception as error:  # HDF5 may raise anything on damaged bytes
                what = " ".join(str(error).split())[:200]
                raise StoreError(f"{path} can't be read ({what}); look at it with `avpt verify`") from None
        problems = chain(
            wrong_labels(labels, len(self.classes)),
            wrong_audio_lengths(num_frames, self.settings["spectrogram_frames"]),
            wrong_offsets("visual/clip_offset", offsets, frames),
        )
        for row, problem in problems:
            clip = f", clip {ids[row]}" if ids else ""
            raise StoreError(f"{path}{clip}: {problem}; look at it with `avpt verify`")
        return ids, sources, {"label": labels, "audio": num_frames, "visual": np.diff(offsets)}
