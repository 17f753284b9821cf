"""Choosing the split of clips whose data set does not say it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from avpt.datasets.rows import Row
from avpt.machine.set_aside import hashes, set_aside
from avpt.types import HELD_OUT, Split


def stratify(rows: Sequence[Row], test_share: float, val_fraction: float) -> dict[str, Split]:
    """The split of each row, by id: a share of every class is set aside, the lowest hashes first."""
    import numpy as np

    chosen: dict[str, Split] = {row.id: row.split for row in rows if row.split in HELD_OUT}

    def hold_out(split: Split, rows: Sequence[Row], share: float) -> None:
        if not share or not rows:
            return
        number = {label: k for k, label in enumerate(dict.fromkeys(row.label for row in rows))}
        strata = np.array([number[row.label] for row in rows])
        groups = hashes(os.fsencode(row.group) for row in rows)
        chosen.update((rows[i].id, split) for i in set_aside(strata, groups, share))

    hold_out("test", [row for row in rows if row.split is None], test_share)
    rest = [row for row in rows if row.split in (None, "train") and row.id not in chosen]
    hold_out("val", rest, val_fraction / (1 - test_share))
    train: Split = "train"
    return dict.fromkeys((row.id for row in rest), train) | chosen


def split_by_hash(row: Row, test_share: float, val_fraction: float) -> Split:
    """The split by the list, or else by the hash, which may also move rows from the list's train to val."""
    if row.split == "train" and val_fraction:
        return hash_split(row.group, 0.0, val_fraction)
    return row.split or hash_split(row.group, test_share, val_fraction)


def hash_split(group: str, test_fraction: float, val_fraction: float) -> Split:
    """A split that depends only on the group's name: it stays the same when clips are added."""
    share = int.from_bytes(hashlib.sha256(os.fsencode(group)).digest()) / 2**256
    return "test" if share < test_fraction else "val" if share < test_fraction + val_fraction else "train"
