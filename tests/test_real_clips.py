"""Clips that others recorded, where there are some: in the folder AVPT_CLIPS, else in ../shared/data/clips.

The repository carries none of them. A clip is found by its name, in whatever folder below.
"""

from __future__ import annotations

import csv
import os
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
from av.stream import Disposition
from by_ffmpeg import ALIKE, DRAWN_ALIKE, looks_alike, needs_ffmpeg, sounds_alike
from expected import (
    assert_similar,
    colours_by_arithmetic,
    full_decode,
    read,
    shows_the_same,
    shows_what_decodes,
    shrink,
    sounds_the_same,
)
from helpers import ROOT, done, write_manifest

from avpt.errors import MediaError
from avpt.media.audio import read_waveform
from avpt.media.video import read_frames

BAG = Path(os.environ.get("AVPT_CLIPS") or ROOT.parent / "shared" / "data" / "clips")
pytestmark = pytest.mark.skipif(not BAG.is_dir(), reason="no real clips: set AVPT_CLIPS to a folder of some")

SOUNDING = (
    "aed__SAR-2by3.mp4",
    "aed__h264-mjpeg.mp4",
    "cut60__testsrc.mkv",
    "mdn__elf.webm",
    "mdn__frog.webm",
    "mdn__pig.webm",
    "media3__bbb_6ch_8kHz_opus.ogg",
    "media3__bear_with_picture.flac",
    "media3__bear_with_vorbis_comments_invalid_mutf8.flac",
    "media3__sample-with-large-length.avi",
    "media3__sample_empty_track.mp4",
    "media3__sample_rotate_and_reflect.mp4",
    "media3__sample_shorter_audio.mp4",
    "media3__sample_with_chapters.mkv",
    "media3__silent-black-10s.mp4",
    "tcodec__sine_mono_s16.wav",
    "tcodec__sine_mono_s32_8000.wav",
)
PICTURED = (
    "-video-with-dash-.mp4",
    "aed__SAR-2by3.mp4",
    "aed__h264-mjpeg.mp4",
    "cut60__testsrc.mkv",
    "decord__video_0.mov",
    "decord__video_90.mov",
    "decord__video_180.mov",
    "decord__video_270.mov",
    "mdn__pig.webm",
    "media3__bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4",
    "media3__bear-vp9-odd-dimensions.webm",
    "media3__sample_empty_track.mp4",
    "media3__sample_missing_stsd.mp4",
    "media3__sample_rotate_and_reflect.mp4",
    "media3__sample_shorter_audio.mp4",
    "media3__sample_with_chapters.mkv",
    "media3__silent-black-10s.mp4",
    "tcodec__h264_10bits.mp4",
)
DRAWN = ("aed__", "cut60__", "tcodec__")  # saturated colours meet in their pictures
SPOILED = (
    "cut60__testsrc.mp4",
    "decord__corrupted.mp4",
    "media3__invalid-bitstream.webm",
    "media3__sample.text.mp4",
    "media3__sample_fragmented_uuid.mp4",
    "media3__sample_with_invalid_nalu.mp4",
    "media3__sample_with_sdt.ts",
    "media3__video_init.mp4",
)
SOUND_FOLDERS = {"av": {"audio", "video"}, "no_audio": {"video"}, "audio_only": {"audio"}}  # kept, with these
STAGES = {  # of failure
    "cut60__testsrc.mp4": "open",
    "media3__invalid-bitstream.webm": "visual",
    "media3__sample.text.mp4": "open",
    "media3__sample_fragmented_uuid.mp4": "audio",
    "media3__sample_missing_stsd.mp4": "audio",
    "media3__sample_with_sdt.ts": "visual",
    "media3__video_init.mp4": "visual",
}
TOLD = {  # of clips that are kept all the same
    ("cut60__testsrc.mkv", "audio", "truncated"),
    ("cut60__testsrc.mkv", "visual", "truncated"),
    ("media3__sample_with_invalid_nalu.mp4", "visual", "damaged"),
}
ODD = tuple(dict.fromkeys((*SOUNDING, *PICTURED, *SPOILED)))

Real = Callable[[str], Path]


@pytest.fixture(scope="module")
def real() -> Real:
    """Finds a clip of the bag by its name."""
    paths = {path.name: path for path in BAG.rglob("*") if path.is_file()}

    def find(name: str) -> Path:
        if name not in paths:
            pytest.skip(f"{BAG} has no {name}")
        return paths[name]

    return find


# --- one by one ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("-video-with-dash-.mp4", 5),
        ("aed__h264-mjpeg.mp4", 2),
        ("cut60__testsrc.mkv", 2),
        ("decord__corrupted.mp4", 5),
        ("decord__video_0.mov", 1),
        ("media3__bear-vp9-odd-dimensions.webm", 2),
        ("media3__sample-with-large-length.avi", 3),
        ("media3__sample_empty_track.mp4", 2),
        ("media3__sample_with_chapters.mkv", 5),
        ("media3__sample_with_invalid_nalu.mp4", 2),
        ("media3__silent-black-10s.mp4", 10),
        ("tcodec__h264_10bits.mp4", 1),
    ],
)
def test_pictures_are_what_a_full_decode_holds(real: Real, name: str, count: int) -> None:
    assert len(shows_what_decodes(real(name))) == count


def test_first_stamp_of_ten_seconds(real: Real) -> None:
    path = real("media3__bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4")
    times, pictures = full_decode(path)
    assert times[0] == 0
    shown = read(path, fps=3, frame_size=64)
    assert len(shown) == 12  # 4 s
    for k, rgb in enumerate(shown):
        latest = max(i for i, time in enumerate(times) if time <= Fraction(k, 3))
        assert_similar(rgb, shrink(pictures[latest], *rgb.shape[:2]))


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_phones_held_four_ways(real: Real, degrees: int, turns: int) -> None:
    path = real(f"decord__video_{degrees}.mov")
    (shown,) = read(path, frame_size=1000)
    assert_similar(shown, np.rot90(full_decode(path)[1][0], turns), 2.0)


def test_rotated_and_mirrored(real: Real) -> None:
    path = real("media3__sample_rotate_and_reflect.mp4")
    assert_similar(read(path, frame_size=1000)[0], full_decode(path)[1][0].transpose(1, 0, 2), 2.0)


def test_narrow_pixels(real: Real) -> None:
    path = real("aed__SAR-2by3.mp4")
    assert_similar(read(path)[0], shrink(full_decode(path)[1][0], 256, 303))


@pytest.mark.parametrize("name", ["aed__h264-mjpeg.mp4", "tcodec__h264_10bits.mp4"])
def test_colours_by_arithmetic(real: Real, name: str) -> None:
    colours_by_arithmetic(real(name))


def test_a_cover_alone_is_no_picture(real: Real) -> None:
    assert read_frames(real("media3__bear_with_picture.flac"), fps=1, max_frames=10, frame_size=256) is None


def test_sound_of_the_standard_library(real: Real) -> None:
    path = real("tcodec__sine_mono_s16.wav")
    with wave.open(str(path)) as file:
        expected = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
    waveform = read_waveform(path, 16000)
    assert waveform is not None
    np.testing.assert_allclose(waveform, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("media3__bbb_6ch_8kHz_opus.ogg", 3.0),
        ("media3__bear_with_vorbis_comments_invalid_mutf8.flac", 2.74),
        ("tcodec__sine_mono_s32_8000.wav", 4.0),
    ],
)
def test_sound_is_as_long_as_it_is(real: Real, name: str, seconds: float) -> None:
    waveform = read_waveform(real(name), 16000)
    assert waveform is not None
    assert len(waveform) == pytest.approx(seconds * 16000, abs=200)


@pytest.mark.parametrize("name", ["media3__sample_missing_stsd.mp4", "media3__sample_fragmented_uuid.mp4"])
def test_declared_sound_without_a_sample(real: Real, name: str) -> None:
    with pytest.raises(MediaError, match="sound stream"):
        read_waveform(real(name), 16000)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("accuracy", ["exact", "keyframe"])
def test_every_odd_clip_shows_the_same_both_ways(real: Real, plainly: Any, name: str, accuracy: Any) -> None:
    shows_the_same(real(name), plainly, accuracy)


@pytest.mark.parametrize("name", ODD)
def test_every_odd_clip_sounds_the_same_both_ways(real: Real, plainly: Any, name: str) -> None:
    sounds_the_same(real(name), plainly)


@needs_ffmpeg
@pytest.mark.parametrize("name", SOUNDING)
def test_log_mel_agrees_with_ffmpegs_sound(real: Real, name: str) -> None:
    sounds_alike(real(name), priming=372 if "chapters" in name else 0, silent="silent" in name)


@needs_ffmpeg
@pytest.mark.parametrize("name", PICTURED)
def test_pictures_agree_with_ffmpegs(real: Real, name: str) -> None:
    looks_alike(real(name), DRAWN_ALIKE if name.startswith(DRAWN) else ALIKE)


# --- all together --------------------------------------------------------------------------------------------------


def decodes(path: Path, kind: str) -> bool | None:
    """Whether any frame of any stream of a kind decodes, by PyAV; None where there is no such stream."""
    actual = None
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        indices = [
            stream.index
            for stream in container.streams
            if stream.type == kind and not stream.disposition & Disposition.attached_pic
        ]
    for index in indices:
        actual = actual or False
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            stream: Any = container.streams[index]
            if stream.codec_context is None:
                continue
            for packet in container.demux(stream):
                try:
                    if packet.decode():
                        return True
                except av.FFmpegError:
                    continue
    return actual


def holds(path: Path) -> set[str] | None:
    """Which of sound and pictures a file holds; None where it can't be kept: something in it yields nothing."""
    try:
        actual = {kind: decodes(path, kind) for kind in ("audio", "video")}
    except (av.FFmpegError, EOFError):
        return None
    kept = {kind for kind, any_frame in actual.items() if any_frame}
    return kept if kept and False not in actual.values() else None


def kept_of(store: Path) -> dict[str, set[str]]:
    """What a store holds of each of its clips, by plain h5py."""
    kept = {}
    for shard in store.glob("*.h5"):
        with h5py.File(shard) as file:
            heard, bounds = file["audio/num_frames"][:], file["visual/clip_offset"][:]
            for i, name in enumerate(file["id"].asstr()[:]):
                counts = {"audio": heard[i], "video": bounds[i + 1] - bounds[i]}
                kept[str(name)] = {kind for kind, count in counts.items() if count}
    return kept


def test_every_clip_is_kept_with_what_it_holds_or_fails(tmp_path: Path) -> None:
    files = {str(path.relative_to(BAG)): path for path in sorted(BAG.rglob("*")) if path.is_file()}
    rows = [{"id": name, "label": "a", "split": "train", "video": str(path)} for name, path in files.items()]
    size = ("--mel-bins", "32", "--spectrogram-frames", "300", "--frame-size", "32", "--max-frames", "3")
    store = tmp_path / "store"
    manifest = write_manifest(tmp_path / "manifest.csv", rows)
    done("preprocess", manifest, "--out", store, *size, "--max-failures", "1", "--workers", "2")
    kept = kept_of(store)
    with (store / "failures.csv").open(newline="", encoding="utf-8") as file:
        failures = {row["id"]: row for row in csv.DictReader(file)}
    with (store / "partial.csv").open(newline="", encoding="utf-8") as file:
        partial = {(row["id"], row["stage"], row["error"].partition(":")[0]) for row in csv.DictReader(file)}

    assert sorted([*kept, *failures]) == sorted(files)
    expected = {name: holds(path) for name, path in files.items()}
    assert set(failures) == {name for name, streams in expected.items() if streams is None}
    assert kept == {name: streams for name, streams in expected.items() if streams is not None}
    assert {name for name, _, _ in partial} <= set(kept)
    for folder, streams in SOUND_FOLDERS.items():
        assert all(kept.get(name) == streams for name in files if name.startswith(f"{folder}/")), folder
    assert all(row["stage"] in ("open", "audio", "visual") and row["error"] for row in failures.values())
    stages = {Path(name).name: row["stage"] for name, row in failures.items()}
    named = {path.name for path in files.values()}
    assert {name: stages.get(name) for name in STAGES if name in named}.items() <= STAGES.items()
    listed = {(Path(name).name, stage, what) for name, stage, what in partial}
    assert {row for row in TOLD if row[0] in named} <= listed
