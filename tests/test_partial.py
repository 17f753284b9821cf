"""Clips of which something is missing, cut off or damaged: kept or failed as asked, and told in either case."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
from helpers import Result, avpt, write_manifest
from media import REALTIME, Clips, Recipe, Sound, make_film, noise, spoiled, write

SOUND = "no_picture.ts"  # its picture stream holds no picture
PICTURE = "sound_of_no_codec.mp4"
NOTHING = "undecodable.mp4"
SILENT = "ten_bits.mp4"  # no sound stream
BOTH = "with_cover.mp4"  # 2 s
CUT = "cut.mkv"  # both streams end at half
SHORT_SOUND = "sound_ends_early.mp4"  # 0.74 s of 1.2 s
DAMAGED = "damaged_end.mp4"  # one packet of 30, and no sound stream
SMALL = ("--mel-bins", "32", "--spectrogram-frames", "300", "--frame-size", "32", "--fps", "4", "--workers", "1")


@dataclass(frozen=True)
class Outcome:
    """What `avpt preprocess` made of some clips, by clip: the name of its file."""

    store: Path
    result: Result
    failures: dict[str, tuple[str, str]]  # stage, error
    partial: dict[str, list[tuple[str, str]]]
    sound: dict[str, int]  # log-mel frames that are real
    pictures: dict[str, int]


Preprocess = Callable[..., Outcome]


@pytest.fixture
def preprocess(clips: Clips, tmp_path: Path) -> Preprocess:
    """Runs the command on some files, or clips by name, and checks that no row is lost."""

    def run(chosen: list[Path | str], *options: str, name: str = "store") -> Outcome:
        files = [clips[each] if isinstance(each, str) else each for each in chosen]
        rows = [{"id": file.name, "label": "a", "split": "train", "video": str(file)} for file in files]
        manifest = write_manifest(tmp_path / "manifest.csv", rows)
        arguments = ("preprocess", manifest, "--out", tmp_path / name, *SMALL, "--max-failures", "1")
        result = avpt(*arguments, *options, "--json")
        assert result.code == 0, result.stderr
        outcome = look_at(tmp_path / name, result)
        assert sorted([*outcome.failures, *outcome.sound]) == sorted(row["id"] for row in rows)
        assert set(outcome.partial) <= set(outcome.sound)
        summary = result.json()
        assert summary["clips"] == len(outcome.sound)
        assert summary["failures"] == len(outcome.failures)
        assert summary["partial"] == len(outcome.partial)
        return outcome

    return run


def look_at(store: Path, result: Result) -> Outcome:
    tables = {}
    for name in ("failures", "partial"):
        with (store / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            tables[name] = list(csv.DictReader(file))
            assert all(row.keys() == {"id", "split", "source", "stage", "error"} for row in tables[name])
    record = json.loads((store / "train-00000.json").read_text(encoding="utf-8"))
    assert {name: record[name] for name in tables} == tables
    partial: dict[str, list[tuple[str, str]]] = {}
    for row in tables["partial"]:
        assert row["split"] == "train"
        assert row["source"].endswith(row["id"])
        partial.setdefault(row["id"], []).append((row["stage"], row["error"]))
    sound, pictures = counts(store / "train-00000.h5") if record["clips"] else ({}, {})
    failures = {row["id"]: (row["stage"], row["error"]) for row in tables["failures"]}
    return Outcome(store, result, failures, partial, sound, pictures)


def counts(shard: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Real log-mel frames and pictures of each clip of a shard, by plain h5py."""
    with h5py.File(shard) as file:
        ids = [name.decode() if isinstance(name, bytes) else str(name) for name in file["id"][:]]
        frames = file["audio/num_frames"][:]
        bounds = file["visual/clip_offset"][:]
    return (
        dict(zip(ids, map(int, frames), strict=True)),
        dict(zip(ids, map(int, np.diff(bounds)), strict=True)),
    )


def remuxed(source: Path, target: Path, **seconds: float) -> Path:
    """A Matroska copy of a file whose audio or video packets stop at so many seconds, which its tags do not say."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = [old.streams.video[0], old.streams.audio[0]]
        copies = {stream.index: new.add_stream_from_template(stream) for stream in streams}
        packets: Any = old.demux(streams)
        for packet in packets:
            kind = packet.stream.type
            if packet.dts is None or packet.pts * packet.time_base >= seconds.get(kind, 100):
                continue
            packet.stream = copies[packet.stream.index]
            new.mux(packet)
    tags = re.compile(rb"00:00:0[0-9]\.\d{9}")
    assert len(tags.findall(target.read_bytes())) == 2
    target.write_bytes(tags.sub(b"00:00:02.020000000", target.read_bytes()))
    return target


# --- missing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", ["none", "audio", "visual", "either"])
def test_what_is_broken_fails_unless_it_may_be_missing(preprocess: Preprocess, allowed: str) -> None:
    outcome = preprocess([BOTH, PICTURE, SOUND, NOTHING, SILENT], "--allow-missing", allowed)
    expected = {NOTHING}
    if allowed not in ("audio", "either"):
        expected.add(PICTURE)
    if allowed not in ("visual", "either"):
        expected.add(SOUND)
    assert set(outcome.failures) == expected
    assert outcome.failures.get(PICTURE, ("audio", ""))[0] == "audio"
    assert outcome.failures.get(SOUND, ("visual", "no picture decodes"))[0] == "visual"
    assert all(error for _, error in outcome.failures.values())
    kept = {name: (stage, error) for name, rows in outcome.partial.items() for stage, error in rows}
    assert set(kept) == {PICTURE, SOUND} - expected
    for name, stage in ((PICTURE, "audio"), (SOUND, "visual")):
        if name in kept:
            assert kept[name][0] == stage
            assert kept[name][1].startswith("missing: ")
            assert (outcome.sound[name] == 0) == (stage == "audio")
            assert (outcome.pictures[name] == 0) == (stage == "visual")
    assert (outcome.sound[BOTH], outcome.pictures[BOTH]) == (200, 8)
    assert (outcome.sound[SILENT], outcome.pictures[SILENT]) == (0, 4)  # has no sound: lacks nothing


@pytest.mark.parametrize(("kind", "stage"), [("audio", "audio"), ("video", "visual")])
def test_a_stream_of_which_no_packet_decodes(
    preprocess: Preprocess, clips: Clips, tmp_path: Path, kind: str, stage: str
) -> None:
    clip = spoiled(clips[BOTH], tmp_path / "a.mp4", kind)
    outcome = preprocess([clip], name="strict")
    assert outcome.failures[clip.name][0] == stage
    outcome = preprocess([clip], "--allow-missing", stage)
    ((actual, error),) = outcome.partial[clip.name]
    assert (actual, error.partition(":")[0]) == (stage, "missing")
    kept = (outcome.sound[clip.name], outcome.pictures[clip.name])
    assert kept == ((0, 8) if stage == "audio" else (200, 0))


def test_a_clip_with_neither_fails_whatever_is_allowed(preprocess: Preprocess, clips: Clips, tmp_path: Path) -> None:
    clip = spoiled(spoiled(clips[BOTH], tmp_path / "b.mp4", "video"), tmp_path / "a.mp4", "audio")
    outcome = preprocess([clip, "cut.mp4"], "--allow-missing", "either")
    assert outcome.failures[clip.name][0] == "audio"
    assert outcome.failures["cut.mp4"][0] == "open"
    assert outcome.partial == {}


def test_the_summary_counts_clips_kept_in_part(preprocess: Preprocess) -> None:
    outcome = preprocess([PICTURE, SOUND, BOTH, CUT], "--allow-missing", "either")
    assert outcome.result.json()["partial"] == 3  # of CUT two streams
    assert "3 of 4 clips kept in part (2 missing, 1 truncated), first" in outcome.result.stderr


# --- cut off -------------------------------------------------------------------------------------------------------


def test_what_ends_early_is_kept_and_told(preprocess: Preprocess) -> None:
    outcome = preprocess([CUT, SHORT_SOUND, BOTH])
    assert outcome.failures == {}
    assert [stage for stage, _ in outcome.partial[CUT]] == ["audio", "visual"]
    assert set(outcome.partial) == {CUT}  # sound that is shorter than the picture is whole by its own length
    assert all(error.startswith("truncated: ") for rows in outcome.partial.values() for _, error in rows)
    assert 95 <= outcome.sound[CUT] <= 100
    assert outcome.pictures[CUT] in (4, 5)


def test_what_ends_early_fails_where_that_is_asked(preprocess: Preprocess) -> None:
    outcome = preprocess([CUT, SHORT_SOUND, BOTH], "--on-truncated", "fail")
    assert set(outcome.failures) == {CUT}
    assert all(error.startswith("truncated: ") for _, error in outcome.failures.values())
    assert outcome.partial == {}


@pytest.mark.parametrize(("kind", "stage"), [("audio", "audio"), ("video", "visual")])
def test_the_other_modality_of_what_ends_early_may_stay(
    preprocess: Preprocess, clips: Clips, tmp_path: Path, kind: str, stage: str
) -> None:
    clip = remuxed(clips[BOTH], tmp_path / "a.mkv", **{kind: 1.0})
    outcome = preprocess([clip], name="kept")
    assert [row[0] for row in outcome.partial[clip.name]] == [stage]
    other = "visual" if stage == "audio" else "audio"
    strict = preprocess([clip], "--on-truncated", "fail", "--allow-missing", other, name="failed")
    assert strict.failures[clip.name][0] == stage
    outcome = preprocess([clip], "--on-truncated", "fail", "--allow-missing", stage)
    ((actual, error),) = outcome.partial[clip.name]
    assert actual == stage
    assert error.startswith("missing: truncated: ")
    kept = (outcome.sound[clip.name], outcome.pictures[clip.name])
    assert kept[0] == pytest.approx(0 if stage == "audio" else 200, abs=3)
    assert kept[1] == (0 if stage == "visual" else 9)  # Matroska lasts 2.02 s


def test_a_clip_that_needs_no_more_than_is_there_is_whole(preprocess: Preprocess) -> None:
    outcome = preprocess([CUT], "--spectrogram-frames", "80", "--max-frames", "3", "--on-truncated", "fail")
    assert outcome.failures == {}
    assert outcome.partial == {}


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_file_that_stops_in_the_middle(preprocess: Preprocess, clips: Clips, tmp_path: Path, share: float) -> None:
    source = clips["green.webm"]  # 8 s
    clip = tmp_path / "a.webm"
    clip.write_bytes(source.read_bytes()[: int(share * source.stat().st_size)])
    outcome = preprocess([clip], "--spectrogram-frames", "900", "--max-frames", "40")
    assert {error.partition(":")[0] for _, error in outcome.partial[clip.name]} == {"truncated"}
    assert outcome.sound[clip.name] < 700
    assert outcome.pictures[clip.name] < 28


def test_a_duration_that_is_guessed_is_no_measure(preprocess: Preprocess, tmp_path: Path) -> None:
    """Raw AAC tells none: FFmpeg guesses it from the first packets, which are small where it is quiet."""
    clip = tmp_path / "a.aac"
    samples = noise(8 * 16000, 16000)
    samples[: len(samples) // 2] = 0
    write(clip, None, Sound(samples=samples[:, None], rate=16000))
    with av.open(str(clip)) as container:
        assert container.duration is not None
        assert container.duration / 1e6 > 8 / 0.9  # far from true
    outcome = preprocess([clip], "--spectrogram-frames", "1000", "--on-truncated", "fail")
    assert (outcome.failures, outcome.partial) == ({}, {})
    assert outcome.sound[clip.name] == pytest.approx(800, abs=8)


@pytest.mark.parametrize("name", ["mkv", "webm"])
def test_stamps_that_do_not_start_at_zero_cut_nothing_off(preprocess: Preprocess, tmp_path: Path, name: str) -> None:
    recipe = Recipe(name, "libvpx", "libopus", 48000, begin=50, options=REALTIME)
    clip = make_film(tmp_path / f"a.{name}", recipe, 6)
    cut = tmp_path / f"cut.{name}"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with av.open(str(clip)) as container:
        assert container.start_time == pytest.approx(50e6, abs=50_000)
    outcome = preprocess([clip, cut], "--spectrogram-frames", "800", "--max-frames", "40")
    assert outcome.failures == {}
    assert outcome.sound[clip.name] == pytest.approx(598, abs=8)
    assert outcome.pictures[clip.name] == pytest.approx(24, abs=1)
    assert {error.partition(":")[0] for _, error in outcome.partial.pop(cut.name)} == {"truncated"}
    assert outcome.partial == {}


# --- damaged -------------------------------------------------------------------------------------------------------


def test_packets_that_do_not_decode_are_told(preprocess: Preprocess, clips: Clips, tmp_path: Path) -> None:
    def four(number: int, time: float) -> bool:
        return 30 <= number < 34

    sound = spoiled(clips[BOTH], tmp_path / "sound.mp4", "audio", four)
    picture = spoiled(clips[BOTH], tmp_path / "picture.mp4", "video", four)
    outcome = preprocess([DAMAGED, sound, picture, BOTH], "--on-truncated", "fail", "--fps", "30", "--max-frames", "60")
    assert outcome.failures == {}
    assert {name: [stage for stage, _ in rows] for name, rows in outcome.partial.items()} == {
        DAMAGED: ["visual"],
        "sound.mp4": ["audio"],
        "picture.mp4": ["visual"],
    }
    assert all(error.startswith("damaged: ") for rows in outcome.partial.values() for _, error in rows)
    assert "damaged: 1 packet " in outcome.partial[DAMAGED][0][1]
    assert "damaged: 4 packets " in outcome.partial["sound.mp4"][0][1]


# --- options of a store --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"), [("--frame-accuracy", "keyframe"), ("--allow-missing", "either"), ("--on-truncated", "fail")]
)
def test_a_store_made_otherwise_is_refused(preprocess: Preprocess, tmp_path: Path, option: str, value: str) -> None:
    outcome = preprocess([BOTH])
    settings = json.loads((outcome.store / "settings.json").read_text(encoding="utf-8"))["config"]
    assert settings[option[2:].replace("-", "_")] != value
    arguments = ("preprocess", tmp_path / "manifest.csv", "--out", outcome.store, *SMALL)
    refused = avpt(*arguments, option, value)
    assert refused.code != 0
    assert f"{option[2:].replace('-', '_')}: " in refused.stderr
    assert f"{value} now" in refused.stderr
    assert avpt(*arguments).code == 0
    again = preprocess([BOTH], option, value, name="other")
    settings = json.loads((again.store / "settings.json").read_text(encoding="utf-8"))["config"]
    assert settings[option[2:].replace("-", "_")] == value


def test_key_frames_through_the_command(preprocess: Preprocess, clips: Clips) -> None:
    exact = preprocess([BOTH], "--frame-codec", "raw")
    fast = preprocess([BOTH], "--frame-codec", "raw", "--frame-accuracy", "keyframe", name="fast")
    assert fast.pictures == exact.pictures == {BOTH: 8}
    with av.open(str(clips[BOTH])) as container:
        keys = [frame.time for frame in container.decode(video=0) if frame.key_frame]
    stored = {}
    for outcome in (exact, fast):
        with h5py.File(outcome.store / "train-00000.h5") as file:
            stored[outcome.store.name] = np.split(file["visual/bytes"][:], file["visual/byte_offset"][1:-1])
    groups = [max(i for i, time in enumerate(keys) if time is not None and time <= k / 4 + 1e-6) for k in range(8)]
    for k, group in enumerate(groups):
        first = groups.index(group)
        np.testing.assert_array_equal(stored["fast"][k], stored["fast"][first])
        if keys[group] == k / 4:
            np.testing.assert_array_equal(stored["fast"][k], stored["store"][k])
    assert any((a != b).any() for a, b in zip(stored["fast"], stored["store"], strict=True))


def test_a_clip_that_goes_on_beyond_its_file_is_told(clips: Clips, tmp_path: Path) -> None:
    video = str(clips["red.webm"])  # 8 s
    ends = {"whole": 8, "nearly": 8.5, "beyond": 18}
    rows = [
        {"id": name, "label": "a", "split": "train", "video": video, "start": "1", "end": str(end)}
        for name, end in ends.items()
    ]
    manifest = write_manifest(tmp_path / "manifest.csv", rows)
    options = ("--spectrogram-frames", "2000", "--mel-bins", "32", "--max-frames", "20", "--frame-size", "32")
    result = avpt("preprocess", manifest, "--out", tmp_path / "store", *options, "--json")
    assert result.json()["partial"] == 1
    with (tmp_path / "store" / "partial.csv").open(newline="", encoding="utf-8") as file:
        listed = [(row["id"], row["stage"], row["error"].partition(":")[0]) for row in csv.DictReader(file)]
    assert listed == [("beyond", "audio", "short"), ("beyond", "visual", "short")]
