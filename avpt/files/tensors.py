"""Clip ids as tensors, and what the tensors of each kind of artifact must be: types, shapes, values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from avpt.types import HELD_OUT, MODALITIES

if TYPE_CHECKING:
    from torch import Tensor

    from avpt.files.artifacts import Kind

Shapes = Mapping[str, tuple[str, list[int]]]  # name -> type as safetensors calls it, and shape

IDS = {"id_bytes": ("U8", ("bytes",)), "id_offsets": ("I64", ("clips + 1",))}
# the tensors that an artifact of each kind must have; models are checked against their spec instead
NEEDED: dict[Kind, dict[str, tuple[str, tuple[str, ...]]]] = {
    "dynamics": {**IDS, "probability": ("F32", ("epochs", "clips")), "correct": ("BOOL", ("epochs", "clips"))},
    "confidence": {**IDS, **{f"{m}_confidence": ("F32", ("clips",)) for m in MODALITIES}},
    "mask": {**IDS, **{f"{m}_ratio": ("F32", ("clips",)) for m in MODALITIES}},
}
ROUNDING = 1e-4  # by which rounding may lift a share above 1
FLOATS = ("F16", "BF16", "F32", "F64")


def pack_ids(ids: Sequence[str], prefix: str = "") -> dict[str, Tensor]:
    """Clip ids as two tensors: UTF-8 back to back (bytes,) uint8, and offsets (N + 1,) int64."""
    import numpy as np
    import torch

    encoded = [clip_id.encode() for clip_id in ids]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    flat = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return {f"{prefix}id_bytes": torch.from_numpy(flat), f"{prefix}id_offsets": torch.from_numpy(offsets)}


def unpack_ids(tensors: Mapping[str, Tensor], prefix: str = "") -> list[str]:
    """The inverse of `pack_ids`."""
    flat = tensors[f"{prefix}id_bytes"].numpy().tobytes()
    offsets = tensors[f"{prefix}id_offsets"].tolist()
    return [flat[start:stop].decode() for start, stop in pairwise(offsets)]


def find_wrong_shape(kind: Kind, shapes: Shapes) -> str:
    """What is wrong with the types and shapes of an artifact's tensors; empty where nothing is."""
    if kind == "predictions":
        return next(filter(None, (_split_misfits(split, shapes) for split in HELD_OUT)), "")
    sizes: dict[str, int] = {}
    for name, (dtype, dimensions) in NEEDED.get(kind, {}).items():
        if wrong := _misfit(name, shapes, (dtype,), dimensions, sizes):
            return wrong
    return _edges(sizes)


def _split_misfits(split: str, shapes: Shapes) -> str:
    if not any(name.startswith(f"{split}_") for name in shapes):
        return ""
    sizes: dict[str, int] = {}
    for name, (dtype, dimensions) in IDS.items():
        if wrong := _misfit(f"{split}_{name}", shapes, (dtype,), dimensions, sizes):
            return wrong
    for name in ("logits", "audio_logits", "visual_logits"):
        needed = name == "logits" or f"{split}_{name}" in shapes
        if needed and (wrong := _misfit(f"{split}_{name}", shapes, FLOATS, ("clips", "classes"), sizes)):
            return wrong
    labels = f"{split}_labels"
    several = len(shapes.get(labels, ("", []))[1]) > 1
    if several:
        return _misfit(labels, shapes, (*FLOATS, "U8"), ("clips", "classes"), sizes) or _edges(sizes)
    return _misfit(labels, shapes, ("I64",), ("clips",), sizes) or _edges(sizes)


def _misfit(name: str, shapes: Shapes, dtypes: Sequence[str], dimensions: Sequence[str], sizes: dict[str, int]) -> str:
    """What is wrong with one tensor, going by the `sizes` of those before it, to which its own are added."""
    if name not in shapes:
        return f"{name} is missing"
    dtype, shape = shapes[name]
    if dtype not in dtypes:
        return f"{name} is {dtype}, not {dtypes[0]}"
    wanted = " x ".join(str(sizes.get(one, one)) for one in dimensions)
    if len(shape) != len(dimensions) or any(
        sizes.setdefault(one, size) != size for one, size in zip(dimensions, shape, strict=True)
    ):
        return f"{name} is {' x '.join(map(str, shape)) or 'a number'}, not {wanted}"
    return ""


def _edges(sizes: Mapping[str, int]) -> str:
    clips, edges = sizes.get("clips", 0), sizes.get("clips + 1", 1)
    return "" if edges == clips + 1 else f"id_offsets is {edges}, not {clips + 1}"


def find_wrong_value(kind: Kind, tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the values of tensors in which `find_wrong_shape` found nothing; empty where nothing is."""
    if kind == "predictions":
        for split in (split for split in HELD_OUT if f"{split}_logits" in tensors):
            labels, classes = tensors[f"{split}_labels"], tensors[f"{split}_logits"].shape[1]
            if labels.ndim == 1 and not bool(((labels >= 0) & (labels < classes)).all()):
                return f"{split}_labels names classes beyond the {classes} of the logits"
            if wrong := _wrong_ids(tensors, f"{split}_"):
                return wrong
        return ""
    for name, (dtype, _) in NEEDED.get(kind, {}).items():
        if dtype == "F32" and not bool(((tensors[name] >= 0) & (tensors[name] <= 1 + ROUNDING)).all()):  # nor NaN
            return f"{name} is not from 0 to 1 everywhere"
    return _wrong_ids(tensors, "") if kind in NEEDED else ""


def _wrong_ids(tensors: Mapping[str, Tensor], prefix: str) -> str:
    offsets, size = tensors[f"{prefix}id_offsets"], len(tensors[f"{prefix}id_bytes"])
    if not (offsets[0] == 0 and offsets[-1] == size and bool((offsets[1:] >= offsets[:-1]).all())):
        return f"{prefix}id_offsets does not lead from 0 to the {size} bytes of the ids"
    try:
        ids = unpack_ids(tensors, prefix)
    except UnicodeDecodeError:
        return f"{prefix}id_bytes is not UTF-8"
    return "" if len(set(ids)) == len(ids) else f"{prefix}id_bytes has an id twice"
