"""Dead channels: where the activation after the ReLU behind a BatchNorm is zero nearly everywhere.

Activations are measured with the statistics of the batches looked at (arXiv 2302.03533, section on dead channels):
another modality's running statistics, or a new branch's 0 and 1, would make the activations meaningless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from avpt.machine.light_imports import without_compiler
from avpt.types import Batch

with without_compiler():
    from torchvision.models import ResNet
    from torchvision.models.resnet import BasicBlock, Bottleneck

STEM = "bn1"  # the first BatchNorm of a ResNet


@dataclass
class Activity:
    """How often the channels of an encoder were zero; it does not grow with the number of clips looked at."""

    zeros: dict[str, Tensor] = field(default_factory=dict)  # by BatchNorm layer, (channels,) int64
    positions: dict[str, int] = field(default_factory=dict)  # clips (or frames) x height x width looked at
    maps: Tensor | None = None  # (channels, height, width): the first layer's output for the very first input

    def add(self, layer: str, is_zero: Tensor) -> None:
        """Count the zeros of one batch: bool, (batch, channels, height, width)."""
        zeros = is_zero.sum(dim=(0, 2, 3), dtype=torch.int64)
        self.zeros[layer] = self.zeros.get(layer, 0) + zeros
        self.positions[layer] = self.positions.get(layer, 0) + is_zero.numel() // len(zeros)

    def dead(self, share: float) -> dict[str, Tensor]:
        """Which channels are zero at that share of positions or more: by layer, (channels,) bool on the CPU."""
        return {layer: zeros.cpu().double() / self.positions[layer] >= share for layer, zeros in self.zeros.items()}


def find_activations(encoder: ResNet) -> dict[str, nn.Module | None]:
    """Find the module whose output, once through a ReLU, is the activation of each BatchNorm layer.

    That is the layer itself; but for the last one of a block it is the block, whose ReLU follows the addition of the
    shortcut. The BatchNorm of the shortcut (`downsample`) has no ReLU, and None here.
    """
    activations: dict[str, nn.Module | None] = {}
    for name, module in encoder.named_modules():
        if isinstance(module, _BatchNorm):
            block = encoder.get_submodule(name.rpartition(".")[0])
            last = isinstance(block, BasicBlock) and module is block.bn2
            last = last or (isinstance(block, Bottleneck) and module is block.bn3)
            activations[name] = None if ".downsample." in name else block if last else module
    return activations


def measure(encoders: Sequence[ResNet], batches: Iterable[Batch], zero: float = 0.0) -> list[Activity]:
    """Feed every batch to every encoder, with BatchNorm in training mode and without gradients, and count zeros.

    Args:
        encoders: on the device of the batches; they are restored afterwards.
        batches: of one modality, (batch, channels, height, width) or (batch, frames, channels, height, width).
        zero: an activation up to this counts as zero.
    """
    with ExitStack() as counting, torch.no_grad():
        activities = [counting.enter_context(_count_zeros(encoder, zero)) for encoder in encoders]
        for batch in batches:
            (inputs,) = batch.inputs
            for encoder in encoders:
                encoder(inputs.view(-1, *inputs.shape[-3:]))
    return activities


@contextmanager
def _count_zeros(encoder: ResNet, zero: float) -> Iterator[Activity]:
    """Count the zeros in the activations for whatever the encoder is fed inside the `with` block."""
    activity, was_training = Activity(), encoder.training
    buffers = {name: value.clone() for name, value in encoder.named_buffers()}  # running statistics
    handles = []
    for name, module in find_activations(encoder).items():

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


def score_prediction(predicted: Mapping[str, Tensor], dead: Mapping[str, Tensor]) -> tuple[float | None, float | None]:
    """Score how well abnormal parameters predict dead channels, over the layers whose dead channels are known.

    Args:
        predicted: which channels are abnormal: by layer, (channels,) bool.
        dead: which channels are dead, likewise.

    Returns:
        Precision, the share of abnormal channels that are dead, and recall, the share of dead ones that are abnormal;
        None where there are no such channels.
    """
    both = sum(int((predicted[layer] & dead[layer]).sum()) for layer in dead)
    abnormal, all_dead = (sum(int(mask[layer].sum()) for layer in dead) for mask in (predicted, dead))
    return both / abnormal if abnormal else None, both / all_dead if all_dead else None
