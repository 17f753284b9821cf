"""Stage-1 models for the joint model of tests/joint.py, and its gradients by hand."""

from __future__ import annotations

import torch
from balancing import State
from helpers import ARCH
from torch import Tensor

from avpt.models.encoder import Classifier, EncoderSpec, build_encoder
from avpt.models.fusion import FusedModel
from avpt.types import Modality


def teachers() -> dict[Modality, Classifier]:
    """Frozen classifiers with other weights than the joint model has; in training mode, which is no teacher's."""
    torch.manual_seed(11)
    audio = Classifier(build_encoder(EncoderSpec(ARCH, "audio", "batchnorm")), 3)
    visual = Classifier(build_encoder(EncoderSpec(ARCH, "visual", "batchnorm")), 3)
    return {"audio": audio.requires_grad_(False), "visual": visual.requires_grad_(False)}


def gradients_of(model: FusedModel, loss: Tensor) -> State:
    """By name; of the parameters that the loss depends on."""
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
