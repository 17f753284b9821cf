"""OGM-GE, the baseline that balances the modalities by their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from avpt.machine.seeds import seed_for
from avpt.training.world import World
from avpt.types import MODALITIES, Modality


class OgmGe:
    """On-the-fly gradient modulation with generalisation enhancement (Peng et al., CVPR 2022, arXiv 2203.15332).

    Per step, with s_u the sum over its clips of the true class's probability in the softmax of u's share of the logits
    (for `concat` W_u z_u + b/2, as published): rho_u = s_u / s_other, and k_u = 1 - tanh(alpha rho_u) where rho_u > 1,
    else 1. The gradient g of each convolution of encoder u becomes k_u g + N(0, std(g) + 1e-8).

    Args:
        model: on its device, with `audio`, `visual` and `fusion`; its forward passes are observed from here on.
        shares: returns each modality's share of the logits, from the fusion, both features and the logits.
        alpha: how hard the stronger modality is held back.
        window: first and last epoch in which it is, counted from 0.
        seed: of the noise, the same in every process.
        world: the processes of the job, whose clips count together.
    """

    def __init__(
        self,
        model: nn.Module,
        shares: Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        alpha: float,
        window: tuple[int, int],
        seed: int,
        world: World,
    ) -> None:
        self.shares, self.alpha, self.window, self.seed, self.world = shares, alpha, window, seed, world
        self.convolutions: dict[Modality, dict[str, nn.Parameter]] = {
            modality: {name: p for name, p in model.get_submodule(modality).named_parameters() if p.ndim == 4}
            for modality in MODALITIES
        }
        self.fusion = model.get_submodule("fusion")
        self.fused: tuple[Tensor, Tensor, Tensor] | None = None  # features and logits of the latest forward pass
        self.scores = torch.zeros(2, dtype=torch.float64)  # s_audio, s_visual of the step so far
        self.fusion.register_forward_hook(self._remember)

    def _remember(self, fusion: nn.Module, features: Sequence[Tensor], logits: Tensor) -> None:
        if torch.is_grad_enabled():  # else this is the computation of shares, or an evaluation
            audio, visual = (values.detach().float() for values in features)
            self.fused = audio, visual, logits.detach().float()

    @torch.no_grad()
    def observe(self, labels: Tensor) -> None:
        """Add the clips of the latest forward pass, labels (batch,), to the scores of the step."""
        assert self.fused is not None
        both = torch.stack([share.softmax(dim=1) for share in self.shares(self.fusion, *self.fused)])
        true = both.gather(2, labels.expand(2, -1)[..., None])
        self.scores += true.cpu().double().sum(dim=(1, 2))

    @torch.no_grad()
    def modulate(self, epoch: int, step: int) -> dict[str, float]:
        """Change the gradients of a step (counted over the run), averaged and unscaled; returns each encoder's k."""
        scores, self.scores = self.world.sum(self.scores), torch.zeros_like(self.scores)
        ratios = (scores / scores.flip(0)).nan_to_num(1.0)  # where all are 0 none is ahead
        factors: dict[str, float] = dict(zip(MODALITIES, map(self._factor, ratios.tolist()), strict=True))
        if not self.window[0] <= epoch <= self.window[1]:
            return dict.fromkeys(factors, 1.0)
        for modality, parameters in self.convolutions.items():
            for name, parameter in parameters.items():
                gradient = parameter.grad
                assert gradient is not None
                generator = torch.Generator(gradient.device)
                generator.manual_seed(seed_for(self.seed, step, "ogm-ge", modality, name))
                noise = torch.randn(gradient.shape, generator=generator, device=gradient.device)
                spread = gradient.std() + 1e-8
                gradient.mul_(factors[modality]).add_(noise * spread)
        return factors

    def _factor(self, ratio: float) -> float:
        return 1 - math.tanh(self.alpha * ratio) if ratio > 1 else 1.0
