"""Optimiser and learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn


def build_optimizer(
    model: nn.Module,
    undecayed: set[nn.Parameter],
    *,
    name: Literal["sgd", "adam", "adamw"],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """One of torch's optimisers, with weight decay on everything but `undecayed`."""
    groups = [
        {"params": [p for p in model.parameters() if p not in undecayed], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p in undecayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    return (torch.optim.Adam if name == "adam" else torch.optim.AdamW)(groups, lr=lr)


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
