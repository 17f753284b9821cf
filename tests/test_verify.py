"""`avpt verify`: whatever is changed in a store is found, and named by shard and clip."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import (
    STORE_OPTIONS,
    Experiment,
    Result,
    avpt,
    digit_rows,
    done,
    files_of,
    mixed_rows,
    state_of,
    write_manifest,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from worker_tasks import crash_or_hang

from avpt.commands import verify
from avpt.files.locks import claim
from avpt.files.outputs import sha256_json
from avpt.media.codecs import jpeg_size
from avpt.options import VerifyConfig
from avpt.store.verification.findings import MOST, ShardCheck
from avpt.store.verification.store_files import find_duplicates

SHARD = "train-00001"  # the one that is damaged
Change = Callable[[h5py.File], object]


@pytest.fixture
def store(experiment: Experiment, tmp_path: Path) -> Path:
    return shutil.copytree(experiment.store, tmp_path / "store")


def change(store: Path, action: Change, name: str = SHARD) -> None:
    """Change a shard, and sign it as if it had been written so."""
    with h5py.File(store / f"{name}.h5", "r+") as file:
        action(file)
    sign(store, name)


def sign(store: Path, name: str = SHARD) -> None:
    content = (store / f"{name}.h5").read_bytes()
    edit(store / f"{name}.json", bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def ids_of(store: Path, name: str = SHARD) -> list[str]:
    with h5py.File(store / f"{name}.h5") as file:
        return [value.decode() for value in file["id"][:]]


def problems_of(store: Path, *options: str) -> list[tuple[str, str, str]]:
    result = avpt("verify", store, "--json", *options)
    record = result.json()
    assert result.code == (1 if record["problems"] else 0)
    assert record["num_problems"] >= len(record["problems"])
    return [(row["shard"], row["clip"], row["problem"]) for row in record["problems"]]


def follow(store: Path, result: Result, experiment: Experiment, *options: str) -> None:
    """Do what the line on stderr says."""
    assert result.code == 1
    assert result.stderr.count("\n") == 1
    advice = result.error.rpartition("; ")[2]
    if removed := re.fullmatch(r"remove (.*?)( and run .*)?", advice):
        for name in removed[1].split(", "):
            (store / name).unlink()
    if "run its `avpt preprocess` again" in advice:
        overwrite = ("--overwrite",) if advice.endswith("--overwrite") else ()
        done("preprocess", experiment.manifest, *STORE_OPTIONS, *options, "--out", store, *overwrite)


# --- intact stores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--deep",), ("--workers", "1")])
def test_a_sound_store(experiment: Experiment, options: tuple[str, ...]) -> None:
    before = state_of(experiment.store)
    with claim(experiment.store):  # by another command: nothing is locked to look
        result = done("verify", experiment.store, "--quiet", *options)
        record = done("verify", experiment.store, "--json", *options).json()
    assert "store is intact" in " ".join(result.stdout.split())
    assert result.stderr == ""
    sizes = [shard.stat().st_size for shard in experiment.store.glob("*.h5")]
    assert record == {
        "store": str(experiment.store),
        "shards": 7,
        "clips": 36,
        "frames": 36,
        "bytes": sum(sizes),
        "deep": "--deep" in options,
        "problems": [],
        "num_problems": 0,
    }
    assert state_of(experiment.store) == before


@pytest.mark.parametrize(
    "options",
    [
        ("--frame-codec", "raw"),
        ("--audio-dtype", "float32", "--shard-size", "1"),
        ("--pad", "repeat", "--limit", "5"),
        ("--spectrogram-frames", "4", "--frame-size", "9", "--fps", "0.5"),
    ],
)
def test_sound_stores_of_other_options(experiment: Experiment, tmp_path: Path, options: tuple[str, ...]) -> None:
    done("preprocess", experiment.manifest, *STORE_OPTIONS, *options, "--out", tmp_path / "store")
    assert problems_of(tmp_path / "store", "--deep") == []


@pytest.mark.parametrize("options", [(), ("--pad", "repeat"), ("--frame-codec", "raw")])
def test_several_labels_one_modality_failures_and_an_empty_shard(tmp_path: Path, options: tuple[str, ...]) -> None:
    rows = mixed_rows(tmp_path / "media")
    (tmp_path / "media" / rows[0]["audio"]).write_bytes(b'no sound, "at all"')
    (tmp_path / "media" / rows[3]["frames"]).write_bytes(b"no picture")
    manifest = write_manifest(tmp_path / "media" / "manifest.csv", rows)
    command = ("preprocess", manifest, *STORE_OPTIONS, "--multi-label", "--max-failures", "1", "--shard-size", "3")
    done(*command, *options, "--out", tmp_path / "store")
    record = done("verify", tmp_path / "store", "--deep", "--json").json()
    assert (record["clips"], record["shards"], record["frames"]) == (4, 3, 3)


@pytest.mark.parametrize("kind", ["audio", "frames"])
def test_one_modality(tmp_path: Path, kind: str) -> None:
    rows = [{name: row[name] for name in ("id", "label", "split", kind)} for row in digit_rows()[:3]]
    done("preprocess", write_manifest(tmp_path / "m.csv", rows), *STORE_OPTIONS, "--out", tmp_path / "store")
    assert problems_of(tmp_path / "store", "--deep") == []


# --- one thing is wrong in a shard -------------------------------------------------------------------------------


def put(name: str, at: Any, value: Any) -> Change:
    def action(file: h5py.File) -> None:
        file[name][at] = value

    return action


def replace(name: str, like: Callable[[np.ndarray], Any], **options: Any) -> Change:
    def action(file: h5py.File) -> None:
        values = like(file[name][:])
        del file[name]
        file.create_dataset(name, data=values, **options)

    return action


def remove(name: str) -> Change:
    return lambda file: file.__delitem__(name)


def attribute(name: str, value: Any) -> Change:
    return lambda file: file.attrs.__setitem__(name, value) if value is not None else file.attrs.__delitem__(name)


def behind_the_sound(file: h5py.File) -> None:
    file["audio/num_frames"][2] = 3
    file["audio/fbank"][2, 47, 0] = 1


def two_frames_back_in_time(file: h5py.File) -> None:
    file["visual/clip_offset"][3] = 4
    file["visual/time"][2:4] = 1, 0


def nothing_at_all(file: h5py.File) -> None:
    file["visual/clip_offset"][3] = 2
    file["audio/num_frames"][2] = 0
    file["audio/fbank"][2] = 0


def byte_of_frame(at: int, value: int) -> Change:
    """A byte of the picture of clip 2, from its start or its end."""

    def action(file: h5py.File) -> None:
        low, high = file["visual/byte_offset"][2:4]
        file["visual/bytes"][(low if at >= 0 else high) + at] = value

    return action


def elsewhere(file: h5py.File) -> None:
    del file["label"]
    other = Path(file.filename).with_name("train-00000.h5")
    file["label"] = h5py.ExternalLink(str(other), "/label")


def never_written(file: h5py.File) -> None:
    del file["visual/bytes"]
    file.create_dataset("visual/bytes", shape=(1 << 40,), dtype=np.uint8)


CLIP, NONE = 2, ""
DAMAGE: dict[str, tuple[Change, int | str, str]] = {
    "label too high": (put("label", 2, 3), CLIP, "its label is 3, of 3 classes"),
    "label below 0": (put("label", 2, -1), CLIP, "its label is -1"),
    "more sound than frames": (put("audio/num_frames", 2, 49), CLIP, "num_frames is 49, not 0 to 48"),
    "negative sound": (put("audio/num_frames", 2, -1), CLIP, "num_frames is -1"),
    "NaN": (put("audio/fbank", (2, 0, 0), np.nan), CLIP, "log-mel is not finite"),
    "infinite": (put("audio/fbank", (2, 47, 0), np.inf), CLIP, "log-mel is not finite"),
    "padding": (behind_the_sound, CLIP, "not 0.0 behind frame 3"),
    "sound": (put("audio/fbank", (2, 0, 0), 9), NONE, "the sum of its log-mel"),
    "clips start": (put("visual/clip_offset", 0, 1), 0, "visual/clip_offset starts at 1, not 0"),
    "clips go back": (put("visual/clip_offset", 3, 1), CLIP, "clip_offset goes back from 2 to 1"),
    "clips end": (put("visual/clip_offset", 8, 7), 7, "visual/clip_offset ends at 7, not 8"),
    "frames start": (put("visual/byte_offset", 0, 1), 0, "visual/byte_offset starts at 1, not 0"),
    "frames go back": (put("visual/byte_offset", 3, 1), CLIP, "visual/byte_offset goes back"),
    "frames end": (put("visual/byte_offset", 8, 1 << 40), 7, "visual/byte_offset ends at 1099511627776"),
    "empty frame": (lambda f: put("visual/byte_offset", 3, f["visual/byte_offset"][2])(f), CLIP, "frame 0 is empty"),
    "time": (put("visual/time", 2, np.nan), CLIP, "times of its frames are not finite"),
    "times": (two_frames_back_in_time, CLIP, "or go back"),
    "no height": (put("visual/size", (2, 0), 0), CLIP, "its frame 0 is 0 x 28"),
    "too large": (put("visual/size", 2, (29, 29)), CLIP, "its short side should be 1 to 28"),
    "JPEG start": (byte_of_frame(0, 0), CLIP, "does not start and end as a JPEG"),
    "JPEG end": (byte_of_frame(-1, 0), CLIP, "does not start and end as a JPEG"),
    "no sound, no picture": (nothing_at_all, CLIP, "it has neither sound nor pictures"),
    "id twice": (lambda f: put("id", 2, f["id"][0])(f), 0, "its id is twice in this shard"),
    "id empty": (put("id", 2, ""), "row 2", "its id is empty"),
    "id not UTF-8": (put("id", 2, b"\xffc"), "\ufffdc", "its id is not UTF-8"),
    "another option": (attribute("fps", 2.0), NONE, "its attribute fps is 2.0, settings.json says 1.0"),
    "an option less": (attribute("pad", None), NONE, "its attribute pad is None"),
    "an option more": (attribute("colour", "red"), NONE, "its attribute colour is red"),
    "schema": (attribute("schema", 2), NONE, "its attribute schema is 2"),
    "dataset missing": (remove("visual/time"), NONE, "visual/time is missing, not float32 (8,)"),
    "group missing": (remove("audio"), NONE, "audio/fbank is missing"),
    "ids missing": (remove("id"), NONE, "id is missing"),
    "unknown dataset": (lambda f: f.create_dataset("audio/mfcc", data=1), NONE, "audio/mfcc is no part of a shard"),
    "unknown group": (lambda f: f.create_group("tactile"), NONE, "tactile is no part of a shard"),
    "type": (replace("label", np.int32), NONE, "label is int32 (8,), not int64 (8,)"),
    "byte order": (replace("label", lambda v: v.astype(">i8")), NONE, "label is >i8 (8,)"),
    "kind of id": (replace("id", lambda v: v.astype("S9")), NONE, "id is |S9 (8,), not text (8,)"),
    "shape": (replace("visual/size", lambda v: v[:5]), NONE, "visual/size is int32 (5, 2), not int32 (8, 2)"),
    "scalar": (replace("visual/byte_offset", lambda v: v[0]), NONE, "visual/byte_offset is int64 ()"),
    "a clip less": (replace("id", lambda v: v[1:], dtype=h5py.string_dtype()), NONE, "label is int64 (8,)"),
    "compressed": (replace("label", np.int64, compression="gzip"), NONE, "label is compressed"),
    "in another file": (elsewhere, NONE, "label is a link, to another file or to nowhere"),
    "never written": (never_written, NONE, "visual/bytes is larger than its bytes"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(store: Path, name: str) -> None:
    action, row, says = DAMAGE[name]
    clip = ids_of(store)[row] if isinstance(row, int) else row
    change(store, action)
    actual = problems_of(store)
    assert {shard for shard, _, _ in actual} <= {SHARD, "store.json"}
    reported = [(shard, of) for shard, of, problem in actual if says in problem]
    assert reported == [(SHARD, clip)], actual
    assert ("store.json", "") in [(shard, of) for shard, of, problem in actual if "fingerprint" in problem]


def entropy_coded(file: h5py.File) -> None:
    """The last quarter of the picture of clip 2, but for its end."""
    low, high = file["visual/byte_offset"][2:4]
    file["visual/bytes"][high - (high - low) // 4 : high - 2] = 0


def no_tables(file: h5py.File) -> None:
    """The start of the picture of clip 2 leads straight to its frame header."""
    low = int(file["visual/byte_offset"][2])
    data = file["visual/bytes"][:]
    at = data.tobytes().index(b"\xff\xc0", low)
    file["visual/bytes"][at + 9 : at + 19] = 0


DEEP: dict[str, tuple[Change, str]] = {
    "size": (put("visual/size", 2, (28, 27)), "its frame 0 is a JPEG of 28 x 28, not 28 x 27"),
    "no header": (byte_of_frame(3, 0xD9), "its frame 0 is a JPEG of 0 x 0"),
    "a byte": (byte_of_frame(2, 0), "its frame 0 is damaged: Corrupt JPEG data"),
    "extra bytes": (byte_of_frame(3, 255), "its frame 0 is damaged: Corrupt JPEG data"),
    "cut short": (entropy_coded, "its frame 0 "),
    "no picture": (no_tables, "its frame 0 does not decode"),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_decodes(store: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    action, says = DEEP[name]
    clip = ids_of(store)[2]
    change(store, action)
    assert {shard for shard, _, _ in problems_of(store)} == {"store.json"}  # the fingerprint
    assert [(s, c) for s, c, problem in problems_of(store, "--deep") if says in problem] == [(SHARD, clip)]
    assert "JPEG" not in capfd.readouterr().err  # libjpeg's own words are part of the record


def test_labels_of_several_and_raw_frames(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "media" / "m.csv", mixed_rows(tmp_path / "media"))
    options = ("--multi-label", "--frame-codec", "raw", "--pad", "repeat")
    done("preprocess", manifest, *STORE_OPTIONS, *options, "--out", tmp_path / "store")

    def damage(file: h5py.File) -> None:
        file["label"][0] = 0
        file["label"][1, 1] = 2
        file["audio/fbank"][2, 5, 5] = 1  # it has no sound
        file["visual/size"][2] = 28, 27

    change(tmp_path / "store", damage, "train-00000")
    actual = {(clip, problem) for shard, clip, problem in problems_of(tmp_path / "store") if shard == "train-00000"}
    assert actual == {
        ("clip 0", "it has no label"),
        ("clip 1", "a label of it is neither 0 nor 1"),
        ("clip 2", "its log-mel is not 0.0 behind frame 0, where its sound ends"),
        ("clip 4", "its frame 0 has 2352 bytes, not the 2268 of 28 x 27 pixels"),
    }


def test_an_id_in_two_shards(store: Path) -> None:
    (first, *_) = ids_of(store, "val-00000")
    change(store, put("id", 3, first))
    assert ("val-00000", first, f"its id is in {SHARD} too") in problems_of(store)


def test_hashes_that_meet_by_chance(store: Path) -> None:
    checks = [ShardCheck(name, hashes=np.arange(8, dtype=np.uint64)) for name in (SHARD, "train-00000")]
    assert list(find_duplicates(store, checks)) == []


@settings(max_examples=10)  # of seven bytes each
@given(data=st.data())
def test_any_changed_byte_is_found(
    experiment: Experiment, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = tmp_path_factory.mktemp("flip") / "store"
    shutil.copytree(experiment.store, store)
    shards = sorted(store.glob("*.h5"))
    for shard in shards:
        content = bytearray(shard.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        shard.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "TIMEOUT", 5.0)  # HDF5 may go round in circles
        actual = problems_of(store)
    named = {shard for shard, _, problem in actual if "sha256" in problem or "can't be checked" in problem}
    assert named == {shard.stem for shard in shards}
    assert "fingerprint" not in str(actual)  # the JSONs still tell what it was made of
    shutil.rmtree(store)


# --- files -------------------------------------------------------------------------------------------------------


def sha_of_nothing(store: Path) -> None:
    edit(store / f"{SHARD}.json", sha256="0" * 64)


def flip(store: Path) -> None:
    content = bytearray((store / f"{SHARD}.h5").read_bytes())
    content[30000] ^= 1
    (store / f"{SHARD}.h5").write_bytes(content)


def foreign(store: Path) -> None:
    for suffix in ("h5", "json"):
        shutil.copyfile(store / f"val-00000.{suffix}", store / f"{SHARD}.{suffix}")


def no_hdf5(store: Path) -> None:
    (store / f"{SHARD}.h5").write_bytes(b"MZ" * 4000)
    sign(store)


def edit_config(store: Path, **values: Any) -> None:
    settings = json.loads((store / "settings.json").read_text())
    edit(store / "settings.json", config=settings["config"] | values)


def sums(store: Path, **values: Any) -> None:
    edit(store / f"{SHARD}.json", sums=json.loads((store / f"{SHARD}.json").read_text())["sums"] | values)


def failure(store: Path) -> None:
    row = {"id": "x", "split": "train", "source": "x.mp4", "stage": "open", "error": "gone"}
    edit(store / f"{SHARD}.json", failures=[row])


def stray(store: Path) -> None:
    for suffix in ("h5", "json"):
        shutil.copyfile(store / f"val-00000.{suffix}", store / f"val-00002.{suffix}")


def in_store(name: str) -> Callable[[Path], None]:
    return lambda store: (store / name).unlink()


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda store: (store / name).write_text(content)


def of_store(**values: Any) -> Callable[[Path], None]:
    return lambda store: edit(store / "store.json", **values)


FILES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a bit": (flip, SHARD, "its sha256 is not the one in its JSON"),
    "truncated": (lambda s: os.truncate(s / f"{SHARD}.h5", 1000), SHARD, "it has 1000 bytes, its JSON says"),
    "no HDF5": (no_hdf5, SHARD, "it does not open as HDF5"),
    "shard missing": (in_store(f"{SHARD}.h5"), SHARD, f"{SHARD}.h5 is missing"),
    "JSON missing": (in_store(f"{SHARD}.json"), SHARD, f"{SHARD}.json is missing"),
    "no JSON": (text(f"{SHARD}.json", "{"), SHARD, f"{SHARD}.json is damaged"),
    "JSON a list": (text(f"{SHARD}.json", "[]"), SHARD, f"{SHARD}.json is damaged"),
    "JSON nested": (text(f"{SHARD}.json", "[" * 100_000), SHARD, f"{SHARD}.json is damaged"),
    "JSON without sums": (lambda s: edit(s / f"{SHARD}.json", sums={}), SHARD, f"{SHARD}.json is damaged"),
    "JSON's checksum": (sha_of_nothing, SHARD, "its sha256 is not the one in its JSON"),
    "JSON's clips": (lambda s: edit(s / f"{SHARD}.json", clips=7), SHARD, "it holds 8 clips, its JSON says 7"),
    "JSON's sum": (lambda s: sums(s, sum=-1.0), SHARD, "its JSON says -1.0"),
    "JSON's count": (lambda s: sums(s, count=1), SHARD, "the count of its log-mel is"),
    "JSON's squares": (lambda s: sums(s, sum_of_squares=float("nan")), SHARD, "its JSON says nan"),
    "JSON's failures": (failure, SHARD, "its clips and failures are 9 rows of the manifest; --shard-size is 8"),
    "foreign shard": (foreign, "store.json", "its fingerprint is not that of"),
    "stray shard": (stray, "val-00002", "store.json does not name it"),
    "unfinished": (in_store("store.json"), "store.json", "is not there: the store is unfinished"),
    "no store.json": (text("store.json", "null"), "store.json", "is damaged"),
    "shard names": (of_store(splits={"train": {"shards": ["../x"], "clips": 1}}), "store.json", "is damaged"),
    "a split less": (of_store(splits={}), "test-00000", "store.json does not name it"),
    "no classes": (of_store(classes=[]), "store.json", "is damaged"),
    "class order": (of_store(classes=["1", "0", "2"]), "store.json", "its classes are not sorted"),
    "class names": (of_store(classes=["0", "1", "3"]), "store.json", "its fingerprint is not that of"),
    "failure count": (of_store(failures=1), "store.json", "its failures: not what the shards say (0)"),
    "kind of labels": (of_store(multi_label=True), "store.json", "its multi_label: not what the shards say (false)"),
    "normalisation": (of_store(normalisation={"mean": 0, "std": 1}), "store.json", "its normalisation: not what"),
    "fingerprint": (of_store(fingerprint="0" * 64), "store.json", "its fingerprint is not that of"),
    "failures missing": (in_store("failures.csv"), "failures.csv", "is missing"),
    "failures empty": (text("failures.csv", ""), "failures.csv", "is not the list of the 0 rows"),
    "failures quoted": (text("failures.csv", '"'), "failures.csv", "is damaged"),
    "failures more": (
        text("failures.csv", "id,split,source,stage,error\na,b,c,d,e\n"),
        "failures.csv",
        "is not the list of",
    ),
    "no settings": (text("settings.json", "{}"), "settings.json", "is damaged"),
    "settings' kinds": (lambda s: edit_config(s, mel_bins="32"), "settings.json", "is damaged"),
    "another option": (lambda s: edit_config(s, fps=2.0), "train-00000", "settings.json says 2.0"),
    "another size": (lambda s: edit_config(s, shard_size=9), "store.json", "its fingerprint is not that of"),
}


@pytest.mark.parametrize("name", FILES)
def test_following_the_advice_mends_the_store(store: Path, experiment: Experiment, name: str) -> None:
    damage, shard, says = FILES[name]
    damage(store)
    before = state_of(store)
    actual = problems_of(store)
    assert [of for of, _, problem in actual if says in problem][:1] == [shard], actual
    result = avpt("verify", store, "--quiet")
    assert state_of(store) == before
    follow(store, result, experiment)
    assert problems_of(store, "--deep") == []
    assert files_of(store) == files_of(experiment.store)


def test_several_shards_at_once(store: Path, experiment: Experiment) -> None:
    flip(store)
    os.truncate(store / "val-00000.h5", 1000)
    (store / "test-00001.json").unlink()
    stray(store)
    (store / "store.json").unlink()
    result = avpt("verify", store, "--quiet")
    assert "problems in" in result.error
    for suffix in ("h5", "json"):
        (store / f"val-00002.{suffix}").unlink()
    result = avpt("verify", store, "--quiet")
    assert result.error.endswith(f"remove {SHARD}.json, val-00000.json and run its `avpt preprocess` again")
    follow(store, result, experiment)
    assert files_of(store) == files_of(experiment.store)


def test_a_store_that_was_stopped(store: Path, experiment: Experiment) -> None:
    """A shard without its JSON was being written; those that are there are checked, and kept."""
    for name in ("store.json", "failures.csv", "test-00000.json", "test-00001.json", "test-00001.h5"):
        (store / name).unlink()
    result = avpt("verify", store, "--json")
    record = result.json()
    assert (record["shards"], record["clips"], record["num_problems"]) == (5, 27, 1)
    reported = "1 problem, first store.json: is not there: the store is unfinished; run its `avpt preprocess` again"
    assert result.error == f"avpt: {store}: {reported}"
    change(store, put("label", 2, -1))
    assert (SHARD, ids_of(store)[2], "its label is -1, of some classes from 0") in problems_of(store)


def test_a_foreign_shard_of_other_options(store: Path, experiment: Experiment, tmp_path: Path) -> None:
    done("preprocess", experiment.manifest, *STORE_OPTIONS, "--mel-bins", "16", "--out", tmp_path / "other")
    for suffix in ("h5", "json"):
        shutil.copyfile(tmp_path / "other" / f"{SHARD}.{suffix}", store / f"{SHARD}.{suffix}")
    actual = problems_of(store)
    assert (SHARD, "", "its attribute mel_bins is 16, settings.json says 32") in actual
    assert (SHARD, "", "audio/fbank is float16 (8, 48, 16), not float16 (8, 48, 32)") in actual


def test_a_store_of_an_older_avpt(store: Path) -> None:
    """One that knew nothing of clips that are kept in part."""
    record, hashes = json.loads((store / "store.json").read_text()), {}
    config = json.loads((store / "settings.json").read_text())["config"]
    for path in store.glob("*-*.json"):
        shard = json.loads(path.read_text())
        hashes[path.stem] = shard["sha256"]
        path.write_text(json.dumps({name: value for name, value in shard.items() if name != "partial"}))
    (store / "partial.csv").unlink(missing_ok=True)
    for name in ("partial", "fingerprint"):
        record.pop(name, None)
    record["fingerprint"] = sha256_json([record, config, hashes])
    (store / "store.json").write_text(json.dumps(record))
    assert problems_of(store) == []


@pytest.mark.parametrize("error", ["a,b", 'say "no"', "two\nlines\r\n", "é\x00"])
def test_failures_are_read_as_they_were_written(store: Path, error: str) -> None:
    failure(store)
    with (store / "failures.csv").open("a", newline="", encoding="utf-8") as file:
        row = json.loads((store / f"{SHARD}.json").read_text())["failures"][0] | {"error": error}
        edit(store / f"{SHARD}.json", failures=[row])
        csv.writer(file).writerow(row.values())
    assert "failures.csv" not in {shard for shard, _, _ in problems_of(store)}


def test_what_is_no_store(store: Path, tmp_path: Path, experiment: Experiment) -> None:
    (tmp_path / "folder").mkdir()
    for path, says in (
        (tmp_path / "nowhere", "does not exist; a store is a folder"),
        (experiment.manifest, "is not a folder"),
        (tmp_path / "folder", "is not a store; make one with `avpt preprocess`"),
        (experiment.visual, "is not a store"),
    ):
        result = avpt("verify", path)
        assert (result.code, result.stdout) == (1, "")
        assert says in result.error
    edit(store / "store.json", schema=9)
    assert "was written by a newer avpt; update avpt" in avpt("verify", store).error


# --- what is shown -----------------------------------------------------------------------------------------------


def test_the_table_and_the_line(store: Path) -> None:
    change(store, put("label", 2, 7))
    result = avpt("verify", store, "--debug")
    clip = ids_of(store)[2]
    assert result.code == 1
    assert f"{store}: 2 problems in 1 shard" in " ".join(result.stdout.split())  # however it was folded
    assert re.search(rf"^ {SHARD} +{clip} +its label is 7, of 3 classes", result.stdout, re.MULTILINE)
    assert result.error == (
        f"avpt: {store}: 2 problems in 1 shard, first {SHARD}, clip {clip}: its label is 7, of 3 classes from 0; "
        "run its `avpt preprocess` again with --overwrite"
    )
    assert "Traceback" not in result.stderr


def test_a_flood_is_cut(store: Path) -> None:
    for name in ("train-00000", SHARD, "val-00000", "test-00000"):
        change(store, put("label", slice(None), 9), name)
    change(store, put("visual/time", slice(None), np.nan))
    table = avpt("verify", store).stdout
    assert table.count("its label is 9") == 4 * 3
    assert re.search(rf"{SHARD} +and 13 more", table)
    record = avpt("verify", store, "--json").json()
    assert record["num_problems"] == len(record["problems"]) == 4 * 8 + 8 + 1
    findings = verify.Findings({f"s{i}": i for i in range(30)})
    for i in (*range(29, 0, -2), *range(0, 30, 2)):  # as workers happen to finish
        check = ShardCheck(f"s{i}")
        for _ in range(MOST + 5):
            check.tell("it is bad", "clip")
        findings.add(check.problems)
        findings.counts[check.name] = check.num_problems
    assert {problem.shard for problem in findings.problems} == {"s0"}
    assert len(findings.problems) == MOST
    assert findings.counts.total() == 30 * (MOST + 5)
    assert verify.problem_rows(findings)[-1] == ("s0", "", f"and {MOST + 2} more")


def test_a_worker_that_dies_or_hangs_costs_one_shard(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "check_shard", partial(crash_or_hang, SHARD, "val-00000"))
    monkeypatch.setattr(verify, "TIMEOUT", 5.0)
    report = verify.run(VerifyConfig(store=store, workers=2))
    assert report.summary["clips"] == 36 - 16
    first, second = report.summary["problems"]
    assert first["shard"] == SHARD
    assert first["problem"].startswith("it can't be checked: the worker died")
    assert second["shard"] == "val-00000"
    assert second["problem"].startswith("it can't be checked: took longer than 5.0")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}])
def test_the_size_in_a_jpegs_header(options: dict[str, Any]) -> None:
    for width, height in ((1, 1), (17, 300), (640, 5)):
        file = io.BytesIO()
        Image.new("RGB", (width, height)).save(file, "JPEG", exif=b"Exif\0\0" + bytes(300), **options)
        assert jpeg_size(file.getvalue()) == (height, width)
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"\xff" * 50, bytes(50)):
        assert jpeg_size(data)[0] in (0, 0xFFFF)
