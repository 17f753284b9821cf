"""One manifest row -> what a shard stores of the clip: its log-mel and its encoded frames."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torchvision.io  # noqa: F401 - codecs load it on first use: here once for all workers that are forked

from avpt.errors import MediaError
from avpt.media.audio import read_waveform, samples_needed, spectrogram
from avpt.media.clip import ClipSettings, DecodedClip, Found, Trouble, kind_of
from avpt.media.codecs import encode_frame
from avpt.media.streams import Opened, open_tracks
from avpt.media.video import read_frames, read_images
from avpt.types import Modality

Read = TypeVar("Read")


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
    where a file can't be opened, a stream that is there gives nothing and `settings.allow_missing` does not
    name it, a stream is truncated and `settings.on_truncated` is "fail", a file given as `audio` has no
    sound stream, or the clip has neither sound nor picture.
    """
    begin = start or 0.0
    # from one file, opened once; but a stream that is asked for may not be there
    both = video is not None and audio is None and frames is None and settings.audio_stream is None
    troubles: list[Trouble] = []
    seconds: dict[Modality, float] = {}
    with open_tracks(cast(Path, video), ("audio", "video"), begin) if both else nullcontext() as opened:
        waveform = _tolerated(
            "audio",
            lambda found: _sound(video, audio, begin, end, settings, opened, found),
            settings,
            troubles,
            seconds,
        )
        pictures = _tolerated(
            "visual",
            lambda found: _pictures(video, frames, begin, end, settings, opened, found),
            settings,
            troubles,
            seconds,
        )
    if waveform is None and not pictures:
        missing = [MediaError(trouble.modality, trouble.what.removeprefix("missing: ")) for trouble in troubles]
        raise next(iter(missing), MediaError("open", "the clip has neither sound nor picture"))
    fbank, num_audio_frames = _fbank(waveform, settings)
    pictures = pictures or []
    return DecodedClip(
        fbank=fbank,
        num_audio_frames=num_audio_frames,
        times=np.array([time for time, _ in pictures], dtype=np.float32),
        sizes=np.array([rgb.shape[:2] for _, rgb in pictures], dtype=np.int32).reshape(-1, 2),
        frames=_encode([rgb for _, rgb in pictures], settings),
        troubles=tuple(troubles),
        seconds=seconds,
    )


def _tolerated(
    modality: Modality,
    read: Callable[[Found], Read | None],
    settings: ClipSettings,
    troubles: list[Trouble],
    seconds: dict[Modality, float],
) -> Read | None:
    """What is read of a modality; what is wrong with it goes to `troubles` or is raised, as the settings say."""
    found = Found()
    try:
        result = read(found)
        for what in found.troubles:
            if kind_of(what) == "truncated" and settings.on_truncated == "fail":
                raise MediaError(modality, what)
    except MediaError as error:
        if settings.allow_missing not in (modality, "either"):
            raise
        result, found = None, Found([f"missing: {error}"])
    troubles += [Trouble(modality, what) for what in found.troubles]
    if found.seconds is not None:
        seconds[modality] = found.seconds
    return result


def _sound(
    video: Path | None,
    audio: Path | None,
    start: float,
    end: float | None,
    settings: ClipSettings,
    opened: Opened | None,
    found: Found,
) -> np.ndarray | None:
    source = audio or video
    if source is None:
        return None
    needed = samples_needed(settings.spectrogram_frames, settings.sample_rate)
    waveform = read_waveform(
        source,
        settings.sample_rate,
        start=start,
        end=end,
        max_samples=needed,
        opened=opened,
        audio_stream=settings.audio_stream,
        found=found,
    )
    if waveform is None and audio is not None:
        raise MediaError("audio", "the audio file has no sound stream")
    return waveform


def _pictures(
    video: Path | None,
    frames: Path | None,
    start: float,
    end: float | None,
    settings: ClipSettings,
    opened: Opened | None,
    found: Found,
) -> list[tuple[float, np.ndarray]] | None:
    fps, max_frames, frame_size = settings.fps, settings.max_frames, settings.frame_size
    if frames is not None:
        return read_images(frames, fps=fps, max_frames=max_frames, frame_size=frame_size, found=found)
    if video is None:
        return None
    return read_frames(
        video,
        fps=fps,
        max_frames=max_frames,
        frame_size=frame_size,
        start=start,
        end=end,
        accuracy=settings.frame_accuracy,
        opened=opened,
        found=found,
    )


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
