"""AGM: what each modality adds to the answer learns faster or slower."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from avpt.training import objective
from avpt.training.balancing.method import Balancing, Forward, Joint, Step
from avpt.types import MODALITIES

SMALLEST = 1e-8  # probability of the true class
MOST = 10.0  # of q_u - r_u


class Agm(Balancing):
    """Adaptive gradient modulation (Li et al., ICCV 2023, arXiv 2308.07686; its code was read).

    With 0 for an *input* of zeros, m_a = (f(a, v) - f(0, v) + f(a, 0)) / 2, and m_v with a and v swapped, are what the
    two add to f(a, v) = m_a + m_v, of which L is the loss. The gradient that flows into m_u is multiplied by
    kappa_u = exp(alpha min(q_u - r_u, 10)). r_a = exp(S_v - S_a), with S_u the mean over the step's clips of
    -log softmax(m_u)[y] (of probabilities of at least 1e-8); q_a = exp(T_v - T_a), with T_u the mean of S_u over all
    steps before this one (0 at the first). r_v = 1 / r_a, q_v = 1 / q_a.

    f(0, v) and f(a, 0) are computed in evaluation mode, and all clips share what encoders make of an input of zeros.
    kappa is that of the whole step, in all its parts and processes: gradients through m_a and m_v are made apart.

    Until the end of the window a second forward pass, two backward passes through both, and three gradients of the
    model in memory; after that the passes are those of plain training, as f(0, v) and f(a, 0) cancel out where both
    kappa are 1.

    Args:
        joint: the run.
        alpha: how hard it modulates.
        window: first and last epoch in which it does, counted from 0.
    """

    ranges: ClassVar = {"alpha": (0, 8), "window": (0, 100_000)}  # exp(10 alpha) is a float32
    one_label = True
    apart = True
    mean_scores: Tensor
    steps: Tensor

    def __init__(self, joint: Joint, *, alpha: float = 1.0, window: tuple[int, int] = (0, 20)) -> None:
        super().__init__(joint)
        self.alpha, self.window, self.world = alpha, window, joint.world
        self.register_buffer("mean_scores", torch.zeros(2))  # T_audio, T_visual
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # that it is the mean of
        self.sums = torch.zeros(3, dtype=torch.float64)  # over the step so far: S of its clips, and their number

    @property
    def first_epoch(self) -> int:
        """The first epoch, from 0, in which it differs from plain training."""
        return self.window[0]

    def losses(self, forward: Forward) -> dict[str, Tensor]:
        """Two losses whose gradients are those that flow through m_a and m_v."""
        if forward.epoch > self.window[1]:
            return super().losses(forward)
        logits = forward.logits.float()
        leaf = logits.detach().requires_grad_()
        (towards,) = torch.autograd.grad(forward.loss(leaf), leaf)
        only_audio, only_visual = alone(forward)
        parts = ((logits - only_visual + only_audio) / 2, (logits - only_audio + only_visual) / 2)
        with torch.no_grad():
            sure = torch.stack([objective.true_probability(part, forward.labels) for part in parts])
            scores = -sure.clamp(min=SMALLEST).cpu().double().log().sum(dim=1)
        self.sums += torch.cat([scores, scores.new_tensor([len(forward.labels)])])
        return {modality: (towards * part).sum() for modality, part in zip(MODALITIES, parts, strict=True)}

    @torch.no_grad()
    def modulate(self, step: Step) -> dict[str, float]:
        """Weigh the gradients by each modality's kappa, and return it."""
        sums, self.sums = self.world.sum(self.sums), torch.zeros_like(self.sums)
        factors: dict[str, float] = dict.fromkeys(MODALITIES, 1.0)
        if step.epoch > self.window[1]:
            return factors
        scores, means = sums[:2] / sums[2], self.mean_scores.cpu().double()
        self.steps += 1
        self.mean_scores.copy_(means + (scores - means) / int(self.steps))
        if step.epoch >= self.window[0]:
            ratios, usual = (torch.exp(values.flip(0) - values).tolist() for values in (scores, means))
            for modality, r, q in zip(MODALITIES, ratios, usual, strict=True):
                factors[modality] = math.exp(self.alpha * min(q - r, MOST))
        step.weigh(factors)
        return factors


def alone(forward: Forward) -> tuple[Tensor, Tensor]:
    """f(a, 0) and f(0, v), float32, of inputs of zeros; in evaluation mode and with gradient."""
    model, (sound, pictures, *_) = forward.model, forward.inputs
    with _evaluating(model):
        audio, visual = model.features(sound, pictures)
        no_audio, no_visual = model.features(torch.zeros_like(sound[:1]), torch.zeros_like(pictures[:1]))
        there = forward.present
        only_audio = model.fusion(audio * there["audio"], no_visual * there["visual"])
        only_visual = model.fusion(no_audio * there["audio"], visual * there["visual"])
    return only_audio.float(), only_visual.float()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
