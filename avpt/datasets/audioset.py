"""AudioSet: 10-second parts of YouTube videos with several of 527 labels each (Gemmeke et al., 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from avpt.datasets.rows import (
    SPLIT_WORDS,
    BadLineError,
    Dataset,
    Line,
    Row,
    Source,
    exactly,
    one_of,
    split_of_name,
    youtube_row,
)
from avpt.types import Split

CLASSES_FILE = "class_labels_indices.csv"
SEPARATOR = ";"  # of labels in a manifest
PREFIXES = ("Y",)  # PANNs' downloader puts it before the id, so that no name starts with -, and stores only the clip


def rows(source: Source) -> Iterator[Row]:
    """Rows of `balanced_train_segments.csv` and the like: YouTube id, start, end, codes of labels.

    A list's name says which split it is, where eval is test; the codes' names come from `class_labels_indices.csv`.
    The hash groups by YouTube id.
    """
    assert source.classes is not None
    names = dict(source.parse(source.classes, lambda line: (line.cells[0], line.cells[1]), ("mid", "display_name")))
    for path in source.lists:
        split = split_of_name(path, SPLIT_WORDS | {"eval": "test"})
        yield from source.parse(path, partial(_row, source, names, split))


def _row(source: Source, names: dict[str, str], split: Split, line: Line) -> Row | None:
    if line.cells[0].startswith("#"):
        return None
    video, start, end, codes = exactly(line, 4)
    labels = dict.fromkeys(one_of(code.strip(), names, "label code") for code in codes.split(","))
    if unfit := [label for label in labels if SEPARATOR in label]:
        raise BadLineError(f"label {unfit[0]!r} holds {SEPARATOR!r}, which separates labels in a manifest")
    return youtube_row(source, line, SEPARATOR.join(labels), split, video, (start, end), PREFIXES)


DATASET = Dataset(rows, lists=(r".*_segments\.csv",), multi_label=True)
