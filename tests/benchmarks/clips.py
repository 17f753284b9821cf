"""What the benchmarks share: recordings, made or read and scaled to one size, and the processor's time."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from avpt.errors import MediaError
from avpt.media.audio import read_waveform
from avpt.media.clip import ClipSettings, DecodedClip
from avpt.media.codecs import encode_frame
from avpt.media.spectrograms import spectrogram
from avpt.media.video import read_frames
from avpt.store.store import read_shard_record, shard_name, store_record, write_shard

CLASSES = ("a", "b")
FRAMES = 10  # a clip, one a second
MADE = 8  # recordings
HELP = "folder of media that the clips are cut from (default: recordings made for the run)"


@dataclass(frozen=True)
class Recording:
    """Ten seconds of sound at 16 kHz, and a picture of each."""

    waveform: np.ndarray  # (samples,) float32
    pictures: list[np.ndarray]  # (height, width, 3) uint8


def rough(seed: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3): noise of every size, with about as many bytes in JPEG as a photograph has."""
    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128.0)
    for size in (4, 8, 16, 32, 64, 128):
        blots = Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8))
        picture += (np.asarray(blots.resize((width, height), Image.Resampling.BICUBIC), float) - 127.5) * 2 / size**0.75
    return picture.clip(0, 255).astype(np.uint8)


def panned(seed: int, height: int, width: int, count: int) -> Iterator[np.ndarray]:
    """Pictures (height, width, 3) of a camera that turns to the right, two pixels a picture."""
    wide = rough(seed, height, width + 2 * count)
    return (np.ascontiguousarray(wide[:, 2 * i : 2 * i + width]) for i in range(count))


def hiss(seed: int, samples: int) -> np.ndarray:
    """(samples,) float32: noise that swells and fades."""
    noise = np.random.default_rng(seed).normal(0, 0.1, samples)
    return (noise * np.sin(np.linspace(0, 30, samples))).astype(np.float32)


def make_recordings(width: int, height: int, seconds: float = 10.0) -> list[Recording]:
    """Recordings of noise and rough pictures, the same each time."""
    return [
        Recording(hiss(seed, round(seconds * 16000)), [rough(FRAMES * seed + i, height, width) for i in range(FRAMES)])
        for seed in range(MADE)
    ]


def make_films(folder: Path, seconds: int = 11) -> Path:
    """Files of several kinds, 640 x 360, with sound."""
    sys.path.append(str(Path(__file__).parent.parent))
    from media import VPX, X264, Pictures, Sound, write

    kinds: dict[str, tuple[str, dict[str, str], str]] = {
        "a.mp4": ("libx264", X264, "aac"),
        "b.mkv": ("libx264", X264, "flac"),
        "c.webm": ("libvpx", VPX, "libopus"),
        "d.avi": ("mpeg4", {"g": "50"}, "mp2"),
    }
    for seed, (name, (codec, options, sound)) in enumerate(kinds.items()):
        pictures = panned(seed, 360, 640, 25 * seconds)
        samples = (hiss(seed, 48000 * seconds) * 32767).round().astype(np.int16)[:, None]
        write(
            folder / name,
            Pictures(drawn=pictures, codec=codec, rate=25, bit_rate=1_000_000, options=options),
            Sound(samples=samples, codec=sound, rate=48000),
        )
    return folder


def read_recordings(folder: Path | None, width: int, height: int, seconds: float = 10.0) -> list[Recording]:
    """What can be read of every file with sound and picture, what is shorter repeated; without a folder, made ones."""
    if folder is None:
        return make_recordings(width, height, seconds)
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
    written = {"schema": 1, "config": attributes | {"shard_size": shard_size}, "inputs": {"manifest": "0" * 64}}
    (path / "settings.json").write_text(json.dumps(written), encoding="utf-8")
    (path / "store.json").write_text(json.dumps(store_record(written, CLASSES, shards)), encoding="utf-8")
    return path


def processor_seconds() -> float:
    """What this process and its workers have used so far."""
    workers = [child.pid for child in multiprocessing.active_children() if child.pid]
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in (os.getpid(), *workers))  # as clock_getcpuclockid(3) does
