"""One loop for one stream or two: `model(*batch.inputs)`.

Where in an epoch confidence is measured belongs to the method: `--dynamics train` takes it from the training pass
itself, each clip before the step that learns from it, on augmented (and in stage 2 masked) input; `--dynamics eval`
takes it from one clean pass over the training clips after the epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from avpt.errors import AvptError, OtherProcessError, listed
from avpt.machine.processes import InterruptedWork, held_back
from avpt.training import metrics, runtime
from avpt.training.checkpoint import load_checkpoint, save_checkpoint
from avpt.training.passes import NotFiniteError, Stepping, evaluate, measure_dynamics, train_epoch
from avpt.training.state import Batches, Clock, EpochState, Progress, new_epoch
from avpt.training.watch import Watcher, announced
from avpt.training.world import World
from avpt.types import Batch

log = logging.getLogger(__name__)

STOPPED = "another process of this job was stopped; the same command goes on from here"
LOSABLE = ("the weights", "BatchNorm's running statistics", "the averaged weights", "the optimiser's sums")


def fit(
    model: nn.Module,
    *,
    train: Batches,
    val: Batches,
    clean_train: Batches | None,
    clip_ids: Sequence[str],
    num_val_clips: int,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int, int, int], float],
    epochs: int,
    checkpoint: Path,
    measure: Callable[[dict[str, Tensor]], Mapping[str, float | None]],
    watcher: Watcher,
    stepping: Stepping,
    world: World,
    watched: Mapping[str, Sequence[nn.Parameter]],
    compiled: bool = False,
    patience: int | None = None,
) -> Progress:
    """Train until `epochs` passes are done, from the checkpoint where there is one.

    What is evaluated and kept as the best is the average of the weights, where `stepping` has one.

    SIGTERM and Ctrl-C wait for the end of a step, after which the state is saved, and then take their course.

    Raises:
        AvptError: the loss is no longer finite, the device has too little memory, or the checkpoint is of no use.

    Args:
        model: on its device.
        train: shuffled, augmented batches.
        val: batches that the best epoch is chosen by.
        clean_train: the training clips without augmentation, for `--dynamics eval`; None records while training.
        clip_ids: of the training split.
        num_val_clips: in the val split.
        optimizer: over the model's parameters.
        rate: learning rate from (epoch, step, steps per epoch).
        epochs: in all.
        checkpoint: file to resume from and to replace.
        measure: metrics of one split from what `evaluate` returned.
        watcher: told how it goes on; of an epoch's end after the checkpoint is safe.
        stepping: how a step is taken.
        world: the processes of the job.
        watched: parameters by encoder, whose gradients' norms are recorded.
        compiled: let torch compile the training pass.
        patience: epochs without a better one after which to stop; None never does.
    """
    progress, state = Progress(), new_epoch(len(clip_ids))
    here = runtime.environment(next(model.parameters()).device)
    job = begun_by = {"processes": world.size, "steps": len(train), **here}
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=stepping.precision == "fp16")

    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scaler": scaler}
    if stepping.average is not None:
        parts["average"] = stepping.average
    judged: Any = model if stepping.average is None else stepping.average.module

    def resume(saved: dict[str, Any]) -> None:
        nonlocal progress, state, begun_by
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        progress, state, begun_by = Progress(**saved["progress"]), EpochState(**saved["epoch"]), saved["job"]

    def lost(what: str) -> AvptError:
        last = f"the last checkpoint is {checkpoint}" if checkpoint.exists() else "nothing was saved yet"
        return AvptError(f"{what}; {last}; lower --lr, with --overwrite")

    def save() -> None:
        watcher.busy("saving")
        merged = state.merged(world)
        epoch = len(progress.records)
        after = f"step {state.step} of epoch {epoch + 1}" if state.step else f"epoch {epoch}"
        first_bad = world.least(_first_not_finite(model, stepping.average, optimizer))
        if first_bad < len(LOSABLE):
            raise lost(f"{LOSABLE[first_bad]} are no longer numbers after {after}")
        if world.is_first:
            states = {name: part.state_dict() for name, part in parts.items()}
            save_checkpoint(checkpoint, {"progress": vars(progress), "epoch": vars(merged), "job": job, **states})

    resumed = load_checkpoint(checkpoint, resume)
    _check_resumed(checkpoint, (len(progress.records), state.step), begun_by, job, world)
    if not world.is_first:  # the first process counts for what was done before
        state = replace(
            new_epoch(len(clip_ids)), step=state.step, skipped=state.skipped, norms=state.norms, factors=state.factors
        )
    trained = world.parallel(cast(nn.Module, torch.compile(model, dynamic=False)) if compiled else model)

    watcher.run_begun(progress)
    if resumed:
        log.info("going on after %d epoch(s) and %d of %d steps", len(progress.records), state.step, len(train))

    with held_back() as interruption:

        def stop_or_save(due: bool) -> None:
            stop = world.any(bool(interruption))
            if stop or due:
                save()
            if stop:
                raise InterruptedWork if interruption else OtherProcessError(STOPPED)

        def stoppable(split: Batches, epoch: int, what: str) -> Iterator[Batch]:
            common = world.least(len(split))  # several processes may have different numbers of batches
            for number, batch in enumerate(announced(split, epoch, watcher, what)):
                if number < common:
                    stop_or_save(False)
                yield batch

        for epoch in range(len(progress.records), epochs):
            if patience is not None and epoch - progress.best_epoch >= patience:
                log.info("no better epoch in %d: the run ends here (--patience)", patience)
                break
            clock = Clock(first_step=state.step)
            watcher.epoch_begun(epoch, state)

            def set_rate(step: int, epoch: int = epoch) -> None:
                for group in optimizer.param_groups:
                    group["lr"] = rate(epoch, step, len(train)) * group.get("lr_scale", 1.0)

            def step_done(
                positions: Tensor, epoch: int = epoch, state: EpochState = state, clock: Clock = clock
            ) -> None:
                if stepping.average is not None:
                    stepping.average.update_parameters(model)
                watcher.step_done(epoch, state, clock, positions)
                every = stepping.checkpoint_every
                stop_or_save(every is not None and (epoch * len(train) + state.step) % every == 0)

            try:
                train_epoch(
                    trained,
                    clock.timed(train.epoch(epoch, state.step)),
                    optimizer,
                    state,
                    epoch=epoch,
                    first_step=epoch * len(train),
                    set_rate=set_rate,
                    stepping=stepping,
                    scaler=scaler,
                    world=world,
                    watched=watched,
                    after_step=step_done,
                )
            except torch.OutOfMemoryError:
                raise AvptError(
                    "the device has too little memory; raise --accumulate or lower --batch-size, with --overwrite"
                ) from None
            except NotFiniteError as error:
                positions = world.all_of(error.to_blame) or world.all_of(error.positions)
                clips = listed([clip_ids[position] for position in positions])
                raise lost(f"the {error} at step {error.step + 1} of epoch {epoch + 1}, on clips {clips}") from None
            clock.trained = clock.seconds
            seen = state.merged(world)
            world.spread_buffers(model)
            if judged is not model:
                world.spread_buffers(judged)
            dynamics = seen
            if clean_train is not None:
                clean = stoppable(clean_train, epoch, "measuring confidence")
                dynamics = measure_dynamics(model, clean, len(clip_ids), world)
                if not dynamics.probability.isfinite().all():
                    raise lost(f"the confidences are no longer numbers after epoch {epoch + 1}")
            outputs = evaluate(judged, stoppable(val, epoch, "validating"), num_val_clips, world)
            if not outputs["logits"].isfinite().all():
                raise lost(f"the logits of val are no longer numbers after epoch {epoch + 1}")
            values = world.first(partial(measure, outputs))
            clock.evaluated = clock.seconds - clock.trained
            progress.probability.append(dynamics.probability)
            progress.correct.append(dynamics.correct)
            learnt = {"loss": float(seen.loss.double().mean()), "accuracy": float(seen.correct.double().mean())}
            record = {"epoch": epoch + 1, "lr": rate(epoch, len(train) - 1, len(train)), "train": learnt, "val": values}
            record["gradient_norm"] = seen.mean_norms()
            if seen.skipped:
                record["skipped_steps"] = seen.skipped
            if seen.factors:
                record["gradient_factor"] = {name: total / seen.step for name, total in seen.factors.items()}
            progress.records.append(record)
            if metrics.key_metric(values) > progress.best_value:
                progress.best_epoch, progress.best_value = epoch + 1, metrics.key_metric(values)
                weights = judged.state_dict()
                progress.best_model = {name: value.detach().cpu().clone() for name, value in weights.items()}
            state = new_epoch(len(clip_ids))
            save()
            watcher.epoch_done(progress, clock.row(epoch + 1))
            stop_or_save(False)
    watcher.training_done(progress)
    return progress


def _first_not_finite(model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer) -> int:
    """Which of LOSABLE, by number, is the first to hold an infinite value or none; their count where all are sound."""
    sums = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    averages = [] if average is None else average.state_dict().values()
    for number, tensors in enumerate((model.parameters(), model.buffers(), averages, sums)):
        if not all(bool(values.isfinite().all()) for values in tensors):
            return number
    return len(LOSABLE)


def _check_resumed(
    checkpoint: Path, place: tuple[int, int], begun_by: dict[str, Any], job: dict[str, Any], world: World
) -> None:
    """See that all processes go on from one place, (epochs, steps) done, and that its steps still mean the same.

    Another device, number of threads or torch is told: their kernels round differently.
    """
    if place != world.first(lambda: place):
        raise AvptError(f"{checkpoint} is not the same everywhere; --out must be where all machines see it")
    for name in ("device", "threads", "torch"):
        if begun_by.get(name, job[name]) != job[name]:  # older checkpoints do not tell
            told = "%s was made with %s %s, going on with %s: the result is not that of an undisturbed run to the bit"
            log.warning(told, checkpoint, name, begun_by[name], job[name])
    if begun_by["processes"] == job["processes"]:
        return
    was, now = begun_by["processes"], job["processes"]
    if place[1] and begun_by["steps"] != job["steps"]:
        raise AvptError(
            f"{checkpoint} is of {was} process(es) that took {begun_by['steps']} steps an epoch, "
            f"{now} take {job['steps']}; start {was}, or --overwrite"
        )
    log.warning("%s is of %d process(es), going on with %d changes the result", checkpoint, was, now)
