"""UMT: each encoder is held to the features of its own stage-1 model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from avpt.models.encoder import encode
from avpt.training.balancing.method import Balancing, Forward, Joint
from avpt.types import MODALITIES, Modality


class Taught(Balancing):
    """A method with the stage-1 models, frozen and in evaluation mode, as teachers of the encoders."""

    taught = True

    def __init__(self, joint: Joint) -> None:
        super().__init__(joint)
        teachers = {modality: teacher.eval() for modality, teacher in joint.teachers().items()}
        # behind a function, so that neither a checkpoint nor a copy of the model has them too
        self.teachers: Callable[[], Mapping[Modality, nn.Module]] = lambda: teachers

    def taught_features(self, forward: Forward) -> Mapping[Modality, Tensor]:
        """(batch, width) float32 by modality: the teachers', of the very input that the encoders have.

        As the encoders' own, they are zero where a modality is withheld from a clip.
        """
        teachers, features = self.teachers(), dict[Modality, Tensor]()
        with torch.no_grad():
            for modality, inputs in zip(MODALITIES, forward.inputs, strict=False):
                encoder = teachers[modality].get_submodule("encoder")
                features[modality] = (encode(encoder, inputs) * forward.present[modality]).float()
        return features


def feature_losses(forward: Forward, taught: Mapping[Modality, Tensor]) -> dict[Modality, Tensor]:
    """MSE(z_u, the teacher's z_u) of each modality u, mean over clips and over the features' entries."""
    own: dict[Modality, Tensor] = {"audio": forward.audio, "visual": forward.visual}
    return {modality: functional.mse_loss(own[modality].float(), taught[modality]) for modality in MODALITIES}


class Umt(Taught):
    """Uni-modal teachers (Du et al., ICML 2023, arXiv 2305.01233; read in BalanceBenchmark).

    L = CE(f) + weight sum_u MSE(z_u, z_u of the stage-1 encoder), where the mean is over clips and features. Teachers
    see what the encoders see, augmented and masked.

    One backward pass. A second forward pass through both encoders, without gradient, and the memory of their weights.

    Args:
        joint: the run.
        weight: of the distance between the features of encoders and teachers.
        window: first and last epoch in which they teach, counted from 0.
    """

    ranges: ClassVar = {"weight": (0, 1_000_000), "window": (0, 100_000)}

    def __init__(self, joint: Joint, *, weight: float = 10.0, window: tuple[int, int] = (0, 80)) -> None:
        super().__init__(joint)
        self.weight, self.window = weight, window

    @property
    def first_epoch(self) -> int:
        """The first epoch, from 0, in which it differs from plain training."""
        return self.window[0]

    def losses(self, forward: Forward) -> dict[str, Tensor]:
        """The joint loss, and each encoder's distance from its teacher."""
        losses = super().losses(forward)
        if not self.window[0] <= forward.epoch <= self.window[1]:
            return losses
        distances = feature_losses(forward, self.taught_features(forward))
        return losses | {modality: self.weight * distance for modality, distance in distances.items()}
