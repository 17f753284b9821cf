"""Clips cut from longer files: the sound and the pictures of that time, for the work that this time costs.

The pictures carry their number as bits, the sound is noise whose position a cross-correlation finds; what is
expected comes from decoding the whole file with PyAV here, not from avpt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from expected import NEAR, lag, shows_the_same, sounds_the_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media import (
    CLIPS,
    RATE,
    REALTIME,
    SECONDS,
    Clips,
    Recipe,
    make_film,
    noise,
    number_of,
    sound_frame,
    spoiled,
    stamps_of,
)

from avpt.errors import MediaError
from avpt.media import streams
from avpt.media.audio import read_waveform
from avpt.media.clip import ClipSettings, Notes
from avpt.media.decode import decode_clip
from avpt.media.skipping import LOOKAHEAD
from avpt.media.video import read_frames

LONG = 70
LAST = 20.52  # seconds; where the last segment starts
STARTS = (0.0, 0.7, 4.9, 5.1, 13.34, LAST)


FILMS = {
    "mp4": Recipe("mp4", "libx264", "aac", exact=True, options={"g": "50", "bf": "3"}),
    "mp4 of long groups": Recipe("mp4", "libx264", "aac", exact=True, options={"g": "250", "sc_threshold": "0"}),
    "mp4 of open groups": Recipe(
        "mp4", "libx264", "aac", exact=True, options={"x264-params": "open-gop=1:keyint=60:bframes=3:scenecut=0"}
    ),
    "mp4 of intra refresh": Recipe(
        "mp4", "libx264", None, options={"x264-params": "intra-refresh=1:keyint=50:bframes=0"}
    ),
    "mp4 from 10 s": Recipe("mp4", "libx264", "aac", begin=10, exact=True, options={"g": "50"}),
    "mp4 of varying rate": Recipe("mp4", "libx264", "aac", exact=True, varying=True, options={"g": "40", "bf": "2"}),
    "mov with pcm": Recipe("mov", "mpeg4", "pcm_s16le", exact=True, options={"g": "25", "bf": "2"}),
    "mkv": Recipe("mkv", "libx264", "aac", options={"g": "100"}),
    "mkv from 10 s": Recipe("mkv", "libx264", "flac", begin=10, options={"g": "50", "bf": "2"}),
    "mkv of varying rate": Recipe("mkv", "libx264", "aac", varying=True, options={"g": "50", "bf": "3"}),
    "mkv of HEVC": Recipe("mkv", "libx265", "ac3", 48000, options={"x265-params": "keyint=60:log-level=none"}),
    "webm of VP8": Recipe("webm", "libvpx", "libopus", 48000, options=REALTIME),
    "webm of VP9": Recipe("webm", "libvpx-vp9", "libopus", 48000, options=REALTIME | {"row-mt": "0"}),
    "mpg": Recipe("mpg", "mpeg1video", "mp2", 44100, options={"g": "15", "bf": "2", "b": "2M"}),
    "ts": Recipe("ts", "libx264", "aac", options={"g": "50", "bf": "2"}),
    "ts of MPEG-2": Recipe("ts", "mpeg2video", "mp2", 48000, begin=10, options={"g": "15", "bf": "2", "b": "2M"}),
    "avi": Recipe("avi", "mpeg4", "libmp3lame", 44100, options={"g": "50"}),
    "avi with B-frames": Recipe("avi", "mpeg4", "libmp3lame", 44100, options={"g": "50", "bf": "2"}),
    "flv": Recipe("flv", "libx264", "aac", 44100, options={"g": "50"}),
    "wav": Recipe("wav", None, "pcm_s16le", exact=True),
    "flac": Recipe("flac", None, "flac", exact=True),
    "ogg of Opus": Recipe("ogg", None, "libopus", 48000),
    "ogg of Vorbis": Recipe("ogg", None, "vorbis", 44100),
    "mp3": Recipe("mp3", None, "libmp3lame", 44100),
    "m4a": Recipe("m4a", None, "aac", 44100, exact=True),
}
PICTURED = [name for name, recipe in FILMS.items() if recipe.video]
SOUNDING = [name for name, recipe in FILMS.items() if recipe.audio]

Film = Callable[[str], Path]


# --- long files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    """Makes each long file once."""
    folder = tmp_path_factory.mktemp("films")

    def get(name: str) -> Path:
        path = folder / f"{name.replace(' ', '_')}.{FILMS[name].suffix}"
        return path if path.exists() else make_film(path, FILMS[name])

    return get


# --- what is expected ----------------------------------------------------------------------------------------------


@lru_cache
def all_pictures(path: Path) -> tuple[list[Fraction], list[int]]:
    """Times from the container's start and numbers of all pictures, by PyAV."""
    with av.open(str(path)) as container:
        origin = Fraction(container.start_time or 0, 1_000_000)
        times, numbers = [], []
        for frame in container.decode(video=0):
            assert frame.time_base is not None
            times.append((frame.pts if frame.pts is not None else frame.dts or 0) * frame.time_base - origin)
            numbers.append(number_of(frame.to_ndarray(format="gray")))
    return times, numbers


def on_screen(times: list[Fraction], numbers: list[int], instants: list[float]) -> list[int]:
    """The last picture whose time has come, or the first of all; times that go back are those of the one before."""
    times = list(accumulate(times, max))
    return [numbers[max((i for i, t in enumerate(times) if t <= at + 1e-5), default=0)] for at in instants]


@lru_cache
def all_sound(path: Path) -> tuple[float, int, np.ndarray]:
    """When the first sample is heard, the rate, and the mean of the channels, by PyAV."""
    pieces: list[np.ndarray] = []
    with av.open(str(path)) as container:
        origin = (container.start_time or 0) / 1e6
        begin, rate = math.nan, 0
        for frame in container.decode(audio=0):
            if not pieces:
                assert frame.time is not None
                begin, rate = frame.time - origin, frame.sample_rate
            samples = frame.to_ndarray()
            samples = samples if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels).T
            scale = {"int16": 2**15, "int32": 2**31}.get(samples.dtype.name, 1)
            pieces.append((samples / scale).mean(axis=0))
    return begin, rate, np.concatenate(pieces)


def shown(path: Path, start: float, end: float | None, fps: float = 10.0, **options: Any) -> list[int]:
    pictures = read_frames(path, fps=fps, max_frames=1000, frame_size=1000, start=start, end=end, **options)
    assert pictures is not None
    return [number_of(rgb) for _, rgb in pictures]


def heard(path: Path, rate: int, start: float, end: float | None) -> np.ndarray:
    waveform = read_waveform(path, rate, start=start, end=end)
    assert waveform is not None
    return waveform


# --- every container -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURED)
def test_the_pictures_of_a_segment_are_those_on_screen(film: Film, name: str) -> None:
    path = film(name)
    times, numbers = all_pictures(path)
    assert len(set(numbers)) > 0.99 * len(stamps_of(FILMS[name], SECONDS))
    for start in STARTS:
        actual = shown(path, start, start + 1.2)
        assert actual == on_screen(times, numbers, [start + k / 10 for k in range(12)]), start
    last = shown(path, LAST, None, fps=RATE)  # to the end of the file
    assert last == on_screen(times, numbers, [LAST + k / RATE for k in range(len(last))])
    assert last[-1] == numbers[-1]


@pytest.mark.parametrize("name", SOUNDING)
def test_the_sound_of_a_segment_is_that_of_its_time(film: Film, name: str) -> None:
    path, recipe = film(name), FILMS[name]
    begin, rate, whole = all_sound(path)
    near = int(NEAR * rate)
    for start in STARTS:
        end = start + 1.2
        actual = heard(path, rate, start, end)
        expected = whole[max(0, round((start - begin) * rate)) : max(0, round((end - begin) * rate))]
        off = lag(actual, expected, near)
        if recipe.exact:
            assert (off, len(actual)) == (0, len(expected)), start
            np.testing.assert_allclose(actual, expected, atol=2e-3)
        else:
            assert abs(off) < near, start
            assert abs(len(actual) - len(expected)) <= near, start
            moved, still = (actual[off:], expected) if off >= 0 else (actual, expected[-off:])
            size = min(len(moved), len(still)) - 1200  # Opus and Vorbis fade to the end of the file
            assert np.corrcoef(moved[:size], still[:size])[0, 1] > 0.98, start
    assert len(heard(path, rate, LAST, None)) == pytest.approx(len(whole) - (LAST - begin) * rate, abs=near)


@pytest.mark.parametrize(
    "name", ["mp4", "mkv of varying rate", "mkv of HEVC", "webm of VP9", "mpg", "avi with B-frames"]
)
def test_the_last_key_frame_of_a_segment(film: Film, name: str) -> None:
    path = film(name)
    times, numbers, keys = [], [], []
    with av.open(str(path)) as container:
        origin = Fraction(container.start_time or 0, 1_000_000)
        for frame in container.decode(video=0):
            assert frame.pts is not None
            assert frame.time_base is not None
            times.append(frame.pts * frame.time_base - origin)
            numbers.append(number_of(frame.to_ndarray(format="gray")))
            keys.append(frame.key_frame)
    times = [time for time, key in zip(times, keys, strict=True) if key]
    numbers = [number for number, key in zip(numbers, keys, strict=True) if key]
    for start in STARTS:
        actual = shown(path, start, start + 1.2, accuracy="keyframe")
        assert actual == on_screen(times, numbers, [start + k / 10 for k in range(12)]), start
    noted = Notes()
    last = shown(path, 0, None, 1.0, accuracy="keyframe", notes=noted)
    assert last == on_screen(times, numbers, [float(k) for k in range(len(last))])
    assert len(last) == len(shown(path, 0, None, 1.0))  # it stays until the pictures end
    assert noted.troubles == []


# --- what it costs -------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """What was read and decoded, by kind of stream."""

    pulled: Counter[str] = field(default_factory=Counter)  # packets
    decoded: Counter[str] = field(default_factory=Counter)  # packets
    frames: Counter[str] = field(default_factory=Counter)
    plain: int = 0  # times that the plain way was gone


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Counts packets and frames from here on."""
    count = Work()
    decode_packet, plain_track, packets_of_track = streams._decoded, streams.plain_track, streams.Track.packets

    def packets(track: streams.Track) -> Iterator[Any]:
        for packet in packets_of_track(track):
            count.pulled[track.stream.type] += 1
            yield packet

    def decoded(track: Any, packet: Any) -> Any:
        frames = decode_packet(track, packet)
        count.decoded[track.stream.type] += packet is not None
        count.frames[track.stream.type] += len(frames)
        return frames

    def plain(*args: Any) -> Any:
        count.plain += 1
        return plain_track(*args)

    monkeypatch.setattr(streams.Track, "packets", packets)
    monkeypatch.setattr(streams, "_decoded", decoded)
    monkeypatch.setattr(streams, "plain_track", plain)
    return count


def packets_of(path: Path) -> Counter[str]:
    with av.open(str(path)) as container:
        return Counter(packet.stream.type for packet in container.demux() if packet.size)


@pytest.mark.parametrize("name", ["mp4", "mkv of varying rate"])
def test_segments_far_into_a_file_cost_their_own_length(tmp_path: Path, work: Work, name: str) -> None:
    """Six segments of 10 s cost about 60 s, not what comes before each of them."""
    path = make_film(tmp_path / f"a.{FILMS[name].suffix}", FILMS[name], LONG)
    whole = packets_of(path)
    for fps in (1.0, float(RATE)):
        for counter in (work.pulled, work.decoded, work.frames):
            counter.clear()
        for start in range(10, LONG, 10):
            settings = ClipSettings(fps=fps, max_frames=1000, frame_codec="raw", spectrogram_frames=1100)
            clip = decode_clip(path, None, None, start, start + 10, settings)
            assert len(clip.frames) >= fps * 9.8
            assert clip.num_audio_frames == pytest.approx(998, abs=3)
            assert clip.troubles == ()
        share = 60 / LONG
        assert work.plain == 0
        assert work.pulled["video"] < 2.0 * share * whole["video"]  # the margin, the group, and a look ahead
        assert work.frames["video"] < (1.5 if fps == RATE else 0.7) * share * whole["video"]
        assert work.decoded["audio"] < 1.2 * share * whole["audio"]


@pytest.mark.parametrize("name", ["mp4 from 10 s", "mkv", "flac", "wav", "ogg of Opus", "mp3", "mpg", "ts", "avi"])
def test_the_sound_before_a_segment_is_not_decoded(film: Film, work: Work, name: str) -> None:
    path = film(name)
    rate = FILMS[name].sample_rate
    heard(path, rate, 15.0, 17.0)
    whole = packets_of(path)["audio"]
    assert work.plain == 0
    assert work.decoded["audio"] < 3 / SECONDS * whole + 3  # 2 s and the pre-roll, of all
    if name in ("mp4 from 10 s", "mkv", "flac", "wav"):  # those that are sought
        assert work.pulled["audio"] < (3 + streams.SEEK_MARGIN + 4) / SECONDS * whole + 3


@pytest.mark.parametrize("name", ["ts", "ts of MPEG-2", "flv", "avi"])
def test_pictures_are_passed_over_where_a_file_is_not_sought(film: Film, work: Work, name: str) -> None:
    shown(film(name), 15.0, 17.0, fps=1.0)
    assert work.plain == 0
    assert work.pulled["video"] > 15 * RATE
    assert work.frames["video"] < 4 * RATE


def test_streams_share_one_reading_of_the_file(film: Film, work: Work) -> None:
    path = film("mkv")
    decode_clip(path, None, None, None, None, ClipSettings(fps=1, max_frames=100, spectrogram_frames=100 * SECONDS))
    whole = packets_of(path)
    assert work.pulled == whole


@pytest.mark.parametrize("name", ["mp4", "mkv of HEVC", "webm of VP8", "webm of VP9", "mpg", "avi"])
def test_what_nobody_sees_is_passed_over_where_the_decoder_can(film: Film, work: Work, name: str) -> None:
    shown(film(name), 0.0, 10.0, fps=0.5)
    needed = 8 * RATE  # the last instant
    assert work.plain == 0
    if name in ("mp4", "mkv of HEVC", "mpg"):  # those with frames to which no other refers
        assert work.frames["video"] < 0.7 * needed
    assert work.decoded["video"] <= 1.2 * needed + LOOKAHEAD


def test_what_follows_the_last_instant_of_a_group_is_left_out(film: Film, work: Work) -> None:
    path = film("webm of VP9")  # a decoder that passes nothing over, groups of 60
    times, numbers = all_pictures(path)
    assert shown(path, 0.0, 20.0, fps=1 / 9.6) == on_screen(times, numbers, [0.0, 9.6, 19.2])
    assert work.plain == 0
    assert work.decoded["video"] < 15 * RATE


@pytest.mark.parametrize("name", ["avi with B-frames", "mp4 of intra refresh"])
def test_in_doubt_the_plain_way_is_gone(film: Film, work: Work, name: str) -> None:
    path = film(name)  # no stamps of showing; key frames from which decoding can't start
    times, numbers = all_pictures(path)
    actual = shown(path, 9.12, 10.12, fps=5)
    assert actual == on_screen(times, numbers, [9.12 + k / 5 for k in range(5)])
    assert work.plain == 1


def test_packets_without_stamps(tmp_path: Path, work: Work) -> None:
    path = make_film(tmp_path / "a.h264", Recipe("h264", "libx264", None, options={"g": "50", "bf": "0"}), 8)
    assert shown(path, 6.0, 7.0, fps=5) == [150 + 5 * k for k in range(5)]
    assert work.plain == 1


def test_packets_that_an_edit_list_hides(tmp_path: Path, work: Work) -> None:
    """A file cut without encoding it again: decoding starts at a key frame before its first picture."""
    path = make_film(tmp_path / "a.mp4", Recipe("mp4", "libx264", "aac", begin=-1, options={"g": "100", "bf": "2"}), 12)
    with av.open(str(path)) as container:
        assert any(packet.is_discard for packet in container.demux(video=0) if packet.size)
    for start in (0.0, 0.5, 2.0, 7.0):
        actual = shown(path, start, start + 1, fps=RATE)
        assert actual == [int((1 + start) * RATE) + k for k in range(RATE)], start
    assert work.plain == 0


# --- what can go wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [2.0, -0.1, -3.0, -100.0])
@pytest.mark.parametrize("name", ["mp4", "mp4 of long groups", "mkv", "webm of VP8", "flac", "wav"])
def test_a_seek_that_lands_late_is_noticed(
    film: Film, name: str, margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rate = film(name), FILMS[name].sample_rate
    expected = heard(path, rate, 15.3, 16.3)
    pictures = shown(path, 15.3, 16.3) if FILMS[name].video else []
    monkeypatch.setattr(streams, "SEEK_MARGIN", margin)
    actual = heard(path, rate, 15.3, 16.3)
    off = lag(actual, expected, int(NEAR * rate))
    assert abs(off) <= (0 if FILMS[name].exact else NEAR * rate)
    assert len(pictures) == (10 if FILMS[name].video else 0)
    assert (shown(path, 15.3, 16.3) if FILMS[name].video else []) == pictures
    clip = decode_clip(path, None, None, 15.3, 16.3, ClipSettings(fps=10, max_frames=10, frame_size=48))
    assert len(clip.frames) == len(pictures)


def test_a_seek_that_fails_changes_nothing(film: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film("mp4")
    expected, sound = shown(path, 15.3, 16.3), heard(path, 16000, 15.3, 16.3)
    monkeypatch.setattr(streams, "SEEK_MARGIN", 1e12)  # far before the file
    assert shown(path, 15.3, 16.3) == expected
    np.testing.assert_allclose(heard(path, 16000, 15.3, 16.3), sound, atol=2e-3)


@pytest.mark.parametrize("name", ["mp4", "mkv", "mp3", "webm of VP8"])
def test_errors_right_after_a_seek_are_no_damage(film: Film, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rate = film(name), FILMS[name].sample_rate
    expected = heard(path, rate, 15.3, 16.3)
    pictures = shown(path, 15.3, 16.3) if FILMS[name].video else []
    decode_packet, failed = streams._decoded, Counter[int]()

    def failing(track: Any, packet: Any) -> Any:
        if track.quick and failed[id(track)] < 2:
            failed[id(track)] += 1
            track.damaged += 1
            return []
        return decode_packet(track, packet)

    monkeypatch.setattr(streams, "_decoded", failing)
    noted = Notes()
    actual = read_waveform(path, rate, start=15.3, end=16.3, notes=noted)
    assert actual is not None
    assert abs(lag(actual, expected, int(NEAR * rate))) <= (0 if FILMS[name].exact else NEAR * rate)
    if pictures:
        assert shown(path, 15.3, 16.3, notes=noted) == pictures
    assert failed
    assert noted.troubles == []


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_damage_is_told_where_it_is(film: Film, tmp_path: Path, kind: str) -> None:
    path = spoiled(film("mp4"), tmp_path / "a.mp4", kind, lambda number, time: 1.0 <= time < 1.2 or 10.5 <= time < 10.7)
    for start, hurt in ((0.0, True), (3.0, False), (10.0, True), (15.0, False), (19.0, False)):
        noted = Notes()
        if kind == "audio":
            read_waveform(path, 16000, start=start, end=start + 2, notes=noted)
        else:
            shown(path, start, start + 2, notes=noted)
        assert [trouble.partition(":")[0] for trouble in noted.troubles] == ["damaged"] * hurt, start


@pytest.mark.parametrize("name", ["mp4", "mpg", "ogg of Vorbis"])
def test_a_segment_beyond_the_end(film: Film, name: str) -> None:
    path = film(name)
    with pytest.raises(MediaError, match="no sound between 90 s and 91 s") as caught:
        read_waveform(path, 16000, start=90.0, end=91.0)
    assert caught.value.stage == "audio"
    if FILMS[name].video:
        with pytest.raises(MediaError, match="no picture at 90 s"):
            shown(path, 90.0, 91.0)


# --- stamps that lie -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["adpcm_ima_wav", "adpcm_ms"])
def test_adpcm_in_a_wav_file_is_not_sought(tmp_path: Path, codec: str) -> None:
    path = make_film(
        tmp_path / "a.wav", Recipe("wav", None, codec), 24
    )  # its stamps after a seek come from the bit rate
    begin, rate, whole = all_sound(path)
    assert begin == 0
    for start, end in ((6.0, None), (15.3, 16.3), (22.8, None)):
        expected = whole[round(start * rate) : None if end is None else round(end * rate)]
        np.testing.assert_array_equal(heard(path, rate, start, end), expected.astype(np.float32))


@pytest.mark.parametrize(("suffix", "lag"), [("mp4", 0), ("mp4", 3), ("mkv", 0), ("mkv", 3)])
def test_stamps_of_showing_that_are_those_of_decoding(tmp_path: Path, work: Work, suffix: str, lag: int) -> None:
    """What is made of an AVI file without encoding it again: B-frames, each stamped in the order of decoding."""
    recipe = Recipe("avi", "mpeg4", None, options={"g": "50", "bf": "2"})
    path = tmp_path / f"b.{suffix}"
    with av.open(str(make_film(tmp_path / "a.avi", recipe, 12))) as old, av.open(str(path), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.pts = packet.dts + lag
                packet.stream = copy
                new.mux(packet)
    stamps, numbers = all_pictures(path)
    assert numbers == list(range(12 * RATE))
    assert stamps != sorted(stamps)
    for start, fps in ((0.0, 10), (3.3, 25), (7.3, 1), (7.3, 10)):
        actual = shown(path, start, start + 1.2, fps=fps)
        assert len(actual) == math.ceil(1.2 * fps)
        assert actual == on_screen(stamps, numbers, [start + k / fps for k in range(len(actual))])
    assert work.plain == 4


def jumping(path: Path, codec: str, jump: float) -> np.ndarray:
    """16 s of sound whose stamps jump at 8 s; returns its samples, (samples,) in [-1, 1]."""
    rate, size = 16000, 1024
    samples = noise(16 * rate, rate)
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream(codec, rate=rate, layout="mono")
        frames = [sound_frame(samples[i : i + size, None], "mono", rate, i) for i in range(0, 16 * rate, size)]
        for frame in (*frames, None):
            for packet in sound.encode(frame):
                if packet.pts * packet.time_base >= 8:
                    packet.pts += int(jump / packet.time_base)
                    packet.dts = packet.pts
                container.mux(packet)
    return samples / 2**15


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "pcm_s16le"), ("mkv", "flac"), ("mp4", "aac"), ("ts", "aac")])
def test_a_hole_in_the_sound_is_silence_and_what_follows_keeps_its_time(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    path, rate = tmp_path / f"a.{suffix}", 16000
    samples = jumping(path, codec, 0.5)
    with av.open(str(path)) as container:  # every frame where its stamp says
        origin = (container.start_time or 0) / 1e6
        expected = np.zeros(0)
        for frame in container.decode(audio=0):
            assert frame.time is not None
            at = round((frame.time - origin) * rate)
            piece = frame.to_ndarray()[0] / (2**15 if frame.format.bits == 16 else 1)
            expected = np.pad(expected[:at], (0, max(0, at - len(expected))))
            expected = np.concatenate([expected, piece])
    if codec == "pcm_s16le":
        np.testing.assert_array_equal(expected, np.concatenate([samples[:128000], np.zeros(8000), samples[128000:]]))
    whole = heard(path, rate, 0.0, None)
    np.testing.assert_array_equal(whole, expected.astype(np.float32))
    assert not whole[129200:134800].any()  # 8.075 s to 8.425 s; AAC and its delay reach a little beyond their own
    for start, end in ((7.3, 9.3), (8.1, 8.3), (8.2, 9.2), (8.6, 9.6), (12.25, None)):
        actual = heard(path, rate, start, end)
        last = None if end is None else round(end * rate)
        np.testing.assert_allclose(actual, whole[round(start * rate) : last], atol=0 if codec != "aac" else 2e-3)


def test_a_clock_that_is_set_leaves_no_hole(tmp_path: Path) -> None:
    samples = jumping(tmp_path / "a.mkv", "pcm_s16le", 7200.0)
    np.testing.assert_array_equal(heard(tmp_path / "a.mkv", 16000, 0.0, None), samples.astype(np.float32))
    actual = heard(tmp_path / "a.mkv", 16000, 9.5, 10.5)
    np.testing.assert_array_equal(actual, samples[152000:168000].astype(np.float32))


def test_a_clock_that_goes_back_is_read_the_same_both_ways(
    tmp_path: Path, plainly: Callable[[Callable[[], Any]], Any], work: Work
) -> None:
    """Two transport streams, one after the other, of which the second begins earlier than the first ends."""
    parts = []
    for begin in (10, 4):
        recipe = Recipe("ts", "libx264", "mp2", 48000, begin=begin, options={"g": "25", "bf": "2"})
        parts.append(make_film(tmp_path / f"{begin}.ts", recipe, 9))
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with av.open(str(path)) as container:
        stamps = [packet.dts for packet in container.demux(video=0) if packet.dts is not None]
    assert stamps != sorted(stamps)
    for start, end in ((0.0, None), (1.0, 3.0), (6.5, 9.5), (8.0, None), (10.0, 12.0)):
        quick, plain = plainly(partial(heard, path, 48000, start, end))
        np.testing.assert_array_equal(quick, plain)
        for accuracy in ("exact", "keyframe"):
            quick, plain = plainly(partial(shown, path, start, end, accuracy=accuracy))
            assert quick == plain, (start, accuracy)
    assert work.plain
    _, rate, both = all_sound(path)
    whole = heard(path, rate, 0.0, None)
    np.testing.assert_allclose(whole, both, atol=1e-6)  # nothing is put in, nothing is lost


# --- the quick way against the plain way ---------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_segment_shows_the_same_both_ways(
    film: Film, plainly: Callable[[Callable[[], Any]], Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["mp4 of varying rate", "mkv of varying rate"]))
    start = data.draw(st.floats(0, SECONDS + 1))
    length = data.draw(st.floats(0.001, 12))
    fps = data.draw(st.sampled_from([0.5, 1.0, 3.7, 25.0]))
    accuracy = data.draw(st.sampled_from(["exact", "exact", "keyframe"]))
    path = film(name)
    quick, plain = plainly(lambda: shown(path, start, start + length, fps, accuracy=accuracy))
    assert quick == plain


@pytest.mark.parametrize("accuracy", ["exact", "keyframe"])
@pytest.mark.parametrize("name", CLIPS)
def test_every_clip_shows_the_same_both_ways(
    clips: Clips, name: str, plainly: Callable[[Callable[[], Any]], Any], accuracy: Any
) -> None:
    shows_the_same(clips[name], plainly, accuracy)


@pytest.mark.parametrize("name", CLIPS)
def test_every_clip_sounds_the_same_both_ways(
    clips: Clips, name: str, plainly: Callable[[Callable[[], Any]], Any]
) -> None:
    sounds_the_same(clips[name], plainly)
