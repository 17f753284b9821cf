"""Which clips a training run uses, and whether the store is fit for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from avpt.errors import StoreError, listed
from avpt.machine.set_aside import hashes, set_aside
from avpt.store.store import SplitIndex, Store
from avpt.types import IN_WORDS, Modality, Split

log = logging.getLogger(__name__)


def training_splits(
    store: Store,
    modalities: Sequence[Modality],
    val_fraction: float,
    purpose: str = "choose the best epoch (--val-fraction)",
) -> dict[Split, SplitIndex]:
    """The clips to train on, to validate on, and, if there are any, to test on.

    `purpose` says in words what the validation clips are for.

    Raises:
        StoreError: a split, a class or a modality is missing where training needs it.
    """
    splits = {split: index for split, index in store.indices.items() if len(index)}
    if "train" not in splits:
        raise StoreError(f"{store.path} has no training clips; give rows of the manifest the split `train`")
    for split, index in splits.items():
        require_modalities(store, split, index, modalities)
    classes = {split: _classes(index.labels) for split, index in splits.items()}
    if len(classes["train"]) < 2:
        raise StoreError(f"{store.path} has training clips of one class only; a classifier needs two or more")
    for split in classes.keys() - {"train"}:
        if unseen := sorted(classes[split] - classes["train"]):
            raise StoreError(
                f"{store.path}: {split} has {listed([store.classes[i] for i in unseen])}, of which train has no clip; "
                "add training clips of that class or take it out of the manifest"
            )
    if "val" not in splits:
        splits["train"], splits["val"] = carve(splits["train"], val_fraction)
        log.warning(
            "%s has no val split: %d of %d training clips are set aside to %s%s",
            store.path,
            len(splits["val"]),
            len(splits["val"]) + len(splits["train"]),
            purpose,
            "; clips of one recording stay together" if splits["train"].sources else "",
        )
        if lost := sorted(classes["train"] - _classes(splits["val"].labels)):
            names = listed([store.classes[i] for i in lost])
            log.warning("none of these clips is of %s: that val split can't tell how well they are learnt", names)
    return splits


def carve(train: SplitIndex, fraction: float) -> tuple[SplitIndex, SplitIndex]:
    """Divide the training split into (train, val): val takes the lowest hashes of clip ids, class by class.

    The result is the same in every command and for every seed. Each class gives its share as nearly as whole clips
    allow, and keeps at least one clip for training. A multi-label clip counts for the rarest of its labels. Segments of
    one source stay together: the hash of its name decides.
    """
    held = set_aside(_strata(train.labels), hashes(_sources(train)), fraction)
    if not len(held):
        raise StoreError(
            "the store has no val split and too few training clips to set some aside"
            + (", as clips of one recording stay together; " if train.sources else "; ")
            + "add clips, or give rows of the manifest the split `val`"
        )
    return train.take(np.setdiff1d(np.arange(len(train)), held)), train.take(held)


def _sources(index: SplitIndex) -> Iterator[bytes]:
    """What each clip was cut from: its source, or itself."""
    if not index.sources:
        return (clip_id.encode() for clip_id in index.ids)
    pairs = zip(index.sources, index.ids, strict=True)
    return (b"source\0" + source.encode() if source else clip_id.encode() for source, clip_id in pairs)


def _strata(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(clips,) the class that each clip counts for: the rarest of several, the first of equally rare ones.

    Memory is proportional to the labels that are set, not to clips times classes.
    """
    if labels.ndim == 1:
        return labels
    rows, columns = np.nonzero(labels)
    occurs = np.bincount(columns, minlength=labels.shape[1])
    first = np.flatnonzero(np.diff(rows, prepend=-1))  # position of the first label of each row that has one
    rarest = np.minimum.reduceat(occurs[columns] * labels.shape[1] + columns, first) if len(first) else first
    strata = np.zeros(len(labels), np.int64)
    strata[rows[first]] = rarest % labels.shape[1]
    return strata


def balancing_weights(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(clips,) float64 weights with which every class is drawn equally often.

    A multi-label clip counts for the rarest of its labels.
    """
    strata = _strata(labels)
    weights: np.ndarray[Any, Any] = 1.0 / np.bincount(strata)[strata]
    return weights


def _classes(labels: np.ndarray[Any, Any]) -> set[int]:
    present = np.unique(labels) if labels.ndim == 1 else np.flatnonzero(labels.any(axis=0))
    return {int(index) for index in present}


def require_modalities(store: Store, split: Split, index: SplitIndex, modalities: Sequence[Modality]) -> None:
    """Check that every clip of a split has all of some modalities.

    Raises:
        StoreError: some lack one; the message names them.
    """
    for modality in modalities:
        lacking, what = index.lacking(modality), IN_WORDS[modality]
        if not len(lacking):
            continue
        if len(lacking) == len(index):
            raise StoreError(f"{store.path}: no clip of {split} has {what}; this command needs {modality} input")
        raise StoreError(
            f"{store.path}: {len(lacking)} of {len(index)} clips of {split} have no {what} "
            f"({listed([index.ids[i] for i in lacking])}); make the store again with `avpt preprocess --require "
            f"{'both' if len(modalities) > 1 else modality}`, which leaves such clips out"
        )
