"""`avpt fuse-train`: stage 2, both encoders and a fusion head, trained together on masked input."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from avpt import artifacts, runs
from avpt.artifacts import Header
from avpt.confidence import mask_ratios, patches_to_mask
from avpt.config import FuseConfig
from avpt.data.dataset import InputSpec, Masking, grid
from avpt.data.splits import training_splits
from avpt.data.store import Store
from avpt.data.transforms import num_patches
from avpt.errors import ArtifactError, ConfigError
from avpt.models.checkpoint import check_input, load_encoder
from avpt.models.fusion import FusedModel
from avpt.outputs import claim, sha256
from avpt.training import run_folder, runtime
from avpt.types import MODALITIES, Modality, Report

log = logging.getLogger(__name__)

FEW_PATCHES = 64  # with fewer, most ratios floor to nothing


def run(config: FuseConfig) -> Report:
    """Join two encoders, mask what is easy about each clip, train end to end."""
    device = runtime.start(config.seed, config.device)
    store = Store(config.store)
    audio, visual = load_encoder(config.audio, "audio"), load_encoder(config.visual, "visual")
    check_input(audio, config.audio, store.settings)
    if visual.input is not None and visual.input["image_size"] != config.image_size:
        log.warning(
            "%s was trained at --image-size %d, this run at %d",
            config.visual,
            visual.input["image_size"],
            config.image_size,
        )
    splits = training_splits(store, MODALITIES, config.val_fraction)
    inputs = {"audio": audio.sha256, "visual": visual.sha256}
    if config.mask != "none":
        assert config.confidence is not None
        confidence = read_confidence(config.confidence, splits["train"].ids)
        inputs["confidence"] = sha256(config.confidence)
    else:
        nothing = torch.zeros(len(splits["train"]))
        confidence = {"audio": nothing, "visual": nothing}
    ratios = mask_ratios(
        confidence,
        mask=config.mask,
        rule=config.mask_rule,
        ratio=config.ratio,
        eta=config.mask_eta,
        threshold=config.mask_threshold,
    )
    masking = None if config.mask == "none" else plan_masking(config, runs.input_spec(store, config), ratios)
    spec = {"audio": asdict(audio.spec), "visual": asdict(visual.spec), "fusion": config.fusion}
    header = runs.model_header("fused", config, store, inputs, spec, device)
    with claim(config.out):
        settings = {"config": header.config, "inputs": header.inputs}
        summary = run_folder.open_run(config.out, settings, config.overwrite)
        if summary is None:
            save_ratios(config.out / "mask.safetensors", header, ratios, splits["train"].ids)
            model = FusedModel(audio.encoder, visual.encoder, config.fusion, len(store.classes)).to(device)
            summary = runs.train(config, model, store, splits, MODALITIES, header, masking)
    return runs.report(config, summary, f"joint, {config.fusion}, mask {config.mask}")


def read_confidence(path: Path, ids: Sequence[str]) -> dict[Modality, Tensor]:
    """Mean confidence of each training clip, (clips,) per modality, in the order of `ids`.

    A clip that `score-confidence --missing skip` left out counts as 0 on both sides, which masks nothing.

    Raises:
        ArtifactError: not a confidence artifact, or it is of other clips.
    """
    artifact = artifacts.load(path, "confidence")
    position = {clip_id: i for i, clip_id in enumerate(artifacts.unpack_ids(artifact.tensors))}
    lacking = [clip_id for clip_id in ids if clip_id not in position]
    skipped = artifact.header.config["missing"] == "skip" and len(lacking) < len(ids)
    if lacking and not skipped:
        raise ArtifactError(
            f"{path} has no confidence for {len(lacking)} of {len(ids)} training clips "
            f"({', '.join(lacking[:3])}, ...); score it from stage-1 runs on this store, with the same --val-fraction"
        )
    if lacking:
        log.warning("%d of %d training clips have no confidence and are not masked", len(lacking), len(ids))
    known = torch.tensor([i for i, clip_id in enumerate(ids) if clip_id in position])
    order = torch.tensor([position[clip_id] for clip_id in ids if clip_id in position])
    zeros = torch.zeros(len(ids))
    return {m: zeros.index_copy(0, known, artifact.tensors[f"{m}_confidence"][order]) for m in MODALITIES}


def plan_masking(config: FuseConfig, inputs: InputSpec, ratios: dict[Modality, Tensor]) -> Masking:
    """How many patches of each training clip are masked.

    Raises:
        ConfigError: a patch is larger than the input.
    """
    patch: dict[Modality, tuple[int, int]] = {
        "audio": config.audio_patch_size,
        "visual": (config.visual_patch, config.visual_patch),
    }
    num_masked: dict[Modality, Tensor] = {}
    for modality in MODALITIES:
        height, width = grid(inputs, modality)
        patches = num_patches(height, width, patch[modality])
        size = f"{patch[modality][0]}x{patch[modality][1]}"
        if not patches:
            raise ConfigError(
                f"--{modality}-patch {size} is larger than the {height}x{width} input; choose a smaller one"
            )
        if patches < FEW_PATCHES:
            smaller = (max(1, height // 8), max(1, width // 8))
            option = f"{smaller[0]}x{smaller[1]}" if modality == "audio" else str(min(smaller))
            log.warning(
                "--%s-patch %s cuts the %dx%d input into only %d patches, so most ratios mask nothing; "
                "--%s-patch %s makes %d",
                modality,
                size,
                height,
                width,
                patches,
                modality,
                option,
                num_patches(height, width, smaller if modality == "audio" else (min(smaller), min(smaller))),
            )
        num_masked[modality] = patches_to_mask(ratios[modality], patches)
    return Masking(patch, num_masked)


def save_ratios(path: Path, header: Header, ratios: dict[Modality, Tensor], ids: Sequence[str]) -> None:
    """`mask.safetensors`: the ratio of every training clip."""
    tensors = {f"{modality}_ratio": values for modality, values in ratios.items()}
    mask_header = Header(kind="mask", config=header.config, inputs=header.inputs, classes=header.classes)
    artifacts.save(path, mask_header, tensors | artifacts.pack_ids(ids))
