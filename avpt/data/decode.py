"""One manifest row -> what a shard stores of the clip: its log-mel and its encoded frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avpt.data.audio import read_waveform, samples_needed, spectrogram
from avpt.data.clip import ClipSettings, DecodedClip
from avpt.data.video import encode_frame, read_frames, read_images
from avpt.errors import MediaError


def decode_clip(
    video: Path | None,
    audio: Path | None,
    frames: Path | None,
    start: float | None,
    end: float | None,
    settings: ClipSettings,
) -> DecodedClip:
    """Decode the files of one manifest row; `audio` wins over the video's sound, `frames` over its pictures.

    `start` and `end`, in seconds, cut `video` and `audio`. A video may lack one modality. MediaError
    where a file can't be opened, a stream that is there gives nothing, a file given as `audio` has no
    sound stream, or the clip has neither sound nor picture.
    """
    waveform = _sound(video, audio, start or 0.0, end, settings)
    pictures = _pictures(video, frames, start or 0.0, end, settings)
    if waveform is None and not pictures:
        raise MediaError("open", "the clip has neither sound nor picture")
    fbank, num_audio_frames = _fbank(waveform, settings)
    return DecodedClip(
        fbank=fbank,
        num_audio_frames=num_audio_frames,
        times=np.array([time for time, _ in pictures], dtype=np.float32),
        sizes=np.array([rgb.shape[:2] for _, rgb in pictures], dtype=np.int32).reshape(-1, 2),
        frames=_encode([rgb for _, rgb in pictures], settings),
    )


def _sound(
    video: Path | None, audio: Path | None, start: float, end: float | None, settings: ClipSettings
) -> np.ndarray | None:
    source = audio or video
    if source is None:
        return None
    needed = samples_needed(settings.spectrogram_frames, settings.sample_rate)
    waveform = read_waveform(source, settings.sample_rate, start=start, end=end, max_samples=needed)
    if waveform is None and audio is not None:
        raise MediaError("audio", "the audio file has no sound stream")
    return waveform


def _pictures(
    video: Path | None, frames: Path | None, start: float, end: float | None, settings: ClipSettings
) -> list[tuple[float, np.ndarray]]:
    fps, max_frames, frame_size = settings.fps, settings.max_frames, settings.frame_size
    if frames is not None:
        return read_images(frames, fps=fps, max_frames=max_frames, frame_size=frame_size)
    if video is None:
        return []
    return read_frames(video, fps=fps, max_frames=max_frames, frame_size=frame_size, start=start, end=end) or []


def _fbank(waveform: np.ndarray | None, settings: ClipSettings) -> tuple[np.ndarray, int]:
    if waveform is None:
        return np.zeros((settings.spectrogram_frames, settings.mel_bins), settings.audio_dtype), 0
    fbank, num_frames = spectrogram(
        waveform,
        sample_rate=settings.sample_rate,
        mel_bins=settings.mel_bins,
        frames=settings.spectrogram_frames,
        pad=settings.pad,
    )
    return fbank.numpy().astype(settings.audio_dtype), num_frames


def _encode(pictures: list[np.ndarray], settings: ClipSettings) -> list[bytes]:
    encoded: dict[int, bytes] = {}  # a frame that stays on screen is one array, encoded once
    for rgb in pictures:
        if id(rgb) not in encoded:
            encoded[id(rgb)] = encode_frame(rgb, settings.frame_codec)
    return [encoded[id(rgb)] for rgb in pictures]
