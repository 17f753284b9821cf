"""What both training stories share: a run folder is filled from a store, a model, and the training options."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from avpt.artifacts import Header
from avpt.config import TrainConfig
from avpt.data.dataset import Augmentation, ClipDataset, InputSpec, Loader, Masking, deaths_told
from avpt.data.store import SplitIndex, Store
from avpt.models.encoder import norm_parameters
from avpt.processes import num_cores
from avpt.training import objective, optim, record, runtime
from avpt.training.loop import Progress, Stepping, evaluate, fit
from avpt.training.world import World
from avpt.types import MODALITIES, Modality, Split

log = logging.getLogger(__name__)


def input_spec(store: Store, config: TrainConfig) -> InputSpec:
    """How this store's clips become this run's inputs."""
    settings = store.settings
    stored = {name: settings[name] for name in InputSpec.__dataclass_fields__ if name in settings}
    return InputSpec(
        **stored, mean=store.mean, std=store.std, image_size=config.image_size, num_frames=config.num_frames
    )


@deaths_told()
def train(
    config: TrainConfig,
    model: nn.Module,
    store: Store,
    splits: Mapping[Split, SplitIndex],
    modalities: Sequence[Modality],
    header: Header,
    world: World,
    masking: Masking | None = None,
) -> dict[str, Any]:
    """Train, choose the best epoch on val, look at test once, and write the run folder. Returns the summary.

    Of several processes all train, and the first writes.
    """
    device = next(model.parameters()).device
    spec = input_spec(store, config)
    workers = max(0, num_cores() // world.local_size - 1) if config.workers is None else config.workers

    def loader(split: Split, augmentation: Augmentation | None = None, masking: Masking | None = None) -> Loader:
        codec = store.settings["frame_codec"]
        dataset = ClipDataset(
            splits[split],
            modalities,
            spec,
            codec,
            seed=config.seed,
            augmentation=augmentation,
            masking=masking,
        )
        shuffle_seed = None if augmentation is None else config.seed
        return Loader(
            dataset,
            config.batch_size,
            device=device,
            workers=workers,
            shuffle_seed=shuffle_seed,
            process=world.rank,
            processes=world.size,
        )

    if world.size > 1:
        fewest, more = divmod(config.batch_size, world.size)
        each = f"{fewest} or {fewest + 1}" if more else str(fewest)
        log.info("%d processes: batches of %d clips in all, %s on each", world.size, config.batch_size, each)
    train_clips, num_val_clips = splits["train"], len(splits["val"])
    model.to(memory_format=torch.channels_last if config.channels_last else torch.preserve_format)
    augmentation = Augmentation(config.crop_scale, config.flip, config.spec_augment)
    undecayed = set() if config.decay_norm else norm_parameters(model)
    progress = fit(
        model,
        train=loader("train", augmentation, masking),
        val=loader("val"),
        clean_train=loader("train") if config.dynamics == "eval" else None,
        clip_ids=train_clips.ids,
        num_val_clips=num_val_clips,
        optimizer=optim.build_optimizer(
            model,
            undecayed,
            name=config.optimizer,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        ),
        rate=optim.learning_rate(
            lr=config.lr,
            schedule=config.schedule,
            epochs=config.epochs,
            milestones=config.milestone_epochs,
            factor=config.lr_factor,
            warmup_epochs=config.warmup_epochs,
        ),
        epochs=config.epochs,
        checkpoint=config.out / "checkpoint" / "last.pt",
        measure=measure,
        after_epoch=lambda so_far, clock: record.write_epoch(config.out, so_far, clock, len(train_clips)),
        after_step=lambda epoch, state, clock: None,
        stepping=Stepping(config.precision, config.accumulate, config.clip_grad, config.checkpoint_every),
        world=world,
        watched=encoder_parameters(model),
        compiled=config.compile,
    )
    last = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.load_state_dict(progress.best_model)
    held_out: tuple[Split, ...] = ("val", "test")
    predictions = {
        split: evaluate(model, loader(split).epoch(0), len(splits[split]), world)
        for split in held_out
        if split in splits
    }
    summary = summarize(progress, predictions)
    if not world.is_first:
        return summary
    record.finish_run(
        config.out,
        header,
        progress,
        last,
        train_ids=train_clips.ids,
        predictions=predictions,
        prediction_ids={split: splits[split].ids for split in predictions},
        summary=summary,
        modality=modalities[0] if len(modalities) == 1 else "joint",
    )
    return summary


def encoder_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Each encoder's parameters, by what a run calls it."""
    encoders = {name: getattr(model, name) for name in ("encoder", *MODALITIES) if hasattr(model, name)}
    return {name: list(encoder.parameters()) for name, encoder in encoders.items()}


def measure(outputs: dict[str, Tensor]) -> dict[str, float]:
    """Metrics of one split; for a fused model also the accuracy of each modality's share of the logits."""
    values = objective.metrics(outputs["logits"], outputs["labels"])
    for modality in ("audio", "visual"):
        if f"{modality}_logits" in outputs:
            values[f"{modality}_accuracy"] = objective.accuracy(outputs[f"{modality}_logits"], outputs["labels"])
    return values


def summarize(progress: Progress, predictions: Mapping[Split, dict[str, Tensor]]) -> dict[str, Any]:
    """What `summary.json` says: the best model on val and, where there is one, on test."""
    summary: dict[str, Any] = {
        "best_epoch": progress.best_epoch,
        "epochs": len(progress.records),
        "test": None,
    }
    return summary | {split: measure(outputs) for split, outputs in predictions.items()}


def model_header(
    kind: str,
    config: TrainConfig,
    store: Store,
    settings: Mapping[str, Any],
    spec: dict[str, Any],
    device: torch.device,
    world: World,
) -> Header:
    """The header of a run's artifacts, its metrics still to come."""
    return Header(
        kind=kind,
        spec=spec
        | {
            "input": asdict(input_spec(store, config)),
            "num_classes": len(store.classes),
            "multi_label": store.multi_label,
        },
        config=settings["config"],
        inputs=settings["inputs"],
        classes=store.classes,
        environment=runtime.environment(device) | {"processes": world.size},
    )
