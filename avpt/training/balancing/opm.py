"""OPM, which withholds features of the modality that is ahead."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from avpt.machine.seeds import seed_for
from avpt.training.balancing.method import Balancing, Forward, Joint
from avpt.types import MODALITIES


class Opm(Balancing):
    """On-the-fly prediction modulation (Wei et al., TPAMI 2024, arXiv 2410.11582; their code was read).

    With s_u the sum over clips of the true class's probability in the softmax of u's share of the logits, and
    rho_u = tanh(max(0, s_u / s_other - 1)), a clip loses the features of u with probability
    q_u = clip(q (1 + gain rho_u), 0, 1) where rho_u > 0, else with 0. This is done to a batch with probability p.
    The features that stay are divided by 1 - theta, theta being the mean of q_audio and q_visual weighted by the widths
    of the features; clips that have no features left do not count. What is recorded of the clips is the answer from
    whole features.

    One backward pass; the fusion head is applied three times more, twice for the shares; no memory to speak of. The
    sums are over the clips that go through the model together, as they are needed before the loss: with `--accumulate`
    and in several processes each part of a batch has its own. What is drawn depends on seed, step and clip alone.

    Args:
        joint: the run.
        p: share of the batches in which features are withheld.
        q: share of the clips that lose them, where the modalities are about equal.
        gain: how much that share grows as one gets ahead; the paper's lambda.
        begin: the first epoch in which features are withheld, counted from 0.
    """

    ranges: ClassVar = {"p": (0, 1), "q": (0, 1), "gain": (0, 1000), "begin": (0, 100_000)}
    one_label = True
    through_encoders = False

    def __init__(self, joint: Joint, *, p: float = 0.7, q: float = 0.5, gain: float = 0.5, begin: int = 6) -> None:
        super().__init__(joint)
        self.p, self.q, self.gain, self.begin, self.seed = p, q, gain, begin, joint.seed

    @property
    def first_epoch(self) -> int:
        """The first epoch, from 0, in which it differs from plain training."""
        return self.begin

    def losses(self, forward: Forward) -> dict[str, Tensor]:
        """The joint loss, of what is left of the features."""
        if forward.epoch < self.begin or self._drawn(forward, "batch") >= self.p:
            return super().losses(forward)
        features = forward.audio, forward.visual
        shares = self.shares(forward.true_probabilities().cpu().double().sum(dim=1))
        widths = [values.shape[1] for values in features]
        theta = sum(q * width for q, width in zip(shares, widths, strict=True)) / sum(widths)
        draws = [
            [self._drawn(forward, modality, row) >= q for row in forward.rows.tolist()]
            for modality, q in zip(MODALITIES, shares, strict=True)
        ]
        stays = torch.tensor(draws, device=forward.labels.device)
        kept = [values * there[:, None] / (1 - theta) for values, there in zip(features, stays, strict=True)]
        _, _, *present = forward.inputs
        counted = (stays & (present[0].T > 0) if present else stays).any(dim=0)
        losses = forward.clip_losses(forward.model.fusion(*kept))
        return {"joint": (losses * counted).sum() / counted.sum().clamp(min=1)}

    def shares(self, scores: Tensor) -> list[float]:
        """q_audio and q_visual from s_audio and s_visual."""
        rho = (scores / scores.flip(0) - 1).nan_to_num(0.0).relu().tanh()  # where both are 0 none is ahead
        return torch.where(rho > 0, (self.q * (1 + self.gain * rho)).clamp(0, 1), 0.0).tolist()

    def _drawn(self, forward: Forward, *what: object) -> float:
        """A number in [0, 1) for a purpose in the step."""
        return seed_for(self.seed, forward.number, "opm", *what) / 2**63
