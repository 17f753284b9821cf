"""Training clips chosen by their place on a data map, as a manifest with all that the runs were tested on."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from avpt.errors import ArtifactError, OutputError, listed
from avpt.files import artifacts
from avpt.files.checking import RecordError, read
from avpt.files.locks import claim
from avpt.files.outputs import sha256, write_json, write_text
from avpt.files.records import SelectionRecord
from avpt.files.reuse import check_same, foreign, is_there, say_there
from avpt.files.typed_paths import read_paths, record_of, relative_path
from avpt.machine.set_aside import hashes
from avpt.options import ScoreConfig
from avpt.runs.lineage import Lineage
from avpt.store.manifest import MEDIA_COLUMNS, Clip, read_cells, read_manifest
from avpt.store.store import Store
from avpt.text import format_count
from avpt.types import MODALITIES, Modality, Table

if TYPE_CHECKING:
    from torch import Tensor

    from avpt.confidence.files import Dynamics

log = logging.getLogger(__name__)

BY_CONFIDENCE = ("easy", "hard")  # the regions of the map that confidence decides; the other one, variability


def choose(config: ScoreConfig, ids: Sequence[str], columns: Mapping[str, Tensor]) -> list[int]:
    """The positions of the clips that are selected, those first that belong most to the region; at least one."""
    import torch

    from avpt.confidence.formulas import rank_clips

    assert config.select is not None
    sides = MODALITIES if config.select_by == "both" else (config.select_by,)
    confidence, variability = (
        torch.stack([columns[f"{side}_{name}"].double() for side in sides]).mean(dim=0)
        for name in ("confidence", "variability")
    )
    tie = torch.from_numpy(hashes(clip_id.encode() for clip_id in ids).view("int64"))
    count = max(1, round(config.selected_share * len(ids)))
    chosen: list[int] = rank_clips(config.select, confidence, variability, tie)[:count].tolist()
    return chosen


def find_store(config: ScoreConfig, dynamics: Mapping[Modality, Dynamics]) -> tuple[Store, Lineage]:
    """The store that the audio run was trained on, and what it was found with.

    Raises:
        ArtifactError: it is nowhere around the runs.
    """
    checksum = dynamics["audio"].header.inputs.get("store", "")
    lineage = Lineage([config.audio, config.visual], config.search)
    for run in (config.audio, config.visual):
        lineage.follow(run)
    node = lineage.find(checksum)
    if node is None:
        raise ArtifactError(
            f"the store that {config.audio} was trained on (checksum {checksum[:12]}...) was not found around it; "
            "name the folder that holds it with --search"
        )
    lineage.follow(node.path)
    return Store(node.path), lineage


def write_selection(
    config: ScoreConfig,
    dynamics: Mapping[Modality, Dynamics],
    ids: Sequence[str],
    columns: Mapping[str, Tensor],
    inputs: Mapping[str, str],
) -> tuple[dict[str, Any], Table]:
    """Write the manifest, unless it is there; returns what --json says of it, and what the chosen clips are like.

    Raises:
        ArtifactError: the store or its manifest was not found.
        OutputError: something else is in the manifest's place.
    """
    assert config.manifest is not None
    chosen, out = choose(config, ids, columns), config.manifest
    store, lineage = find_store(config, dynamics)
    source = lineage.find_file("manifest", store.inputs["manifest"])
    if source is None:
        raise ArtifactError(
            f"the manifest that {store.path} was made from (checksum {store.inputs['manifest'][:12]}...) was not found "
            "around the runs; name the folder that holds it with --search"
        )
    if out.exists() and out.samefile(source):
        raise OutputError(f"{out} is the manifest that the clips come from; choose another --manifest")
    typed_root = read_paths(store.path).get("root")
    root = None if typed_root is None else typed_root.place
    scored = {"skip_epochs": config.skip_epochs, "missing": config.missing}
    options = {**scored, "select": config.select, "select_by": config.select_by, "share": config.selected_share}
    with claim(out, beside=(record_of(out),)):
        base = relative_path(out.absolute().parent, root or source.parent)
        made_from = {**inputs, "manifest": store.inputs["manifest"], "folder": base}
        settings = {"schema": 1, "kind": "selection", "config": options, "inputs": made_from}
        earlier = read_earlier(out)
        if earlier and out.exists() and not config.overwrite:  # one that was removed is made again
            check_same(out, earlier, settings, config.defaults(), option="--manifest")
        clips = read_manifest(source, root=root, multi_label=store.multi_label).clips[: store.settings.get("limit")]
        names, cells = read_cells(source)
        splits = new_splits(clips, {ids[i] for i in chosen}, read_validation(config.audio))
        rows = [moved(dict(zip(names, row, strict=True)), base) for row in cells[: len(clips)]]
        text = table(names, [row | {"split": split} for row, split in zip(rows, splits, strict=True) if split])
        write(out, text, settings, earlier)
    warn_of_lost_classes(clips, splits)
    by = "mean of both" if config.select_by == "both" else config.select_by
    what = "confidence" if config.select in BY_CONFIDENCE else "variability"
    title = f"{format_count(len(chosen), 'clip')} of {len(ids)}, {config.select} by {what} ({by}): means"
    statistics = [name.removeprefix("audio_") for name in columns if name.startswith("audio_")]
    means = [
        (side, *(f"{columns[f'{side}_{name}'][chosen].double().mean():.3f}" for name in statistics))
        for side in MODALITIES
    ]
    return {"selected": len(chosen), "manifest": str(out)}, Table(title, ("", *statistics), means)


def read_validation(run: Path) -> set[str]:
    """The ids of the clips that a run chose its best epoch by."""
    file = artifacts.run_file(run, "predictions.safetensors")
    return set(artifacts.unpack_ids(artifacts.load(file, "predictions").tensors, prefix="val_"))


def new_splits(clips: Sequence[Clip], chosen: set[str], validation: set[str]) -> list[str]:
    """The split of each clip in the new manifest, empty for a training clip that is left out.

    What a run set aside of train to choose its best epoch by becomes val.

    Raises:
        ArtifactError: a chosen clip is not in the manifest.
    """
    if lacking := sorted(chosen - {clip.id for clip in clips}):
        raise ArtifactError(
            f"the manifest of the audio run's store lacks {len(lacking)} of the chosen clips ({listed(lacking)}); "
            "train both runs on one store"
        )
    return [
        clip.split if clip.split != "train" or clip.id in chosen else "val" if clip.id in validation else ""
        for clip in clips
    ]


def moved(row: dict[str, str], base: str) -> dict[str, str]:
    """A row whose relative paths start from a folder of another manifest, to which `base` leads from there."""
    relative = [name for name in MEDIA_COLUMNS if row.get(name) and not Path(row[name]).is_absolute()]
    return row | {name: f"{base}/{row[name]}" for name in relative if base != "."}


def table(names: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    """Format rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows([row[name] for name in names] for row in rows)
    return text.getvalue()


def read_earlier(out: Path) -> dict[str, Any] | None:
    """The record that an earlier run left beside the manifest, None where there is none."""
    path = record_of(out)
    is_there(out, option="--manifest")
    if not path.exists():
        return None
    try:
        record = cast(dict[str, Any], read(path, SelectionRecord))
    except RecordError as error:
        raise foreign(path, "this command", why=error, option="--manifest") from None
    if record["kind"] != "selection":
        raise foreign(path, "this command", option="--manifest")
    return record


def write(out: Path, text: str, settings: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> None:
    """Write the manifest, and last the record that declares it finished, unless they are there.

    Raises:
        OutputError: the path holds another file.
    """
    checksum = hashlib.sha256(text.encode()).hexdigest()
    existing = sha256(out) if out.exists() else None
    files = earlier["files"] if earlier else {}
    if existing is not None and existing not in (checksum, files.get(out.name)):
        raise foreign(out, "this command", otherwise="changed since", option="--manifest")
    if existing == checksum and earlier and files == {out.name: checksum}:
        say_there(out)
        return
    write_text(out, text)
    write_json(record_of(out), {**settings, "files": {out.name: checksum}})


def warn_of_lost_classes(clips: Sequence[Clip], splits: Sequence[str]) -> None:
    """Warn of classes of which no training clip was chosen, as training refuses val and test clips of these."""
    known = {label for clip, split in zip(clips, splits, strict=True) if split == "train" for label in clip.labels}
    others = {label for clip, split in zip(clips, splits, strict=True) if split for label in clip.labels} - known
    if lost := sorted(others):
        log.warning(
            "no training clip of %s was chosen, which val and test have: training will refuse that; raise --share",
            listed(lost),
        )
