"""From one manifest row to what a shard stores of the clip: its log-mel and its encoded frames."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from avpt.errors import MediaError
from avpt.machine.light_imports import without_compiler
from avpt.media.audio import read_waveform
from avpt.media.clip import LEFT_OUT, ClipSettings, DecodedClip, Notes, Trouble, kind_of
from avpt.media.codecs import encode_frame
from avpt.media.spectrograms import samples_needed, spectrogram
from avpt.media.streams import Opened, open_tracks
from avpt.media.video import read_frames, read_images
from avpt.types import IN_WORDS, Modality

with without_compiler():
    import torchvision.io  # noqa: F401 - codecs load it on first use; here it is loaded once for all forked workers

Read = TypeVar("Read")


def decode_clip(
    video: Path | None,
    audio: Path | None,
    frames: Path | None,
    start: float | None,
    end: float | None,
    settings: ClipSettings,
) -> DecodedClip:
    """Decode the files of one manifest row; `audio` replaces the video's audio, `frames` its pictures.

    `start` and `end`, in seconds, cut `video` and `audio`. A video may lack one modality. Raises MediaError if a file
    can't be opened, if an existing stream gives nothing and `settings.allow_missing` does not name it, if a stream is
    truncated and `settings.on_truncated` is "fail", if the file passed as `audio` has no audio stream, or if the clip
    has neither audio nor pictures, or lacks what `settings.require` names.
    """
    begin = start or 0.0
    # both come from one file, which is opened once; not if a stream is asked for by number, which may be missing
    both = video is not None and audio is None and frames is None and settings.audio_stream is None
    troubles: list[Trouble] = []
    seconds: dict[Modality, float] = {}
    with open_tracks(cast(Path, video), ("audio", "video"), begin) if both else nullcontext() as opened:
        waveform = _read_tolerantly(
            "audio",
            lambda notes: _read_audio(video, audio, begin, end, settings, opened, notes),
            settings,
            troubles,
            seconds,
        )
        pictures = _read_tolerantly(
            "visual",
            lambda notes: _read_visual(video, frames, begin, end, settings, opened, notes),
            settings,
            troubles,
            seconds,
        )
    if waveform is None and not pictures:
        missing = [MediaError(trouble.modality, trouble.what.removeprefix("missing: ")) for trouble in troubles]
        raise next(iter(missing), MediaError("open", "the clip has neither sound nor picture"))
    there: dict[Modality, bool] = {"audio": waveform is not None, "visual": bool(pictures)}
    for modality in there:
        if not there[modality] and settings.require in (modality, "both"):
            raise MediaError(modality, f"{LEFT_OUT}: it has no {IN_WORDS[modality]}, which --require asks for")
    fbank, num_audio_frames = _to_fbank(waveform, settings)
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


def _read_tolerantly(
    modality: Modality,
    read: Callable[[Notes], Read | None],
    settings: ClipSettings,
    troubles: list[Trouble],
    seconds: dict[Modality, float],
) -> Read | None:
    """Read a modality; what is wrong with it goes to `troubles` or is raised, depending on the settings."""
    notes = Notes()
    try:
        result = read(notes)
        for what in notes.troubles:
            if kind_of(what) == "truncated" and settings.on_truncated == "fail":
                raise MediaError(modality, what)
    except MediaError as error:
        if settings.allow_missing not in (modality, "either"):
            raise
        result, notes = None, Notes([f"missing: {error}"])
    troubles += [Trouble(modality, what) for what in notes.troubles]
    if notes.seconds is not None:
        seconds[modality] = notes.seconds
    return result


def _read_audio(
    video: Path | None,
    audio: Path | None,
    start: float,
    end: float | None,
    settings: ClipSettings,
    opened: Opened | None,
    notes: Notes,
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
        notes=notes,
    )
    if waveform is None and audio is not None:
        raise MediaError("audio", "the audio file has no sound stream")
    return waveform


def _read_visual(
    video: Path | None,
    frames: Path | None,
    start: float,
    end: float | None,
    settings: ClipSettings,
    opened: Opened | None,
    notes: Notes,
) -> list[tuple[float, np.ndarray]] | None:
    fps, max_frames, frame_size = settings.fps, settings.max_frames, settings.frame_size
    if frames is not None:
        return read_images(frames, fps=fps, max_frames=max_frames, frame_size=frame_size, notes=notes)
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
        notes=notes,
    )


def _to_fbank(waveform: np.ndarray | None, settings: ClipSettings) -> tuple[np.ndarray, int]:
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
    encoded: dict[int, bytes] = {}  # a frame that stays on screen is one array and is encoded once
    for rgb in pictures:
        if id(rgb) not in encoded:
            encoded[id(rgb)] = encode_frame(rgb, settings.frame_codec)
    return [encoded[id(rgb)] for rgb in pictures]
