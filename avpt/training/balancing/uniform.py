"""Uniform: each encoder has a head and a loss of its own beside the joint one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from avpt.training.balancing.method import Balancing, Forward, Joint, Step
from avpt.types import MODALITIES, Modality


class OwnHeads(Balancing):
    """A linear classifier on each modality's features, whose losses are added to that of the joint model."""

    def __init__(self, joint: Joint) -> None:
        super().__init__(joint)
        model = joint.model
        self.audio = nn.Linear(model.audio.width, joint.num_classes)
        self.visual = nn.Linear(model.visual.width, joint.num_classes)
        self.encoders: dict[Modality, Sequence[nn.Parameter]] = {
            modality: [p for p in model.get_submodule(modality).parameters() if p.requires_grad]
            for modality in MODALITIES
        }

    def losses(self, forward: Forward) -> dict[str, Tensor]:
        """The joint loss, and each modality's of its own head."""
        return {
            **super().losses(forward),
            "audio": forward.loss(self.audio(forward.audio)),
            "visual": forward.loss(self.visual(forward.visual)),
        }


class Uniform(OwnHeads):
    """L = CE(W [z_a; z_v] + b) + CE(H_a z_a) + CE(H_v z_v) (the baseline of Wei and Hu, ICML 2024).

    One backward pass, and no memory but for the heads.

    Args:
        joint: the run.
        gamma: by which the encoders' gradients are multiplied; 1.5 is what `MMPareto` does to them where the losses
            agree, so that the difference from it is what the direction alone is worth.
    """

    ranges: ClassVar = {"gamma": (0, 1000)}

    def __init__(self, joint: Joint, *, gamma: float = 1.0) -> None:
        super().__init__(joint)
        self.gamma = gamma

    @torch.no_grad()
    def modulate(self, step: Step) -> dict[str, float]:
        """Multiply the encoders' gradients; there is no factor to record."""
        if self.gamma != 1:
            for parameter in (p for parameters in self.encoders.values() for p in parameters):
                if parameter.grad is not None:
                    parameter.grad.mul_(self.gamma)
        return {}
