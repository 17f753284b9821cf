"""ESC-50: 2,000 sounds of 5 seconds in 50 classes and 5 folds (Piczak, 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from avpt.datasets.rows import BadLineError, Dataset, Line, Row, Source

COLUMNS = ("filename", "fold", "category", "src_file")


def rows(source: Source) -> Iterator[Row]:
    """Rows of `esc50.csv`; one fold is the test split. The hash groups by source recording."""
    for path in source.lists:
        yield from source.parse(path, partial(_row, source), COLUMNS)


def _row(source: Source, line: Line) -> Row:
    file, fold, label, recording = line.cells
    if not (file and label and recording and fold in ("1", "2", "3", "4", "5")):
        raise BadLineError("has an empty cell, or a fold that is not one of 1 to 5")
    name = file.rpartition(".")[0] or file
    return Row(name, label, "test" if fold == str(source.test_fold) else "train", recording, (name,), place=line[:2])


DATASET = Dataset(rows, lists=(r"esc-?50\.csv",), folds=5)
