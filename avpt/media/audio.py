"""A file's waveform, as one channel at one sample rate."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av import AudioFrame, AudioResampler

from avpt.errors import MediaError
from avpt.media.clip import Notes
from avpt.media.demuxing import ShortCutError
from avpt.media.resampling import FULL_SCALE, Levels, resample
from avpt.media.streams import PREROLL, SEEK_BEYOND, Opened, Track, decode, read_best

FORMATS = frozenset({"u8", "s16", "s32", "flt", "dbl"})  # FFmpeg's, packed
SHORTEST_HOLE = 0.05  # seconds; shorter gaps are stamps that are rounded, or a little off
LONGEST_HOLE = 60.0  # seconds; a longer one means that the clock was set, not that anything is missing
LATE = 0.25  # seconds of silence before the audio of a clip; longer silence is reported
MAX_PLANES = 8  # the most channels that PyAV can return as separate planes


def read_waveform(
    path: Path,
    sample_rate: int,
    *,
    start: float = 0.0,
    end: float | None = None,
    max_samples: int | None = None,
    opened: Opened | None = None,
    audio_stream: int | None = None,
    notes: Notes | None = None,
) -> np.ndarray | None:
    """Read the audio of a media file: (samples,) float32 in [-1, 1] at `sample_rate` Hz, the mean of its channels.

    `start` and `end` are seconds from the container's start, cut to the sample at the file's own rate, before
    resampling. Silence stands in until the audio begins. Decoding stops at `end`, or after `max_samples`.

    Args:
        path: any file with audio.
        sample_rate: Hz.
        start: where the clip begins; far into a file, it is reached by seeking or by reading without decoding.
        end: where it ends; None means the end of the file.
        max_samples: the most samples that are needed.
        opened: the tracks of the file, if the caller has already opened it for `start`.
        audio_stream: which of the audio streams to read, from 0; None leaves the choice to FFmpeg.
        notes: receives what else there is to know about the audio that was read.

    Returns None if the file has no audio stream. Raises MediaError("open") if it is not media, and MediaError("audio")
    if a declared stream gives no sample.
    """

    def read(track: Track) -> np.ndarray:
        blocks, size, levels = [], 0, Levels()
        pieces = _cut(track, start, end)
        for block in resample(pieces, sample_rate, levels):
            blocks.append(block)
            size += len(block)
            if max_samples is not None and size >= max_samples:
                track.end = None  # where the rest ends does not matter, even if it was read with the last block
                break
        if size == 0:
            raise MediaError("audio", _no_sample(track.stream, start, end))
        if notes is not None:
            notes.troubles += track.troubles(start, end) + levels.troubles()
            notes.seconds = track.seconds(start, end)
        return np.concatenate(blocks)[:max_samples]

    return read_best(path, "audio", read, start, opened, audio_stream)


def _from(track: Track, start: Fraction) -> Iterator[Any]:
    """The packets of a stream from shortly before `start`; ShortCutError if their stamps do not say where that is."""
    from_stamp = track.stamp(start - PREROLL)
    passed = track.sought
    packets = track.packets()
    for packet in packets:
        if packet.pts is None or (packet.duration or 0) <= 0:
            raise ShortCutError
        if packet.pts + packet.duration >= from_stamp:
            if passed and packet.pts > track.stamp(start - PREROLL / 2):
                raise ShortCutError  # the seek landed too late, or the stream has a hole here
            yield packet
            break
        passed = True
    yield from packets


def _cut(track: Track, start: float, end: float | None) -> Iterator[tuple[int, np.ndarray]]:
    """The audio between two times, in seconds, as pieces of (rate, (channels, samples))."""
    skipping = track.quick and start > SEEK_BEYOND
    position: Fraction | None = None  # seconds, of the first sample at this rate
    rate = seen = first = last = 0  # samples, from there
    kind: tuple[int, int] | None = None  # rate, channels
    time_base, origin = float(track.stream.time_base), float(track.origin)
    for frame in decode(track, _from(track, Fraction(start)) if skipping else None):
        if frame.sample_rate <= 0 or frame.samples == 0:
            continue
        lead = 0
        if frame.sample_rate != rate:
            if position is None:
                begin = Fraction(0) if frame.pts is None else frame.pts * track.stream.time_base - track.origin
                if skipping and (frame.pts is None or begin > start):
                    raise ShortCutError
                position = begin
                if skipping:
                    track.damaged = 0  # the first packets after a seek need those before them
                elif begin > start:  # silence comes first, unless the clock was set
                    position = Fraction(start)
                    believed = begin <= max(Fraction(LONGEST_HOLE), track.stated or 0)
                    lead = _round((begin - position) * frame.sample_rate) if believed else 0
            else:  # counted, not read from a stamp: WebM rounds those to milliseconds
                position += Fraction(seen, rate)
            rate, seen = frame.sample_rate, 0
            first = _round((Fraction(start) - position) * rate)
            last = sys.maxsize if end is None else _round((Fraction(end) - position) * rate)
        assert position is not None
        time = math.nan if frame.pts is None or track.guessed else frame.pts * time_base - origin - float(position)
        if lead >= LATE * rate:
            track.remarks.append(f"late: it begins at {float(position) + lead / rate:.2f} s; silence before that")
        for silent, size in ((True, lead or _hole(time, seen, rate)), (False, frame.samples)):
            low, high = max(0, first - seen), min(size, last - seen)
            if low >= size > 0:
                track.damaged = 0  # the damaged packets lie before the clip
            if low < high:
                planes = _planes(frame)
                if silent and not lead:
                    track.holes.append(Fraction(high - low, rate))
                for at in range(low, high, rate) if silent else ():  # a second at a time: it may be hours
                    yield rate, _silence(planes, min(rate, high - at))
                if not silent:
                    track.corrupt += frame.is_corrupt
                    yield rate, planes[:, low:high]
            if high < size:
                return
            seen += size
        if kind is not None and kind != (rate, frame.layout.nb_channels) and seen > first:
            after = _words((rate, frame.layout.nb_channels))
            track.remarks.append(f"joined: it changes from {_words(kind)} to {after}")
        kind = rate, frame.layout.nb_channels
    if position is not None:
        track.end = position + Fraction(seen, rate)


def _words(kind: tuple[int, int]) -> str:
    return f"{kind[1]} x {kind[0]} Hz"


def _hole(time: float, seen: int, rate: int) -> int:
    """Samples lost before a frame that comes `time` seconds after the first, if `seen` samples have been read.

    Silence replaces them: without it, everything after them would be heard too early.
    """
    late = time - seen / rate
    return round(late * rate) if SHORTEST_HOLE < late < LONGEST_HOLE else 0


def _silence(planes: np.ndarray, samples: int) -> np.ndarray:
    """(channels, samples) of silence, in the type of `planes`."""
    return np.full((len(planes), samples), FULL_SCALE[planes.dtype.name][0], planes.dtype)


def _planes(frame: AudioFrame) -> np.ndarray:
    """(channels, samples) of a frame, in its own type."""
    channels, kind = frame.layout.nb_channels, frame.format  # each of these is made anew when it is asked for
    if kind.is_planar and channels > MAX_PLANES:
        frame = AudioResampler(format=kind.packed.name).resample(frame)[0]
        kind = frame.format
    if kind.packed.name not in FORMATS:
        raise MediaError("audio", f"sound in FFmpeg's sample format {kind.name} is not supported")
    samples = frame.to_ndarray()
    return samples if kind.is_planar else samples.reshape(-1, channels).T


def _no_sample(stream: Any, start: float, end: float | None) -> str:
    if stream.codec_context is None:
        return "the sound stream has no known codec"
    if start > 0 or end is not None:
        return f"there is no sound between {start:g} s and {'the end' if end is None else f'{end:g} s'}"
    return f"the {stream.codec_context.name} sound stream gives no sample (empty, damaged, or encrypted)"


def _round(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))  # halves always round up, so that cuts agree from piece to piece
