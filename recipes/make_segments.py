"""Cut long clips into segments: a small real task, in which each clip is a class, split by time.

    python recipes/make_segments.py --clips clips/ --seconds 1.0 --out segments.csv

data      any media files that avpt opens, a few seconds long or more; nothing is copied or re-encoded
hardware  any; seconds
expected  a row for each whole segment; of each clip the first part is train, the next val, the last test
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

import av

from avpt.errors import MediaError
from avpt.media.opening import open_media

COLUMNS = ("id", "label", "split", "video", "start", "end")
SPLITS = ("train", "val", "test")
SHORTEST = 0.01  # seconds
WHOLE = 0.9  # share of the last segment that must be there: a 2.98 s clip is three of 1 s


def find_clips(paths: list[Path]) -> list[Path]:
    """Return the files named, and those right inside the folders named, in order of their names."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [file for file in inside if not path.is_dir() or (file.is_file() and file.name[0] != ".")]
    return list(dict.fromkeys(found))


def duration(clip: Path) -> float | None:
    """Return the seconds that the container claims; None where it says nothing."""
    with open_media(clip) as container:
        return None if container.duration is None else container.duration / av.time_base


def split_counts(segments: int, train: float, val: float) -> list[int]:
    """Return the number of segments of each split, at least one of each with a share; all 0 where too few."""
    shares = [train, val, 1.0 - train - val]
    counts = [int(share > 1e-9) for share in shares]
    if segments < sum(counts):
        return [0, 0, 0]
    for _ in range(segments - sum(counts)):
        lacking = [share * segments - count for share, count in zip(shares, counts, strict=True)]
        counts[lacking.index(max(lacking))] += 1
    return counts


def cut(clip: Path, seconds: float, train: float, val: float) -> list[tuple[str, str, str]]:
    """Return split, start and end of each segment; none where the clip is too short for every split."""
    length = duration(clip) or 0.0
    segments = int(length / seconds + 1.0 - WHOLE)
    counts = zip(SPLITS, split_counts(segments, train, val), strict=True)
    splits = [split for split, count in counts for _ in range(count)]
    times = [str(round(min(number * seconds, length), 6)) for number in range(segments + 1)]
    return list(zip(splits, times, times[1:], strict=False))


def write_path(clip: Path, folder: Path) -> str:
    """Return the clip's path relative to the manifest's folder, absolute where it lies on another drive."""
    try:
        return os.path.relpath(clip.resolve(), folder.resolve())
    except ValueError:
        return str(clip.resolve())


def make(clips: list[Path], seconds: float, out: Path, train: float, val: float) -> list[tuple[str, ...]]:
    """Write the manifest and return its rows; each clip that is left out is told on stderr."""
    rows: list[tuple[str, ...]] = []
    taken: dict[str, Path] = {}  # class -> the clip that it is
    for clip in clips:
        try:
            segments = cut(clip, seconds, train, val)
        except MediaError as error:
            print(f"{clip}: left out: {error}", file=sys.stderr)
            continue
        if not segments:
            print(f"{clip}: left out: too short for a {seconds:g} s segment in every split", file=sys.stderr)
            continue
        if clip.stem in taken:
            print(
                f"{clip}: left out: would be the same class as {taken[clip.stem]}; rename one",
                file=sys.stderr,
            )
            continue
        taken[clip.stem] = clip
        path = write_path(clip, out.parent)
        rows += [(f"{clip.stem}_{start}_{end}", clip.stem, split, path, start, end) for split, start, end in segments]
    if not rows:
        sys.exit("no segments; give longer clips or a smaller --seconds")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return rows


def main() -> None:
    """Read the command line and write the manifest."""
    parser = argparse.ArgumentParser(description="Build a manifest of segments from long clips.")
    parser.add_argument("--clips", type=Path, nargs="+", required=True, help="Media files, or folders of them.")
    parser.add_argument("--seconds", type=float, default=1.0, help="Length of a segment.")
    parser.add_argument("--out", type=Path, required=True, help="The manifest to write.")
    parser.add_argument("--train", type=float, default=0.6, help="Share of each clip, from its start.")
    parser.add_argument("--val", type=float, default=0.2, help="Share after that; the rest is test.")
    options = parser.parse_args()
    if not SHORTEST <= options.seconds < float("inf"):
        parser.error(f"--seconds {options.seconds}: give at least {SHORTEST}")
    if not (options.train >= 0 and options.val >= 0 and options.train + options.val <= 1 + 1e-9):
        parser.error(f"--train {options.train} --val {options.val}: shares from 0 to 1 that make no more than 1")
    missing = [str(path) for path in options.clips if not path.exists()]
    if missing:
        sys.exit(f"{', '.join(missing)}: no such file or folder")
    make(find_clips(options.clips), options.seconds, options.out, options.train, options.val)
    print(options.out)


if __name__ == "__main__":
    main()
