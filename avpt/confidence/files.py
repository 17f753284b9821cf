"""Dynamics, confidence and mask ratios as files: read with checks, compared with one another, and written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from avpt.confidence.recorded_runs import read_recorded
from avpt.errors import ArtifactError, ConfigError, listed
from avpt.files import artifacts
from avpt.files.outputs import sha256
from avpt.files.records import InputSpec
from avpt.text import format_count
from avpt.types import MODALITIES, Modality

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dynamics:
    """What one stage-1 run recorded."""

    path: Path  # of the run
    ids: list[str]
    probability: Tensor  # (epochs, clips) float32, of the true class
    correct: Tensor  # (epochs, clips) bool
    input: InputSpec  # the run's input pipeline
    header: artifacts.Header

    def of(self, ids: Sequence[str], skip_epochs: int) -> tuple[Tensor, Tensor]:
        """Probability and correctness of some clips, each (epochs, clips), without the first epochs.

        Raises:
            ConfigError: that would leave no epoch.
        """
        if skip_epochs >= len(self.probability):
            raise ConfigError(
                f"--skip-epochs is {skip_epochs}; {self.path} has {format_count(len(self.probability), 'epoch')}"
            )
        position = {clip_id: i for i, clip_id in enumerate(self.ids)}
        columns = torch.tensor([position[clip_id] for clip_id in ids])
        return self.probability[skip_epochs:, columns], self.correct[skip_epochs:, columns]


def read_dynamics(path: Path, modality: Modality) -> Dynamics:
    """Read the dynamics of a finished stage-1 run.

    Raises:
        ArtifactError: the run is not finished, or is one on the other modality.
    """
    recorded = read_recorded(path, modality)
    tensors = artifacts.load(artifacts.run_file(path, "dynamics.safetensors"), "dynamics").tensors
    ids, probability, correct = artifacts.unpack_ids(tensors), tensors["probability"], tensors["correct"]
    return Dynamics(path, ids, probability, correct, recorded.spec.input, recorded.header)


def check_scored_from(path: Path, runs: dict[Modality, Path]) -> None:
    """Check that a confidence artifact was scored from the runs whose encoders it is to guide.

    An encoder that belongs to no stage-1 run, as `init` writes it, has no dynamics: then a warning is logged.

    Raises:
        ArtifactError: it was scored from another run, or the run has gone on since.
    """
    header, _ = artifacts.read_header(path)
    for modality, run in runs.items():
        dynamics = (run if run.is_dir() else run.parent) / "dynamics.safetensors"
        belongs = run.is_dir() or run.name in ("model.safetensors", "last.safetensors")
        if not belongs or not dynamics.is_file():
            message = "whether %s was scored from --%s %s can't be checked: there are no dynamics beside it"
            log.warning(message, path, modality, run)
        elif header.inputs.get(modality) != sha256(dynamics):
            raise ArtifactError(
                f"{path} was not scored from --{modality} {run} as it is now; "
                f"score it from the runs given, with `avpt score-confidence`"
            )


def join_ids(dynamics: dict[Modality, Dynamics], skip: bool) -> list[str]:
    """List the clip ids that both runs have, in the audio run's order.

    Raises:
        ArtifactError: they share no clip, or one lacks clips and `skip` is off.
    """
    ids = {modality: set(recorded.ids) for modality, recorded in dynamics.items()}
    both = [clip_id for clip_id in dynamics["audio"].ids if clip_id in ids["visual"]]
    if not both:
        paths = " and ".join(str(recorded.path) for recorded in dynamics.values())
        raise ArtifactError(f"{paths} have no clip in common; train both on one store")
    unshared = {"visual": sorted(ids["audio"] - ids["visual"]), "audio": sorted(ids["visual"] - ids["audio"])}
    lacking = [f"{len(missing)} in the {side} run ({listed(missing)})" for side, missing in unshared.items() if missing]
    if lacking and not skip:
        raise ArtifactError(f"clips are missing: {', '.join(lacking)}; --missing skip leaves them out")
    if lacking:
        log.warning("left out because they are missing: %s", ", ".join(lacking))
    return both


def read_confidence(path: Path, ids: Sequence[str]) -> tuple[dict[Modality, Tensor], Tensor]:
    """Read the mean confidence of the training clips.

    Returns:
        The confidence per modality, (known,), and the positions in `ids` of the clips that have one, (known,): all
        clips but those that `score-confidence --missing skip` left out.

    Raises:
        ArtifactError: the file is no confidence artifact, or belongs to other clips.
    """
    artifact = artifacts.load(path, "confidence")
    position = {clip_id: i for i, clip_id in enumerate(artifacts.unpack_ids(artifact.tensors))}
    lacking = [clip_id for clip_id in ids if clip_id not in position]
    skipped = artifact.header.config.get("missing") == "skip" and position.keys() <= set(ids)
    if lacking and not skipped:
        raise ArtifactError(
            f"{path} has no confidence for {len(lacking)} of {len(ids)} training clips ({listed(lacking)}); "
            "score it from stage-1 runs on this store, with the same --val-fraction"
        )
    if lacking:
        log.warning("%d of %d training clips have no confidence and are not masked", len(lacking), len(ids))
    known = torch.tensor([i for i, clip_id in enumerate(ids) if clip_id in position])
    order = torch.tensor([position[ids[i]] for i in known.tolist()])
    return {m: artifact.tensors[f"{m}_confidence"][order] for m in MODALITIES}, known


def save_ratios(path: Path, header: artifacts.Header, ratios: dict[Modality, Tensor], ids: Sequence[str]) -> None:
    """Write `mask.safetensors`, the ratio of every training clip; `header` is that of the run's model."""
    tensors = {f"{modality}_ratio": values.float() for modality, values in ratios.items()}
    own = artifacts.Header(kind="mask", config=header.config, inputs=header.inputs, classes=header.classes)
    artifacts.save(path, own, tensors | artifacts.pack_ids(ids))
