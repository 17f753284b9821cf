"""Choosing the split of clips whose data set does not say it."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from avpt.datasets.rows import Row
from avpt.machine.set_aside import hashes, set_aside
from avpt.types import HELD_OUT, Split

MOST_EXCHANGED = 100  # groups that change folds: of more, the folds are even already
NO_GAIN = 1e-9  # of the sum, which rounding may show where there is none


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


def divide_into_folds(rows: Sequence[Row], folds: int) -> dict[str, int]:
    """The fold of each row, from 0, by id: whole groups, and of each class about the same number in every fold.

    What is kept low is the sum of the squared shares that folds have of the classes. The largest groups come first,
    equally large ones by their hash, and each goes where it adds least to the sum, which is to an empty fold as long
    as there is one; a few groups then change places as long as that lowers it. The order of rows does not matter.
    """
    classes_of: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = classes_of.setdefault(row.group, {})
        counts[row.label] = counts.get(row.label, 0) + 1
    totals = Counter(row.label for row in rows)
    size_of = {group: sum(counts.values()) for group, counts in classes_of.items()}
    order = sorted(classes_of, key=lambda group: (-size_of[group], _hashed(group)))
    shares = [sorted((label, count / totals[label]) for label, count in classes_of[group].items()) for group in order]
    held: list[dict[str, float]] = [{} for _ in range(folds)]  # shares of the classes
    sizes, fold_of = [0] * folds, []
    for group, share in zip(order, shares, strict=True):
        prices = [sum(has.get(label, 0.0) * part for label, part in share) for has in held]
        best = min(range(folds), key=lambda fold, prices=prices: (prices[fold], sizes[fold]))  # type: ignore[misc]
        for label, part in share:
            held[best][label] = held[best].get(label, 0.0) + part
        sizes[best] += size_of[group]
        fold_of.append(best)
    if len(order) <= MOST_EXCHANGED:
        _exchange(list(map(dict, shares)), fold_of, folds)
    numbers = dict(zip(order, fold_of, strict=True))
    return {row.id: numbers[row.group] for row in rows}


def _exchange(shares: Sequence[Mapping[str, float]], fold_of: list[int], folds: int) -> None:
    """Let groups change folds, and pairs of them change places, as long as that lowers the sum of squares.

    Args:
        shares: what each group has of the classes.
        fold_of: the fold of each group, which is changed.
        folds: how many there are.
    """
    alike = [
        [math.fsum(part * other.get(label, 0.0) for label, part in one.items()) for other in shares] for one in shares
    ]
    groups = range(len(shares))
    with_fold = [[math.fsum(row[j] for j in groups if fold_of[j] == fold) for fold in range(folds)] for row in alike]

    def gain(group: int, fold: int) -> float:
        """By how much half of the sum falls where a group moves to another fold."""
        return with_fold[group][fold_of[group]] - alike[group][group] - with_fold[group][fold]

    def move(group: int, fold: int) -> None:
        for row, likeness in zip(with_fold, alike[group], strict=True):
            row[fold_of[group]] -= likeness
            row[fold] += likeness
        fold_of[group] = fold

    changed = True
    while changed:
        changed = False
        for group in groups:
            others = [fold for fold in range(folds) if fold != fold_of[group]]
            best = max(others, key=lambda fold, group=group: gain(group, fold))  # type: ignore[misc]
            if gain(group, best) > NO_GAIN:
                move(group, best)
                changed = True
        for one, other in combinations(groups, 2):
            here, there = fold_of[one], fold_of[other]
            if here != there and gain(one, there) + gain(other, here) + 2 * alike[one][other] > NO_GAIN:
                move(one, there)
                move(other, here)
                changed = True


def split_by_hash(row: Row, test_share: float, val_fraction: float) -> Split:
    """The split by the list, or else by the hash, which may also move rows from the list's train to val."""
    if row.split == "train" and val_fraction:
        return hash_split(row.group, 0.0, val_fraction)
    return row.split or hash_split(row.group, test_share, val_fraction)


def hash_split(group: str, test_fraction: float, val_fraction: float) -> Split:
    """A split that depends only on the group's name: it stays the same when clips are added."""
    share = int.from_bytes(_hashed(group)) / 2**256
    return "test" if share < test_fraction else "val" if share < test_fraction + val_fraction else "train"


def _hashed(group: str) -> bytes:
    return hashlib.sha256(os.fsencode(group)).digest()
