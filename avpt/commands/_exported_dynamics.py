"""Training dynamics and predictions in the formats of other tools, as a folder of files."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avpt.commands._selected_clips import find_store
from avpt.errors import ArtifactError, ConfigError, OutputError, listed
from avpt.files import artifacts
from avpt.files.locks import claim
from avpt.files.outputs import atomic
from avpt.options import ScoreConfig
from avpt.types import MODALITIES, Modality

if TYPE_CHECKING:
    from avpt.confidence.files import Dynamics

log = logging.getLogger(__name__)

OWNED = re.compile(
    rf"({'|'.join(MODALITIES)})(\.npz|/training_dynamics/dynamics_epoch_\d+\.jsonl)|(.*/)?\.[^/]*\.(tmp|lock)"
)


def write_export(config: ScoreConfig, dynamics: Mapping[Modality, Dynamics], ids: Sequence[str]) -> None:
    """Write the files of both modalities; those that are there with the same content stay.

    Raises:
        ConfigError: the clips have several labels each.
        OutputError: the folder holds something else.
    """
    assert config.export_to is not None
    for recorded in dynamics.values():
        if recorded.header.spec.get("multi_label"):
            raise ConfigError(
                f"--export {config.export} needs one label a clip; {recorded.path} was trained on clips with several"
            )
    files = cartography(config, dynamics, ids) if config.export == "cartography" else cleanlab(config)
    folder = config.export_to
    with claim(folder):
        stale = check_folder(folder, files, config.overwrite)
        for name in stale:
            (folder / name).unlink()
        for name, content in files.items():
            if name not in stale and (folder / name).exists():
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic(folder / name) as beside:
                beside.write_bytes(content)


def cartography(config: ScoreConfig, dynamics: Mapping[Modality, Dynamics], ids: Sequence[str]) -> dict[str, bytes]:
    """A file an epoch for each modality, by name; epochs are counted from 0, as that tool does.

    Raises:
        ArtifactError: the store has no label of a clip.
    """
    from avpt.confidence.exports import cartography_lines

    store, _ = find_store(config, dynamics)
    known = {
        clip_id: int(label)
        for index in store.indices.values()
        for clip_id, label in zip(index.ids, index.labels, strict=True)
    }
    if lacking := [clip_id for clip_id in ids if clip_id not in known]:
        raise ArtifactError(
            f"{store.path} lacks {len(lacking)} of the clips ({listed(lacking)}); train both runs on one store"
        )
    labels = [known[clip_id] for clip_id in ids]
    files = {}
    for modality, recorded in dynamics.items():
        for epoch, (probability, correct) in enumerate(zip(*recorded.of(ids, config.skip_epochs), strict=True)):
            text = cartography_lines(ids, probability, correct, labels, len(store.classes), epoch)
            files[f"{modality}/training_dynamics/dynamics_epoch_{epoch}.jsonl"] = text.encode()
    return files


def cleanlab(config: ScoreConfig) -> dict[str, bytes]:
    """A file for each modality, by name: what its best model predicts of the clips that it was not trained on."""
    from avpt.confidence.exports import cleanlab_arrays

    files = {}
    for modality in MODALITIES:
        path = artifacts.run_file(getattr(config, modality), "predictions.safetensors")
        predictions = artifacts.load(path, "predictions")
        files[f"{modality}.npz"] = cleanlab_arrays(predictions.tensors, predictions.header.classes)
    return files


def check_folder(folder: Path, files: Mapping[str, bytes], overwrite: bool) -> list[str]:
    """The files in a folder that are to go: another export's, where `overwrite` says so.

    Raises:
        OutputError: it holds files that avpt did not write; or, without `overwrite`, another export.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder; choose another --export-to")
    there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    if foreign := [name for name in there if not OWNED.fullmatch(name)]:
        raise OutputError(
            f"{folder} holds files that avpt did not write ({listed(foreign, 3)}); choose another --export-to"
        )
    there = [name for name in there if name.endswith((".npz", ".jsonl"))]
    stale = [name for name in there if (folder / name).read_bytes() != files.get(name)]
    if stale and not overwrite:
        raise OutputError(
            f"{folder} holds another export ({listed(stale, 3)}); "
            "choose another --export-to, or --overwrite to replace it"
        )
    if there and not stale and len(there) == len(files):
        log.info("%s was there already, with the same content", folder)
    return stale
