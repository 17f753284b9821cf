"""Encoders: networks without their classifier, for the channels of one modality, and one with a linear head.

Shapes: audio (batch, 1, frame, mel), visual (batch, frames, 3, height, width), features (batch, width).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from avpt.errors import ConfigError
from avpt.files.checking import RecordError, convert
from avpt.files.records import IMAGENET, Colour, Deviation, InputSpec, Positive
from avpt.models import abri
from avpt.models.abnormal_channels import norm_layers
from avpt.models.architectures import (
    RESNETS,
    Size,
    create_network,
    find_architecture,
)
from avpt.types import CHANNELS, LARGEST_INPUT, Modality

log = logging.getLogger(__name__)

Norm = Literal["batchnorm", "abri-channel", "abri-layer"]
SOUND_SIZE = (1024, 128)  # frames x mel bins, unless something else is asked for


@dataclass(frozen=True)
class EncoderSpec:
    """Rebuilds an encoder with nothing else; what is None is left out of records."""

    arch: str  # torchvision's resnet18, resnet34, resnet50, or a name of timm's
    modality: Modality
    norm: Norm
    size: tuple[Positive, Positive] | None = None  # of its inputs, where it takes one size alone
    mean: Colour | None = None  # of the pictures that its weights were made with; None: ImageNet's
    std: Deviation | None = None

    def record(self) -> dict[str, Any]:
        """The spec as a header holds it."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def describe_encoder(arch: str, modality: Modality, norm: Norm, size: Size | None = None) -> EncoderSpec:
    """The spec of a new encoder.

    Args:
        arch: as `find_architecture` takes it.
        modality: what it is fed.
        norm: what its BatchNorm layers are.
        size: of its inputs, for an architecture that takes one size alone; None is that of its weights for pictures,
            and 1024 frames x 128 mel bins for audio.

    Raises:
        ConfigError: the architecture is unknown, does not take that size, or takes any.
    """
    facts = find_architecture(arch)
    if size is not None and not facts.fixed_size:
        raise ConfigError(f"{arch} takes inputs of any size; leave --input-size out")
    if facts.fixed_size and size is None:
        size = SOUND_SIZE if modality == "audio" else facts.picture_size
    colours: dict[str, Any] = {}
    if modality == "visual" and facts.colours != IMAGENET:
        colours = dict(zip(("mean", "std"), facts.colours, strict=True))
    spec = EncoderSpec(arch, modality, norm, size, **colours)
    if size is not None and max(size) ** 2 > LARGEST_INPUT:
        most = math.isqrt(LARGEST_INPUT)
        raise ConfigError(f"--input-size {size[0]}x{size[1]} is too large; {most} a side is the most")
    if size is not None:
        try:
            features_shape(spec, size)
        except ConfigError as error:
            raise ConfigError(f"{error}{_hint(spec, size)}") from None
    return spec


class Encoder(nn.Module):
    """What every encoder is beside a network: of a known width, and in evaluation mode for good once it is frozen."""

    width: int  # of its features
    frozen = False

    def train(self, mode: bool = True) -> Self:
        """Set training mode, or evaluation mode."""
        return super().train(mode and not self.frozen)


def build_encoder(spec: EncoderSpec, alpha: float = 0.5) -> Encoder:
    """An encoder with random weights, from torch's global generator; `alpha` is where ABRi layers start.

    Its tensors have the names that the architecture's library gives them.

    Raises:
        ConfigError: the architecture is unknown, or can't be what the spec says.
    """
    network = create_network(spec.arch, CHANNELS[spec.modality], spec.size)
    if spec.norm != "batchnorm":
        network = abri.convert(network, alpha, "channel" if spec.norm == "abri-channel" else "layer")
    width = 512 * RESNETS[spec.arch][0].expansion if spec.arch in RESNETS else _measure_width(spec)
    # the class is put below the network's own, so that no tensor's name gets a prefix
    network.__class__ = type(type(network).__name__, (Encoder, type(network)), {})
    encoder = cast(Encoder, network)
    encoder.width = width
    return encoder


@cache
def _measure_width(spec: EncoderSpec) -> int:
    """The width of an architecture's features; what its library states is not always that of its output."""
    size = spec.size or find_architecture(spec.arch).picture_size
    shape = features_shape(replace(spec, norm="batchnorm"), size)
    if len(shape) != 2:
        how = " x ".join(map(str, shape[1:]))
        raise ConfigError(
            f"the features of {spec.arch} are not a vector but {how}, so it can't be an encoder; `avpt encoders` lists "
            "others"
        )
    return shape[1]


def features_shape(spec: EncoderSpec, size: Size) -> tuple[int, ...]:
    """The shape of the features of two inputs of a size; nothing is computed.

    Raises:
        ConfigError: the architecture can't take inputs of that size, or none of that modality.
    """
    try:
        return _try_inputs(spec.arch, CHANNELS[spec.modality], spec.size, size)[0]
    except ConfigError:
        own = find_architecture(spec.arch).picture_size
        if spec.modality == "audio" and not takes_size(spec, own) and takes_size(replace(spec, modality="visual"), own):
            raise ConfigError(f"{spec.arch} takes pictures of 3 channels alone, and sound has 1") from None
        raise


@cache
def _try_inputs(arch: str, channels: int, built_for: Size | None, size: Size) -> tuple[tuple[int, ...], bool]:
    """The shape of the features of two inputs, and whether the network's patches divide these without a rest."""
    network = _without_memory(arch, channels, built_for)
    whole = True

    def look(patches: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        nonlocal whole
        sides = inputs[0].shape[-2:]
        cut = any(side % step for side, step in zip(sides, patches.stride, strict=True))
        padded = any(side > own for side, own in zip(sides, size, strict=True))
        whole = whole and not cut and not padded

    hooks = [layer.register_forward_pre_hook(look) for layer in network.modules() if _takes_patches(layer)]
    try:
        with torch.device("meta"), torch.no_grad():
            features = network(torch.empty(2, channels, *size))
    except (AssertionError, RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{arch} can't take inputs of {size[0]}x{size[1]} ({reason:.150})") from None
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(features.shape), whole


def _takes_patches(layer: nn.Module) -> bool:
    """Whether a layer cuts its input into patches that neither overlap nor reach beyond the edge."""
    if not isinstance(layer, nn.Conv2d) or layer.padding not in ((0, 0), "valid"):
        return False
    return layer.kernel_size == layer.stride != (1, 1)


def takes_size(spec: EncoderSpec, size: Size, *, whole: bool = False) -> bool:
    """Whether an architecture can take inputs of a size, built for it where it takes one alone.

    Args:
        spec: of an encoder; its own size is ignored.
        size: of the inputs.
        whole: ask also that its patches divide them.
    """
    try:
        _, fits = _try_inputs(spec.arch, CHANNELS[spec.modality], None if spec.size is None else size, size)
    except ConfigError:
        return False
    return fits or not whole


@lru_cache(maxsize=4)  # the nearest size is looked for with one network
def _without_memory(arch: str, channels: int, size: Size | None) -> nn.Module:
    with torch.device("meta"):
        return create_network(arch, channels, size).eval()


def count_encoder(arch: str) -> dict[str, int]:
    """The number of parameters and of BatchNorm layers of an encoder for pictures, and the width of its features.

    Raises:
        ConfigError: the architecture can't be an encoder.
    """
    spec = describe_encoder(arch, "visual", "batchnorm")
    with torch.device("meta"):
        encoder = build_encoder(spec)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return {"parameters": parameters, "width": encoder.width, "batchnorm": len(norm_layers(encoder.state_dict()))}


def check_sound(arch: str) -> None:
    """Check that an encoder can take sound, where its first layer is no convolution that takes any channels.

    Raises:
        ConfigError: it can't.
    """
    facts = find_architecture(arch)
    if not facts.first_convolutions:
        size = facts.picture_size if facts.fixed_size else None
        features_shape(EncoderSpec(arch, "audio", "batchnorm", size), facts.picture_size)


def check_size(spec: EncoderSpec, size: Size, name: str) -> None:
    """Check that an encoder takes inputs of a size.

    Args:
        spec: of the encoder.
        size: (height, width) of pictures, (frames, mel bins) of spectrograms.
        name: what to call the encoder.

    A warning is logged where it does, but its patches leave a rest at the edge.

    Raises:
        ConfigError: it does not; the message names what to change, and the nearest size that it takes.
    """
    if spec.arch in RESNETS:
        return  # they take any
    option = "preprocess with other --spectrogram-frames and --mel-bins"
    option = option if spec.modality == "audio" else f"--image-size {size[0]}"
    asked = f"{size[0]}x{size[1]}"
    if spec.size is not None:
        if tuple(spec.size) != size:
            has = "x".join(map(str, spec.size))
            mend = option if spec.modality == "audio" else f"give --image-size {spec.size[0]}"
            raise ConfigError(
                f"{name} is a {spec.arch} for inputs of {has} and no others, and these are {asked}; {mend}, or make "
                f"the encoder again with `avpt init --input-size {asked}`"
            )
    else:
        try:
            features_shape(spec, size)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}{_hint(spec, size)}") from None
    warn_of_edges(spec, size, name)


def warn_of_edges(spec: EncoderSpec, size: Size, name: str) -> None:
    """Log a warning where an encoder takes inputs of a size, but its patches leave a rest at their edge.

    Args:
        spec: of the encoder.
        size: as `check_size` takes it.
        name: what to call the encoder.
    """
    if spec.arch in RESNETS or takes_size(spec, size, whole=True):
        return
    near = _nearest(spec, size)
    log.warning(
        "%s: the patches of %s do not divide inputs of %s without a rest, so the edge is cut off or padded%s",
        *(name, spec.arch, f"{size[0]}x{size[1]}"),
        "" if near is None else f"; the nearest that they divide is {near[0]}x{near[1]}",
    )


def _hint(spec: EncoderSpec, size: Size) -> str:
    """The end of a message on a size that an architecture can't take."""
    near = _nearest(spec, size)
    return "" if near is None else f"; the nearest of usual ones that it takes is {near[0]}x{near[1]}"


def _nearest(spec: EncoderSpec, size: Size) -> Size | None:
    """The nearest of likely sizes that an architecture takes whole; None where it takes none, as of a modality."""
    own = find_architecture(spec.arch).picture_size
    if not takes_size(spec, own):
        return None
    pairs = {own, *((side, side) for side in range(64, max(own), 32))}
    for step in {8, 14, 16, 32, 64, *own}:  # of patches and strides, of windows, and of what is made for one size
        heights, widths = ({max(step, side // step * step), side // step * step + step} for side in size)
        pairs |= {(height, width) for height in heights for width in widths}
        pairs |= {(side, side) for side in heights | widths}  # some take squares alone

    def distance(one: Size) -> tuple[int, bool, Size]:
        return abs(one[0] - size[0]) + abs(one[1] - size[1]), one != own, one

    tried = sorted(pairs - {size}, key=distance)
    fit = (one for one in tried if max(one) ** 2 <= LARGEST_INPUT and takes_size(spec, one, whole=True))
    return next(fit, None)


def fit_pipeline(pipeline: InputSpec, encoders: Mapping[Path, EncoderSpec]) -> InputSpec:
    """The input pipeline with pictures normalised as for the visual encoder's weights, by the encoders' files.

    Raises:
        ConfigError: an encoder does not take inputs of the pipeline's size; the message names the nearest that it does.
    """
    for path, spec in encoders.items():
        if spec.modality == "visual":
            pipeline = replace(pipeline, picture_mean=spec.mean, picture_std=spec.std)
            check_size(spec, (pipeline.image_size, pipeline.image_size), str(path))
        else:
            check_size(spec, (pipeline.spectrogram_frames, pipeline.mel_bins), str(path))
    return pipeline


def first_convolutions(spec: EncoderSpec) -> tuple[str, ...]:
    """The layers that take the input's channels."""
    return find_architecture(spec.arch).first_convolutions


def classifiers(spec: EncoderSpec) -> tuple[str, ...]:
    """The layers of the architecture that an encoder lacks."""
    return find_architecture(spec.arch).classifiers


def encode(encoder: nn.Module, inputs: Tensor) -> Tensor:
    """Features (batch, width), pooled over time and frequency, or over frames, height and width."""
    if inputs.ndim == 4:
        features: Tensor = encoder(inputs)
        return features
    batch, frames = inputs.shape[:2]
    pooled: Tensor = encoder(inputs.flatten(0, 1))
    return pooled.view(batch, frames, -1).mean(dim=1)


def freeze(encoder: Encoder) -> None:
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
        AvptError: it names an architecture of a package that is not installed.
    """
    spec = convert(values, EncoderSpec)
    try:
        facts = find_architecture(spec.arch)
    except ConfigError:
        raise RecordError(f"unknown encoder {spec.arch!r:.50}") from None
    if facts.fixed_size != (spec.size is not None):
        raise RecordError(f"size: {spec.arch} takes inputs of {'one size' if facts.fixed_size else 'any size'}")
    if spec.size is not None and not 0 < max(spec.size) ** 2 <= LARGEST_INPUT:
        raise RecordError("size: out of range")
    return spec
