"""Sound and pictures in their places, and what is told of a clip that is not as its file says it is."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import tiny
import torch
from helpers import avpt, done, write_manifest
from media import X264, Clips, Pictures, Sound, number_of, numbered, ordinary, replaced, sound_stream, tones, write
from PIL import Image

from avpt.commands.predict import answer, clip_of
from avpt.errors import ArtifactError, MediaError
from avpt.files.artifacts import Header
from avpt.files.checking import convert
from avpt.files.model_headers import read_input
from avpt.files.records import InputSpec
from avpt.loading.clip_inputs import clip_settings
from avpt.media.audio import read_waveform
from avpt.media.clip import TROUBLES, ClipSettings, Notes, kind_of
from avpt.media.decode import decode_clip
from avpt.media.video import read_frames, read_images
from avpt.models.encoder import Classifier, EncoderSpec, build_encoder
from avpt.runs.trained_model import check_clips
from avpt.types import Modality

RATE = 16000
SILENCE = -15.94  # log-mel
SMALL = ClipSettings(frame_size=48, mel_bins=32, spectrogram_frames=700, max_frames=20)


def heard(path: Path, start: float = 0.0, end: float | None = None, **options: Any) -> tuple[np.ndarray, list[str]]:
    actual = Notes()
    waveform = read_waveform(path, RATE, start=start, end=end, notes=actual, **options)
    assert waveform is not None
    assert all(kind_of(what) in TROUBLES for what in actual.troubles)
    return waveform, actual.troubles


def shown(path: Path, start: float = 0.0, end: float | None = None, **options: Any) -> tuple[list[int], list[str]]:
    actual = Notes()
    options = {"fps": 1, "max_frames": 30, "frame_size": 240} | options
    pictures = read_frames(path, start=start, end=end, notes=actual, **options)
    assert pictures is not None
    assert all(kind_of(what) in TROUBLES for what in actual.troubles)
    return [number_of(rgb) for _, rgb in pictures], actual.troubles


def kinds(troubles: list[str]) -> list[str]:
    return [kind_of(what) for what in troubles]


def drawn(seconds: int, **options: Any) -> Pictures:
    return replace(Pictures(drawn=map(numbered, range(25 * seconds)), rate=25, options=X264), **options)


# --- sound in its place --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [("mp4", "aac", 48000), ("mov", "pcm_s16le", 16000), ("mkv", "libopus", 48000), ("ts", "mp2", 48000)],
)
def test_sound_that_begins_late_is_heard_late(tmp_path: Path, suffix: str, codec: str, rate: int) -> None:
    path = write(
        tmp_path / f"a.{suffix}", drawn(6), Sound(samples=tones(3.0, rate, hiss=0), codec=codec, rate=rate, begin=2)
    )
    whole, troubles = heard(path)
    loud = np.flatnonzero(np.abs(whole) > 0.05)
    assert loud[0] / RATE == pytest.approx(2.0, abs=0.025)
    assert loud[-1] / RATE == pytest.approx(5.0, abs=0.03)
    assert not whole[: int(1.9 * RATE)].any()
    assert kinds(troubles) == ["late"]
    for start, end in ((0.0, 1.0), (1.0, 4.0), (3.0, 5.0), (2.5, None)):
        part, troubles = heard(path, start, end)
        expected = whole[round(start * RATE) : None if end is None else round(end * RATE)]
        assert len(part) == pytest.approx(len(expected), abs=RATE / 100)
        size = min(len(part), len(expected)) - 200  # a filter's ring
        np.testing.assert_allclose(part[200:size], expected[200:size], atol=2e-3)
        assert ("silent" in kinds(troubles)) == (end == 1.0)
    clip = decode_clip(path, None, None, None, None, SMALL)
    assert clip.num_audio_frames == pytest.approx(500, abs=6)
    np.testing.assert_allclose(clip.fbank[:195].astype(float), SILENCE, atol=0.02)
    assert (clip.fbank[205:210].max(axis=1) > -5).all()
    assert len(clip.frames) == 6


def test_pictures_that_begin_late_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", drawn(3, begin=2), Sound(samples=tones(5.0, 48000), rate=48000))
    numbers, troubles = shown(path)
    assert numbers == [0, 0, 0, 25, 50]
    assert kinds(troubles) == ["late"]
    assert shown(path, 2.5, 4)[1] == []


def test_every_wmv_begins_late(tmp_path: Path) -> None:
    """Its first packets of sound give no sample, so the first sample is not at the first stamp."""
    sound = Sound(samples=tones(3.0, 48000, hiss=0), codec="wmav2", rate=48000, bit_rate=128_000)
    pictures = drawn(3, codec="wmv2", options={"g": "12"}, bit_rate=600_000)
    path = write(tmp_path / "a.wmv", pictures, sound)
    with av.open(str(path)) as container:
        stamps = [frame.time for frame in container.decode(audio=0)]
        origin = (container.start_time or 0) / 1e6
    assert stamps[0] is not None
    late = stamps[0] - origin
    assert 0.02 < late < 0.25
    whole, troubles = heard(path)
    assert np.flatnonzero(np.abs(whole) > 0.02)[0] / RATE == pytest.approx(late, abs=0.025)
    part, _ = heard(path, 1.0, 2.0)
    np.testing.assert_allclose(part[200:-200], whole[RATE + 200 : 2 * RATE - 200], atol=2e-3)
    assert troubles == []


def test_sound_far_behind_costs_no_memory(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.mkv", drawn(1), Sound(samples=tones(1.0, 16000), codec="pcm_s16le", rate=16000, begin=7200)
    )
    whole, troubles = heard(path, max_samples=RATE)
    assert len(whole) == RATE
    assert not whole.any()
    assert "silent" in kinds(troubles)


# --- key frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", ["exact", "keyframe"])
def test_what_only_the_container_calls_a_key_frame_begins_nothing(tmp_path: Path, accuracy: str) -> None:
    """Without a table of key frames, MP4 calls every frame one."""
    path = write(tmp_path / "a.mp4", drawn(6, codec="mpeg4", options={"g": "50", "bf": "0"}, bit_rate=400_000))
    whole = shown(path, accuracy=accuracy)[0], shown(path, 3.3, 6, accuracy=accuracy)[0]
    replaced(path, b"stss", b"free")
    with av.open(str(path)) as container:
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    assert (shown(path, accuracy=accuracy)[0], shown(path, 3.3, 6, accuracy=accuracy)[0]) == whole
    exact = [0, 25, 50, 75, 100, 125], [82, 107, 132]
    assert whole == (exact if accuracy == "exact" else ([0, 0, 50, 50, 100, 100], [50, 100, 100]))


def test_key_frames_of_open_groups_come_in_order(tmp_path: Path) -> None:
    options = {"x265-params": "keyint=100:min-keyint=100:open-gop=1:bframes=4:scenecut=0:log-level=none"}
    path = write(tmp_path / "a.mp4", drawn(10, codec="libx265", options=options | {"preset": "ultrafast"}))
    with av.open(str(path)) as container:
        keys = [round(25 * (frame.time or 0)) for frame in container.decode(video=0) if frame.key_frame]
    assert keys == [0, 100, 200]
    assert shown(path, accuracy="keyframe")[0] == [0] * 4 + [100] * 4 + [200] * 2
    assert shown(path, 6.5, 9, accuracy="keyframe")[0] == [100, 100, 200]
    assert shown(path)[0] == list(range(0, 250, 25))


# --- clocks --------------------------------------------------------------------------------------------------------


def test_stamps_of_decoding_are_those_of_showing_in_an_avi(tmp_path: Path) -> None:
    """As ffmpeg has it: where the stamps of the frames that come out go back, those of decoding count."""
    path = write(tmp_path / "a.avi", drawn(6, options={"g": "50", "bf": "2", "preset": "veryfast"}))
    with av.open(str(path)) as container:
        frames: list[Any] = [(frame.pts, frame.dts) for frame in container.decode(video=0)]
    assert any(after[0] < before[0] for before, after in pairwise(frames))
    delay = frames[0][1]
    actual, troubles = shown(path, fps=25, max_frames=200)
    assert actual[delay : 150 - delay] == list(range(150 - 2 * delay))
    assert troubles == []


def test_a_clock_that_goes_back_goes_on(tmp_path: Path) -> None:
    """Two transport streams in one: sound and pictures of the second follow those of the first."""
    parts = []
    for begin in (10, 4):
        pictures = drawn(3, begin=begin, options={"g": "25", "bf": "2", "preset": "veryfast"})
        sound = Sound(samples=tones(3.0, 48000), codec="mp2", rate=48000, begin=begin)
        parts.append(write(tmp_path / f"{begin}.ts", pictures, sound).read_bytes())
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(parts))
    numbers, troubles = shown(path, fps=2)
    alone, none = shown(tmp_path / "10.ts", fps=2)
    assert numbers[:6] == alone[:6]
    np.testing.assert_allclose(numbers[7:12], alone[1:6], atol=1)  # 40 ms are between them
    assert (kinds(troubles), none) == (["joined"], [])
    whole, troubles = heard(path)
    assert len(whole) == pytest.approx(6 * RATE, abs=0.1 * RATE)
    assert kinds(troubles) == ["joined"]


def test_streams_one_after_the_other(tmp_path: Path) -> None:
    """Raw AAC of 44.1 kHz, then of 48: its stamps are guessed, so no silence is put in."""
    parts = [
        write(tmp_path / f"{rate}.aac", None, Sound(samples=tones(3.0, rate, hiss=0), rate=rate)).read_bytes()
        for rate in (44100, 48000)
    ]
    path = tmp_path / "a.aac"
    path.write_bytes(b"".join(parts))
    whole, troubles = heard(path)
    assert len(whole) == pytest.approx(6 * RATE, abs=0.2 * RATE)
    assert kinds(troubles) == ["joined"]
    assert "44100 Hz" in troubles[0]
    assert "48000 Hz" in troubles[0]
    chained = [
        write(
            tmp_path / f"{n}.opus", None, Sound(samples=tones(2.0, 48000, n), codec="libopus", rate=48000, layout=name)
        )
        for n, name in ((1, "mono"), (2, "stereo"))
    ]
    path = tmp_path / "a.opus"
    path.write_bytes(b"".join(part.read_bytes() for part in chained))
    whole, troubles = heard(path)  # FFmpeg reads the first alone
    assert len(whole) < 3 * RATE
    assert kinds(troubles) == ["damaged"]
    assert "can't be read beyond 2.0" in troubles[0]


# --- lengths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *(("wav", "pcm_s16le"), ("wav", "pcm_mulaw"), ("wav", "adpcm_ima_wav"), ("aiff", "pcm_s16be")),
        *(("au", "pcm_s16be"), ("caf", "pcm_s16le"), ("w64", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame")),
    ],
)
def test_sound_that_is_cut_is_told(tmp_path: Path, suffix: str, codec: str) -> None:
    path = write(tmp_path / f"a.{suffix}", None, Sound(samples=tones(6.0, RATE), codec=codec, rate=RATE))
    assert heard(path)[1] == []
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    troubles = heard(path)[1]
    assert "truncated" in kinds(troubles)
    (listed,) = [what for what in troubles if kind_of(what) == "truncated"]
    assert float(listed.split()[-2]) == pytest.approx(6.0, abs=0.2)
    assert heard(path, end=2.0)[1] == []  # what the clip needs is there


def test_films_that_are_cut_are_told(tmp_path: Path) -> None:
    """An AVI file whose header and index speak of more than there is."""
    path = ordinary(tmp_path / "a.avi", 6.0, (48, 64), codec="mpeg4", sound="libmp3lame", options={"g": "15"})
    content = path.read_bytes()
    begin, index = content.index(b"movi"), content.index(b"idx1")
    middle = begin + (index - begin) * 6 // 10
    for cut in (content[:middle], content[:middle] + content[index:]):
        path.write_bytes(cut)
        assert "truncated" in kinds(heard(path)[1])
        assert "truncated" in kinds(shown(path)[1])


def test_each_stream_is_measured_by_its_own_length(tmp_path: Path) -> None:
    for suffix in ("mp4", "mkv"):
        path = ordinary(tmp_path / f"a.{suffix}", 2.0, (48, 64), heard=8.0)
        assert (heard(path)[1], shown(path)[1]) == ([], []), suffix
        path = ordinary(tmp_path / f"b.{suffix}", 6.0, (48, 64), heard=2.0)
        assert (heard(path)[1], shown(path)[1]) == ([], []), suffix
        clip = decode_clip(path, None, None, None, None, SMALL)
        assert clip.seconds["visual"] == pytest.approx(6.0, abs=0.1)
        assert clip.seconds["audio"] == pytest.approx(2.0, abs=0.1)


def wav(path: Path, said: int, samples: int = 3 * RATE, behind: bytes = b"") -> Path:
    content = tones(samples / RATE, RATE).astype("<i2").tobytes()
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    body = b"WAVE" + fmt + struct.pack("<4sI", b"data", said) + content + behind
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)
    return path


def test_a_header_that_says_less_than_the_file_holds(tmp_path: Path) -> None:
    ((whole, _), (short, troubles)) = heard(wav(tmp_path / "a.wav", 6 * RATE)), heard(wav(tmp_path / "b.wav", 64))
    assert len(whole) == 3 * RATE
    assert len(short) == 32
    assert kinds(troubles) == ["short"]
    assert "3.00 s more" in troubles[0]
    picture = struct.pack("<4sI", b"id3 ", 200_000) + bytes(200_000)
    for name, said, behind in (("c", 6 * RATE, picture), ("d", 0xFFFFFFFF, b""), ("e", 0, b"")):
        waveform, troubles = heard(wav(tmp_path / f"{name}.wav", said, behind=behind))
        assert (len(waveform), troubles) == (3 * RATE, []), name


# --- holes and damage ----------------------------------------------------------------------------------------------


def test_a_hole_is_told_in_both_streams(tmp_path: Path) -> None:
    whole = write(
        tmp_path / "whole.mkv",
        drawn(9, options={"g": "25", "bf": "0", "preset": "veryfast"}),
        Sound(samples=tones(9.0, 48000), codec="libopus", rate=48000),
    )
    path = tmp_path / "a.mkv"
    with av.open(str(whole)) as old, av.open(str(path), "w") as new:
        copies = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        packets: Any = old.demux()
        for packet in packets:
            if packet.dts is not None and not 3 <= packet.pts * packet.time_base < 5:
                packet.stream = copies[packet.stream.index]
                new.mux(packet)
    (numbers, pictures), (waveform, sound) = shown(path), heard(path)
    assert numbers == [0, 25, 50, 74, 74, 125, 150, 175, 200]
    assert not waveform[int(3.1 * RATE) : int(4.9 * RATE)].any()
    for troubles in (pictures, sound):
        assert kinds(troubles) == ["hole"]
        assert 1.8 < float(troubles[0].split()[1]) < 2.1
    assert (shown(path, 5.5, 8)[1], heard(path, 5.5, 8)[1]) == ([], [])
    assert kinds(heard(path, max_samples=4 * RATE)[1]) == ["hole"]  # where reading stops before the end, too


def test_frames_that_ffmpeg_marks_as_corrupt_are_told(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    def marked(*arguments: Any) -> Iterator[Any]:
        for number, frame in enumerate(decode(*arguments)):
            yield Marked(frame) if number in (0, 30) else frame

    class Marked:
        """A frame of PyAV can't be marked by hand."""

        is_corrupt = True

        def __init__(self, frame: Any) -> None:
            self.frame = frame

        def __getattr__(self, name: str) -> Any:
            return getattr(self.frame, name)

    from avpt.media.streams import decode

    monkeypatch.setattr("avpt.media.audio.decode", marked)
    assert heard(clips["mono.wav"])[1] == ["damaged: 2 frames decoded with errors"]


# --- what is seen and heard ----------------------------------------------------------------------------------------


def test_nothing_to_hear_or_see(tmp_path: Path, clips: Clips) -> None:
    both = clips["black_and_silent.mp4"]
    assert (kinds(heard(both)[1]), kinds(shown(both)[1])) == (["silent"], ["black"])
    tone = tones(2.0, RATE)
    for name, samples, expected in (
        ("opposite", np.concatenate([tone, -tone], axis=1), ["silent"]),
        ("nearly", np.concatenate([tone, -(tone // 1.002).astype(np.int16)], axis=1), ["silent"]),
        ("one", np.concatenate([tone, 0 * tone], axis=1), []),
        ("alike", np.concatenate([tone, tone], axis=1), []),
        ("soft", tone // 2000, []),
        ("constant", np.full_like(tone, 900), ["silent"]),
    ):
        layout = "mono" if samples.shape[1] == 1 else "stereo"
        path = write(
            tmp_path / f"{name}.wav", None, Sound(samples=samples, codec="pcm_s16le", rate=RATE, layout=layout)
        )
        assert kinds(heard(path)[1]) == expected, name
    assert "cancel each other out" in heard(tmp_path / "opposite.wav")[1][0]
    green = np.broadcast_to(np.array([0, 135, 0], np.uint8), (48, 64, 3))
    path = write(tmp_path / "green.mp4", Pictures(drawn=[np.ascontiguousarray(green)] * 25, rate=25, options=X264))
    assert kinds(shown(path)[1]) == ["blank"]


def test_hdr_and_interlaced_pictures_are_told(tmp_path: Path) -> None:
    for name, transfer in (("pq", 16), ("hlg", 18), ("plain", 1)):
        path = tmp_path / f"{name}.mkv"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=25, options=X264)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
            stream.codec_context.color_trc = transfer
            for number in range(9, 20):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
            container.mux(stream.encode(None))
        assert kinds(shown(path)[1]) == ([] if name == "plain" else ["hdr"])
    options = {"flags": "+ilme+ildct", "top": "1"}
    pictures = map(numbered, range(9, 34))
    path = write(tmp_path / "a.mpg", drawn(1, drawn=pictures, codec="mpeg2video", options=options, bit_rate=2_000_000))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    assert kinds(shown(path)[1]) == ["interlaced"]


@pytest.fixture
def two_tracks(tmp_path: Path) -> Path:
    """A low tone of 2 s and, by default, a high one of 3 s."""
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        for number in range(2):
            stream: Any = container.add_stream("aac", rate=44100, layout="mono")
            stream.disposition = av.stream.Disposition.default if number else av.stream.Disposition(0)
        for number, (stream, pitch) in enumerate(zip(container.streams, (300.0, 1300.0), strict=True)):
            for _, frame in Sound(samples=tones(2.0 + number, 44100, pitch=pitch)).frames():
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def test_one_of_several_tracks(two_tracks: Path) -> None:
    lengths = {None: 3.0, 0: 2.0, 1: 3.0}
    for number, seconds in lengths.items():
        waveform, troubles = heard(two_tracks, audio_stream=number)
        assert len(waveform) / RATE == pytest.approx(seconds, abs=0.05)
        assert kinds(troubles) == ["tracks"] * (number is None)
    assert "number 1 of 2 sound streams" in heard(two_tracks)[1][0]
    with pytest.raises(MediaError, match="has 2 sound streams, and no number 2") as caught:
        heard(two_tracks, audio_stream=2)
    assert caught.value.stage == "audio"


def test_names_in_a_folder_of_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPEG", "c.jfif", "d.jpg.part", ".hidden", "Thumbs.db"):
        with (tmp_path / name).open("wb") as file:
            Image.fromarray(numbered(len(name))).save(file, format="JPEG", quality=95)
    actual = Notes()
    shown = read_images(tmp_path, fps=1, max_frames=9, frame_size=48, notes=actual)
    assert [number_of(rgb) for _, rgb in shown] == [5, 6, 6]
    assert actual.troubles == ["ignored: 1 in its folder are no images by their names (d.jpg.part)"]
    assert actual.seconds == 3.0


# --- longer than what is kept --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [2, 8])
@pytest.mark.parametrize("suffix", ["mp3", "aac", "ac3", "webm", "h264"])
def test_how_long_a_stream_is_of_which_no_header_tells(tmp_path: Path, suffix: str, seconds: int) -> None:
    settings = replace(SMALL, spectrogram_frames=300, max_frames=3)
    path = tmp_path / f"a.{suffix}"
    if suffix == "h264":
        write(path, drawn(seconds))
    else:
        codec = {"mp3": "libmp3lame", "webm": "libopus"}.get(suffix, suffix)
        samples = tones(seconds, 48000)
        samples[len(samples) // 4 :] //= 100  # by the size of its first packets it would be shorter
        sound = Sound(samples=samples, codec=codec, rate=48000)
        options = {"mp3": {"write_xing": "0"}, "webm": {"live": "1"}}.get(suffix, {})
        with av.open(str(path), "w", options=options) as container:
            stream, pieces = sound_stream(container, sound)
            for _, piece in pieces:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
    clip = decode_clip(path, None, None, None, None, settings)
    assert list(clip.seconds.values()) == [pytest.approx(seconds, abs=0.15)]
    assert (clip.is_longer(settings), clip.troubles) == (seconds == 8, ())
    cut = decode_clip(path, None, None, 0.5, 1.5, settings)
    assert (list(cut.seconds.values()), cut.is_longer(settings)) == ([1.0], False)


def test_what_the_model_does_not_look_at_may_be_longer() -> None:
    spec = InputSpec(RATE, 4, 8, "zero", 1.0, 1, 16, 0.0, 1.0, image_size=16, num_frames=1)
    decoded = replace(tiny.clip(1), seconds={"audio": 0.08, "visual": 60.0})
    cases: tuple[tuple[Modality, bool], ...] = (("audio", False), ("visual", True))
    for modality, longer in cases:
        model = Classifier(build_encoder(EncoderSpec("resnet18", modality, "batchnorm")), 2).eval()
        trained: Any = SimpleNamespace(
            input=spec, modalities=(modality,), model=model, multi_label=False, classes=["a", "b"]
        )
        actual = answer(clip_of(Path("a.mp4")), decoded, clip_settings(spec), trained, 1, torch.device("cpu"))
        assert (actual.modalities, actual.longer) == ((modality,), longer)


# --- through the command -------------------------------------------------------------------------------------------


def test_what_is_told_is_counted_and_listed(tmp_path: Path, clips: Clips, two_tracks: Path) -> None:
    late = write(tmp_path / "late.mp4", drawn(3), Sound(samples=tones(1.0, 48000), rate=48000, begin=2))
    long = write(tmp_path / "long.wav", None, Sound(samples=tones(30.0, 8000), codec="pcm_s16le", rate=8000))
    files = {"black": clips["black_and_silent.mp4"], "late": late, "two": two_tracks, "long": long}
    files |= {"short": wav(tmp_path / "short.wav", 2 * RATE, RATE), "plain": wav(tmp_path / "plain.wav", 6 * RATE)}
    rows = [{"id": name, "label": "a", "split": "train", "video": str(path)} for name, path in files.items()]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    command = ("preprocess", manifest, "--out", tmp_path / "store", "--workers", "1", "--frame-size", "48")
    result = done(*command, "--json")
    record = result.json()
    assert record["partial_kinds"] == {"late": 1, "silent": 1, "black": 1, "tracks": 1}
    assert (record["clips"], record["partial"]) == (6, 3)
    assert (record["longer"], record["shorter"], record["longest"]) == (1, 1, 30.0)
    with (tmp_path / "store" / "partial.csv").open(newline="", encoding="utf-8") as file:
        listed = [(row["id"], row["stage"], kind_of(row["error"])) for row in csv.DictReader(file)]
    expected = [("black", "audio", "silent"), ("black", "visual", "black"), ("late", "audio", "late")]
    assert listed == [*expected, ("two", "audio", "tracks")]
    assert "3 of 6 clips to be looked at" in result.stderr
    assert done(*command, "--json").json() == record  # of a finished store, too
    text = " ".join(done(*command).stderr.split())
    for words in (
        *("kept are 10.24 s of sound and 10 pictures, 1 a second", "longer, up to 30 s", "far shorter"),
        *("--spectrogram-frames, --max-frames 1", "--pad repeat 1", "silent nothing is heard 1"),
    ):
        assert words in text
    done("verify", tmp_path / "store", "--workers", "1")


def test_the_sound_stream_is_an_option_of_a_store(tmp_path: Path, two_tracks: Path, clips: Clips) -> None:
    files = {"two": two_tracks, "one": clips["mono.wav"]}
    rows = [{"id": name, "label": "a", "split": "train", "video": str(path)} for name, path in files.items()]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    command = ("preprocess", manifest, "--out", tmp_path / "store", "--workers", "1", "--max-failures", "1")
    done(*command, "--audio-stream", "1")
    record = json.loads((tmp_path / "store" / "train-00000.json").read_text(encoding="utf-8"))
    assert [(row["id"], row["stage"]) for row in record["failures"]] == [("one", "audio")]
    assert record["partial"] == []
    other = avpt(*command)
    assert (other.code, "audio_stream" in other.error) == (1, True)
    done("verify", tmp_path / "store", "--workers", "1")
    assert record["lengths"]["longest"] == pytest.approx(3.0, abs=0.05)


def test_a_model_hears_the_stream_that_it_was_trained_on(
    tmp_path: Path, two_tracks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usual = InputSpec(RATE, 32, 300, "zero", 1.0, 1, 48, 0.0, 1.0, image_size=32, num_frames=1)
    assert "audio_stream" not in usual.record()  # so headers stay what they were
    heard = {}
    for number in (None, 0, 1):
        header = Header(kind="classifier", spec={"input": replace(usual, audio_stream=number).record()})
        spec = read_input(tmp_path, header)
        assert spec == convert(header.spec["input"], InputSpec) == replace(usual, audio_stream=number)
        heard[number] = decode_clip(two_tracks, None, None, None, None, clip_settings(spec)).fbank
        plain = ClipSettings(mel_bins=32, spectrogram_frames=300, audio_stream=number)
        assert np.array_equal(heard[number], decode_clip(None, two_tracks, None, None, None, plain).fbank)
    assert not np.array_equal(heard[0], heard[1])
    for number, warned in ((None, 1), (1, 0)):
        store: Any = SimpleNamespace(path="store", settings=replace(usual, audio_stream=number).record())
        caplog.clear()
        check_clips(store, {}, ["audio"], replace(usual, audio_stream=1))
        assert caplog.text.count("--audio-stream left out against 1") == warned
    for wrong in (-1, 1.5, True, "1", 1001):
        with pytest.raises(ArtifactError, match="audio_stream"):
            read_input(tmp_path, Header(kind="classifier", spec={"input": usual.record() | {"audio_stream": wrong}}))
