"""DGL: the encoders learn from each modality alone, the fusion from both."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from avpt.errors import ConfigError
from avpt.models.encoder import Encoder
from avpt.training.balancing.method import Balancing, Forward, Joint
from avpt.types import MODALITIES


class Dgl(Balancing):
    """Disentangled gradient learning (Wei et al., ICCV 2025, arXiv 2507.10213; its code was read).

    CE(f(z_a, z_v)) reaches the fusion alone, for which the features are constants; alpha (CE(f(z_a, 0)) +
    CE(f(0, z_v))), zero *features* standing for the other modality, reaches the encoders alone, for which the fusion's
    weights are constants. What their code clips gradients to is `--clip-grad 40` here.

    One backward pass, and three forward passes of the fusion more.

    Args:
        joint: the run.
        alpha: weight of the encoders' losses.

    Raises:
        ConfigError: of one modality alone the fusion makes nothing, so that its encoder would learn nothing.
    """

    ranges: ClassVar = {"alpha": (0, 1000)}

    def __init__(self, joint: Joint, *, alpha: float = 4.0) -> None:
        super().__init__(joint)
        self.alpha = alpha
        for modality in MODALITIES:
            if not answers_to(joint.model.fusion, *(_two_clips(joint, one, one == modality) for one in MODALITIES)):
                raise ConfigError(
                    f"--balance dgl teaches each encoder through --fusion with zero features of the other, which makes "
                    f"nothing of {modality} features alone; choose another --fusion, such as concat"
                )

    def losses(self, forward: Forward) -> dict[str, Tensor]:
        """The fusion's loss, and those of both encoders."""
        audio, visual = forward.audio, forward.visual
        fusion: nn.Module = forward.model.fusion
        only_audio = fixed(fusion, audio, torch.zeros_like(visual))
        only_visual = fixed(fusion, torch.zeros_like(audio), visual)
        return {
            "joint": forward.loss(fusion(audio.detach(), visual.detach())),
            "audio": self.alpha * forward.loss(only_audio),
            "visual": self.alpha * forward.loss(only_visual),
        }


def fixed(fusion: nn.Module, audio: Tensor, visual: Tensor) -> Tensor:
    """f of some features, as if the fusion's weights were constants; statistics that it may keep don't change."""
    constants = {name: parameter.detach() for name, parameter in fusion.named_parameters()}
    constants |= {name: buffer.clone() for name, buffer in fusion.named_buffers()}
    logits: Tensor = functional_call(fusion, constants, (audio, visual))
    return logits


@torch.no_grad()
def answers_to(fusion: nn.Module, audio: Tensor, visual: Tensor) -> bool:
    """Whether a fusion gives two answers for the features of two clips."""
    mode = fusion.training
    first, second = fusion.eval()(audio, visual)
    fusion.train(mode)
    return not torch.equal(first, second)


def _two_clips(joint: Joint, modality: str, present: bool) -> Tensor:
    """Features (2, width) that differ, or zeros."""
    like = next(joint.model.parameters())
    encoder: Encoder = getattr(joint.model, modality)
    values = torch.linspace(-1, 1, 2 * encoder.width, device=like.device).view(encoder.width, 2).T
    return values if present else torch.zeros_like(values)
