"""Encoders: torchvision's ResNets with the norm layer passed in, and one with a linear head.

Shapes: audio (batch, 1, frame, mel), visual (batch, frames, 3, height, width), features (batch, width).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from torch import Tensor, nn

from avpt.files.checking import RecordError, convert
from avpt.machine.light_imports import without_compiler
from avpt.models.abri import AbriBatchNorm2d
from avpt.types import Modality

with without_compiler():
    from torchvision.models.resnet import BasicBlock, Bottleneck

if TYPE_CHECKING:  # torchvision has no types

    class ResNet(nn.Module):
        """The part of torchvision's ResNet that is used here."""

        conv1: nn.Conv2d
        bn1: nn.Module
        fc: nn.Module

        def __init__(self, block: Any, layers: list[int], *, norm_layer: Any) -> None: ...
else:
    from torchvision.models import ResNet

ARCHS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {  # blocks of each of the four layers
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
CHANNELS: dict[Modality, int] = {"audio": 1, "visual": 3}

Norm = Literal["batchnorm", "abri-channel", "abri-layer"]


@dataclass(frozen=True)
class EncoderSpec:
    """Rebuilds an encoder with nothing else."""

    arch: str  # resnet18, resnet34, resnet50
    modality: Modality
    norm: Norm


class Freezable(nn.Module):
    """A module that stays in evaluation mode once it is frozen, whatever the model around it is set to."""

    frozen = False

    def train(self, mode: bool = True) -> Self:
        """Set training mode, or evaluation mode."""
        return super().train(mode and not self.frozen)


class Encoder(Freezable, ResNet):
    """torchvision's ResNet with random weights, without its classifier, for the channels of one modality."""

    width: int  # of its features

    def __init__(self, spec: EncoderSpec, norm_layer: Callable[..., nn.Module]) -> None:
        block, layers = ARCHS[spec.arch]
        super().__init__(block, layers, norm_layer=norm_layer)
        if CHANNELS[spec.modality] != self.conv1.in_channels:
            self.conv1 = nn.Conv2d(CHANNELS[spec.modality], 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
        self.width = 512 * block.expansion
        self.fc = nn.Identity()


def build_encoder(spec: EncoderSpec, alpha: float = 0.5) -> Encoder:
    """An encoder with random weights, from torch's global generator; `alpha` is where ABRi layers start."""
    norm_layers: dict[Norm, Callable[..., nn.Module]] = {
        "batchnorm": nn.BatchNorm2d,
        "abri-channel": partial(AbriBatchNorm2d, alpha=alpha, per="channel"),
        "abri-layer": partial(AbriBatchNorm2d, alpha=alpha, per="layer"),
    }
    return Encoder(spec, norm_layers[spec.norm])


def encode(encoder: nn.Module, inputs: Tensor) -> Tensor:
    """Features (batch, width), pooled over time and frequency, or over frames, height and width."""
    if inputs.ndim == 4:
        features: Tensor = encoder(inputs)
        return features
    batch, frames = inputs.shape[:2]
    pooled: Tensor = encoder(inputs.flatten(0, 1))
    return pooled.view(batch, frames, -1).mean(dim=1)


def freeze(encoder: Freezable) -> None:
    """Keep an encoder as it is: no gradient reaches it, and its BatchNorm stays with its running statistics."""
    encoder.requires_grad_(False).eval()
    encoder.frozen = True


class Classifier(nn.Module):
    """One encoder and a linear head; tensors `encoder.*`, `head.weight`, `head.bias`."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        logits: Tensor = self.head(encode(self.encoder, inputs))
        return logits

    def outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """What evaluation records: the logits."""
        return {"logits": self(inputs)}


class Features(nn.Module):
    """An encoder alone, whose features are what evaluation records and what is exported."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Tensor) -> Tensor:
        """The features (batch, width)."""
        return encode(self.encoder, inputs)

    def outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """What evaluation records: the features."""
        return {"features": self(inputs)}


def norm_parameters(model: nn.Module) -> set[nn.Parameter]:
    """All parameters of BatchNorm layers, ABRi's alpha and new branch included."""
    layers = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return {parameter for layer in layers for parameter in layer.parameters(recurse=False)}


def encoder_spec(values: dict[str, Any]) -> EncoderSpec:
    """The spec from an artifact's header.

    Raises:
        RecordError: it is not a spec, or names something that avpt does not build.
    """
    spec = convert(values, EncoderSpec)
    if spec.arch not in ARCHS:
        raise RecordError(f"unknown encoder {spec.arch!r:.50}")
    return spec
