"""Long files cut into pieces of one length: how long a file is, and where each piece starts and ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

from avpt.errors import MediaError, listed
from avpt.machine.progress import track
from avpt.media.opening import open_media

log = logging.getLogger(__name__)

SHORTEST = 0.1  # seconds that a last piece must have to be kept: encoders pad by less
WHOLE = 0.9  # share of its length from which a piece is not cut short: files end a little early


def seconds_of(paths: Sequence[Path]) -> float | None:
    """The duration of the shortest of some media files by their headers; None where one does not open or has none."""
    lengths = []
    for path in paths:
        try:
            with open_media(path) as container:
                lengths.append(container.duration and container.duration / 1_000_000)
        except MediaError:
            lengths.append(None)
    known = [length for length in lengths if length]
    return min(known) if known and len(known) == len(lengths) else None


def format_seconds(seconds: float) -> str:
    """Seconds as they stand in manifests and ids: without zeros at the end."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def cut(seconds: float, segment: float, hop: float, last: Literal["drop", "keep"]) -> list[tuple[float, float]]:
    """Start and end of each piece of a file, in seconds; empty where one piece holds all of it.

    Args:
        seconds: the length of the file.
        segment: the length of a piece.
        hop: from the start of one piece to that of the next.
        last: what happens to a last piece that is shorter than nine tenths of `segment`.
    """
    seconds = round(seconds, 6)
    if seconds <= segment:
        return []
    pieces: list[tuple[float, float]] = []
    while not pieces or pieces[-1][1] < seconds:
        start = round(len(pieces) * hop, 6)
        end = round(min(start + segment, seconds), 6)
        least = segment * WHOLE if last == "drop" else SHORTEST
        if end - start < min(least, segment):
            break
        pieces.append((start, end))
    return pieces


def cut_clips(
    clips: Sequence[tuple[str, ...]], folder: Path, segment: float, hop: float, last: Literal["drop", "keep"]
) -> list[tuple[str, ...]]:
    """Put each clip's pieces in its place; a clip that is no longer than a piece, or can't be cut, stays whole.

    Args:
        clips: rows of a manifest: id, label, split, video, audio, frames, start, end, recording.
        folder: that of the manifest, where its paths start.
        segment: the length of a piece, in seconds.
        hop: from the start of one piece to that of the next.
        last: what happens to a last piece that is shorter than nine tenths of `segment`.
    """
    pieces: list[tuple[str, ...]] = []
    whole: list[str] = []
    rests: list[float] = []  # seconds at the end of clips
    with track(len(clips), "cut") as show:
        for number, clip in enumerate(clips):
            show(number, len(whole))
            clip_id, label, split, video, audio, frames, *_, recording = clip
            paths = [folder / path for path in dict.fromkeys((audio or video, video)) if path]
            seconds = seconds_of(paths) if paths and not frames else None
            times = cut(seconds, segment, hop, last) if seconds else []
            if seconds is None:
                whole.append(clip_id)
            if not times:
                pieces.append(clip)
            elif seconds and seconds - times[-1][1] >= SHORTEST:
                rests.append(seconds - times[-1][1])
            for start, end in times:
                begin, stop = format_seconds(start), format_seconds(end)
                name = f"{clip_id}_{begin}_{stop}"
                pieces.append((name, label, split, video, audio, frames, begin, stop, recording))
    if rests:
        message = "the last %.1f s on average of %d of %d clips are in no piece%s"
        keep = "; --last-piece keep has them" if last == "drop" else ""
        log.info(message, fmean(rests), len(rests), len(clips), keep)
    if whole:
        message = "%d of %d clips stay whole: they are pictures, or their files do not say how long they are (%s)"
        log.warning(message, len(whole), len(clips), listed(whole, 3))
    return pieces
