"""`avpt score-confidence`: the training dynamics of both modalities become a confidence per clip."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpt.confidence.recorded_runs import check_comparable, read_recorded
from avpt.files import artifacts
from avpt.files.artifacts import Header
from avpt.files.locks import claim
from avpt.files.outputs import atomic, sha256, write_text
from avpt.files.reuse import check_ours, must_write
from avpt.machine.light_imports import announce_torch
from avpt.options import FinetuneConfig, ScoreConfig
from avpt.text import for_sheet, format_count
from avpt.types import MODALITIES, Modality, Report, Table

if TYPE_CHECKING:
    from torch import Tensor

    from avpt.confidence.files import Dynamics

STATISTICS = ("confidence", "variability", "correctness", "forgetting")


def run(config: ScoreConfig) -> Report:
    """Do nothing where the confidences are already there; torch is loaded only when there is work."""
    files = {modality: artifacts.run_file(getattr(config, modality), "dynamics.safetensors") for modality in MODALITIES}
    inputs: dict[str, str] = {modality: sha256(file) for modality, file in files.items()}
    header = Header(kind="confidence", config=config.record(), inputs=inputs)
    if config.out is None:
        return score(config, header)
    older = config.defaults() | config.patches  # a file that an older avpt wrote names none, and fits any
    with claim(config.out):
        reused = artifacts.reuse(config.out, header, older, config.overwrite)
        if reused is None or any((config.csv, config.plot, config.manifest, config.export)):
            return score(config, header, reused)
    return Report(reused.metrics, (config.out,))


def score(config: ScoreConfig, header: Header, reused: Header | None = None) -> Report:
    """Average each clip's dynamics over epochs, join both modalities by clip id, show what masking would do."""
    runs = {modality: read_recorded(getattr(config, modality), modality) for modality in MODALITIES}
    check_comparable(runs, FinetuneConfig.defaults(), config.skip_epochs)  # before torch is loaded
    announce_torch()
    from avpt.confidence.files import join_ids, read_dynamics
    from avpt.confidence.formulas import statistics

    dynamics = {modality: read_dynamics(getattr(config, modality), modality) for modality in MODALITIES}
    ids = join_ids(dynamics, skip=config.missing == "skip")
    columns: dict[str, Tensor] = {}
    for modality, recorded in dynamics.items():
        values = statistics(*recorded.of(ids, config.skip_epochs))
        columns |= {f"{modality}_{name}": column for name, column in values.items()}
    summary = summarise(columns)
    if config.out is not None and reused is None:
        artifacts.save(config.out, replace(header, metrics=summary), columns | artifacts.pack_ids(ids))
    if config.csv is not None:
        write_csv(config.csv, ids, columns, config.overwrite)
    tables = [statistics_table(columns)]
    others = (config.csv, config.plot, config.manifest, config.export)
    if config.out is not None or not any(others):  # what is written besides has no patches
        tables.append(preview_table(columns, dynamics, config))
    if config.plot is not None:
        draw(config.plot, columns, config.overwrite)
    if config.manifest is not None:
        from avpt.commands._selected_clips import write_selection

        selected, table = write_selection(config, dynamics, ids, columns, header.inputs)
        summary, tables = summary | selected, [*tables, table]
    if config.export is not None:
        from avpt.commands._exported_dynamics import write_export

        write_export(config, dynamics, ids)
    further = [path for path in (config.plot, config.manifest, config.export_to) if path is not None]
    return Report(summary, (config.out,) if config.out else tuple(further), tables)


def summarise(columns: dict[str, Tensor]) -> dict[str, Any]:
    """Count, mean of every statistic, and the share of clips where each modality is the surer one."""
    audio, visual = columns["audio_confidence"], columns["visual_confidence"]
    means = {name: float(column.double().mean()) for name, column in columns.items()}
    shares = {
        "audio_dominates": float((audio > visual).double().mean()),
        "visual_dominates": float((visual > audio).double().mean()),
    }
    return {"clips": len(audio), **means, **shares}


def write_csv(path: Path, ids: Sequence[str], columns: dict[str, Tensor], overwrite: bool) -> None:
    """Write one row per clip.

    Raises:
        OutputError: the path holds another file.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", *columns])
    for clip_id, *values in zip(ids, *(column.tolist() for column in columns.values()), strict=True):
        writer.writerow([for_sheet(clip_id), *(f"{value:.9g}" for value in values)])
    content = text.getvalue()
    with claim(path):
        existing = check_ours(path, lambda earlier: earlier.startswith(b"id,audio_confidence,"), option="--csv")
        if must_write(path, content.encode(), existing, "holds other statistics", option="--csv", overwrite=overwrite):
            write_text(path, content)


def draw(path: Path, columns: dict[str, Tensor], overwrite: bool) -> None:
    """Draw a data map for each modality.

    Raises:
        OutputError: the path holds another file.
    """
    from avpt.figures.data_map import draw_data_map
    from avpt.figures.style import MARK, render

    values = {name: column.numpy() for name, column in columns.items()}
    content = render(draw_data_map(values), path.suffix.lower().removeprefix("."))
    with claim(path):
        existing = check_ours(path, lambda there: MARK in there, option="--plot")
        if must_write(path, content, existing, "is another figure", option="--plot", overwrite=overwrite):
            with atomic(path) as beside:
                beside.write_bytes(content)


def statistics_table(columns: dict[str, Tensor]) -> Table:
    """The mean of each statistic over the clips."""
    rows = []
    for modality in MODALITIES:
        other = "visual" if modality == "audio" else "audio"
        surer = columns[f"{modality}_confidence"] > columns[f"{other}_confidence"]
        means = (f"{columns[f'{modality}_{name}'].double().mean():.3f}" for name in STATISTICS)
        rows.append((modality, *means, f"{surer.double().mean():.1%}"))
    count = len(columns["audio_confidence"])
    return Table(
        f"confidence of {format_count(count, 'training clip')}, means", ("", *STATISTICS, "is the surer one"), rows
    )


def preview_table(columns: dict[str, Tensor], dynamics: dict[Modality, Dynamics], config: ScoreConfig) -> Table:
    """What `fuse-train` would mask with the same mask options."""
    from avpt.confidence.formulas import mask_ratios
    from avpt.loading.dataset import grid
    from avpt.loading.masking import count_masked, count_patches

    confidence: dict[Modality, Tensor] = {modality: columns[f"{modality}_confidence"] for modality in MODALITIES}
    ratios = mask_ratios(confidence, **config.ratio_options)
    rows = []
    for modality in MODALITIES:
        plane = grid(dynamics[modality].input, modality)
        ratio = ratios[modality]
        some = ratio > 0
        floored = some & (count_masked(modality, ratio, plane, config.patch[modality]) == 0)
        patches = count_patches(modality, plane, config.patch[modality], warn=False)
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
