"""Encoders: torchvision's ResNets with the norm layer passed in, and one with a linear head.

Shapes: audio (batch, 1, frame, mel), visual (batch, frames, 3, height, width), features (batch, width).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet

from avpt.files.checking import RecordError, convert
from avpt.models.abri import AbriBatchNorm2d
from avpt.types import Modality

ARCHS = ("resnet18", "resnet34", "resnet50")
CHANNELS: dict[Modality, int] = {"audio": 1, "visual": 3}

Norm = Literal["batchnorm", "abri-channel", "abri-layer"]


@dataclass(frozen=True)
class EncoderSpec:
    """Rebuilds an encoder with nothing else."""

    arch: str  # resnet18, resnet34, resnet50
    modality: Modality
    norm: Norm


def build_encoder(spec: EncoderSpec, alpha: float = 0.5) -> ResNet:
    """A ResNet with random weights, without its classifier, that takes the modality's channels.

    `alpha` is where ABRi layers start. Draws from torch's global generator.
    """
    norm_layers: dict[Norm, Callable[..., nn.Module]] = {
        "batchnorm": nn.BatchNorm2d,
        "abri-channel": partial(AbriBatchNorm2d, alpha=alpha, per="channel"),
        "abri-layer": partial(AbriBatchNorm2d, alpha=alpha, per="layer"),
    }
    encoder: ResNet = torchvision.models.get_model(spec.arch, weights=None, norm_layer=norm_layers[spec.norm])
    if CHANNELS[spec.modality] != encoder.conv1.in_channels:
        encoder.conv1 = nn.Conv2d(CHANNELS[spec.modality], 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(encoder.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    encoder.width = encoder.fc.in_features
    encoder.fc = nn.Identity()
    return encoder


def encode(encoder: nn.Module, inputs: Tensor) -> Tensor:
    """Features (batch, width), pooled over time and frequency, or over frames, height and width."""
    if inputs.ndim == 4:
        features: Tensor = encoder(inputs)
        return features
    batch, frames = inputs.shape[:2]
    pooled: Tensor = encoder(inputs.flatten(0, 1))
    return pooled.view(batch, frames, -1).mean(dim=1)


def freeze(encoder: nn.Module) -> None:
    """Keep an encoder as it is: no gradient reaches it, and its BatchNorm stays with its running statistics."""
    encoder.requires_grad_(False).eval()
    encoder.train = lambda mode=True: encoder  # type: ignore[method-assign]  # a model's train() comes by here


class Classifier(nn.Module):
    """One encoder and a linear head; tensors `encoder.*`, `head.weight`, `head.bias`."""

    def __init__(self, encoder: ResNet, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(int(encoder.width), num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        logits: Tensor = self.head(encode(self.encoder, inputs))
        return logits

    def outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """What evaluation records: the logits."""
        return {"logits": self(inputs)}


class Features(nn.Module):
    """An encoder whose features are what evaluation records."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """The features (batch, width)."""
        return {"features": encode(self.encoder, inputs)}


def norm_parameters(model: nn.Module) -> set[nn.Parameter]:
    """All parameters of BatchNorm layers, ABRi's alpha and new branch included."""
    layers = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return {parameter for layer in layers for parameter in layer.parameters(recurse=False)}


def encoder_spec(values: dict[str, Any]) -> EncoderSpec:
    """The spec from an artifact's header.

    Raises:
        RecordError: it is none, or names something that avpt does not build.
    """
    spec = convert(values, EncoderSpec)
    if spec.arch not in ARCHS:
        raise RecordError(f"unknown encoder {spec.arch!r:.50}")
    return spec
