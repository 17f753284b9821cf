"""The JSON files of a store, typed: `settings.json`, `store.json`, and one beside each shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from avpt.errors import StoreError
from avpt.files.checking import RecordError, check, parse, read, read_text
from avpt.files.records import AboveZero, Count, Finite, Positive
from avpt.types import FrameCodec, Modality, Split

SCHEMA = 1


@dataclass(frozen=True)
class Failure:
    """A manifest row that was left out (a line of `failures.csv`) or kept in part (a line of `partial.csv`)."""

    id: str
    split: str
    source: str
    stage: str  # open, audio, visual, timeout, crash
    error: str


class StoreConfig(TypedDict):
    """The options of `settings.json` that reading a store depends on; older stores lack those that are not required."""

    sample_rate: Positive
    mel_bins: Positive
    spectrogram_frames: Positive
    pad: Literal["zero", "repeat"]
    audio_dtype: Literal["float16", "float32"]
    fps: AboveZero
    max_frames: Positive
    frame_size: Positive
    frame_codec: FrameCodec
    shard_size: Positive
    multi_label: bool
    frame_accuracy: NotRequired[Literal["exact", "keyframe"]]


class StoreInputs(TypedDict):
    """What a store was made from."""

    manifest: str


class StoreSettings(TypedDict):
    """`settings.json`."""

    schema: int
    config: StoreConfig
    inputs: StoreInputs


class SplitRecord(TypedDict):
    """A split's shards and the number of its clips."""

    shards: list[str]
    clips: Count


class Normalisation(TypedDict):
    """Mean and standard deviation of the log-mel."""

    mean: Finite
    std: AboveZero


class StoreRecord(TypedDict):
    """`store.json`."""

    schema: int
    classes: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]
    multi_label: bool
    splits: dict[Split, SplitRecord]
    normalisation: Normalisation
    failures: Count
    partial: NotRequired[Count]
    fingerprint: str


class Sums(TypedDict):
    """Sums over all values of a shard's log-mel but padding."""

    count: Count
    sum: float
    sum_of_squares: float


class Lengths(TypedDict):
    """How many clips are longer or far shorter than what is stored of a clip, and the seconds of the longest."""

    longer: Count
    longest: Finite
    shorter: Count


class ShardRecord(TypedDict):
    """The JSON that declares a shard complete."""

    schema: Literal[1]
    clips: Count
    bytes: Count
    sha256: str
    sums: Sums
    failures: list[Failure]
    partial: NotRequired[list[Failure]]  # older versions of avpt did not write it
    lengths: NotRequired[Lengths]
    lacking: NotRequired[dict[Modality, Count]]  # how many clips have no sound, no pictures; missing where none does


def shard_name(split: str, number: int) -> str:
    """`train`, 3 -> `train-00003`."""
    return f"{split}-{number:05d}"


def read_settings(folder: Path) -> StoreSettings:
    """Read settings.json.

    Raises:
        FileNotFoundError, RecordError: it is missing or damaged.
        StoreError: a newer avpt wrote it.
    """
    return check(_of_our_schema(folder, "settings.json"), StoreSettings)


def read_store(folder: Path) -> StoreRecord:
    """Read store.json; raises the same errors as `read_settings`."""
    record = check(_of_our_schema(folder, "store.json"), StoreRecord)
    for split, part in record["splits"].items():
        for number, name in enumerate(part["shards"]):
            if name != (wanted := shard_name(split, number)):  # another name might lead outside the store
                raise RecordError(f"splits.{split}.shards: {name!r:.100} is not {wanted}")
    if len(set(record["classes"])) < len(record["classes"]):
        raise RecordError("classes: one is there twice")
    return record


def read_shard(path: Path) -> dict[str, Any]:
    """Read the JSON beside a shard (`path` has no suffix); raises the same errors as `checking.read`."""
    return {"partial": [], **read(path.with_name(f"{path.name}.json"), ShardRecord)}


def _of_our_schema(folder: Path, name: str) -> Any:
    value = parse(read_text(folder / name))
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise StoreError(f"{folder} was written by a newer avpt; update avpt")
    return value
