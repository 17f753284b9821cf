"""What both training commands share: they fill a run folder from a store, a model, and the training options."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from avpt.files.artifacts import Header, Kind
from avpt.files.records import InputSpec
from avpt.loading.dataset import Augmentation, ClipDataset, Masking, grid
from avpt.loading.loader import Loader, explain_worker_deaths
from avpt.machine.workers import loading_workers, why_threads_wait
from avpt.models.encoder import Encoder, freeze, norm_parameters
from avpt.options import FinetuneConfig, FuseConfig, TrainConfig
from avpt.runs.following import follow
from avpt.store.splits import balancing_weights
from avpt.store.store import SplitIndex, Store
from avpt.training import metrics, optim, run_writer, runtime, schedules
from avpt.training.balancing.method import Balancing
from avpt.training.curves import need_tensorboard
from avpt.training.loop import Clips, Plan, fit
from avpt.training.mixing import average_weights, mix_clips
from avpt.training.passes import Stepping, evaluate
from avpt.training.repeatable import check_repeatable
from avpt.training.state import Progress
from avpt.training.watch import announce_batches
from avpt.training.world import World
from avpt.types import HELD_OUT, MODALITIES, Batch, Modality, Split

log = logging.getLogger(__name__)

FEW_STEPS = 10  # in an epoch, with fewer of which a run of the usual length learns little
SMALL_BATCHES = (32, 16, 8, 4)  # to propose instead, the largest that makes enough
SMALLEST_BATCH = 8  # where none does: BatchNorm needs some clips for its statistics
MOST_TRIED = 4  # clips that the run is tried on before it begins
POINTS_TRIED = 2**17  # of spectrograms and frames, that these have at most in all; but two clips, as BatchNorm needs


def start(config: TrainConfig, world: World) -> torch.device:
    """Prepare what does not depend on the data; nothing is written yet."""
    if config.tensorboard:
        world.first(need_tensorboard)
    return runtime.start(config.seed, config.device, config.precision, world, fast=config.fast)


def augmentation(config: TrainConfig) -> Augmentation:
    """What this run does to its training clips at random."""
    dropout = config.modality_dropout if isinstance(config, FuseConfig) else 0.0
    return Augmentation(config.crop_scale, config.flip, config.spec_augment, dropout)


@explain_worker_deaths()
def train(
    config: TrainConfig,
    model: nn.Module,
    store: Store,
    splits: Mapping[Split, SplitIndex],
    modalities: Sequence[Modality],
    pipeline: InputSpec,
    header: Header,
    begin: Callable[[], None],
    world: World,
    masking: Masking | None = None,
) -> dict[str, Any]:
    """Train, choose the best epoch on val, evaluate test once, and write the run folder. Returns the summary.

    All processes train, and the first one writes: it makes the folder with `begin` once all checks have passed.
    """
    loader = partial(load_split, config, store, splits, modalities, pipeline, next(model.parameters()).device, world)
    warn_of_few_frames(config, splits["train"], modalities)
    prepare(config, model)
    training_clips = partial(loader, "train", augmented=augmentation(config), masking=masking)
    train_loader = training_clips()
    warn_of_few_steps(config, len(train_loader), len(splits["train"]))
    log_batches(train_loader, world)
    warn_of_waiting_threads(train_loader.device)
    plan = plan_training(config, model, store, world)
    if not (config.fast and train_loader.device.type == "cuda"):
        check_repeatable(model, first_clips(train_loader), plan.stepping, world)
    world.first(begin)
    with follow(config, train_loader, store.multi_label, list(plan.watched), world) as watcher:
        clips = Clips(
            train=train_loader,
            val=loader("val"),
            clean_train=loader("train") if config.dynamics == "eval" else None,
            ids=splits["train"].ids,
            num_val=len(splits["val"]),
            plain=loader,
            extended=lambda further: training_clips(further=further),
        )
        progress = fit(
            model,
            clips,
            plan,
            optimizer=build_optimizer(config, model),
            checkpoint=config.out / "checkpoint" / "last.pt",
            watcher=watcher,
            world=world,
        )
        judged: nn.Module = model if plan.stepping.average is None else plan.stepping.average.module
        last = {name: value.detach().clone() for name, value in judged.state_dict().items()}
        model.load_state_dict(progress.best_model)
        predictions = {}
        for split in HELD_OUT:
            if split in splits:
                batches = announce_batches(loader(split), 0, watcher, f"evaluating the best epoch on {split}")
                predictions[split] = evaluate(model, batches, len(splits[split]), world)
    summary = summarise(progress, predictions)
    if world.is_first:
        run_writer.finish_run(
            config.out,
            header,
            progress,
            last,
            train_ids=splits["train"].ids,
            predictions=predictions,
            prediction_ids={split: splits[split].ids for split in predictions},
            summary=summary,
            modality=modalities[0] if len(modalities) == 1 else "joint",
        )
    return summary


def load_split(
    config: TrainConfig,
    store: Store,
    splits: Mapping[Split, SplitIndex],
    modalities: Sequence[Modality],
    pipeline: InputSpec,
    device: torch.device,
    world: World,
    split: Split,
    *,
    augmented: Augmentation | None = None,
    masking: Masking | None = None,
    further: Tensor | None = None,
) -> Loader:
    """This process's batches of a split; augmented ones are shuffled, and balanced where that is asked for."""
    dataset = ClipDataset(
        splits[split],
        modalities,
        pipeline,
        store.settings["frame_codec"],
        seed=config.seed,
        augmentation=augmented,
        masking=masking,
    )
    weights = None
    if augmented is not None and config.balanced_sampling:
        weights = torch.from_numpy(balancing_weights(splits[split].labels))
    return Loader(
        dataset,
        config.batch_size,
        device=device,
        workers=loading_workers(config.workers, world.local_size),
        shuffle_seed=None if augmented is None else config.seed,
        weights=weights,
        further=further,
        process=world.rank,
        processes=world.size,
    )


def warn_of_few_frames(config: TrainConfig, clips: SplitIndex, modalities: Sequence[Modality]) -> None:
    """Warn where no clip has as many frames as are asked for."""
    _, wanted = config.pictures
    if "visual" in modalities and (most := int(clips.num_visual_frames.max())) < wanted:
        log.warning(
            "no clip has more than %d frame(s): --num-frames %d feeds them repeatedly; --num-frames %d does not",
            most,
            wanted,
            most,
        )


def warn_of_few_steps(config: TrainConfig, steps: int, clips: int) -> None:
    """Warn where an epoch has hardly any steps: a smaller batch is the cure, and more epochs where it is small."""
    if steps >= FEW_STEPS:
        return
    smaller = next((size for size in SMALL_BATCHES if math.ceil(clips / size) >= FEW_STEPS), SMALLEST_BATCH)
    what = f"--batch-size {smaller}, which makes {math.ceil(clips / smaller)}, and more --epochs"
    log.warning(
        "an epoch of %d clips has only %d step(s) at --batch-size %d; set %s (`avpt guide small-data`)",
        *(clips, steps, config.batch_size, what if smaller < config.batch_size else "more --epochs"),
    )


def prepare(config: TrainConfig, model: nn.Module) -> None:
    """Freeze what is not to learn, and lay the weights out in memory as asked for."""
    if config.freeze_encoders:
        for encoder in encoders_of(model).values():
            freeze(encoder)
    model.to(memory_format=torch.channels_last if config.channels_last else torch.preserve_format)


def log_batches(train: Loader, world: World) -> None:
    """Log how the batches are divided among several processes."""
    if world.size > 1:
        largest = max(last - first for first, last in pairwise(train.sampler.edges))
        fewest, more = divmod(largest, world.size)
        each = f"{fewest} or {fewest + 1}" if more else str(fewest)
        log.info("%d processes: batches of %d clips in all, %s on each", world.size, largest, each)


def warn_of_waiting_threads(device: torch.device) -> None:
    """Warn where torch's threads would share cores with others: each step waits for the slowest of them."""
    if device.type == "cpu" and (why := why_threads_wait(torch.get_num_threads())):
        log.warning(
            "torch computes with %d threads, but %s: training may be many times faster with OMP_NUM_THREADS=1 "
            "before the command",
            torch.get_num_threads(),
            why,
        )


def plan_training(config: TrainConfig, model: nn.Module, store: Store, world: World) -> Plan:
    """The plan of this run's training."""
    method = getattr(model, "balance", None)
    assert method is None or isinstance(method, Balancing)
    stepping = Stepping(
        config.precision,
        config.accumulate,
        config.clip_grad,
        config.checkpoint_every,
        label_smoothing=config.label_smoothing,
        mix=mix(config, store, world),
        average=average_weights(model, config.ema) if config.ema is not None else None,
        balance=method,
    )
    rate = schedules.learning_rate(
        lr=config.lr,
        schedule=config.schedule,
        epochs=config.epochs,
        milestones=config.milestone_epochs,
        factor=config.lr_factor,
        warmup_epochs=config.warmup_epochs,
    )
    return Plan(
        epochs=config.epochs,
        rate=rate,
        stepping=stepping,
        measure=measure,
        watched={name: list(encoder.parameters()) for name, encoder in encoders_of(model).items()},
        patience=config.patience,
        compiled=config.compile,
    )


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of this run, over all that is to learn."""
    return optim.build_optimizer(
        model,
        set() if config.decay_norm else norm_parameters(model),
        {parameter for encoder in encoders_of(model).values() for parameter in encoder.parameters()},
        name=config.optimizer,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        encoder_lr_scale=config.encoder_lr_scale,
    )


def first_clips(train: Loader) -> Batch:
    """A few clips of the run's first batch: more would take longer, and go through the same kernels."""
    spec, modalities = train.dataset.spec, train.dataset.modalities
    planes = {"audio": 1, "visual": spec.num_frames}
    points = sum(planes[modality] * math.prod(grid(spec, modality)) for modality in modalities)
    count = max(2, min(MOST_TRIED, POINTS_TRIED // points))
    return train.clips(0, [position for _, position, _ in next(iter(train.sampler))[:count]])


def mix(config: TrainConfig, store: Store, world: World) -> Callable[[Batch, int], Batch] | None:
    """Mixup for a run that asks for it."""
    if not isinstance(config, FinetuneConfig) or config.mixup is None:
        return None
    return partial(mix_clips, alpha=config.mixup, num_classes=len(store.classes), seed=config.seed, part=world.rank)


def encoders_of(model: nn.Module) -> dict[str, Encoder]:
    """A model's encoders, by the names that a run's records have for them."""
    return {name: getattr(model, name) for name in ("encoder", *MODALITIES) if hasattr(model, name)}


def measure(outputs: dict[str, Tensor]) -> dict[str, float | None]:
    """Metrics of one split; for a fused model also the accuracy of each modality's share of the logits."""
    values = metrics.measure(outputs["logits"], outputs["labels"])
    for modality in MODALITIES:
        if f"{modality}_logits" in outputs:
            values[f"{modality}_accuracy"] = metrics.accuracy(outputs[f"{modality}_logits"], outputs["labels"])
    return values


def summarise(progress: Progress, predictions: Mapping[Split, dict[str, Tensor]]) -> dict[str, Any]:
    """The content of `summary.json`: metrics of the best model on val and, where there is one, on test."""
    summary: dict[str, Any] = {
        "best_epoch": progress.best_epoch,
        "epochs": len(progress.records),
        "test": None,
    }
    return summary | {split: measure(outputs) for split, outputs in predictions.items()}


def model_header(
    kind: Kind,
    config: TrainConfig,
    store: Store,
    settings: Mapping[str, Any],
    spec: dict[str, Any],
    pipeline: InputSpec,
    device: torch.device,
    world: World,
) -> Header:
    """The header of a run's artifacts, without metrics so far."""
    return Header(
        kind=kind,
        spec=spec
        | {
            "input": pipeline.record(),
            "num_classes": len(store.classes),
            "multi_label": store.multi_label,
        },
        config=settings["config"],
        inputs=settings["inputs"],
        classes=store.classes,
        environment=runtime.environment(device) | {"processes": world.size},
    )
