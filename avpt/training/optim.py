"""The optimiser, and how it treats which parameters."""

from __future__ import annotations

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

    The learning rate of each of its groups is to be multiplied by the group's `lr_scale`.
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
