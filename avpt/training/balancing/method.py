"""The interface of a method that balances the modalities; a training pass knows no more of it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Balancing(Protocol):
    """Watches the forward passes of a step and changes its gradients before they are clipped and applied."""

    def observe(self, labels: Tensor) -> None:
        """Look at the clips of the latest forward pass, labels (batch,); a step may have several passes."""

    def modulate(self, epoch: int, step: int) -> dict[str, float]:
        """Change the gradients of a step; returns each encoder's factor, which is recorded.

        Args:
            epoch: counted from 0.
            step: counted over the run.
        """
