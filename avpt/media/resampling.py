"""From audio of any rate, type and number of channels to mono at one rate, and how loud it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from av import AudioFrame, AudioResampler
from av.error import FFmpegError

from avpt.errors import MediaError

FULL_SCALE = {  # the value of silence, and the distance from it to full scale
    "uint8": (2.0**7, 2.0**7),
    "int16": (0.0, 2.0**15),
    "int32": (0.0, 2.0**31),
    "float32": (0.0, 1.0),
    "float64": (0.0, 1.0),
}
SILENT = 2.0**-15  # of full scale: the smallest step of 16 bits
CANCELLED = 0.01  # of the channels' level; a mix that is quieter comes from channels in opposite phase


@dataclass
class Levels:
    """How loud audio is, before and after its channels are mixed."""

    lowest: float = math.inf  # sample of the mix, full scale is 1
    highest: float = -math.inf
    mixed: float = 0.0  # sum of squares of the mix
    channels: float = 0.0  # sum of squares of the channels, averaged over them

    def troubles(self) -> list[str]:
        """Why nothing is heard; empty if something is."""
        if self.channels > 0 and self.mixed < CANCELLED**2 * self.channels:
            return ["silent: its channels cancel each other out once they are mixed"]
        return [] if self.highest - self.lowest > 2 * SILENT else ["silent: there is nothing but silence in it"]


def mono(planes: np.ndarray) -> np.ndarray:
    """(channels, samples) -> (samples,) float32, their mean. FFmpeg's own down-mix weighs the channels instead."""
    mean: np.ndarray = planes.sum(axis=0, dtype=np.float64)
    mean /= len(planes)
    return _of_full_scale(mean, planes.dtype).astype(np.float32)


def _of_full_scale(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Values of a sample type as shares of its full scale, in place."""
    middle, full = FULL_SCALE[dtype.name]
    if middle:
        values -= middle
    if full != 1:
        values /= full
    return values


def resample(pieces: Iterator[tuple[int, np.ndarray]], sample_rate: int, levels: Levels) -> Iterator[np.ndarray]:
    """Pieces of (rate, channels) -> mono blocks at `sample_rate` Hz; a new rate starts a new resampler.

    The channels are averaged before resampling, which is linear: the result is the same for less work, and it never
    depends on a channel layout that FFmpeg may not know.
    """
    source, resampler = sample_rate, None
    for rate, samples in _join(pieces, levels):
        if rate != source:
            yield from _resampled(resampler, None)
            source = rate
            resampler = AudioResampler("fltp", "mono", sample_rate) if rate != sample_rate else None
        if resampler is None:
            yield samples
            continue
        frame = AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        yield from _resampled(resampler, frame)
    yield from _resampled(resampler, None)


def _join(pieces: Iterator[tuple[int, np.ndarray]], levels: Levels) -> Iterator[tuple[int, np.ndarray]]:
    """Join pieces of one kind until they last a second, and mix them: fewer, larger pieces need fewer costly calls."""
    for (rate, _, _), same in groupby(pieces, key=lambda piece: (piece[0], len(piece[1]), piece[1].dtype)):
        held: list[np.ndarray] = []
        size = 0
        for _, samples in same:
            held.append(samples)
            size += samples.shape[1]
            if size >= rate:
                yield rate, _mixed(np.concatenate(held, axis=1), levels)
                held, size = [], 0
        if held:
            yield rate, _mixed(np.concatenate(held, axis=1), levels)


def _mixed(planes: np.ndarray, levels: Levels) -> np.ndarray:
    """(channels, samples) -> (samples,) float32, their mean; `levels` records how loud both are."""
    mixed = mono(planes)
    levels.lowest = min(levels.lowest, float(mixed.min()))
    levels.highest = max(levels.highest, float(mixed.max()))
    levels.mixed += float(np.dot(mixed, mixed))
    for plane in planes if len(planes) > 1 else ():
        channel = plane if plane.dtype == np.float32 else _of_full_scale(plane.astype(np.float32), plane.dtype)
        levels.channels += float(np.dot(channel, channel)) / len(planes)
    return mixed


def _resampled(resampler: AudioResampler | None, frame: AudioFrame | None) -> Iterator[np.ndarray]:
    if resampler is None:
        return
    try:
        for block in resampler.resample(frame):
            yield block.to_ndarray()[0]
    except MemoryError:
        raise
    except FFmpegError as error:
        raise MediaError("audio", f"the sound can't be resampled: {error.strerror}".lower()) from error
