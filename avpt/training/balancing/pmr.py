"""PMR: the encoder that is behind is drawn towards the middle of each class."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from avpt.models.encoder import Encoder
from avpt.training import objective
from avpt.training.balancing.method import Balancing, Forward, Joint, PlainClips, Step
from avpt.types import MODALITIES, Modality


class Pmr(Balancing):
    """Prototypical modal rebalance (Fan et al., CVPR 2023, arXiv 2211.07089; its code was read, without entropy term).

    L = CE(f) + beta CE(d_a) + lambda CE(d_v), with d_u[c] = -|z_u - P_u[c]|, and P_u[c] the mean feature of class c in
    modality u. rho is the sum over the step's clips of softmax(d_a)[y], divided by that of softmax(d_v)[y]; where
    rho > 1, beta is 0 and lambda alpha, where rho < 1 it is the other way round.

    Before each epoch, P <- (1 - momentum) new + momentum old, over all training clips as they are, in evaluation mode;
    a class that has none is left out of d. A clip from which a modality is withheld has neither loss nor score there.

    A forward pass over the training clips before each epoch; three backward passes, of which two go through one
    encoder each; and three gradients of each encoder in memory. The norm that is recorded is that of L's gradient, as
    `modulate` makes it.

    Args:
        joint: the run.
        alpha: weight of the loss of the modality that is behind.
        momentum: share of the prototypes that stays from epoch to epoch.
        window: first and last epoch in which it balances, counted from 0.
    """

    ranges: ClassVar = {"alpha": (0, 1000), "momentum": (0, 1), "window": (0, 100_000)}
    one_label = True
    apart = True
    weighs_losses = True
    seen: Tensor

    def __init__(
        self, joint: Joint, *, alpha: float = 1.0, momentum: float = 0.2, window: tuple[int, int] = (0, 70)
    ) -> None:
        super().__init__(joint)
        self.alpha, self.momentum, self.window, self.world = alpha, momentum, window, joint.world
        for modality in MODALITIES:
            encoder: Encoder = getattr(joint.model, modality)
            self.register_buffer(f"{modality}_prototypes", torch.zeros(joint.num_classes, encoder.width))
        self.register_buffer("seen", torch.zeros(joint.num_classes, dtype=torch.bool))  # classes with clips
        self.scores = torch.zeros(2, dtype=torch.float64)  # of the step so far

    def prototypes(self, modality: Modality) -> Tensor:
        """P_u (classes, width); zero for classes without clips."""
        return self.get_buffer(f"{modality}_prototypes")

    def _balances(self, epoch: int) -> bool:
        return self.window[0] <= epoch <= self.window[1]

    @property
    def first_epoch(self) -> int:
        """The first epoch, from 0, in which it differs from plain training."""
        return self.window[0]

    @torch.no_grad()
    def begin_epoch(self, epoch: int, clips: PlainClips) -> None:
        """Follow the encoders with the prototypes."""
        if not self._balances(epoch):
            return
        outputs = clips.outputs("train")
        first = not self.seen.any()
        counts = torch.bincount(outputs["labels"], minlength=len(self.seen))
        for modality in MODALITIES:
            prototypes = self.prototypes(modality)
            sums = torch.zeros(prototypes.shape, dtype=torch.float64)
            sums.index_add_(0, outputs["labels"], outputs[modality].double())
            means = sums / counts.clamp(min=1)[:, None]
            kept = 0.0 if first else self.momentum
            prototypes.copy_((1 - kept) * means + kept * prototypes.cpu().double())
        self.seen.copy_(counts > 0)

    def losses(self, forward: Forward) -> dict[str, Tensor]:
        """The joint loss, and each modality's of the distances from its prototypes."""
        losses = super().losses(forward)
        if not self._balances(forward.epoch):
            return losses
        numbers = self.seen.cumsum(0) - 1  # of the classes that have clips
        renumbered = replace(forward, labels=numbers[forward.labels])
        scores = []
        for modality, features in zip(MODALITIES, (forward.audio, forward.visual), strict=True):
            there = forward.present[modality][:, 0].float()
            with torch.autocast(there.device.type, enabled=False):
                nearness = -distances(features.float(), self.prototypes(modality)[self.seen])
            losses[modality] = (renumbered.clip_losses(nearness) * there).mean()
            scores.append((objective.true_probability(nearness.detach(), renumbered.labels) * there).sum())
        self.scores += torch.stack(scores).cpu().double()
        return losses

    @torch.no_grad()
    def modulate(self, step: Step) -> dict[str, float]:
        """Give the loss of the modality that is behind its weight; there is no factor to record."""
        (audio, visual), self.scores = self.world.sum(self.scores).tolist(), torch.zeros_like(self.scores)
        if self._balances(step.epoch):
            beta, lambda_ = self.alpha * (audio < visual), self.alpha * (audio > visual)
            step.weigh({"joint": 1.0, "audio": beta, "visual": lambda_})
        return {}


def distances(features: Tensor, prototypes: Tensor) -> Tensor:
    """|z - P[c]| (batch, classes); where it is 0, so is its gradient."""
    return torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
