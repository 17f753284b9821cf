"""The interface of a method that balances the modalities; the training loop knows no more of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from avpt.errors import ConfigError
from avpt.models.encoder import encode
from avpt.models.fusion import FusedModel, Sum, shares
from avpt.text import shortened
from avpt.training import objective
from avpt.training.world import World
from avpt.types import MODALITIES, Batch, Modality, Split


@dataclass(frozen=True)
class Joint:
    """A run of joint training, as a method finds it before the first step."""

    model: FusedModel  # on its device, with `audio`, `visual` and `fusion`
    num_classes: int
    epochs: int
    seed: int
    world: World  # the processes of the job, whose clips count together
    teachers: Callable[[], Mapping[Modality, nn.Module]]  # the trained stage-1 models: `encoder`, `head`; frozen


@dataclass(frozen=True)
class Forward:
    """A forward pass over some clips of a step; a step has several with `--accumulate` and in several processes."""

    model: FusedModel
    inputs: tuple[Tensor, ...]  # audio (batch, 1, frame, mel), visual (batch, frames, 3, h, w); which are present
    audio: Tensor  # features (batch, width), with gradient
    visual: Tensor
    logits: Tensor  # (batch, classes), of both
    labels: Tensor  # (batch,) int64, or (batch, classes) when multi-label
    epoch: int  # from 0
    smoothing: float  # of the labels
    number: int  # of the step, counted over the run; the same in all parts of the step
    rows: Tensor  # (batch,) int64: the clips, by a number that is unique within an epoch

    @property
    def present(self) -> Mapping[Modality, Tensor]:
        """(batch, 1) by modality: 1, or 0 for a clip of which `--modality-dropout` withholds it."""
        there = self.inputs[2] if len(self.inputs) > 2 else self.audio.new_ones(len(self.labels), 2)
        return {"audio": there[:, :1], "visual": there[:, 1:]}

    def clip_losses(self, logits: Tensor) -> Tensor:
        """(batch,) the run's loss of some logits (batch, classes), clip by clip."""
        return objective.clip_losses(logits, self.labels, smoothing=self.smoothing)

    def loss(self, logits: Tensor) -> Tensor:
        """The run's loss of some logits (batch, classes), mean over the clips."""
        return self.clip_losses(logits).mean()

    @torch.no_grad()
    def true_probabilities(self) -> Tensor:
        """(2, batch) float32: of the true class, in the softmax of each modality's share of the logits.

        The share is W_u z_u + b_u for `sum`, and the two-player Shapley value (`avpt.models.fusion.shares`) for any
        other fusion, which is W_u z_u + b / 2 for `concat`.
        """
        fusion = self.model.fusion
        with torch.autocast(self.labels.device.type, enabled=False):
            a, v, logits = self.audio.float(), self.visual.float(), self.logits.float()
            parts = (fusion.audio(a), fusion.visual(v)) if isinstance(fusion, Sum) else shares(fusion, a, v, logits)
            return torch.stack([objective.true_probability(part, self.labels) for part in parts])


@dataclass(frozen=True)
class Step:
    """A step after its backward passes; gradients are the averages over its clips, in all processes, and unscaled."""

    epoch: int  # from 0
    number: int  # counted over the run
    apart: Mapping[str, Mapping[nn.Parameter, Tensor]]  # each loss's own gradients, for a method that is `apart`

    @torch.no_grad()
    def weigh(self, weights: Mapping[str, float]) -> None:
        """Replace the gradients by the sum of the losses' own, each times its weight."""
        for parameter in {parameter for own in self.apart.values() for parameter in own}:
            terms = [weights[name] * own[parameter] for name, own in self.apart.items() if parameter in own]
            parameter.grad = terms[0] if len(terms) == 1 else torch.stack(terms).sum(dim=0)


Losses = Callable[[Forward], dict[str, Tensor]]  # as `Balancing.losses` has them


def _no_trial(losses: Losses, epochs: int, what: str) -> tuple[FusedModel, PlainClips]:
    raise AssertionError("there are no clips to train on")


@dataclass(frozen=True)
class PlainClips:
    """The store's clips between two epochs, in evaluation mode and without augmentation.

    `trial` trains a copy of the model, by the given losses alone, as the run would for some epochs from the coming one
    on: with its clips, rates and optimiser. It returns the copy, whose `balance` is a copy too, and the clips as that
    one sees them; nothing about the run changes. `what` says on the terminal what is being tried.
    """

    outputs: Callable[[Split], dict[str, Tensor]]  # of `Features`, and `labels`; on the CPU, in the split's order
    trial: Callable[[Losses, int, str], tuple[FusedModel, PlainClips]] = _no_trial


class Balancing(nn.Module):
    """Plain joint training; a method overrides what it changes about it.

    The method becomes part of the model, as its `balance`: parameters that it has (heads of its own) are trained,
    averaged and saved with the others, and its buffers are its state in a checkpoint. A trained model answers without.

    Options of a method are the keyword arguments of its constructor, annotated as int, float, bool, str or tuples of
    these, each with a default.
    """

    one_label: ClassVar[bool] = False  # it needs clips that have one label each
    through_encoders: ClassVar[bool] = True  # it does nothing where the encoders are frozen
    taught: ClassVar[bool] = False  # it asks for the stage-1 models
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}  # of options; of others any number is taken
    apart: ClassVar[bool] = False  # each of its losses is back-propagated by itself
    weighs_losses: ClassVar[bool] = False  # `modulate` first makes its losses what the step minimises, by their weights

    def __init__(self, joint: Joint) -> None:
        super().__init__()

    @property
    def first_epoch(self) -> int:
        """The first epoch, from 0, in which it differs from plain training."""
        return 0

    def begin_epoch(self, epoch: int, clips: PlainClips) -> Tensor | None:
        """Prepare an epoch (from 0), before its first step; the model may be changed.

        Returns clips that the epoch has beside each clip once, (n, 3) int64: the position in train, and whether the
        features of its sound and of its pictures are there, 1 or 0 (else they are zero). They are augmented on their
        own and mixed with the others; what the run records of an epoch is without them. None for none; all processes
        return the same.

        A run that is interrupted in here begins here again.
        """
        return None

    def losses(self, forward: Forward) -> dict[str, Tensor]:
        """The losses of a forward pass by name, each a mean over its clips; a step minimises their sum."""
        return {"joint": forward.loss(forward.logits)}

    def modulate(self, step: Step) -> dict[str, float]:
        """Change the gradients of a step before they are clipped and applied.

        Returns each encoder's factor by modality, which is recorded; nothing where a method has none.
        """
        return {}


def modulated(method: Balancing, step: Step) -> dict[str, float]:
    """Let a method change the gradients of a step; returns the factors that it says, by modality.

    Raises:
        ConfigError: there is a factor of something else than a modality, or one that is no number.
    """
    factors: object = method.modulate(step)
    if factors is None:
        return {}
    if isinstance(factors, dict) and set(factors) <= set(MODALITIES):
        with suppress(TypeError, ValueError):
            return {name: float(factor) for name, factor in factors.items()}
    raise ConfigError(
        f"{type(method).__name__}.modulate returned {shortened(repr(factors), 80)}; it may return factors of "
        f"{' and '.join(MODALITIES)}, which are numbers, or nothing"
    )


def further_clips(method: Balancing, epoch: int, clips: PlainClips, num_train: int) -> Tensor | None:
    """Let a method prepare an epoch (from 0); returns the clips that the epoch has beside each of train once, if any.

    Raises:
        ConfigError: what it returned are no such clips.
    """
    further: object = method.begin_epoch(epoch, clips)
    if further is None:
        return None
    if isinstance(further, Tensor) and further.dtype == torch.int64 and further.ndim == 2 and further.shape[1] == 3:
        highest = torch.tensor([num_train - 1, 1, 1])
        if bool(((further.cpu() >= 0) & (further.cpu() <= highest)).all()):
            return further.cpu() if len(further) else None
    shown = shortened(" ".join(repr(further).split()), 80)
    raise ConfigError(
        f"{type(method).__name__}.begin_epoch returned {shown}; it may return clips (n, 3), int64: a position in train "
        f"from 0 to {num_train - 1}, and twice 0 or 1; or nothing"
    )


class Alone(Balancing):
    """Training by some losses and nothing else."""

    def __init__(self, losses: Losses) -> None:
        nn.Module.__init__(self)
        self.alone = losses

    def losses(self, forward: Forward) -> dict[str, Tensor]:
        """These losses."""
        return self.alone(forward)


class Balanced(nn.Module):
    """The training pass of a model with a balancing method: from batches to logits and the method's losses."""

    def __init__(self, model: FusedModel, method: Balancing, smoothing: float, compiled: bool) -> None:
        super().__init__()
        self.model, self.smoothing = model, smoothing
        self.method = (method,)  # a submodule of the model, and so not of this one
        self.features: Callable[..., Any] = torch.compile(model.features, dynamic=False) if compiled else model.features

    def forward(self, batch: Batch, epoch: int, number: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (batch, classes), without gradient, and the losses by name.

        Args:
            batch: clips.
            epoch: from 0.
            number: of the step, counted over the run.
        """
        audio, visual = self.features(*batch.inputs)
        logits = self.model.fusion(audio, visual)
        seen = Forward(
            self.model,
            batch.inputs,
            audio,
            visual,
            logits,
            batch.labels,
            epoch,
            self.smoothing,
            number,
            batch.rows,
        )
        method = self.method[0]
        losses = method.losses(seen)
        if not isinstance(losses, dict) or not losses or any(loss.ndim for loss in losses.values()):
            raise ConfigError(f"{type(method).__name__}.losses must return means by name; see `avpt guide balancing`")
        if not any(loss.requires_grad for loss in losses.values()):
            raise ConfigError(f"{type(method).__name__}.losses depend on no parameter; see `avpt guide balancing`")
        return logits.detach(), losses


class Features(nn.Module):
    """A fused model whose outputs are the features of both modalities, `audio` and `visual`, and the logits."""

    def __init__(self, model: FusedModel) -> None:
        super().__init__()
        self.model = model

    def outputs(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Features (batch, width) and logits (batch, classes)."""
        a, v = encode(self.model.audio, audio), encode(self.model.visual, visual)
        return {"audio": a, "visual": v, "logits": self.model.fusion(a, v)}
