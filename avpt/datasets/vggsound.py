"""VGGSound: 309 classes of 10-second parts of YouTube videos (Chen et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from avpt.datasets.rows import Dataset, Line, Row, Source, exactly, youtube_row


def rows(source: Source) -> Iterator[Row]:
    """Rows of `vggsound.csv`, which has no header: YouTube id, start, label, split. The hash groups by YouTube id."""
    for path in source.lists:
        yield from source.parse(path, partial(_row, source))


def _row(source: Source, line: Line) -> Row:
    video, start, label, split = exactly(line, 4)
    return youtube_row(source, line, label, split, video, (start, ""))


DATASET = Dataset(rows, lists=(r"vgg-?sound.*\.csv",))
