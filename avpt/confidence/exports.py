"""Training dynamics and predictions as other tools read them: dataset cartography and cleanlab."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from avpt.files.tensors import unpack_ids
from avpt.types import HELD_OUT

FARTHEST = 200  # a logit so far below another has the probability 0 in float32, whatever the number of classes
LEAST = 2.0**-60  # the difference of a probability from 1 that float32 does not show
TIE = 1e-9  # a logit that is ahead by so much wins, and has the same probability in float32


def cartography_lines(
    ids: Sequence[str], probability: Tensor, correct: Tensor, labels: Sequence[int], num_classes: int, epoch: int
) -> str:
    """Format one epoch as allenai/cartography's `dynamics_epoch_N.jsonl`.

    Logits are not on record. What that tool computes of them is the probability of the true class, and whether it is
    the highest: logits are written for which both are as recorded. Nothing is known of the other classes; they share
    the rest evenly where the true class is the answer, and one of them has all of it elsewhere.

    Args:
        ids: of the clips.
        probability: (clips,) of the true class in this epoch.
        correct: (clips,) bool.
        labels: the true class of each clip.
        num_classes: of the model.
        epoch: counted from 0.
    """
    lines = []
    for clip_id, chance, right, label in zip(ids, probability.tolist(), correct.tolist(), labels, strict=True):
        record = {
            "guid": clip_id,
            f"logits_epoch_{epoch}": equivalent_logits(chance, right, label, num_classes),
            "gold": label,
        }
        lines.append(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
    return "".join(lines)


def equivalent_logits(chance: float, right: bool, label: int, num_classes: int) -> list[float]:
    """Logits under which class `label` has the probability `chance`, and the highest one exactly if it is `right`."""
    rest = max(1 - chance, LEAST)
    ahead = math.log(chance / rest) if chance > 0 else -FARTHEST  # of a single other class that has the rest
    if right:
        logits: list[float] = [0] * num_classes
        logits[label] = max(ahead + math.log(num_classes - 1), TIE)
    else:
        logits = [-FARTHEST] * num_classes
        logits[(label + 1) % num_classes] = 0
        logits[label] = min(max(ahead, -FARTHEST), -TIE)
    return logits


def cleanlab_arrays(predictions: Mapping[str, Tensor], classes: Sequence[str]) -> bytes:
    """Format the predictions of val and test as the .npz that cleanlab's `find_label_issues` is fed from.

    It has `labels` (clips,) int64, `pred_probs` (clips, classes) float64, `ids` and `split` (clips,), and `classes`.

    Args:
        predictions: the tensors of a run's `predictions.safetensors`, of clips with one label.
        classes: their names.
    """
    ids: list[str] = []
    splits: list[str] = []
    labels, chances = [np.zeros(0, np.int64)], [np.zeros((0, len(classes)))]
    for split in (split for split in HELD_OUT if f"{split}_logits" in predictions):
        here = unpack_ids(predictions, prefix=f"{split}_")
        ids, splits = ids + here, splits + [split] * len(here)
        labels.append(predictions[f"{split}_labels"].numpy())
        chances.append(predictions[f"{split}_logits"].double().softmax(dim=1).numpy())
    content = io.BytesIO()
    np.savez(
        content,
        labels=np.concatenate(labels),
        pred_probs=np.concatenate(chances),
        ids=np.array(ids),
        split=np.array(splits),
        classes=np.array(classes),
    )
    return content.getvalue()
