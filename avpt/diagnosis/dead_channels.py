"""Dead channels: where the activation after the ReLU behind a BatchNorm is zero nearly everywhere.

Measured with the statistics of the batches looked at (arXiv 2302.03533, section on dead channels): another modality's
running statistics, or a new branch's 0 and 1, would make the activations meaningless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from avpt.types import Batch

STEM = "bn1"  # the first BatchNorm of a ResNet


@dataclass
class Activity:
    """How often the channels of an encoder were zero; its size does not depend on how many clips were looked at."""

    zeros: dict[str, Tensor] = field(default_factory=dict)  # by BatchNorm layer, (channels,) int64
    positions: dict[str, int] = field(default_factory=dict)  # clips (or frames) x height x width looked at
    maps: Tensor | None = None  # (channels, height, width): the first layer's output for the first input of all

    def add(self, layer: str, is_zero: Tensor) -> None:
        """Count a batch (batch, channels, height, width) of bool."""
        zeros = is_zero.sum(dim=(0, 2, 3), dtype=torch.int64)
        self.zeros[layer] = self.zeros.get(layer, 0) + zeros
        self.positions[layer] = self.positions.get(layer, 0) + is_zero.numel() // len(zeros)

    def dead(self, share: float) -> dict[str, Tensor]:
        """By layer, (channels,) bool on the CPU: zero at that share of positions or more."""
        return {layer: zeros.cpu().double() / self.positions[layer] >= share for layer, zeros in self.zeros.items()}


def rectified_by(encoder: ResNet) -> dict[str, nn.Module | None]:
    """By BatchNorm layer, whose output tells its activation: its own, which a ReLU follows, or that of its block.

    The last one of a block has its ReLU behind the addition of the shortcut. The one of the shortcut (`downsample`)
    has none, and None here.
    """
    found: dict[str, nn.Module | None] = {}
    for name, module in encoder.named_modules():
        if isinstance(module, _BatchNorm):
            block = encoder.get_submodule(name.rpartition(".")[0])
            last = isinstance(block, BasicBlock) and module is block.bn2
            last = last or (isinstance(block, Bottleneck) and module is block.bn3)
            found[name] = None if ".downsample." in name else block if last else module
    return found


def measure(encoders: Sequence[ResNet], batches: Iterable[Batch], zero: float = 0.0) -> list[Activity]:
    """Feed every batch to every encoder, BatchNorm in training mode and no gradient kept, and count zeros.

    Args:
        encoders: on the device of the batches; they are as before afterwards.
        batches: of one modality, (batch, channels, height, width) or (batch, frames, channels, height, width).
        zero: an activation up to this counts as zero.
    """
    with ExitStack() as watching, torch.no_grad():
        activities = [watching.enter_context(_watched(encoder, zero)) for encoder in encoders]
        for batch in batches:
            (inputs,) = batch.inputs
            for encoder in encoders:
                encoder(inputs.view(-1, *inputs.shape[-3:]))
    return activities


@contextmanager
def _watched(encoder: ResNet, zero: float) -> Iterator[Activity]:
    """Count the zeros of whatever the encoder is fed."""
    activity, was_training = Activity(), encoder.training
    buffers = {name: value.clone() for name, value in encoder.named_buffers()}  # running statistics
    handles = []
    for name, module in rectified_by(encoder).items():

        def count(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
            activity.add(name, output <= zero)  # before the ReLU or after it
            if name == STEM and activity.maps is None:
                activity.maps = output[0].relu().cpu()

        if module is not None:
            handles.append(module.register_forward_hook(count))
    encoder.train()
    try:
        yield activity
    finally:
        for handle in handles:
            handle.remove()
        for name, value in encoder.named_buffers():
            value.copy_(buffers[name])
        encoder.train(was_training)


def prediction(predicted: Mapping[str, Tensor], dead: Mapping[str, Tensor]) -> tuple[float | None, float | None]:
    """How well abnormal parameters predict dead channels, over the layers of which it is known which are dead.

    Args:
        predicted: by layer, (channels,) bool: abnormal.
        dead: the same: dead.

    Returns:
        Precision, the share of abnormal channels that are dead, and recall, the share of dead ones that are abnormal;
        None where there are none to take a share of.
    """
    both = sum(int((predicted[layer] & dead[layer]).sum()) for layer in dead)
    abnormal, all_dead = (sum(int(found[layer].sum()) for layer in dead) for found in (predicted, dead))
    return both / abnormal if abnormal else None, both / all_dead if all_dead else None
