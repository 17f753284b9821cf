"""What the header of a model's file says; no torch needed, so that what can't be is refused before that is loaded."""

from __future__ import annotations

from pathlib import Path

from avpt.errors import ArtifactError
from avpt.files.artifacts import Header, Kind, model_file, own_header, read_header
from avpt.files.checking import RecordError, convert
from avpt.files.records import InputSpec
from avpt.types import MODALITIES, Modality

WITH_ENCODER: tuple[Kind, ...] = ("encoder", "classifier", "fused")
WITH_CLASSES: tuple[Kind, ...] = ("classifier", "fused")


def read_model(path: Path, *kinds: Kind) -> Header:
    """The header of an artifact, or of the best model of a run folder, which must be of one of some kinds.

    Raises:
        ArtifactError: missing, unfinished, not written by avpt, or of another kind.
    """
    header, _ = read_header(model_file(path))
    check_kind(path, header, *kinds)
    return header


def check_kind(path: Path, header: Header, *kinds: Kind) -> None:
    """Check that an artifact is of one of some kinds.

    Raises:
        ArtifactError: it is not.
    """
    if header.kind == "encoder" and "encoder" not in kinds:
        raise ArtifactError(f"{path} is an encoder without a classifier; train one with `avpt finetune-unimodal`")
    if header.kind not in kinds:
        raise ArtifactError(f"{path} is of kind {header.kind}; {' or '.join(kinds)} is needed here")


def check_has_encoder(path: Path) -> Header | None:
    """The header of what avpt wrote, which must hold an encoder; None of weights of others.

    Raises:
        ArtifactError: unfinished, or avpt wrote it and it holds no encoder.
    """
    header = own_header(model_file(path))
    if header is not None and header.kind != "export":  # whose weights are read like those of others
        check_kind(path, header, *WITH_ENCODER)
    return header


def architectures(header: Header) -> dict[Modality, str]:
    """The architecture of each encoder of a model; none where the spec is damaged, as whoever builds it will say."""
    named = MODALITIES if header.kind == "fused" else ("encoder",)
    try:
        found = {header.spec[name]["modality"]: str(header.spec[name]["arch"]) for name in named}
    except (KeyError, TypeError):
        return {}
    return found if len(found) == len(named) and found.keys() <= set(MODALITIES) else {}


def read_input(path: Path, header: Header) -> InputSpec:
    """The input pipeline that a model was trained with.

    Raises:
        ArtifactError: the spec has none, or one that no training could have used.
    """
    values = header.spec.get("input")
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} has no input pipeline: it is not trained yet; `avpt finetune-unimodal` does that")
    try:
        return convert(values, InputSpec)
    except RecordError as error:
        raise ArtifactError(f"{path} has a damaged input pipeline ({error}); make it again") from None
