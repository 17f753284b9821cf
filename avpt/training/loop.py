"""One loop for one stream or two: `model(*batch.inputs)`.

Where in an epoch confidence is measured belongs to the method: `--dynamics train` takes it from the training pass
itself, each clip before the step that learns from it, on augmented (and in stage 2 masked) input; `--dynamics eval`
takes it from one clean pass over the training clips after the epoch.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from avpt.errors import AvptError, OtherProcessError, listed
from avpt.machine.processes import InterruptedWork, Interruption, hold_signals
from avpt.models.fusion import FusedModel
from avpt.text import format_count
from avpt.training import metrics
from avpt.training.balancing.method import Alone, Balanced, Features, Losses, PlainClips, further_clips
from avpt.training.passes import Stepping, evaluate, measure_dynamics, train_epoch
from avpt.training.run_state import RunState, new_run, resume, save
from avpt.training.state import Batches, Clock, EpochState, NotFiniteError, Progress, new_epoch
from avpt.training.watch import Watcher, announce_batches
from avpt.training.world import World
from avpt.types import Batch, Split

log = logging.getLogger(__name__)

TOO_LITTLE_MEMORY = "the device has too little memory; raise --accumulate or lower --batch-size, with --overwrite"
STOPPED = "another process of this job was stopped; the same command goes on from here"


@dataclass(frozen=True, kw_only=True)
class Clips:
    """What a run learns from, and what its epochs are judged by."""

    train: Batches  # shuffled, augmented
    val: Batches  # choose the best epoch
    clean_train: Batches | None  # training clips without augmentation, for `--dynamics eval`; None for `train`
    ids: Sequence[str]  # of the training clips
    num_val: int  # clips of the val split
    plain: Callable[[Split], Batches] | None = None  # clips of a split without augmentation, for a balancing method
    extended: Callable[[Tensor], Batches] | None = None  # `train` with further clips (n, 3), as `Loader` has them


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run trains, and until when."""

    epochs: int
    rate: Callable[[int, int, int], float]  # learning rate from (epoch, step, steps per epoch)
    stepping: Stepping  # how a step is taken
    measure: Callable[[dict[str, Tensor]], Mapping[str, float | None]]  # metrics of what `evaluate` returned
    watched: Mapping[str, Sequence[nn.Parameter]]  # by encoder; the norms of their gradients are recorded
    patience: int | None = None  # stop after so many epochs without a better one; None never stops early
    compiled: bool = False  # let torch compile the training pass


def fit(
    model: nn.Module,
    clips: Clips,
    plan: Plan,
    *,
    optimizer: torch.optim.Optimizer,
    checkpoint: Path,
    watcher: Watcher,
    world: World,
) -> Progress:
    """Train until all epochs are done, from the checkpoint where there is one.

    What is evaluated and kept as the best is the average of the weights, where `plan.stepping` has one.

    SIGTERM and Ctrl-C wait for the end of a step, after which the state is saved, and then take effect.

    Raises:
        AvptError: the loss is no longer finite, the device has too little memory, or the checkpoint can't be used.

    Args:
        model: on its device.
        clips: to learn from and to be judged by.
        plan: how to train, and until when.
        optimizer: over the model's parameters.
        checkpoint: file to resume from and to replace.
        watcher: notified of every step; of an epoch's end once the checkpoint is saved.
        world: the processes of the job.
    """
    sizes = {"num_clips": len(clips.ids), "num_steps": len(clips.train)}
    run = new_run(model, optimizer, plan.stepping, checkpoint, watcher, world, **sizes)
    resumed = resume(run)
    trained = world.parallel(training_pass(model, plan))
    watcher.run_begun(run.progress)
    if resumed:
        place = len(run.progress.records), run.epoch.step
        steps = len(clips_of_epoch(run, clips))
        log.info("going on after %s and %d of %d steps", format_count(place[0], "epoch"), place[1], steps)

    with hold_signals() as interruption:
        pause = partial(save_or_stop, run, interruption)
        for epoch in range(len(run.progress.records), plan.epochs):
            if plan.patience is not None and epoch - run.progress.best_epoch >= plan.patience:
                log.info("no better epoch in %d: the run ends here (--patience)", plan.patience)
                break
            clock = Clock(first_step=run.epoch.step)
            watcher.epoch_begun(epoch, run.epoch)
            prepare_epoch(run, clips, plan, epoch, pause)
            train = clips_of_epoch(run, clips)
            clock.steps = len(train)
            train_on(run, trained, replace(clips, train=train), plan, epoch, clock, pause)
            clock.trained = clock.seconds
            seen = run.epoch.merged(world).plain(len(clips.ids))
            dynamics, outputs = evaluate_epoch(run, clips, epoch, seen, pause)
            values = world.first(partial(plan.measure, outputs))
            clock.evaluated = clock.seconds - clock.trained
            note_epoch(run, epoch_record(epoch, plan.rate, len(train), seen, values), dynamics)
            save(run)
            watcher.epoch_done(run.progress, clock.row(epoch + 1))
            pause(False)
    watcher.training_done(run.progress)
    return run.progress


def training_pass(model: nn.Module, plan: Plan) -> nn.Module:
    """What `train_epoch` calls: the model, or with a balancing method its passes; compiled where that is asked for."""
    if (method := plan.stepping.balance) is not None:
        return Balanced(cast(FusedModel, model), method, plan.stepping.label_smoothing, plan.compiled)
    return cast(nn.Module, torch.compile(model, dynamic=False)) if plan.compiled else model


def prepare_epoch(run: RunState, clips: Clips, plan: Plan, epoch: int, pause: Callable[[bool], None]) -> None:
    """Let a balancing method prepare an epoch (from 0) that has not begun; it may look at train and val."""
    method = plan.stepping.balance
    if method is None or run.epoch.step:
        return
    sizes = {"train": len(clips.ids), "val": clips.num_val}

    def outputs(model: FusedModel, split: Split) -> dict[str, Tensor]:
        assert clips.plain is not None
        run.world.spread_buffers(model)
        batches = stoppable(run, clips.plain(split), epoch, f"looking at {split}", pause)
        values = evaluate(Features(model), batches, sizes[split], run.world)
        return {name: value.clone() for name, value in values.items()}  # those of inference can't meet a gradient

    def trial(losses: Losses, epochs: int, what: str) -> tuple[FusedModel, PlainClips]:
        model = try_out(run, clips, plan, range(epoch, epoch + epochs), losses, what, pause)
        return model, PlainClips(partial(outputs, model))

    plain = PlainClips(partial(outputs, cast(FusedModel, run.model)), trial)
    further = further_clips(method, epoch, plain, len(clips.ids))
    if further is not None:
        run.epoch = new_epoch(len(clips.ids), further)


def try_out(
    run: RunState,
    clips: Clips,
    plan: Plan,
    epochs: range,
    losses: Losses,
    what: str,
    pause: Callable[[bool], None],
) -> FusedModel:
    """A copy of the model, trained by some losses over some epochs (from 0); nothing about the run changes.

    Raises:
        AvptError: the loss is no longer finite, or the device has too little memory.
    """
    model, optimizer, scaler = copy.deepcopy((cast(FusedModel, run.model), run.optimizer, run.scaler))
    method = Alone(losses)
    trained = run.world.parallel(Balanced(model, method, plan.stepping.label_smoothing, compiled=False))
    for number, epoch in enumerate(epochs, 1):
        doing = f"{what}, epoch {number} of {len(epochs)}"
        try:
            train_epoch(
                trained,
                stoppable(run, clips.train, epoch, doing, pause),
                optimizer,
                new_epoch(len(clips.ids)),
                epoch=epoch,
                first_step=epoch * len(clips.train),
                set_rate=partial(set_rate, optimizer, plan, epoch, len(clips.train)),
                stepping=replace(plan.stepping, balance=method, average=None),
                scaler=scaler,
                world=run.world,
                watched={},
                after_step=lambda rows: None,
            )
        except torch.OutOfMemoryError:
            raise AvptError(TOO_LITTLE_MEMORY) from None
        except NotFiniteError as error:
            raise run.not_finite_error(f"the {error} at step {error.step + 1} of {doing}") from None
    return model


def set_rate(optimizer: torch.optim.Optimizer, plan: Plan, epoch: int, steps: int, step: int) -> None:
    """Set the learning rate of a step (from 0) of an epoch (from 0) that has so many steps."""
    for group in optimizer.param_groups:
        group["lr"] = plan.rate(epoch, step, steps) * group.get("lr_scale", 1.0)


def clips_of_epoch(run: RunState, clips: Clips) -> Batches:
    """The training clips of the current epoch, with the further ones that a balancing method chose."""
    if run.epoch.further is None:
        return clips.train
    assert clips.extended is not None
    return clips.extended(run.epoch.further)


def save_or_stop(run: RunState, interruption: Interruption, due: bool) -> None:
    """Between two steps or batches: save where that is due, or where a signal waits in any process.

    Raises:
        InterruptedWork: a signal waits in this process.
        OtherProcessError: a signal waits in another process.
    """
    stop = run.world.any(bool(interruption))
    if stop or due:
        save(run)
    if stop:
        raise InterruptedWork if interruption else OtherProcessError(STOPPED)


def train_on(
    run: RunState,
    trained: nn.Module,
    clips: Clips,
    plan: Plan,
    epoch: int,
    clock: Clock,
    pause: Callable[[bool], None],
) -> None:
    """Take the steps that an epoch (from 0) still lacks; `trained` is the model, compiled or for several processes.

    Raises:
        AvptError: the loss is no longer finite, or the device has too little memory.
    """
    steps, state, every = len(clips.train), run.epoch, plan.stepping.checkpoint_every
    before = sum(record.get("steps", run.job["steps"]) for record in run.progress.records)

    def step_done(positions: Tensor) -> None:
        if run.average is not None:
            run.average.update_parameters(run.model)
        run.watcher.step_done(epoch, state, clock, positions)
        pause(every is not None and (before + state.step) % every == 0)

    try:
        train_epoch(
            trained,
            clock.timed(clips.train.epoch(epoch, state.step)),
            run.optimizer,
            state,
            epoch=epoch,
            first_step=before,
            set_rate=partial(set_rate, run.optimizer, plan, epoch, steps),
            stepping=plan.stepping,
            scaler=run.scaler,
            world=run.world,
            watched=plan.watched,
            after_step=step_done,
        )
    except torch.OutOfMemoryError:
        raise AvptError(TOO_LITTLE_MEMORY) from None
    except NotFiniteError as error:
        place = f"at step {error.step + 1} of epoch {epoch + 1}"
        if damaged := run.world.gather_sorted(error.damaged):
            names = listed([clips.ids[position] for position in damaged])
            raise run.not_finite_error(
                f"the {error} {place}, on clips {names}, whose values in the store are not numbers",
                "`avpt verify` says what is damaged",
            ) from None
        positions = run.world.gather_sorted(error.to_blame) or run.world.gather_sorted(error.positions)
        blamed = listed([clips.ids[position] for position in positions])
        raise run.not_finite_error(f"the {error} {place}, on clips {blamed}") from None


def evaluate_epoch(
    run: RunState, clips: Clips, epoch: int, seen: EpochState, pause: Callable[[bool], None]
) -> tuple[EpochState, dict[str, Tensor]]:
    """How sure the model is of the training clips after an epoch (from 0), and all its outputs over val.

    The former is what was `seen` while training, or comes from a clean pass where there is one.

    Raises:
        AvptError: either holds values that are no longer numbers.
    """
    run.world.spread_buffers(run.model)
    if run.judged is not run.model:
        run.world.spread_buffers(run.judged)
    dynamics = seen
    if clips.clean_train is not None:
        batches = stoppable(run, clips.clean_train, epoch, "measuring confidence", pause)
        dynamics = measure_dynamics(run.model, batches, len(clips.ids), run.world)
        if not dynamics.probability.isfinite().all():
            raise run.not_finite_error(f"the confidences are no longer numbers after epoch {epoch + 1}")
    batches = stoppable(run, clips.val, epoch, "validating", pause)
    outputs = evaluate(run.judged, batches, clips.num_val, run.world)
    if not outputs["logits"].isfinite().all():
        raise run.not_finite_error(f"the logits of val are no longer numbers after epoch {epoch + 1}")
    return dynamics, outputs


def stoppable(run: RunState, split: Batches, epoch: int, what: str, pause: Callable[[bool], None]) -> Iterator[Batch]:
    """One pass over clips without training, with a pause before each batch that all processes have."""
    common = run.world.least(len(split))  # several processes may have different numbers of batches
    for number, batch in enumerate(announce_batches(split, epoch, run.watcher, what)):
        if number < common:
            pause(False)
        yield batch


def epoch_record(
    epoch: int,
    rate: Callable[[int, int, int], float],
    steps: int,
    seen: EpochState,
    values: Mapping[str, float | None],
) -> dict[str, Any]:
    """An epoch (from 0) as `metrics.jsonl` has it.

    Args:
        epoch: from 0; counted from 1 in the record.
        rate: the learning rate, of which the last step's is recorded.
        steps: number of steps in the epoch.
        seen: the results of all processes while training.
        values: the metrics on val.
    """
    learnt = {"loss": float(seen.loss.double().mean()), "accuracy": float(seen.correct.double().mean())}
    record = {"epoch": epoch + 1, "lr": rate(epoch, steps - 1, steps), "train": learnt, "val": values}
    record["gradient_norm"] = seen.mean_norms()
    if seen.further is not None:
        record["steps"] = steps
    if seen.skipped:
        record["skipped_steps"] = seen.skipped
    if seen.factors:
        record["gradient_factor"] = {name: total / seen.step for name, total in seen.factors.items()}
    return record


def note_epoch(run: RunState, record: dict[str, Any], dynamics: EpochState) -> None:
    """Add a finished epoch to the run, keep its weights if they are the best so far, and begin the next epoch."""
    progress = run.progress
    progress.probability.append(dynamics.probability)
    progress.correct.append(dynamics.correct)
    progress.records.append(record)
    value = metrics.key_metric(record["val"])
    if value > progress.best_value:
        progress.best_epoch, progress.best_value = record["epoch"], value
        weights = run.judged.state_dict()
        progress.best_model = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
    run.epoch = new_epoch(len(dynamics.loss))
