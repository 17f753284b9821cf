"""`avpt score-confidence`: the training dynamics of both modalities become a confidence per clip."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avpt import artifacts
from avpt.artifacts import Header
from avpt.confidence import mask_ratios, statistics
from avpt.config import ScoreConfig
from avpt.data.dataset import InputSpec, grid
from avpt.data.masking import patches_to_mask
from avpt.data.transforms import num_patches
from avpt.errors import ArtifactError, ConfigError
from avpt.outputs import claim, sha256, write_text
from avpt.types import MODALITIES, Modality, Report, Table

STATISTICS = ("confidence", "variability", "correctness")


@dataclass(frozen=True)
class Dynamics:
    """What one stage-1 run recorded."""

    ids: list[str]
    probability: Tensor  # (epochs, clips)
    correct: Tensor  # (epochs, clips)
    input: InputSpec
    sha256: str


def run(config: ScoreConfig) -> Report:
    """Average each clip's dynamics over epochs, join both modalities by clip id, show what masking would do."""
    dynamics = {modality: read_dynamics(getattr(config, modality), modality) for modality in MODALITIES}
    for modality, recorded in dynamics.items():
        if config.skip_epochs >= len(recorded.probability):
            raise ConfigError(
                f"--skip-epochs is {config.skip_epochs}; the {modality} run has {len(recorded.probability)} epochs"
            )
    ids = join(dynamics["audio"].ids, dynamics["visual"].ids, config)
    columns: dict[str, Tensor] = {}
    for modality, recorded in dynamics.items():
        position = {clip_id: i for i, clip_id in enumerate(recorded.ids)}
        keep = torch.tensor([position[clip_id] for clip_id in ids])
        rows = slice(config.skip_epochs, None)
        values = statistics(recorded.probability[rows, keep], recorded.correct[rows, keep])
        columns |= {f"{modality}_{name}": column for name, column in values.items()}

    summary = summarize(columns)
    header = Header(
        kind="confidence",
        config=config.record(),
        inputs={modality: recorded.sha256 for modality, recorded in dynamics.items()},
        metrics=summary,
    )
    if config.out is not None:
        with claim(config.out):
            if artifacts.reuse(config.out, header, config.overwrite) is None:
                artifacts.save(config.out, header, columns | artifacts.pack_ids(ids))
    if config.csv is not None:
        write_csv(config.csv, ids, columns)
    tables = [statistics_table(columns), preview_table(columns, dynamics, config)]
    return Report(summary, (config.out,) if config.out else (), tables)


def read_dynamics(path: Path, modality: Modality) -> Dynamics:
    """The dynamics of a finished stage-1 run of the modality."""
    file = artifacts.run_file(path, "dynamics.safetensors")
    artifact = artifacts.load(file, "dynamics")
    found = artifact.header.spec["modality"]
    if found != modality:
        raise ArtifactError(f"{path} is a run on {found}; --{modality} needs a stage-1 run on {modality}")
    tensors = artifact.tensors
    ids = artifacts.unpack_ids(tensors)
    return Dynamics(
        ids,
        tensors["probability"],
        tensors["correct"],
        InputSpec(**artifact.header.spec["input"]),
        sha256(file),
    )


def join(audio: Sequence[str], visual: Sequence[str], config: ScoreConfig) -> list[str]:
    """Clip ids that both runs have, in the audio run's order.

    Raises:
        ArtifactError: one side lacks clips and --missing is error, or they share none.
    """
    only = {"visual": sorted(set(audio) - set(visual)), "audio": sorted(set(visual) - set(audio))}
    both = [clip_id for clip_id in audio if clip_id in set(visual)] if only["visual"] else list(audio)
    if not both:
        raise ArtifactError(f"{config.audio} and {config.visual} have no clip in common; train both on one store")
    lacking = [f"{len(ids)} in the {side} run ({_names(ids)})" for side, ids in only.items() if ids]
    if lacking and config.missing == "error":
        raise ArtifactError(f"clips are missing: {', '.join(lacking)}; --missing skip leaves them out")
    return both


def summarize(columns: dict[str, Tensor]) -> dict[str, Any]:
    """Count, mean of every statistic, and the share of clips where each modality is the surer one."""
    audio, visual = columns["audio_confidence"], columns["visual_confidence"]
    means = {name: float(column.double().mean()) for name, column in columns.items()}
    shares = {
        "audio_dominates": float((audio > visual).double().mean()),
        "visual_dominates": float((visual > audio).double().mean()),
    }
    return {"clips": len(audio), **means, **shares}


def write_csv(path: Path, ids: Sequence[str], columns: dict[str, Tensor]) -> None:
    """One row a clip."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", *columns])
    for clip_id, *values in zip(ids, *(column.tolist() for column in columns.values()), strict=True):
        writer.writerow([clip_id, *(f"{value:.9g}" for value in values)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def statistics_table(columns: dict[str, Tensor]) -> Table:
    """Means over the clips."""
    rows = []
    for modality in MODALITIES:
        other = "visual" if modality == "audio" else "audio"
        surer = columns[f"{modality}_confidence"] > columns[f"{other}_confidence"]
        means = (f"{columns[f'{modality}_{name}'].double().mean():.3f}" for name in STATISTICS)
        rows.append((modality, *means, f"{surer.double().mean():.1%}"))
    count = len(columns["audio_confidence"])
    return Table(f"confidence of {count} training clips, means", ("", *STATISTICS, "is the surer one"), rows)


def preview_table(columns: dict[str, Tensor], dynamics: dict[Modality, Dynamics], config: ScoreConfig) -> Table:
    """What `fuse-train` would mask with the same mask options."""
    ratios = mask_ratios(
        {modality: columns[f"{modality}_confidence"] for modality in MODALITIES},
        mask=config.mask,
        rule=config.mask_rule,
        ratio=config.ratio,
        eta=config.mask_eta,
        threshold=config.mask_threshold,
    )
    rows = []
    for modality in MODALITIES:
        patches = num_patches(*grid(dynamics[modality].input, modality), config.patch[modality])
        ratio = ratios[modality]
        some = ratio > 0
        floored = some & (patches_to_mask(ratio, patches) == 0)
        rows.append(
            (
                modality,
                f"{int(some.sum())} ({some.double().mean():.1%})",
                f"{ratio[some].double().mean():.3f}" if some.any() else "-",
                f"{ratio.max():.3f}",
                str(patches),
                str(int(floored.sum())),
            )
        )
    return Table(
        f"what --mask {config.mask} would do, rule {config.mask_rule}",
        ("", "clips with a ratio", "mean of them", "highest", "patches", "floor to nothing"),
        rows,
    )


def _names(ids: Sequence[str], most: int = 5) -> str:
    return ", ".join(ids[:most]) + (", ..." if len(ids) > most else "")
