"""MMPareto: the joint loss and an encoder's own are joined so that neither is worked against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from avpt.training.balancing.method import Joint, Step
from avpt.training.balancing.uniform import OwnHeads

OWN_ALONE, JOINT_ALONE = 0.001, 0.999  # weights of the joint gradient where one of the two is shorter in both ways


class MMPareto(OwnHeads):
    """Multimodal Pareto (Wei and Hu, ICML 2024, arXiv 2405.17730), over the whole training.

    For each encoder u, with all its parameters as one vector, g_m is the gradient of the joint loss and g_u that of
    the encoder's own. Where they agree (a positive cosine) both count 1/2, else they get the weights k_m and
    k_u = 1 - k_m of the shortest vector between them. Tensor by tensor, h = 2 k_m g_m + 2 k_u g_u takes the length of
    g_m + g_u where that is greater, and is multiplied by gamma. The heads learn from the sum of the losses.

    Three backward passes, and three gradients of each encoder in memory.

    Args:
        joint: the run.
        gamma: by which the encoders' gradients are multiplied.
    """

    ranges: ClassVar = {"gamma": (0, 1000)}
    apart = True

    def __init__(self, joint: Joint, *, gamma: float = 1.5) -> None:
        super().__init__(joint)
        self.gamma = gamma

    @torch.no_grad()
    def modulate(self, step: Step) -> dict[str, float]:
        """Replace the encoders' gradients; there is no factor to record."""
        for modality, parameters in self.encoders.items():
            both = step.apart["joint"], step.apart[modality]
            learning = [parameter for parameter in parameters if all(parameter in gradients for gradients in both)]
            weight = joint_weight(*both, learning)
            for parameter in learning:
                joint, own = (gradients[parameter] for gradients in both)
                combined = 2 * weight * joint + 2 * (1 - weight) * own
                length = combined.norm()
                scale = ((joint + own).norm() / length).clamp(min=1) if length > 0 else 0.0
                parameter.grad = self.gamma * combined * scale
        return {}


def joint_weight(
    joint: Mapping[nn.Parameter, Tensor], own: Mapping[nn.Parameter, Tensor], parameters: Sequence[nn.Parameter]
) -> float:
    """k_m of the gradients of the joint loss and of the encoder's own."""

    def product(first: Mapping[nn.Parameter, Tensor], second: Mapping[nn.Parameter, Tensor]) -> float:
        products = [(first[parameter] * second[parameter]).sum() for parameter in parameters]
        return float(torch.stack(products).cpu().double().sum())

    across = product(joint, own)
    if across > 0:
        return 0.5
    of_joint, of_own = product(joint, joint), product(own, own)
    if across >= of_joint:
        return JOINT_ALONE
    if across >= of_own:
        return OWN_ALONE
    return (of_own - across) / (of_joint + of_own - 2 * across)
