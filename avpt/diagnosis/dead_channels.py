"""Dead channels: where the activation behind a BatchNorm is zero nearly everywhere.

Activations are measured with the statistics of the batches looked at (arXiv 2302.03533, section on dead channels):
another modality's running statistics, or a new branch's 0 and 1, would make the activations meaningless.

Which activation follows a BatchNorm is seen while the network runs, whatever its architecture: the first function with
a zero half, such as ReLU, that is applied to the layer's output, to its sum with a shortcut, or to its product with one
gate for each channel. At a sum of two layers' outputs it belongs to the first, which is that of the block, and not to
the shortcut's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from avpt.types import Batch

# names of torch's operations, without the variants' endings
RECTIFIERS = ("relu", "hardswish")
CLAMPS = ("hardtanh", "clamp", "clamp_min", "threshold")  # rectifiers if nothing below zero gets through: ReLU6
CARRIERS = ("add", "mul", "clone", "detach", "alias", "contiguous", "view", "_unsafe_view")


@dataclass
class Activity:
    """How often the channels of an encoder were zero; it does not grow with the number of clips looked at."""

    zeros: dict[str, Tensor] = field(default_factory=dict)  # by BatchNorm layer, (channels,) int64
    positions: dict[str, int] = field(default_factory=dict)  # clips (or frames) x height x width looked at
    maps: Tensor | None = None  # (channels, height, width): the first layer's output for the very first input

    def add(self, layer: str, is_zero: Tensor) -> None:
        """Count the zeros of one batch: bool, (batch, channels, ...)."""
        zeros = is_zero.transpose(0, 1).flatten(1).sum(dim=1, dtype=torch.int64)
        self.zeros[layer] = self.zeros.get(layer, 0) + zeros
        self.positions[layer] = self.positions.get(layer, 0) + is_zero.numel() // len(zeros)

    def dead(self, share: float) -> dict[str, Tensor]:
        """Which channels are zero at that share of positions or more: by layer, (channels,) bool on the CPU."""
        return {layer: zeros.cpu().double() / self.positions[layer] >= share for layer, zeros in self.zeros.items()}


def measure(encoders: Sequence[nn.Module], batches: Iterable[Batch], zero: float = 0.0) -> list[Activity]:
    """Feed every batch to every encoder, with BatchNorm in training mode and without gradients, and count zeros.

    Layers that no activation with a zero half follows are missing from what is returned.

    Args:
        encoders: on the device of the batches; they are restored afterwards.
        batches: of one modality, (batch, channels, height, width) or (batch, frames, channels, height, width).
        zero: an activation up to this counts as zero.
    """
    activities = [Activity() for _ in encoders]
    with ExitStack() as restoring, torch.no_grad():
        watched = [restoring.enter_context(_watched(*pair, zero)) for pair in zip(encoders, activities, strict=True)]
        for batch in batches:
            (inputs,) = batch.inputs
            for encoder, watching in zip(encoders, watched, strict=True):
                with watching:
                    encoder(inputs.view(-1, *inputs.shape[-3:]))
    return activities


@contextmanager
def _watched(encoder: nn.Module, activity: Activity, zero: float) -> Iterator[_Watching]:
    """Set an encoder to training mode, to be run within what this returns; afterwards it is as it was."""
    watching, was_training = _Watching(activity, zero), encoder.training
    buffers = {name: value.clone() for name, value in encoder.named_buffers()}  # running statistics
    handles = []
    for name, module in encoder.named_modules():
        if isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(partial(watching.enter, name)))
    encoder.train()
    try:
        yield watching
    finally:
        for handle in handles:
            handle.remove()
        for name, value in encoder.named_buffers():
            value.copy_(buffers[name])
        encoder.train(was_training)


class _Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts zeros in the activations behind BatchNorm layers while operations run."""

    def __init__(self, activity: Activity, zero: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.activity, self.zero = activity, zero
        self.stem = ""  # the first BatchNorm that was run
        self.layer = ""  # the BatchNorm whose output comes next
        self.outputs: Any = WeakIdKeyDictionary()  # tensor -> the BatchNorm that it comes from

    def enter(self, layer: str, _module: nn.Module, _inputs: object) -> None:
        """Note that a BatchNorm is run next."""
        self.layer = layer
        self.stem = self.stem or layer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if "batch_norm" in name and self.layer:
            self.outputs[result[0]] = self.layer
            self.layer = ""
            return result
        if not isinstance(result, Tensor):
            return result
        known = [value for value in args if isinstance(value, Tensor) and value in self.outputs]
        if not known:
            return result
        layer = self.outputs[known[0]]
        if name in RECTIFIERS or (name in CLAMPS and args[1:2] == (0,)):
            del self.outputs[known[0]]
            self.activity.add(layer, result.abs() <= self.zero)
            if layer == self.stem and self.activity.maps is None:
                self.activity.maps = result[0].cpu()
        elif name in CARRIERS and (name != "mul" or _is_gate(args, known[0])):
            self.outputs[result] = layer
        return result


def _is_gate(factors: Sequence[Any], output: Tensor) -> bool:
    """Whether the other factor of a product is one number, or one for each channel."""
    other = factors[1] if factors[0] is output else factors[0]
    return not isinstance(other, Tensor) or all(side == 1 for side in other.shape[2:])


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
