"""What models are judged by; single-label where labels are (batch,), multi-label where (batch, classes).

Asking which metric decides needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from avpt.errors import AvptError

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5  # answers of which one must be right, in top5
WORDS = {"map": "mAP", "accuracy": "accuracy"}  # what the metrics that decide are called in tables


def key_name(multi_label: bool) -> str:
    """The metric that decides which epoch, probe or run is better: accuracy, or mAP where clips have several labels."""
    return "map" if multi_label else "accuracy"


def key_name_of(metrics: Collection[str]) -> str:
    """The deciding metric, by the names of the metrics that were recorded."""
    return key_name("map" in metrics)


def key_metric(values: Mapping[str, float | None]) -> float:
    """The value of the metric that decides."""
    value = values[key_name_of(values)]
    assert value is not None, "every clip has a label"
    return value


def informative(metrics: Sequence[str], num_classes: int) -> list[str]:
    """The metrics that people are shown: the top five of five classes or fewer are right by definition."""
    return [name for name in metrics if name != "top5" or num_classes > TOP]


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch,) bool: the top-scored label is a true one."""
    top = logits.argmax(dim=1)
    if labels.ndim == 1:
        return top == labels
    return labels.gather(1, top[:, None])[:, 0] > 0


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of clips whose top-scored label is a true one."""
    return float(is_correct(logits, labels).double().mean())


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """What scikit-learn's f1_score is over the classes among labels or predictions, without loading it for seconds."""
    found, classes = logits.argmax(dim=1), logits.shape[1]
    hits = labels[found == labels].bincount(minlength=classes).double()
    either = labels.bincount(minlength=classes) + found.bincount(minlength=classes)
    return float((2 * hits / either)[either > 0].numpy().mean())


def measure(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Everything that is reported of a split, from all its logits (clips, classes) on the CPU.

    Single-label: accuracy, top5, macro_f1 (scikit-learn's: over the classes among labels or predictions), loss.
    Multi-label: map and auc (over the classes for which they are defined; auc is None where there is none of these),
    accuracy of the top label, loss.

    Raises:
        AvptError: the logits are not numbers.
    """
    from avpt.training import objective

    if not logits.isfinite().all():
        raise AvptError(
            "the model's logits are no longer numbers: it was trained with too high an --lr, or the store is damaged, "
            "which `avpt verify` shows"
        )
    values: dict[str, float | None] = {
        "loss": float(objective.loss(logits.double(), labels.double() if labels.ndim > 1 else labels))
    }
    values["accuracy"] = accuracy(logits, labels)
    if labels.ndim == 1:
        top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        values["top5"] = float((top == labels[:, None]).any(dim=1).double().mean())
        values["macro_f1"] = macro_f1(logits, labels)
        return values
    from sklearn.metrics import average_precision_score, roc_auc_score

    positives = labels.sum(dim=0)
    some, both = positives > 0, (positives > 0) & (positives < len(labels))
    values["map"] = float(average_precision_score(labels[:, some], logits[:, some], average="macro"))
    values["auc"] = float(roc_auc_score(labels[:, both], logits[:, both], average="macro")) if both.any() else None
    return values


def per_class(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Results by class, in the order of the classes; None where a class has no clip.

    Single-label: `count` of its clips, `accuracy` among them, `confusion` (one row per true class, one column per
    predicted class). Multi-label: `count`, `average_precision`.
    """
    if labels.ndim == 1:
        classes = logits.shape[1]
        pairs = labels * classes + logits.argmax(dim=1)
        confusion = pairs.bincount(minlength=classes**2).reshape(classes, classes)
        counts = confusion.sum(dim=1).tolist()
        right = confusion.diagonal().tolist()
        accuracies = [hits / count if count else None for hits, count in zip(right, counts, strict=True)]
        return {"count": counts, "accuracy": accuracies, "confusion": confusion.tolist()}
    from sklearn.metrics import average_precision_score

    counts = labels.sum(dim=0).long().tolist()
    precisions = [
        float(average_precision_score(labels[:, i], logits[:, i])) if count else None for i, count in enumerate(counts)
    ]
    return {"count": counts, "average_precision": precisions}
