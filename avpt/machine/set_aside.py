"""Choosing items to set aside: whole sources, the lowest hashes first, and a share of every class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from avpt.errors import listed
from avpt.text import format_count

if TYPE_CHECKING:
    import numpy as np


def hashes(names: Iterable[bytes]) -> np.ndarray[Any, Any]:
    """(items,) uint64, the same on every machine."""
    import numpy as np

    return np.fromiter((int.from_bytes(hashlib.sha256(name).digest()[:8]) for name in names), np.uint64)


def torn_groups(clips: Iterable[tuple[str, str]]) -> list[str]:
    """The groups that lie in more than one split, sorted, of clips as (group, split); one without a name is none."""
    splits: dict[str, set[str]] = {}
    for group, split in clips:
        if group:
            splits.setdefault(group, set()).add(split)
    return sorted(group for group, found in splits.items() if len(found) > 1)


def describe_torn(groups: list[str]) -> str:
    """Say in a line that groups lie in more than one split, and what that means."""
    are = "is" if len(groups) == 1 else "are"
    return (
        f"{format_count(len(groups), 'group')} of clips that belong together (a recording, a speaker) {are} in more "
        f"than one split ({listed(groups, 3)}): results may be too good, as clips to test on are like those learnt from"
    )


def set_aside(strata: np.ndarray[Any, Any], sources: np.ndarray[Any, Any], fraction: float) -> np.ndarray[Any, Any]:
    """Sorted positions of about `fraction` of the items, and of each stratum as nearly as whole sources allow.

    The choice does not depend on the order of the items. Every stratum keeps an item; where that leaves nothing to set
    aside the result is empty.

    Args:
        strata: (items,) int64, the class that each item counts under.
        sources: (items,) uint64, hashes of what each item was cut from; items of one source stay together.
        fraction: share of the items to set aside.
    """
    import numpy as np

    hashed, source = np.unique(sources, return_inverse=True)  # numbered by their hashes
    classes, stratum = np.unique(strata, return_inverse=True)
    parts, sizes = np.unique(stratum * len(hashed) + source, return_counts=True)  # a source's items of one stratum
    stratum_of, source_of = np.divmod(parts, len(hashed))
    by_source = np.argsort(source_of, kind="stable")
    first = np.searchsorted(source_of[by_source], np.arange(len(hashed) + 1))
    edges = np.searchsorted(stratum_of, np.arange(len(classes) + 1)).tolist()

    left = np.bincount(stratum, minlength=len(classes))
    lowest = source_of[edges[:-1]]
    wanted = _shares(left, lowest, fraction, max(1, round(fraction * len(strata))))
    lacking, taken = wanted.copy(), np.zeros(len(hashed), bool)
    if len(hashed) == len(strata):  # no source has two items
        rank = np.arange(len(strata)) - np.repeat(edges[:-1], left)
        taken[source_of[rank < wanted[stratum_of]]] = True
        if taken.any():
            return np.flatnonzero(taken[source])

    def items_of(number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        mine = by_source[first[number] : first[number + 1]]
        return stratum_of[mine], sizes[mine]

    def take(number: int) -> int:
        where, counts = items_of(number)
        lacking[where] -= counts
        left[where] -= counts
        taken[number] = True
        return int(counts.sum())

    total = 0
    for k in range(len(classes)):  # sources that fit into the share of each of their strata
        for number in source_of[edges[k] : edges[k + 1]].tolist():
            if lacking[k] <= 0:
                break
            where, counts = items_of(number)
            if not taken[number] and (counts <= lacking[where]).all() and (counts < left[where]).all():
                total += take(number)

    def may(number: int, most: float) -> bool:
        where, counts = items_of(number)
        return not taken[number] and bool((counts < left[where]).all()) and int(counts.sum()) < most

    # then those that bring the total nearer to its share, for the strata that lack most; a refused one stays refused
    waiting: list[Iterator[int]] = [iter(source_of[low:high].tolist()) for low, high in pairwise(edges)]
    open_strata = set(range(len(classes)))
    while total < wanted.sum() and open_strata:
        k = min(open_strata, key=lambda k: (-lacking[k], lowest[k]))
        most = 2 * (int(wanted.sum()) - total)
        number = next((number for number in waiting[k] if may(number, most)), None)
        if number is None:
            open_strata.discard(k)
        else:
            total += take(number)
    if not total:  # every source is too large: the smallest
        whole = np.bincount(source_of, sizes)
        number = next((number for number in np.argsort(whole, kind="stable").tolist() if may(number, np.inf)), None)
        if number is not None:
            take(number)
    return np.flatnonzero(taken[source])


def _shares(
    counts: np.ndarray[Any, Any], lowest: np.ndarray[Any, Any], fraction: float, total: int
) -> np.ndarray[Any, Any]:
    """How many of each stratum, which always keeps one; the largest remainders are rounded up, ties by low hash."""
    import numpy as np

    shares = fraction * counts
    wanted: np.ndarray[Any, Any] = np.minimum(shares.astype(np.int64), counts - 1)
    for k in np.lexsort((lowest, wanted - shares)).tolist():
        if wanted.sum() < total and wanted[k] < counts[k] - 1:
            wanted[k] += 1
    return wanted
