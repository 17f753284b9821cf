"""OGM-GE, which slows the encoder that is ahead."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from avpt.errors import ConfigError
from avpt.machine.seeds import seed_for
from avpt.training.balancing.method import Balancing, Forward, Joint, Step
from avpt.types import MODALITIES, Modality


class OgmGe(Balancing):
    """On-the-fly gradient modulation with generalisation enhancement (Peng et al., CVPR 2022, arXiv 2203.15332).

    Per step, with s_u the sum over its clips of the true class's probability in the softmax of u's share of the logits
    (for `concat` W_u z_u + b/2, as published): rho_u = s_u / s_other, and k_u = 1 - tanh(alpha rho_u) where rho_u > 1,
    else 1. The gradient g of each convolution of encoder u becomes k_u g + N(0, std(g) + 1e-8), with noise that is the
    same in every process.

    One backward pass; the fusion head is applied twice more, for the shares; no memory to speak of.

    Args:
        joint: the run.
        alpha: how hard the stronger modality is held back.
        window: first and last epoch in which it is, counted from 0.
    """

    one_label = True
    ranges: ClassVar = {"alpha": (0, 1000), "begin": (0, 100_000), "end": (0, 100_000)}

    def __init__(self, joint: Joint, *, alpha: float = 0.1, window: tuple[int, int] = (0, 50)) -> None:
        super().__init__(joint)
        self.alpha, self.window, self.seed, self.world = alpha, window, joint.seed, joint.world
        self.convolutions: dict[Modality, dict[str, nn.Parameter]] = {
            modality: {name: p for name, p in joint.model.get_submodule(modality).named_parameters() if p.ndim == 4}
            for modality in MODALITIES
        }
        self.scores = torch.zeros(2, dtype=torch.float64)  # s_audio, s_visual of the step so far

    @property
    def first_epoch(self) -> int:
        """The first epoch, from 0, in which it differs from plain training."""
        return self.window[0]

    def losses(self, forward: Forward) -> dict[str, Tensor]:
        """The joint loss; its clips are added to the scores of the step."""
        self.scores += forward.true_probabilities().cpu().double().sum(dim=1)
        return super().losses(forward)

    @torch.no_grad()
    def modulate(self, step: Step) -> dict[str, float]:
        """Change the gradients of the convolutions; returns each encoder's k."""
        scores, self.scores = self.world.sum(self.scores), torch.zeros_like(self.scores)
        ratios = (scores / scores.flip(0)).nan_to_num(1.0)  # where all are 0 none is ahead
        factors: dict[str, float] = dict(zip(MODALITIES, map(self._factor, ratios.tolist()), strict=True))
        if not self.window[0] <= step.epoch <= self.window[1]:
            return dict.fromkeys(factors, 1.0)
        for modality, parameters in self.convolutions.items():
            for name, parameter in parameters.items():
                gradient = parameter.grad
                if gradient is None:  # a convolution that the network does not use
                    continue
                generator = torch.Generator(gradient.device)
                generator.manual_seed(seed_for(self.seed, step.number, "ogm-ge", modality, name))
                noise = torch.randn(gradient.shape, generator=generator, device=gradient.device)
                spread = gradient.std() + 1e-8
                gradient.mul_(factors[modality]).add_(noise * spread)
        return factors

    def _factor(self, ratio: float) -> float:
        return 1 - math.tanh(self.alpha * ratio) if ratio > 1 else 1.0


class LateOgmGe(OgmGe):
    """OGM-GE's later form (TPAMI 2024): as before, in a window of which the first epochs are left out.

    The window ends where OGM-GE's does; the paper's code, which has 100 epochs, takes 80 where nothing is said.

    Args:
        joint: the run.
        alpha: how hard the stronger modality is held back.
        begin: the first epoch in which it is, counted from 0.
        end: the last epoch in which it is.

    Raises:
        ConfigError: the window ends before it begins.
    """

    def __init__(self, joint: Joint, *, alpha: float = 0.1, begin: int = 5, end: int = 50) -> None:
        if end < begin:
            raise ConfigError(f"--balance ogm-ge-late begins with epoch {begin} and ends with {end}; set end too")
        super().__init__(joint, alpha=alpha, window=(begin, end))
