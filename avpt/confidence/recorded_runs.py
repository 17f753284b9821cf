"""Whether the training dynamics of two runs can be joined, as the headers of their files say; no torch needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from avpt.errors import ArtifactError, ConfigError, listed
from avpt.files import artifacts
from avpt.files.artifacts import Header
from avpt.files.checking import RecordError, convert
from avpt.files.records import InputSpec
from avpt.files.tensors import find_wrong_shape
from avpt.text import format_count
from avpt.types import Modality

log = logging.getLogger(__name__)

SOFTENING = ("label_smoothing", "mixup")  # options that keep a model from becoming sure


@dataclass(frozen=True)
class DynamicsSpec:
    """What the header of a dynamics file says."""

    modality: Literal["audio", "visual", "joint"]
    input: InputSpec


@dataclass(frozen=True)
class RecordedRun:
    """A stage-1 run whose dynamics are there."""

    path: Path
    header: Header
    spec: DynamicsSpec
    epochs: int


def read_recorded(path: Path, modality: Modality) -> RecordedRun:
    """What the header of a finished stage-1 run's dynamics says.

    Raises:
        ArtifactError: the run is not finished, or is one on the other modality.
    """
    file = artifacts.run_file(path, "dynamics.safetensors")
    header, shapes = artifacts.read_header(file)
    if header.kind != "dynamics":
        raise ArtifactError(f"{file} is of kind {header.kind}; dynamics is needed here")
    if wrong := find_wrong_shape("dynamics", shapes):
        raise ArtifactError(f"{file} is damaged: {wrong}; make it again")
    try:
        spec = convert(header.spec, DynamicsSpec)
    except RecordError as error:
        raise ArtifactError(f"{file} has a damaged spec ({error}); train it again") from None
    if spec.modality != modality:
        raise ArtifactError(f"{path} is a run on {spec.modality}; --{modality} needs a stage-1 run on {modality}")
    _, (epochs, *_) = shapes["probability"]
    return RecordedRun(path, header, spec, epochs)


def check_comparable(runs: Mapping[Modality, RecordedRun], defaults: Mapping[str, Any], skip_epochs: int) -> None:
    """Check that the confidences of both runs mean the same; warn of what merely makes one run surer than the other.

    Args:
        runs: both.
        defaults: of the options, for those that a header lacks.
        skip_epochs: how many are left out.

    Raises:
        ConfigError: a run would have no epoch left.
        ArtifactError: the runs learnt different classes, or recorded their dynamics differently.
    """
    audio, visual = runs["audio"], runs["visual"]
    for run in (audio, visual):
        if skip_epochs >= run.epochs:
            raise ConfigError(f"--skip-epochs is {skip_epochs}; {run.path} has {format_count(run.epochs, 'epoch')}")
    if set(audio.header.classes) != set(visual.header.classes):
        unshared = sorted(set(audio.header.classes) ^ set(visual.header.classes))
        raise ArtifactError(
            f"{audio.path} and {visual.path} learnt different classes (only one knows {listed(unshared)}), so their "
            "confidences can't be compared; train both on one store"
        )
    several = {recorded.path: bool(recorded.header.spec.get("multi_label")) for recorded in (audio, visual)}
    if len(set(several.values())) > 1:
        one = next(path for path, multi_label in several.items() if not multi_label)
        raise ArtifactError(
            f"{audio.path} and {visual.path} can't be compared: only {one} has one label a clip; "
            "train both on one store"
        )
    options = [{**defaults, **recorded.header.config} for recorded in (audio, visual)]
    recordings = [config["dynamics"] for config in options]
    if recordings[0] != recordings[1]:
        raise ArtifactError(
            f"{audio.path} recorded with --dynamics {recordings[0]}, {visual.path} with --dynamics {recordings[1]}, "
            "so their confidences can't be compared; train both with the same"
        )
    if audio.header.inputs.get("store") != visual.header.inputs.get("store"):
        log.warning("%s and %s were trained on different stores; clips are joined by id", audio.path, visual.path)
    epochs = audio.epochs, visual.epochs
    if epochs[0] != epochs[1]:
        message = "%s recorded over %d epochs, %s over %d: a run is surer the longer it learns, so that epochs decide"
        log.warning(f"{message} which modality dominates", audio.path, epochs[0], visual.path, epochs[1])
    for name in SOFTENING:
        there, here = (config[name] for config in options)
        if there != here:
            message = "%s was trained with --%s %s, %s with %s, which makes one of them less sure than the other"
            log.warning(message, audio.path, name.replace("_", "-"), there or "none", visual.path, here or "none")
