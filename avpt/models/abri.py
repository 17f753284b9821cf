"""Adaptive batch-norm re-initialisation, ABRi: one BatchNorm2d layer that holds two branches.

Feng, Xia, Hu, "Revisiting Pre-training in Audio-Visual Learning", arXiv 2302.03533, section on ABRi:
`y = alpha * BN_pretrained(x) + (1 - alpha) * BN_new(x)`, with alpha learned and unconstrained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRETRAINED = ("weight", "bias", "running_mean", "running_var")
NEW = ("new_weight", "new_bias", "new_running_mean", "new_running_var", "alpha")  # what ABRi adds to a state dict


class AbriBatchNorm2d(nn.BatchNorm2d):
    """A pre-trained and a fresh batch norm blended by a learned alpha, at the price of one.

    ABRi of Feng, Xia, Hu, arXiv 2302.03533. Pass it as torchvision ResNet's `norm_layer`, through
    `functools.partial`. The pre-trained branch has BatchNorm2d's own names, so an old checkpoint fits and
    lacks only the new branch and `alpha`, one per channel (C,) or per layer (1,). One `num_batches_tracked`
    serves both branches.

    Beware: `torch.nn.SyncBatchNorm.convert_sync_batchnorm` turns this layer into a plain one and silently
    drops the new branch and alpha. Never call it; with several processes statistics are each process's own.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    new_running_mean: Tensor
    new_running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        alpha: float = 0.5,
        per: Literal["channel", "layer"] = "channel",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)
        self.initial_alpha = alpha
        self.new_weight = nn.Parameter(torch.empty_like(self.weight))
        self.new_bias = nn.Parameter(torch.empty_like(self.bias))
        self.alpha = nn.Parameter(self.weight.new_empty(num_features if per == "channel" else 1))
        self.register_buffer("new_running_mean", torch.empty_like(self.running_mean))
        self.register_buffer("new_running_var", torch.empty_like(self.running_var))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Set the running statistics of both branches to mean 0 and variance 1."""
        super().reset_running_stats()
        if "new_running_mean" in self._buffers:  # not yet while BatchNorm2d's constructor calls this
            self.new_running_mean.zero_()
            self.new_running_var.fill_(1.0)

    def reset_parameters(self) -> None:
        """Set both branches to the identity and alpha to its first value."""
        super().reset_parameters()
        if "alpha" in self._parameters:
            nn.init.ones_(self.new_weight)
            nn.init.zeros_(self.new_bias)
            nn.init.constant_(self.alpha, self.initial_alpha)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` (batch, channel, height, width) with both branches, in one batch-norm call."""
        self._check_input_dim(input)
        mean = torch.zeros_like(self.running_mean)
        if self.training:
            var = torch.zeros_like(self.running_var)
            # Both branches share x_hat: y = x_hat * (alpha g1 + (1 - alpha) g2) + alpha b1 + (1 - alpha) b2.
            weight = torch.lerp(self.new_weight, self.weight, self.alpha)
            bias = torch.lerp(self.new_bias, self.bias, self.alpha)
            # Momentum 1 leaves exactly the batch's own statistics in the two fresh buffers.
            output = F.batch_norm(input, mean, var, weight, bias, training=True, momentum=1.0, eps=self.eps)
            self._track(mean, var)
            return output
        scale, shift = _affine(
            (self.weight, self.bias, self.running_mean, self.running_var),
            (self.new_weight, self.new_bias, self.new_running_mean, self.new_running_var),
            self.alpha,
            self.eps,
        )
        # Mean 0 and variance 1 - eps leave the kernel nothing to do but scale and shift.
        var = torch.full_like(self.running_var, 1.0 - self.eps)
        return F.batch_norm(input, mean, var, scale, shift, eps=self.eps)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Move both branches' running statistics towards those of one batch."""
        self.num_batches_tracked.add_(1)
        step = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(var, step)
        self.new_running_mean.lerp_(mean, step)
        self.new_running_var.lerp_(var, step)


_Branch = tuple[Tensor, Tensor, Tensor, Tensor]  # weight, bias, running mean, running variance, each (C,)


def _affine(pretrained: _Branch, new: _Branch, alpha: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Write the layer in evaluation as `scale * x + shift`; both are (C,)."""
    weight, bias, mean, var = pretrained
    scale = weight * torch.rsqrt(var + eps)
    shift = torch.addcmul(bias, scale, mean, value=-1)
    new_weight, new_bias, new_mean, new_var = new
    new_scale = new_weight * torch.rsqrt(new_var + eps)
    new_shift = torch.addcmul(new_bias, new_scale, new_mean, value=-1)
    return torch.lerp(new_scale, scale, alpha), torch.lerp(new_shift, shift, alpha)


def fold(layer: AbriBatchNorm2d) -> nn.BatchNorm2d:
    """Return the plain BatchNorm2d that a trained ABRi layer (arXiv 2302.03533) amounts to.

    It keeps the pre-trained branch's running statistics. Evaluation is equal, and once both branches have
    seen the same data, so are output, input gradient and statistics in training. From there an optimiser's
    step differs: it moves weight and bias themselves, where under ABRi it moves what they are made of.
    """
    plain = nn.BatchNorm2d(
        layer.num_features, layer.eps, layer.momentum, device=layer.weight.device, dtype=layer.weight.dtype
    )
    plain.load_state_dict(fold_state_dict(layer.state_dict(), layer.eps))
    return plain.train(layer.training)


@torch.no_grad()
def fold_state_dict(state: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Fold every ABRi layer (arXiv 2302.03533) of a state dict into plain BatchNorm keys.

    Computed in float64 and cast back; every other key stays as it is. `eps` is that of the layers.
    """
    folded = dict(state)
    for key in state:
        if key != "new_weight" and not key.endswith(".new_weight"):
            continue
        prefix = key.removesuffix("new_weight")
        weight, bias, mean, var = (state[prefix + name].double() for name in PRETRAINED)
        new_weight, new_bias, new_mean, new_var, alpha = (state[prefix + name].double() for name in NEW)
        scale, shift = _affine((weight, bias, mean, var), (new_weight, new_bias, new_mean, new_var), alpha, eps)
        dtype = state[prefix + "weight"].dtype
        folded[prefix + "weight"] = (scale * torch.sqrt(var + eps)).to(dtype)
        folded[prefix + "bias"] = (shift + scale * mean).to(dtype)
        for name in NEW:
            del folded[prefix + name]
    return folded
