"""Kinetics-Sounds: 31 classes of Kinetics that can be both heard and seen (Arandjelovic and Zisserman, 2017)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from avpt.datasets.media_files import COLUMN_OF
from avpt.datasets.rows import BadLineError, Dataset, Line, Row, Source, one_of, split_of_name, youtube_row
from avpt.types import Split

CLASSES = """blowing_nose blowing_out_candles bowling chopping_wood dribbling_basketball laughing mowing_lawn
    playing_accordion playing_bagpipes playing_bass_guitar playing_clarinet playing_drums playing_guitar
    playing_harmonica playing_keyboard playing_organ playing_piano playing_saxophone playing_trombone
    playing_trumpet playing_violin playing_xylophone ripping_paper shoveling_snow shuffling_cards singing
    stomping_grapes tap_dancing tapping_guitar tapping_pen tickling""".split()  # noqa: SIM905
INDICES = {str(index): name for index, name in enumerate(CLASSES)}
COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
TIMED = re.compile(r"(?P<video>[\w-]+)_(?P<start>\d{1,6}),(?P<length>\d{1,6}),(?P<index>\d+)", re.ASCII)
NAMED = re.compile(rf"(?:.*/)?(?P<name>[^/]+?)(?:\.(?:{'|'.join(COLUMN_OF)}))?/?\s+(?P<index>\d+)", re.ASCII | re.I)
CLIP = re.compile(r"(?P<video>[\w-]{11})_(?P<start>\d{1,6})(?:_(?P<end>\d{1,6}))?", re.ASCII)


def rows(source: Source) -> Iterator[Row]:
    """Rows of Kinetics' own CSV files (`label,youtube_id,time_start,time_end,split`), or of lists of the 31 classes.

    Such a list has lines `YOUTUBEID_START,SECONDS,CLASSINDEX` or `PATH CLASSINDEX`; its name says the split.
    The hash groups by YouTube id.
    """
    for path in source.lists:
        with path.open(encoding="utf-8", errors="replace") as file:
            own = "youtube_id" in file.readline()
        if own:
            yield from source.parse(path, partial(_kinetics, source), COLUMNS)
        else:
            yield from source.parse(path, partial(_listed, source, split_of_name(path)))


def _kinetics(source: Source, line: Line) -> Row | None:
    label, video, start, end, split = line.cells
    label = label.replace(" ", "_")
    return youtube_row(source, line, label, split, video, (start, end)) if label in CLASSES else None


def _listed(source: Source, split: Split, line: Line) -> Row:
    text = ",".join(line.cells)
    match = TIMED.fullmatch(text) or NAMED.fullmatch(text)
    if match is None:
        raise BadLineError(f"{text[:100]!r} is neither YOUTUBEID_START,SECONDS,CLASSINDEX nor PATH CLASSINDEX")
    label, name = one_of(match["index"], INDICES, "class index"), match.groupdict().get("name")
    if name is None:
        end = int(match["start"]) + int(match["length"])
        return youtube_row(source, line, label, split, match["video"], (match["start"], str(end)))
    clip = CLIP.fullmatch(name)
    if clip is None:
        return Row(name, label, split, name, (name,), place=line[:2])
    row = youtube_row(source, line, label, split, clip["video"], (clip["start"], clip["end"] or ""))
    return replace(row, names=(name, *row.names))


DATASET = Dataset(
    rows, lists=tuple(rf"(.*[^a-z])?(train|val(id(ate|ation)?)?|test)([^a-z].*)?\.{end}" for end in ("csv", "txt"))
)
