"""G2D: stage-1 models teach, and the encoder whose teacher is surer waits for the other."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from avpt.training import objective
from avpt.training.balancing.method import Forward, Joint, Step
from avpt.training.balancing.umt import Taught, feature_losses
from avpt.types import MODALITIES, Modality


class G2d(Taught):
    """Gradient-guided distillation (Rakib and Bagavathi, ICCV 2025, arXiv 2506.21514; its code was read).

    L = CE(f) + sum_u [KL(softmax of teacher u || softmax f) + MSE(z_u, z_u of teacher u)], with the stage-1 models as
    teachers, which see what the encoders see; KL is the mean over clips, MSE over clips and features. With s_u the sum
    over the step's clips of the true class's probability in the softmax of teacher u, the convolutions of the encoder
    whose s_u is the greater get a gradient of 0 (momentum and weight decay still move them).

    A clip from which a modality is withheld has neither that modality's losses nor its score.

    One backward pass. A second forward pass through both encoders, without gradient, and the memory of their weights.

    Args:
        joint: the run.
        window: first and last epoch in which an encoder waits, counted from 0.
    """

    ranges: ClassVar = {"window": (0, 100_000)}
    one_label = True

    def __init__(self, joint: Joint, *, window: tuple[int, int] = (0, 150)) -> None:
        super().__init__(joint)
        self.window, self.world = window, joint.world
        self.convolutions: dict[Modality, list[nn.Parameter]] = {
            modality: [p for p in joint.model.get_submodule(modality).parameters() if p.ndim == 4]
            for modality in MODALITIES
        }
        self.scores = torch.zeros(2, dtype=torch.float64)  # s_audio, s_visual of the step so far

    def losses(self, forward: Forward) -> dict[str, Tensor]:
        """The joint loss, and of each modality the distance of its features and of the answer from its teacher's."""
        losses = super().losses(forward)
        features = self.taught_features(forward)
        distances = feature_losses(forward, features)
        answer = forward.logits.float().log_softmax(dim=1)
        scores = []
        for modality in MODALITIES:
            there = forward.present[modality][:, 0].float()
            with torch.no_grad(), torch.autocast(there.device.type, enabled=False):
                logits = self.teachers()[modality].get_submodule("head")(features[modality])
            divergence = functional.kl_div(answer, logits.log_softmax(dim=1), reduction="none", log_target=True)
            losses[modality] = distances[modality] + (divergence.sum(dim=1) * there).mean()
            scores.append((objective.true_probability(logits, forward.labels) * there).sum())
        self.scores += torch.stack(scores).cpu().double()
        return losses

    @torch.no_grad()
    def modulate(self, step: Step) -> dict[str, float]:
        """Let the convolutions of one encoder wait; returns each encoder's factor, 0 or 1."""
        (audio, visual), self.scores = self.world.sum(self.scores).tolist(), torch.zeros_like(self.scores)
        factors: dict[str, float] = dict.fromkeys(MODALITIES, 1.0)
        if self.window[0] <= step.epoch <= self.window[1] and audio != visual:
            ahead: Modality = "audio" if audio > visual else "visual"
            factors[ahead] = 0.0
            for parameter in self.convolutions[ahead]:
                if parameter.grad is not None:
                    parameter.grad.zero_()
        return factors
