"""Which file a clip's sound and pictures come from, and what a clip without one of them looks like."""

from __future__ import annotations

import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import Clips

from avpt.errors import MediaError
from avpt.media.audio import read_waveform
from avpt.media.clip import ClipSettings, DecodedClip
from avpt.media.codecs import encode_frame
from avpt.media.decode import decode_clip
from avpt.media.spectrograms import spectrogram
from avpt.media.video import read_frames

SMALL = ClipSettings(spectrogram_frames=64, mel_bins=32, fps=4, max_frames=6, frame_size=48)


@pytest.fixture
def both(clips: Clips) -> Path:
    """2 s of 640 x 360, sound, and a cover picture."""
    return clips["with_cover.mp4"]


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """1 s at 440 Hz for half a second, then silence."""
    samples = np.round(9000 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000))
    samples[8000:] = 0
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.astype("<i2").tobytes())
    return tmp_path / "tone.wav"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two grey images, 3 x 2 pixels, of 40 and 80."""
    (tmp_path / "images").mkdir()
    for name, value in (("img2.png", 40), ("img10.png", 80)):
        chunks = b"\x89PNG\r\n\x1a\n"
        header = struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0)
        rows = zlib.compress((b"\0" + bytes([value] * 3)) * 2)
        for kind, content in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
            chunks += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        (tmp_path / "images" / name).write_bytes(chunks)
    return tmp_path / "images"


def decode(
    video: Path | None = None,
    audio: Path | None = None,
    frames: Path | None = None,
    start: float | None = None,
    end: float | None = None,
    settings: ClipSettings = SMALL,
) -> DecodedClip:
    clip = decode_clip(video, audio, frames, start, end, settings)
    count = len(clip.frames)
    assert clip.fbank.shape == (settings.spectrogram_frames, settings.mel_bins)
    assert clip.fbank.dtype == settings.audio_dtype
    assert clip.times.shape == (count,)
    assert clip.times.dtype == np.float32
    assert clip.sizes.shape == (count, 2)
    assert clip.sizes.dtype == np.int32
    return clip


def expected_fbank(path: Path, **options: float) -> np.ndarray:
    waveform = read_waveform(path, 16000, **options)  # type: ignore[arg-type]
    assert waveform is not None
    return spectrogram(waveform, sample_rate=16000, mel_bins=32, frames=64, pad="zero")[0].numpy()


def test_both_modalities_from_one_video(both: Path) -> None:
    clip = decode(both)
    np.testing.assert_allclose(clip.fbank, expected_fbank(both), atol=0.005)
    assert clip.num_audio_frames == 64
    np.testing.assert_array_equal(clip.times, [0, 0.25, 0.5, 0.75, 1, 1.25])
    shown = read_frames(both, fps=4, max_frames=6, frame_size=48)
    assert shown is not None
    for content, size, (_, rgb) in zip(clip.frames, clip.sizes, shown, strict=True):
        assert tuple(size) == rgb.shape[:2] == (48, 85)
        assert content == encode_frame(rgb, "jpeg")


def test_raw_frames_and_float32(both: Path) -> None:
    clip = decode(both, settings=ClipSettings(frame_codec="raw", audio_dtype="float32"))
    for content, (height, width) in zip(clip.frames, clip.sizes, strict=True):
        assert len(content) == height * width * 3
    assert clip.num_audio_frames == 200
    assert (clip.fbank[200:] == 0).all()


def test_audio_wins_over_the_videos_sound(both: Path, tone: Path) -> None:
    clip = decode(both, audio=tone)
    np.testing.assert_allclose(clip.fbank, expected_fbank(tone), atol=0.005)
    assert len(clip.frames) == 6


def test_frames_win_over_the_videos_pictures_and_are_not_cut(both: Path, folder: Path) -> None:
    clip = decode(both, frames=folder, start=1.0, end=1.25)
    np.testing.assert_array_equal(clip.times, [0, 0.25])
    np.testing.assert_array_equal(clip.sizes, [[2, 3], [2, 3]])
    np.testing.assert_allclose(clip.fbank, expected_fbank(both, start=1.0, end=1.25), atol=0.005)
    assert clip.num_audio_frames == 23  # 4,000 samples


def test_start_and_end_cut_both(both: Path, tone: Path) -> None:
    clip = decode(both, audio=tone, start=0.5, end=1.0)
    assert clip.num_audio_frames == 48
    np.testing.assert_allclose(clip.fbank[:48], -15.94, atol=0.01)  # the silent half
    assert len(clip.frames) == 2
    later = read_frames(both, fps=4, max_frames=6, frame_size=48, start=0.5, end=1.0)
    assert later is not None
    raw = decode(both, start=0.5, end=1.0, settings=ClipSettings(fps=4, frame_size=48, frame_codec="raw"))
    assert raw.frames == [rgb.tobytes() for _, rgb in later]


def test_one_modality_is_enough(clips: Clips, tone: Path, folder: Path) -> None:
    silent = decode(clips["held_0.mov"])
    assert (silent.num_audio_frames, len(silent.frames)) == (0, 1)
    assert (silent.fbank == 0).all()
    heard = decode(clips["cover_alone.flac"])  # its only picture is a cover
    assert (heard.num_audio_frames, len(heard.frames)) == (64, 0)
    assert decode(audio=tone).num_audio_frames == 64
    assert len(decode(frames=folder / "img10.png").frames) == 1


def test_digital_silence_is_sound(clips: Clips) -> None:
    clip = decode(clips["black_and_silent.mp4"])
    assert clip.num_audio_frames == 64
    np.testing.assert_allclose(clip.fbank.astype(float), -15.94, atol=0.02)


def test_repeated_sound(tone: Path) -> None:
    settings = ClipSettings(pad="repeat", spectrogram_frames=300, mel_bins=32)
    clip = decode(audio=tone, settings=settings)
    assert clip.num_audio_frames == 300
    np.testing.assert_allclose(clip.fbank[100:150], clip.fbank[200:250], atol=0.05)


@pytest.mark.parametrize(
    ("columns", "stage"),
    [
        ({"audio": "held_0.mov"}, "audio"),  # no sound stream
        ({"video": "sound_of_no_codec.mp4"}, "audio"),
        ({"video": "header_alone.mp4"}, "visual"),
        ({"video": "text_alone.mp4"}, "open"),  # neither
        ({"video": "cut.mp4"}, "open"),
        ({"video": Path("missing.mp4")}, "open"),
        ({"video": "with_cover.mp4", "start": 5.0}, "audio"),
        ({"video": "held_0.mov", "start": 5.0}, "visual"),
    ],
)
def test_stages_of_failure(clips: Clips, columns: dict[str, Any], stage: str) -> None:
    actual: dict[str, Any] = {key: clips[value] if isinstance(value, str) else value for key, value in columns.items()}
    with pytest.raises(MediaError) as caught:
        decode(**actual)
    assert caught.value.stage == stage
    assert len(str(caught.value).splitlines()) == 1


def test_the_same_clip_gives_the_same_bytes(both: Path) -> None:
    first, second = decode(both), decode(both)
    assert first.fbank.tobytes() == second.fbank.tobytes()
    assert first.frames == second.frames
