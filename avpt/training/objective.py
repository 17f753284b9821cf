"""Loss and confidence; single-label where labels are (batch,), multi-label where (batch, classes)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def loss(logits: Tensor, labels: Tensor, targets: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy, or binary cross-entropy when multi-label."""
    return clip_losses(logits, labels, targets, smoothing).mean()


def clip_losses(logits: Tensor, labels: Tensor, targets: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """(batch,) cross-entropy; when multi-label the mean over the labels' binary cross-entropies.

    Args:
        logits: (batch, classes).
        labels: (batch,), or (batch, classes) when multi-label.
        targets: (batch, classes) shares of the classes in mixed clips; None takes the labels.
        smoothing: share spread evenly over the classes (Szegedy et al. 2016), or over yes and no when multi-label.
    """
    targets = labels if targets is None else targets
    if labels.ndim == 1:
        return functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    targets = targets * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def true_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch,) probability of the true class; when multi-label the mean over the true labels' probabilities."""
    if labels.ndim == 1:
        return logits.float().softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return (logits.float().sigmoid() * labels).sum(dim=1) / labels.sum(dim=1)
