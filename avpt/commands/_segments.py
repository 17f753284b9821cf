"""Long files cut into pieces of one length: how long a file is, and where each piece starts and ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from avpt.errors import MediaError
from avpt.media.opening import open_media

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
