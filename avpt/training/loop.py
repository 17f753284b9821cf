"""One loop for one stream or two: `model(*batch.inputs)`.

Where in an epoch confidence is measured belongs to the method: `--dynamics train` takes it from the training pass
itself, each clip before the step that learns from it, on augmented (and in stage 2 masked) input; `--dynamics eval`
takes it from one clean pass over the training clips after the epoch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from avpt.errors import AvptError, OtherProcessError, listed
from avpt.processes import InterruptedWork, held_back
from avpt.training import objective
from avpt.training.checkpoint import load_checkpoint, save_checkpoint
from avpt.training.world import World
from avpt.types import Batch

log = logging.getLogger(__name__)

STOPPED = "another process of this job was stopped; the same command goes on from here"


class Batches(Protocol):
    """What the loop needs of a loader."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """One pass over the clips, from batch `start` on."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Stepping:
    """How a step is taken."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1  # parts that a batch is taken in, one after the other
    clip_grad: float | None = None  # largest norm of all gradients together
    checkpoint_every: int | None = None  # steps; None is each epoch

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """Where the forward pass may calculate in less than float32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)


@dataclass
class EpochState:
    """What an epoch has come to after some of its steps."""

    probability: Tensor  # (clips,) float32 of the true class, 0 where not yet seen
    correct: Tensor  # (clips,) bool
    loss: Tensor  # (clips,) float32: a sum would hang on the order in which processes and resumed parts are added
    step: int = 0  # steps taken
    skipped: int = 0  # of these, by the scaler of fp16, because a gradient was too large for it
    norms: dict[str, float] = field(default_factory=dict)  # of the gradients that reach each encoder, sums over steps

    def record(self, logits: Tensor, batch: Batch) -> None:
        """Note how sure the model is of each clip of a batch."""
        self.loss[batch.positions] = objective.clip_losses(logits.float(), batch.labels).cpu()
        self.probability[batch.positions] = objective.true_probability(logits, batch.labels).cpu()
        self.correct[batch.positions] = objective.is_correct(logits, batch.labels).cpu()

    def merged(self, world: World) -> EpochState:
        """The same of all processes together."""
        return replace(
            self,
            probability=world.sum(self.probability),
            correct=world.sum(self.correct.to(torch.uint8)).bool(),
            loss=world.sum(self.loss),
        )


@dataclass
class Progress:
    """A run so far: everything that resuming needs besides model and optimiser."""

    records: list[dict[str, Any]] = field(default_factory=list)  # one per epoch, as in metrics.jsonl
    probability: list[Tensor] = field(default_factory=list)  # per epoch (clips,) float32
    correct: list[Tensor] = field(default_factory=list)  # per epoch (clips,) bool
    best_epoch: int = 0  # counted from 1; the first of equals
    best_value: float = -1.0
    best_model: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Clock:
    """Where an epoch's time goes; no result depends on it."""

    began: float = field(default_factory=time.perf_counter)
    waiting: float = 0.0  # seconds that training waited for batches

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, and how long each let us wait."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            self.waiting += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    @property
    def seconds(self) -> float:
        """Since the epoch began, or was taken up again."""
        return time.perf_counter() - self.began


def new_epoch(num_clips: int) -> EpochState:
    """An epoch of which nothing is done."""
    return EpochState(torch.zeros(num_clips), torch.zeros(num_clips, dtype=torch.bool), torch.zeros(num_clips))


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    state: EpochState,
    *,
    set_rate: Callable[[int], None],
    stepping: Stepping,
    scaler: torch.amp.GradScaler,
    world: World,
    watched: Mapping[str, Sequence[nn.Parameter]],
    after_step: Callable[[], None],
) -> None:
    """The steps of a training pass that `state` does not have yet; it is brought up to date after each.

    A step averages over all clips of its batch, however they are divided among processes and parts. The norms noted
    are those before clipping.

    Raises:
        NotFiniteError: the loss, or a gradient, is not a number.
    """
    model.train()
    for batch in batches:
        set_rate(state.step)
        optimizer.zero_grad(set_to_none=True)
        parts = _parts(batch, stepping.accumulate)
        for number, part in enumerate(parts, 1):
            with _local_gradients(model, number < len(parts)):
                with stepping.autocast(part.labels.device):
                    logits = model(*part.inputs)
                    loss = objective.loss(logits, part.labels)
                if not torch.isfinite(loss):
                    raise NotFiniteError(f"loss is {loss.item()}", state.step, part.positions)
                share = len(part.labels) / (batch.total or len(batch.labels))
                scaler.scale(loss * (share * world.size)).backward()  # type: ignore[no-untyped-call]
            state.record(logits.detach(), part)
        scaler.unscale_(optimizer)
        norms = {
            name: float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
            for name, parameters in watched.items()
        }
        if all(map(math.isfinite, norms.values())):
            state.norms = {name: state.norms.get(name, 0.0) + norm for name, norm in norms.items()}
        elif scaler.is_enabled():
            state.skipped += 1
        else:  # after this step the model would be lost
            raise NotFiniteError("gradient is not finite", state.step, batch.positions)
        if stepping.clip_grad is not None:
            nn.utils.clip_grad_norm_(model.parameters(), stepping.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        state.step += 1
        after_step()


class NotFiniteError(Exception):
    """The loss or a gradient is infinite or not a number."""

    def __init__(self, problem: str, step: int, positions: Tensor) -> None:
        super().__init__(problem)
        self.step, self.positions = step, positions


def _parts(batch: Batch, count: int) -> list[Batch]:
    """A batch in parts of nearly equal size, none of one clip: BatchNorm needs two."""
    count = max(1, min(count, len(batch.labels) // 2))
    pieces = zip(
        *(values.tensor_split(count) for values in (batch.labels, batch.positions, *batch.inputs)), strict=True
    )
    return [Batch(tuple(inputs), labels, positions) for labels, positions, *inputs in pieces]


def _local_gradients(model: nn.Module, more: bool) -> AbstractContextManager[None]:
    """While more parts of a batch are to come, the processes need not exchange gradients."""
    if more and isinstance(model, nn.parallel.DistributedDataParallel):
        context: AbstractContextManager[None] = model.no_sync()
        return context
    return nullcontext()


@torch.inference_mode()
def measure_dynamics(model: nn.Module, batches: Iterable[Batch], num_clips: int, world: World) -> EpochState:
    """One clean pass over the training clips."""
    model.eval()
    state = new_epoch(num_clips)
    for batch in batches:
        state.record(model(*batch.inputs), batch)
    return state.merged(world)


@torch.inference_mode()
def evaluate(model: Any, batches: Iterable[Batch], num_clips: int, world: World) -> dict[str, Tensor]:
    """All outputs of the model over a split, in its order, on the CPU; and `labels`."""
    model.eval()
    parts: list[dict[str, Tensor]] = []
    for batch in batches:
        outputs = model.outputs(*batch.inputs) | {"labels": batch.labels, "positions": batch.positions}
        parts.append({name: value.cpu() for name, value in outputs.items()})
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    positions = whole.pop("positions")
    return {name: world.gather_rows(values, positions, num_clips) for name, values in whole.items()}


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
    measure: Callable[[dict[str, Tensor]], dict[str, float]],
    after_epoch: Callable[[Progress, Clock], None],
    after_step: Callable[[int, EpochState, Clock], None],
    stepping: Stepping,
    world: World,
    watched: Mapping[str, Sequence[nn.Parameter]],
    compiled: bool = False,
) -> Progress:
    """Train until `epochs` passes are done, from the checkpoint where there is one.

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
        after_epoch: called by the first process with the progress, after the checkpoint is safe.
        after_step: called by the first process with the epoch from 0 and its state so far.
        stepping: how a step is taken.
        world: the processes of the job.
        watched: parameters by encoder, whose gradients' norms are recorded.
        compiled: let torch compile the training pass.
    """
    progress, state = Progress(), new_epoch(len(clip_ids))
    job = begun_by = {"processes": world.size, "steps": len(train)}
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=stepping.precision == "fp16")

    def resume(saved: dict[str, Any]) -> None:
        nonlocal progress, state, begun_by
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        progress, state, begun_by = Progress(**saved["progress"]), EpochState(**saved["epoch"]), saved["job"]

    def save() -> None:
        merged = state.merged(world)
        if world.is_first:
            parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scaler": scaler}
            states = {name: part.state_dict() for name, part in parts.items()}
            save_checkpoint(checkpoint, {"progress": vars(progress), "epoch": vars(merged), "job": job, **states})

    load_checkpoint(checkpoint, resume)
    _check_resumed(checkpoint, (len(progress.records), state.step), begun_by, job, world)
    if not world.is_first:  # the first process counts for what was done before
        state = replace(new_epoch(len(clip_ids)), step=state.step, skipped=state.skipped, norms=state.norms)
    trained = world.parallel(cast(nn.Module, torch.compile(model)) if compiled else model)

    with held_back() as interruption:

        def stop_or_save(due: bool) -> None:
            stop = world.any(bool(interruption))
            if stop or due:
                save()
            if stop:
                raise InterruptedWork if interruption else OtherProcessError(STOPPED)

        def stoppable(batches: Iterable[Batch]) -> Iterator[Batch]:
            for batch in batches:
                if world.size == 1:  # several processes may have different numbers of batches
                    stop_or_save(False)
                yield batch

        for epoch in range(len(progress.records), epochs):
            clock = Clock()

            def set_rate(step: int, epoch: int = epoch) -> None:
                for group in optimizer.param_groups:
                    group["lr"] = rate(epoch, step, len(train))

            def step_done(epoch: int = epoch, state: EpochState = state, clock: Clock = clock) -> None:
                if world.is_first:
                    after_step(epoch, state, clock)
                every = stepping.checkpoint_every
                stop_or_save(every is not None and (epoch * len(train) + state.step) % every == 0)

            try:
                train_epoch(
                    trained,
                    clock.timed(train.epoch(epoch, state.step)),
                    optimizer,
                    state,
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
                clips = listed([clip_ids[position] for position in error.positions.tolist()])
                good = f"{checkpoint} holds the last good state" if checkpoint.exists() else "nothing was saved yet"
                where = f"at step {error.step + 1} of epoch {epoch + 1}, on clips {clips}"
                raise AvptError(f"the {error} {where}; {good}; lower --lr, with --overwrite") from None
            seen = state.merged(world)
            world.spread_buffers(model)
            dynamics = seen
            if clean_train is not None:
                dynamics = measure_dynamics(model, stoppable(clean_train.epoch(epoch)), len(clip_ids), world)
            outputs = evaluate(model, stoppable(val.epoch(epoch)), num_val_clips, world)
            values = world.first(partial(measure, outputs))
            progress.probability.append(dynamics.probability)
            progress.correct.append(dynamics.correct)
            learnt = {"loss": float(seen.loss.double().mean()), "accuracy": float(seen.correct.double().mean())}
            norms = {name: total / (seen.step - seen.skipped) for name, total in seen.norms.items()}
            lr = optimizer.param_groups[0]["lr"]
            progress.records.append(
                {"epoch": epoch + 1, "lr": lr, "train": learnt, "val": values, "gradient_norm": norms}
            )
            if objective.key_metric(values) > progress.best_value:
                progress.best_epoch, progress.best_value = epoch + 1, objective.key_metric(values)
                progress.best_model = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            state = new_epoch(len(clip_ids))
            save()
            if world.is_first:
                after_epoch(progress, clock)
            stop_or_save(False)
    return progress


def _check_resumed(
    checkpoint: Path, place: tuple[int, int], begun_by: dict[str, int], job: dict[str, int], world: World
) -> None:
    """See that all processes go on from one place, (epochs, steps) done, and that its steps still mean the same."""
    if place != world.first(lambda: place):
        raise AvptError(f"{checkpoint} is not the same everywhere; --out must be where all machines see it")
    if begun_by["processes"] == job["processes"]:
        return
    was, now = begun_by["processes"], job["processes"]
    if place[1] and begun_by["steps"] != job["steps"]:
        raise AvptError(
            f"{checkpoint} is of {was} process(es) that took {begun_by['steps']} steps an epoch, "
            f"{now} take {job['steps']}; start {was}, or --overwrite"
        )
    log.warning("%s is of %d process(es), going on with %d changes the result", checkpoint, was, now)
