"""A folder of clips for each class, perhaps inside a folder for each split."""

from __future__ import annotations

from collections.abc import Iterator

from avpt.datasets.rows import SPLIT_WORDS, Dataset, Row, Source
from avpt.errors import ManifestError


def rows(source: Source) -> Iterator[Row]:
    """A clip for every name in a class folder: its video, its audio or both, or a folder of its images.

    `train`, `val` and `test` (also `valid`, `validation`) are splits if there is nothing else beside them. The id is
    the path below the data set's folder, and its hash decides, class by class.
    """
    clips = sorted(key for key in source.media.names if "/" in key)
    tops = {key.partition("/")[0] for key in clips}
    named = {top for top in tops if top.lower() in SPLIT_WORDS}
    if len(named) > 1 and named != tops:
        raise ManifestError(
            f"{', '.join(sorted(named))} look like splits, but {', '.join(sorted(tops - named)[:3])} lies beside them; "
            "move it away, or the classes into one more folder"
        )
    for clip in clips:
        split, _, inside = clip.partition("/") if named == tops else ("", "", clip)
        label, _, name = inside.partition("/")
        if name:
            yield Row(clip, label, SPLIT_WORDS.get(split.lower()), clip, (clip,))


DATASET = Dataset(rows, key="path", stratified=True)
