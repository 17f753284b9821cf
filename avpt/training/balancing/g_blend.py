"""G-Blend, which weighs the losses by what each alone gains on clips that it does not learn from."""

from __future__ import annotations

import logging
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from avpt.models.fusion import FusedModel
from avpt.training import objective
from avpt.training.balancing.method import Forward, Joint, PlainClips
from avpt.training.balancing.uniform import OwnHeads
from avpt.types import MODALITIES, Split

log = logging.getLogger(__name__)

BLENDED = (*MODALITIES, "joint")
LEARNT_FROM: tuple[Split, ...] = ("train", "val")
LEAST = 1e-8  # that O^2 counts for: a loss that overfits by nothing would have all the weight


class GBlend(OwnHeads):
    """Gradient blending (Wang et al., CVPR 2020, arXiv 1905.12681), its online form.

    L = sum_u w_u CE(u) over the audio head, the visual head and the joint answer. Before every super-epoch of some
    epochs, a copy of the model is trained over it by CE(u) alone, for each u in turn. With G_u the fall of the mean
    loss on val, and O_u the growth of the difference of the mean losses on val and on train, in evaluation mode,
    w_u is |G_u| / O_u^2 (O_u^2 at least 1e-8) over the sum of all three; 1/3 each where that is not a number.

    Four times the training: beside its own steps, those of three copies, each with one backward pass; and per
    super-epoch four passes without gradients over train and val. A second model, its gradients and its optimiser in
    memory. A run that is interrupted while the weights are looked for starts looking anew. A last super-epoch is
    shorter where the run ends.

    Args:
        joint: the run.
        every: epochs of a super-epoch.
    """

    ranges: ClassVar = {"every": (1, 100_000)}
    weights: Tensor  # of BLENDED

    def __init__(self, joint: Joint, *, every: int = 10) -> None:
        super().__init__(joint)
        self.every, self.epochs, self.world = every, joint.epochs, joint.world
        self.joint = (joint.model,)  # in which this is a submodule
        self.register_buffer("weights", torch.full((len(BLENDED),), 1 / len(BLENDED)))

    def begin_epoch(self, epoch: int, clips: PlainClips) -> None:
        """Find the weights of a super-epoch."""
        if epoch % self.every:
            return
        epochs = min(self.every, self.epochs - epoch)
        before = mean_losses(self.joint[0], clips)
        after = torch.zeros_like(before)
        for number, name in enumerate(BLENDED):
            trial = clips.trial(partial(loss_alone, name), epochs, f"trying {name} alone")
            after[number] = mean_losses(*trial)[number]
        weights = self.world.first(lambda: blend(before, after))
        log.info("weights of the losses: %s", ", ".join(f"{u} {w:.3f}" for u, w in zip(BLENDED, weights, strict=True)))
        self.weights.copy_(weights)

    def losses(self, forward: Forward) -> dict[str, Tensor]:
        """The three losses with their weights."""
        losses = super().losses(forward)
        return {name: weight * losses[name] for name, weight in zip(BLENDED, self.weights, strict=True)}


def loss_alone(name: str, forward: Forward) -> dict[str, Tensor]:
    """One of BLENDED, as the loss of a forward pass."""
    features = {"audio": forward.audio, "visual": forward.visual}
    logits = forward.logits if name == "joint" else own_head(forward.model, name)(features[name])
    return {name: forward.loss(logits)}


def own_head(model: FusedModel, name: str) -> torch.nn.Module:
    """A modality's own head, in the model or a copy of it."""
    assert model.balance is not None
    return model.balance.get_submodule(name)


@torch.no_grad()
def mean_losses(model: FusedModel, clips: PlainClips) -> Tensor:
    """(BLENDED, 2) float64 mean losses on train and on val, without smoothing."""
    device = next(model.parameters()).device
    columns = []
    for split in LEARNT_FROM:
        outputs = clips.outputs(split)
        logits: dict[str, Tensor] = {name: own_head(model, name)(outputs[name].to(device)).cpu() for name in MODALITIES}
        logits["joint"] = outputs["logits"]
        losses = [objective.clip_losses(logits[name], outputs["labels"]).double().mean() for name in BLENDED]
        columns.append(torch.stack(losses))
    return torch.stack(columns, dim=1)


def blend(before: Tensor, after: Tensor) -> Tensor:
    """w (BLENDED,) from the mean losses (BLENDED, 2) on train and on val."""
    gained = before[:, 1] - after[:, 1]
    overfitted = (after[:, 1] - after[:, 0]) - (before[:, 1] - before[:, 0])
    worth = gained.abs() / overfitted.square().clamp(min=LEAST)
    weights = worth / worth.sum()
    return weights if bool(weights.isfinite().all()) else torch.full_like(worth, 1 / len(worth))
