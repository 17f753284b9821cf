"""BatchNorm channels that pre-training left near zero, and the plain re-initialisations to compare ABRi with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def norm_layers(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the BatchNorm layers of a state dict, in its order: those with running statistics, gamma and beta."""
    layers = [key.removesuffix(".running_var") for key in state if key.endswith(".running_var")]
    return [layer for layer in layers if f"{layer}.weight" in state and f"{layer}.bias" in state]


def has_unmoved_statistics(state: Mapping[str, Tensor]) -> bool:
    """Whether a BatchNorm, or a branch of an ABRi layer, still has its initial running statistics, 0 and 1."""
    means = [name for name in state if name.endswith("running_mean")]
    return any(bool((state[name] == 0).all() and (state[name.replace("mean", "var")] == 1).all()) for name in means)


def is_as_new(state: Mapping[str, Tensor]) -> bool:
    """Whether every BatchNorm still multiplies by 1 and adds 0."""
    pairs = [own_pair(state, layer) for layer in norm_layers(state)]
    return all(bool((pair.gamma == 1).all() and (pair.beta == 0).all()) for pair in pairs)


@dataclass(frozen=True)
class NormPair:
    """What one BatchNorm layer multiplies by and adds; each (channels,)."""

    gamma: Tensor
    beta: Tensor

    def below(self, threshold: float) -> Tensor:
        """(channels,) bool: max(|gamma|, |beta|) < threshold (arXiv 2302.03533, section on dead channels)."""
        largest = torch.maximum(self.gamma.abs(), self.beta.abs())
        if largest.element_size() < 4:
            largest = largest.float()  # in half precision a threshold of 1e-10 would be 0, and nothing below it
        return largest < threshold


def own_pair(state: Mapping[str, Tensor], layer: str) -> NormPair:
    """A layer's weight and bias; for ABRi those of the pre-trained branch."""
    return NormPair(state[f"{layer}.weight"], state[f"{layer}.bias"])


def blended_pair(state: Mapping[str, Tensor], layer: str) -> NormPair:
    """What an ABRi layer applies in training: alpha g1 + (1 - alpha) g2 and alpha b1 + (1 - alpha) b2."""
    own, alpha = own_pair(state, layer), state[f"{layer}.alpha"]
    gamma, beta = state[f"{layer}.new_weight"], state[f"{layer}.new_bias"]
    return NormPair(torch.lerp(gamma, own.gamma, alpha), torch.lerp(beta, own.beta, alpha))


def acting_pairs(state: Mapping[str, Tensor]) -> dict[str, NormPair]:
    """What each BatchNorm layer multiplies by and adds in training; for ABRi both branches blended."""
    layers = norm_layers(state)
    return {layer: (blended_pair if f"{layer}.alpha" in state else own_pair)(state, layer) for layer in layers}


def describe_change(before: Mapping[str, NormPair], after: Mapping[str, NormPair], threshold: float) -> dict[str, Any]:
    """How far gamma and beta moved, as root mean squares over the channels of all layers, and what that lifted.

    `abnormal` channels were below the threshold, and `lifted` are those of them that no longer are.
    """
    change: dict[str, Any] = {}
    for name in ("gamma", "beta"):
        old, new = (torch.cat([getattr(side[layer], name) for layer in before]).double() for side in (before, after))
        change[f"{name}_moved"] = float((new - old).square().mean().sqrt())
    was, now = (torch.cat([side[layer].below(threshold) for layer in before]) for side in (before, after))
    return change | {"threshold": threshold, "abnormal": int(was.sum()), "lifted": int((was & ~now).sum())}


def abnormal_report(state: Mapping[str, Tensor], threshold: float) -> dict[str, Any]:
    """Per layer `name`, `channels`, `abnormal`; and `abnormal_share` over all channels, None without BatchNorm."""
    layers: list[dict[str, Any]] = []
    for layer in norm_layers(state):
        abnormal = own_pair(state, layer).below(threshold)
        layers.append({"name": layer, "channels": len(abnormal), "abnormal": int(abnormal.sum())})
    channels = sum(layer["channels"] for layer in layers)
    share = sum(layer["abnormal"] for layer in layers) / channels if channels else None
    return {"layers": layers, "abnormal_share": share}


def blend(state: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """gamma alpha g1 + 1 - alpha and beta alpha b1, as ABRi has them when training starts; statistics stay."""
    blended = dict(state)
    for layer in norm_layers(state):
        blended[f"{layer}.weight"] = alpha * state[f"{layer}.weight"] + (1.0 - alpha)
        blended[f"{layer}.bias"] = alpha * state[f"{layer}.bias"]
    return blended


def reset(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every BatchNorm as new: gamma 1, beta 0, running mean 0, variance 1."""
    fresh = dict(state)
    for layer in norm_layers(state):
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            fresh[f"{layer}.{name}"] = torch.full_like(state[f"{layer}.{name}"], value)
        fresh[f"{layer}.num_batches_tracked"] = torch.zeros_like(state[f"{layer}.num_batches_tracked"])
    return fresh


def reset_abnormal(state: Mapping[str, Tensor], threshold: float) -> tuple[dict[str, Tensor], int]:
    """gamma 1 and beta 0 only where |gamma| < threshold; also returns how many channels that is."""
    mended, count = dict(state), 0
    for layer in norm_layers(state):
        small = state[f"{layer}.weight"].abs() < threshold
        mended[f"{layer}.weight"] = state[f"{layer}.weight"].masked_fill(small, 1.0)
        mended[f"{layer}.bias"] = state[f"{layer}.bias"].masked_fill(small, 0.0)
        count += int(small.sum())
    return mended, count
