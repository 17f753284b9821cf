"""CREMA-D: 7,442 clips of actors who say a sentence in one of six emotions (Cao et al., 2014)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from avpt.datasets.rows import Dataset, Line, Row, Source, exactly, one_of, split_of_name
from avpt.types import Split

EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
NAME = re.compile(rf"\d+_[A-Z]+_({'|'.join(EMOTIONS)})_[A-Z]+")  # actor, sentence, emotion, intensity


def rows(source: Source) -> Iterator[Row]:
    """Rows of lists with lines `1041_TIE_NEU_XX,NEU`, whose names say the split; without lists, of all media.

    The hash is that of each clip's own id, so that actors are in all splits; folds keep actors apart.
    """
    for path in source.lists:
        yield from source.parse(path, partial(_row, split_of_name(path)))
    for name in () if source.lists else sorted(source.media.names):
        if match := NAME.fullmatch(name):
            yield Row(name, EMOTIONS[match[1]], None, name, (name,))


def _row(split: Split, line: Line) -> Row:
    name, emotion = exactly(line, 2)
    return Row(name, one_of(emotion, EMOTIONS, "emotion"), split, name, (name,), place=line[:2])


DATASET = Dataset(rows, group=r"^\d+")  # the actor
