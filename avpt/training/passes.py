"""One pass over some clips: training steps, training dynamics, or all outputs of a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from avpt.training import objective
from avpt.training.balancing.method import Balancing, Step, modulated
from avpt.training.state import EpochState, NotFiniteError, Taken, new_epoch
from avpt.training.world import World
from avpt.types import Batch

READ_EVERY = 16  # steps; that often the numbers of a step are fetched from a device that computes on its own


@dataclass(frozen=True)
class Stepping:
    """How a step is taken."""

    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1  # parts that a batch is divided into, one after the other
    clip_grad: float | None = None  # largest norm of all gradients together
    checkpoint_every: int | None = None  # steps; None is each epoch
    label_smoothing: float = 0.0
    mix: Callable[[Batch, int], Batch] | None = None  # a batch's clips with one another, from (batch, step of the run)
    balance: Balancing | None = None
    average: AveragedModel | None = None  # of the weights, updated after each step
    read_every: int | None = None  # steps; None is each on a CPU and with fp16, whose scaler waits for each itself

    def reading(self, device: torch.device) -> int:
        """After how many steps their numbers are read."""
        if self.read_every is not None:
            return self.read_every
        return 1 if device.type == "cpu" or self.precision == "fp16" else READ_EVERY

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The context in which the forward pass may calculate in less than float32."""
        if self.precision in ("fp32", "tf32"):  # `runtime.start` says which of the two
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    state: EpochState,
    *,
    epoch: int,
    first_step: int,
    set_rate: Callable[[int], None],
    stepping: Stepping,
    scaler: torch.amp.GradScaler,
    world: World,
    watched: Mapping[str, Sequence[nn.Parameter]],
    after_step: Callable[[Tensor], None],
) -> None:
    """Take the steps of a training pass that `state` does not have yet, and update it after each.

    The model is called with a batch's inputs and returns logits; with `stepping.balance` it is `Balanced`.
    Where a device computes on its own, the numbers of a step are read some steps later: an error then names the step
    that it arose in, though others were taken since. On a CPU it ends the run before the model is changed.

    A step averages over all clips of its batch, however they are divided among processes and parts. The norms
    recorded are those of the loss that is minimised, before gradients are balanced or clipped: of the sum of a method's
    losses, or where it weighs them itself, of what it made of them. `after_step` receives the rows of the step's clips;
    `epoch` counts from 0, and the epoch's first step is `first_step` of the run.

    Raises:
        NotFiniteError: the loss, or a gradient, is not a number.
    """
    model.train()
    method = stepping.balance
    others = [*set(model.parameters()) - {p for parameters in watched.values() for p in parameters}]
    for batch in batches:
        set_rate(state.step)
        optimizer.zero_grad(set_to_none=True)
        if stepping.mix is not None:
            batch = stepping.mix(batch, first_step + state.step)
        gradients = ApartGradients(model) if method is not None and method.apart else None
        at_once = stepping.reading(batch.labels.device) == 1
        part_losses: list[Tensor] = []
        parts = _parts(batch, stepping.accumulate)
        for number, part in enumerate(parts, 1):
            with _local_gradients(model, gradients is not None or number < len(parts)):
                with stepping.autocast(part.labels.device):
                    if method is None:
                        logits = model(*part.inputs)
                        losses = {"joint": objective.loss(logits, part.labels, part.targets, stepping.label_smoothing)}
                    else:
                        logits, losses = model(part, epoch, first_step + state.step)
                    loss = sum_of(losses)
                state.record(logits.detach(), part)
                if world.size == 1:  # several processes see it in the gradient they share
                    part_losses.append(loss.detach())
                    if at_once and not torch.isfinite(loss):
                        state.read()
                        raise NotFiniteError(f"loss is {loss.item()}", _taken(state, batch, at_once), state.loss)
                share = len(part.labels) / (batch.total or len(batch.labels)) * world.size
                if gradients is None:
                    scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
                else:
                    gradients.add({name: scaler.scale(values * share) for name, values in losses.items()})
        apart = {} if gradients is None else gradients.finish(world, scaler)
        scaler.unscale_(optimizer)
        device = batch.labels.device
        norms, rest = {name: _norm(own, device) for name, own in watched.items()}, _norm(others, device)
        finite = not at_once or all(map(math.isfinite, (*map(float, norms.values()), float(rest))))
        if not finite and not (scaler.is_enabled() and scaler.get_scale() >= 1):  # after this step the model is lost
            state.read()
            raise NotFiniteError("gradient is not finite", _taken(state, batch, at_once), state.loss)
        if method is not None:
            state.factors = _added(state.factors, modulated(method, Step(epoch, first_step + state.step, apart)))
            if method.weighs_losses:
                norms = {name: _norm(own, device) for name, own in watched.items()}
        if not at_once:
            state.unread.steps.append(_taken(state, batch, at_once, part_losses, norms, rest))
        elif finite:
            state.add_norms({name: float(norm) for name, norm in norms.items()})
        else:
            state.skipped += 1
        if stepping.clip_grad is not None:
            nn.utils.clip_grad_norm_(model.parameters(), stepping.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        state.step += 1
        if state.step % stepping.reading(batch.labels.device) == 0:
            state.check()
        after_step(batch.rows)
    state.check()


def _taken(
    state: EpochState,
    batch: Batch,
    at_once: bool,
    losses: Sequence[Tensor] = (),
    norms: Mapping[str, Tensor] | None = None,
    rest: Tensor | None = None,
) -> Taken:
    """A step as it is kept until it is read; the inputs are looked through now, as their memory is used again."""

    def intact() -> Tensor:
        whole = [values.flatten(1).isfinite().all(dim=1) for values in batch.inputs]
        return torch.stack(whole).all(dim=0)

    looked = None if at_once else intact()
    return Taken(
        step=state.step,
        positions=batch.positions,
        rows=batch.rows,
        losses=torch.stack([*losses]) if losses else torch.zeros(0, device=batch.labels.device),
        norms=norms or {},
        rest=torch.zeros((), device=batch.labels.device) if rest is None else rest,
        intact=intact if looked is None else lambda: looked,
    )


def _parts(batch: Batch, count: int) -> list[Batch]:
    """A batch in parts of nearly equal size, none of one clip: BatchNorm needs two."""
    count = max(1, min(count, len(batch.labels) // 2))
    edges = [i * len(batch.labels) // count for i in range(count + 1)]
    return [batch.part(slice(first, last)) for first, last in pairwise(edges)]


def _norm(parameters: Sequence[nn.Parameter], device: torch.device) -> Tensor:
    norm: Tensor = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.to(device, non_blocking=True)  # of none it is a 0 on the CPU


def _added(sums: Mapping[str, float], values: Mapping[str, float]) -> dict[str, float]:
    return {name: sums.get(name, 0.0) + value for name, value in values.items()}


def sum_of(losses: Mapping[str, Tensor]) -> Tensor:
    """The loss of a step, of which there may be several by name."""
    return torch.stack([*losses.values()]).sum() if len(losses) > 1 else next(iter(losses.values()))


class ApartGradients:
    """The gradients of a step, each loss's by itself; in `grad` of each parameter stands their sum."""

    def __init__(self, model: nn.Module) -> None:
        self.learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.apart: dict[str, dict[nn.Parameter, Tensor]] = {}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Back-propagate each of the losses of a forward pass, one after the other."""
        for number, (name, loss) in enumerate(losses.items(), 1):
            gradients = torch.autograd.grad(loss, self.learning, retain_graph=number < len(losses), allow_unused=True)
            own = self.apart.setdefault(name, {})
            for parameter, gradient in zip(self.learning, gradients, strict=True):
                if gradient is not None:
                    own[parameter] = own[parameter] + gradient if parameter in own else gradient

    def finish(self, world: World, scaler: torch.amp.GradScaler) -> Mapping[str, Mapping[nn.Parameter, Tensor]]:
        """Average over all processes, and put the sums in `grad`, scaled; returns each loss's own, unscaled."""
        for own in self.apart.values():
            world.average([*own.values()])
            for parameter, gradient in own.items():
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
                gradient.div_(scaler.get_scale())
        return self.apart


def _local_gradients(model: nn.Module, more: bool) -> AbstractContextManager[None]:
    """While more parts of a batch are to come, the processes need not exchange gradients."""
    if more and isinstance(model, nn.parallel.DistributedDataParallel):
        context: AbstractContextManager[None] = model.no_sync()
        return context
    return nullcontext()


@torch.inference_mode()
def measure_dynamics(model: nn.Module, batches: Iterable[Batch], num_clips: int, world: World) -> EpochState:
    """How sure the model is of the training clips, in one clean pass."""
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
