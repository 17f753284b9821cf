"""Clips of one size for the benchmarks that load them: real recordings, cut and scaled as a data set would."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from avpt.data.audio import read_waveform, spectrogram
from avpt.data.clip import ClipSettings, DecodedClip
from avpt.data.store import read_shard_record, shard_name, store_record, write_shard
from avpt.data.video import encode_frame, read_frames
from avpt.errors import MediaError

MEDIA = Path(__file__).parent.parent / "media"
CLASSES = ("a", "b")
FRAMES = 10  # a clip, one a second


@dataclass(frozen=True)
class Recording:
    """Ten seconds of sound at 16 kHz, and a picture of each."""

    waveform: np.ndarray  # (samples,) float32
    pictures: list[np.ndarray]  # (height, width, 3) uint8


def read_recordings(folder: Path, width: int, height: int, seconds: float = 10.0) -> list[Recording]:
    """What can be read of every file with sound and picture; what is shorter is repeated."""
    av.logging.set_level(av.logging.PANIC)
    recordings = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            waveform = read_waveform(path, 16000, end=seconds)
            shown = read_frames(path, fps=1.0, max_frames=FRAMES, frame_size=height)
        except MediaError:
            continue
        if waveform is None or not waveform.any() or not shown:
            continue
        pictures = [np.asarray(Image.fromarray(rgb).resize((width, height))) for _, rgb in shown]
        repeated = [pictures[i % len(pictures)] for i in range(FRAMES)]
        recordings.append(Recording(np.resize(waveform, round(seconds * 16000)), repeated))
    return recordings


def decoded(recording: Recording, settings: ClipSettings) -> DecodedClip:
    """A recording as `avpt preprocess` would store it."""
    fbank, num_frames = spectrogram(
        recording.waveform,
        sample_rate=settings.sample_rate,
        mel_bins=settings.mel_bins,
        frames=settings.spectrogram_frames,
        pad=settings.pad,
    )
    return DecodedClip(
        fbank=fbank.numpy().astype(settings.audio_dtype),
        num_audio_frames=num_frames,
        times=np.arange(len(recording.pictures), dtype=np.float32),
        sizes=np.array([rgb.shape[:2] for rgb in recording.pictures], dtype=np.int32),
        frames=[encode_frame(rgb, settings.frame_codec) for rgb in recording.pictures],
    )


def write_store(
    path: Path, clips: list[DecodedClip], settings: ClipSettings, num_clips: dict[str, int], shard_size: int = 128
) -> Path:
    """A finished store in which the clips come round and round; every other one is of the other class."""
    path.mkdir()
    attributes: dict[str, Any] = asdict(settings) | {"multi_label": False}
    shards: dict[str, list[tuple[str, Any]]] = {}
    for split, count in num_clips.items():
        for number, first in enumerate(range(0, count, shard_size)):
            rows = range(first, min(first + shard_size, count))
            name = shard_name(split, number)
            write_shard(
                path / name,
                ids=[f"{split}-{row:07d}" for row in rows],
                labels=np.array([row % len(CLASSES) for row in rows], dtype=np.int64),
                clips=[clips[row % len(clips)] for row in rows],
                failures=(),
                partial=(),
                settings=attributes,
            )
            shards.setdefault(split, []).append((name, read_shard_record(path / name)))
    written = {"schema": 1, "config": attributes, "inputs": {"manifest": "0" * 64}}
    (path / "settings.json").write_text(json.dumps(written), encoding="utf-8")
    (path / "store.json").write_text(json.dumps(store_record(written, CLASSES, shards)), encoding="utf-8")
    return path
