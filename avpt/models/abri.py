"""Adaptive batch-norm re-initialisation, ABRi: one BatchNorm layer that holds two branches, and networks of them.

Feng, Xia, Hu, "Revisiting Pre-training in Audio-Visual Learning", arXiv 2302.03533, section on ABRi:
`y = alpha * BN_pretrained(x) + (1 - alpha) * BN_new(x)`, with alpha learned and unconstrained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from avpt.errors import ConfigError

PRETRAINED = ("weight", "bias", "running_mean", "running_var")
AFTER = ("drop", "act")  # the modules that follow the normalisation in timm's BatchNormAct2d, in this order
NEW = ("new_weight", "new_bias", "new_running_mean", "new_running_var", "alpha")  # what ABRi adds to a state dict


class AbriBatchNorm(_BatchNorm):
    """A pre-trained and a fresh batch norm blended by a learned alpha, at the price of one.

    ABRi of Feng, Xia, Hu, arXiv 2302.03533. `AbriBatchNorm2d` goes as torchvision ResNet's `norm_layer`, through
    `functools.partial`; `convert` puts these layers into any network. The pre-trained branch has BatchNorm's own
    names, so an old checkpoint fits and lacks only the new branch and `alpha`, one per channel (C,) or per layer (1,).
    One `num_batches_tracked` serves both branches. A `drop` and an `act`, which timm's BatchNormAct2d has, come after
    the blend.

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
        if "new_running_mean" in self._buffers:  # not yet while BatchNorm's constructor calls this
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
        """Normalise `input` (batch, channel, ...) with both branches, in one batch-norm call."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if self.training:
            mean, var = self.running_mean.new_zeros(2, self.num_features).unbind()
            # Both branches share x_hat: y = x_hat * (alpha g1 + (1 - alpha) g2) + alpha b1 + (1 - alpha) b2.
            weight, bias = _Blend.apply(self.weight, self.bias, self.new_weight, self.new_bias, self.alpha)
            # Momentum 1 leaves exactly the batch's own statistics in the two fresh buffers.
            output = F.batch_norm(input, mean, var, weight, bias, training=True, momentum=1.0, eps=self.eps)
            self._track(mean, var)
        else:
            scale, shift = _affine(
                (self.weight, self.bias, self.running_mean, self.running_var),
                (self.new_weight, self.new_bias, self.new_running_mean, self.new_running_var),
                self.alpha,
                self.eps,
            )
            # Mean 0 and variance 1 - eps leave the kernel nothing to do but scale and shift.
            mean = torch.zeros_like(self.running_mean)
            var = torch.full_like(self.running_var, 1.0 - self.eps)
            output = F.batch_norm(input, mean, var, scale, shift, eps=self.eps)
        for name in AFTER:
            if name in self._modules:
                output = getattr(self, name)(output)
        return output

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Move both branches' running statistics towards those of one batch."""
        self.num_batches_tracked.add_(1)
        step = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        pretrained, new = (self.running_mean, self.running_var), (self.new_running_mean, self.new_running_var)
        torch._foreach_lerp_((*pretrained, *new), (mean, var, mean, var), step)


class AbriBatchNorm1d(AbriBatchNorm, nn.BatchNorm1d):
    """ABRi in the place of a BatchNorm1d: (batch, channel) or (batch, channel, length)."""


class AbriBatchNorm2d(AbriBatchNorm, nn.BatchNorm2d):
    """ABRi in the place of a BatchNorm2d or timm's BatchNormAct2d: (batch, channel, height, width)."""


class _Blend(torch.autograd.Function):
    """Gamma and beta of both branches blended by alpha: `torch.lerp` and its gradients, in fewer and larger operations.

    On a GPU such short vectors cost their launches: five here, forward and backward, where two `torch.lerp` take
    fifteen. Each layer stands alone, so that checkpointing works and DistributedDataParallel can send a layer's
    gradients while those before it are computed. `setup_context`, which torch.func would need, is left out: it makes
    the call five times as dear.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, new_weight: Tensor, new_bias: Tensor, alpha: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weight, bias, new_weight, new_bias, alpha)
        return tuple(torch._foreach_lerp((new_weight, new_bias), (weight, bias), (alpha, alpha)))

    @staticmethod
    def backward(ctx: Any, by_gamma: Tensor, by_beta: Tensor) -> tuple[Tensor, ...]:
        weight, bias, new_weight, new_bias, alpha = ctx.saved_tensors
        rest = 1.0 - alpha
        more_gamma, more_beta = torch._foreach_sub((weight, bias), (new_weight, new_bias))
        *gradients, through_gamma, through_beta = torch._foreach_mul(
            (by_gamma, by_beta) * 3, (alpha, alpha, rest, rest, more_gamma, more_beta)
        )
        # One alpha for the layer takes the sum over the channels.
        return (*gradients, through_gamma.sum_to_size(alpha.shape) + through_beta.sum_to_size(alpha.shape))


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


def convert(network: nn.Module, alpha: float = 0.5, per: Literal["channel", "layer"] = "channel") -> nn.Module:
    """Turn every BatchNorm of a network into an ABRi layer (arXiv 2302.03533), in place; its values are kept.

    BatchNorm1d, BatchNorm2d and timm's BatchNormAct2d are converted. A BatchNorm without gamma and beta stays as it
    is: there is nothing to re-initialise. One whose gamma or beta is frozen (`requires_grad` is off) is frozen in both
    branches, and alpha with both of them.

    Args:
        network: any module; it may itself be a BatchNorm, which only the returned module replaces.
        alpha: the first value of every alpha, the share of the pre-trained branch.
        per: whether each channel has an alpha of its own.

    Returns:
        The network.

    Raises:
        ConfigError: it has no BatchNorm that can be converted, ABRi layers already, or one of a kind that ABRi does not
            know.
    """
    converted: dict[str, nn.Module] = {}
    same: dict[nn.Module, AbriBatchNorm | None] = {}  # a layer that stands in two places is still one afterwards
    for name, layer in network.named_modules(remove_duplicate=False):
        if isinstance(layer, _BatchNorm):
            if layer not in same:
                same[layer] = _converted(name, layer, alpha, per)
            if (abri := same[layer]) is not None:
                converted[name] = abri
    if not converted and any(isinstance(layer, AbriBatchNorm) for layer in same):
        raise ConfigError(f"{type(network).__name__} has ABRi layers already; take it as it is, or fold them first")
    if not converted:
        frozen = any("FrozenBatchNorm" in type(module).__name__ for module in network.modules())
        what = "no BatchNorm but frozen ones, which nothing trains" if frozen else "no BatchNorm with gamma and beta"
        raise ConfigError(f"{type(network).__name__} has {what}, so ABRi has nothing to blend; take it as it is")
    return _replace(network, converted)


def _converted(name: str, layer: _BatchNorm, alpha: float, per: Literal["channel", "layer"]) -> AbriBatchNorm | None:
    """A layer as ABRi, or None where it stays as it is."""
    if isinstance(layer, AbriBatchNorm) or not layer.affine or layer.running_mean is None:
        return None
    kind = type(layer).__name__
    kinds: dict[str, type[AbriBatchNorm]] = {
        "BatchNorm1d": AbriBatchNorm1d,
        "BatchNorm2d": AbriBatchNorm2d,
        "BatchNormAct2d": AbriBatchNorm2d,
    }
    if kind not in kinds:
        raise ConfigError(f"{name or 'the module'} is a {kind}, which ABRi does not know; it takes {', '.join(kinds)}")
    abri = kinds[kind](
        layer.num_features,
        layer.eps,
        layer.momentum,
        alpha=alpha,
        per=per,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    abri.load_state_dict(layer.state_dict(), strict=False)  # what it lacks is the new branch
    _take_modules(abri, layer)
    for name in ("weight", "bias"):
        for branch in (name, f"new_{name}"):
            abri.get_parameter(branch).requires_grad_(layer.get_parameter(name).requires_grad)
    abri.alpha.requires_grad_(abri.weight.requires_grad or abri.bias.requires_grad)
    return abri


def _take_modules(layer: _BatchNorm, other: _BatchNorm) -> None:
    """Give a layer what follows the normalisation in another one, and its mode."""
    for name in AFTER:
        if name in other._modules:
            layer.add_module(name, other._modules[name])
    layer.train(other.training)


def _replace(network: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    for name, layer in layers.items():
        if not name:
            return layer
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, layer)
    return network


def fold(layer: AbriBatchNorm) -> _BatchNorm:
    """Return the plain BatchNorm that a trained ABRi layer (arXiv 2302.03533) amounts to.

    It keeps the pre-trained branch's running statistics. Evaluation is equal, and once both branches have
    seen the same data, so are output, input gradient and statistics in training. From there an optimiser's
    step differs: it moves weight and bias themselves, where under ABRi it moves what they are made of.
    """
    kind: Any = nn.BatchNorm1d if isinstance(layer, AbriBatchNorm1d) else nn.BatchNorm2d
    if any(name in layer._modules for name in AFTER):
        import timm  # where such a layer came from

        kind = timm.layers.BatchNormAct2d  # type: ignore[attr-defined]
    plain: _BatchNorm = kind(
        layer.num_features, layer.eps, layer.momentum, device=layer.weight.device, dtype=layer.weight.dtype
    )
    _take_modules(plain, layer)  # before the values, as an activation may have some, such as PReLU's slopes
    plain.load_state_dict(fold_state_dict(layer.state_dict(), layer.eps))
    for name in ("weight", "bias"):
        plain.get_parameter(name).requires_grad_(layer.get_parameter(name).requires_grad)
    return plain


def fold_network(network: nn.Module) -> nn.Module:
    """Turn every ABRi layer of a network into the plain BatchNorm that it amounts to, in place; see `fold`."""
    folded: dict[str, nn.Module] = {}
    same: dict[AbriBatchNorm, nn.Module] = {}  # a layer that stands in two places is still one afterwards
    for name, layer in network.named_modules(remove_duplicate=False):
        if isinstance(layer, AbriBatchNorm):
            if layer not in same:
                same[layer] = fold(layer)
            folded[name] = same[layer]
    return _replace(network, folded)


def norm_eps(network: nn.Module) -> dict[str, float]:
    """What each BatchNorm of a network adds to the variance, by the layer's name, or names where it has several."""
    modules = network.named_modules(remove_duplicate=False)
    return {name: layer.eps for name, layer in modules if isinstance(layer, _BatchNorm)}


@torch.no_grad()
def fold_state_dict(state: Mapping[str, Tensor], eps: float | Mapping[str, float] = 1e-5) -> dict[str, Tensor]:
    """Fold every ABRi layer (arXiv 2302.03533) of a state dict into plain BatchNorm keys.

    Computed in float64 and cast back; every other key stays as it is. `eps` is that of the layers, one for all or by
    the layer's name.
    """
    folded = dict(state)
    for key in state:
        if key != "new_weight" and not key.endswith(".new_weight"):
            continue
        prefix = key.removesuffix("new_weight")
        weight, bias, mean, var = (state[prefix + name].double() for name in PRETRAINED)
        new_weight, new_bias, new_mean, new_var, alpha = (state[prefix + name].double() for name in NEW)
        own_eps = eps if isinstance(eps, float) else eps[prefix.removesuffix(".")]
        scale, shift = _affine((weight, bias, mean, var), (new_weight, new_bias, new_mean, new_var), alpha, own_eps)
        dtype = state[prefix + "weight"].dtype
        folded[prefix + "weight"] = (scale * torch.sqrt(var + own_eps)).to(dtype)
        folded[prefix + "bias"] = (shift + scale * mean).to(dtype)
        for name in NEW:
            del folded[prefix + name]
    return folded
