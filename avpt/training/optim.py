"""Optimiser and learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn


def build_optimizer(
    model: nn.Module,
    undecayed: set[nn.Parameter],
    encoders: set[nn.Parameter],
    *,
    name: Literal["sgd", "adam", "adamw"],
    lr: float,
    momentum: float,
    weight_decay: float,
    encoder_lr_scale: float,
) -> torch.optim.Optimizer:
    """One of torch's optimisers over what is not frozen, with weight decay on everything but `undecayed`.

    The rate of each of its groups is to be multiplied by the group's `lr_scale`.
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter in undecayed else weight_decay
            scale = encoder_lr_scale if parameter in encoders else 1.0
            kind = parameter in undecayed, parameter in encoders
            group = groups.setdefault(kind, {"params": [], "weight_decay": decay, "lr_scale": scale})
            group["params"].append(parameter)
    if name == "sgd":
        return torch.optim.SGD(groups.values(), lr=lr, momentum=momentum)
    return (torch.optim.Adam if name == "adam" else torch.optim.AdamW)(groups.values(), lr=lr)


def learning_rate(
    *,
    lr: float,
    schedule: Literal["step", "cosine", "constant"],
    epochs: int,
    milestones: Sequence[int],
    factor: float,
    warmup_epochs: int,
) -> Callable[[int, int, int], float]:
    """The learning rate as a function of (epoch from 0, step from 0, steps per epoch).

    Linear warm-up goes step by step and reaches the full rate with its last step; the schedule itself changes
    between epochs. Cosine falls from the full rate at the first epoch after warm-up towards 0 past the last one.
    """

    def rate(epoch: int, step: int, steps: int) -> float:
        if epoch < warmup_epochs:
            return lr * (epoch * steps + step + 1) / (warmup_epochs * steps)
        if schedule == "cosine":
            return lr * 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))
        if schedule == "step":
            return float(lr * factor ** sum(epoch >= milestone for milestone in milestones))
        return lr

    return rate
