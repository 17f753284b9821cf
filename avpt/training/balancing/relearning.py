"""Diagnosing and re-learning, which sets encoders back by how little they learn that holds for other clips."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from avpt.machine.seeds import seed_for
from avpt.training.balancing.method import Balancing, Joint, PlainClips
from avpt.types import MODALITIES, Modality

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]


class Relearning(Balancing):
    """Diagnosing and re-learning (Wei et al., ECCV 2024, arXiv 2407.09705).

    After some of the epochs, the features of train and of val are each scaled to [-1, 1] a dimension and divided by
    k-means into as many clusters as there are classes. The purity P of a split is the share of its clips whose
    cluster has most of its clips from their class; with w_u = tanh(strength |P_train - P_val|), every parameter of
    encoder u becomes w_u theta_0 + (1 - w_u) theta, theta_0 being what it was as joint training began. Running
    statistics, the optimiser's state and an average of the weights stay as they are.

    No pass more in any step. After each of these epochs one pass without gradients over train and val, and k-means of
    their features; the encoders' first weights are kept in the main memory. Nothing follows the last epoch of a run.

    Args:
        joint: the run.
        after: numbers of epochs after which it is done.
        strength: how far encoders are set back.
    """

    ranges: ClassVar = {"after": (1, 100_000), "strength": (0, 1000)}
    one_label = True

    def __init__(self, joint: Joint, *, after: tuple[int, ...] = (20, 40, 60), strength: float = 3.0) -> None:
        super().__init__(joint)
        self.after, self.strength = after, strength
        self.num_classes, self.seed, self.world = joint.num_classes, joint.seed, joint.world
        self.encoders: dict[Modality, list[nn.Parameter]] = {
            modality: [*joint.model.get_submodule(modality).parameters()] for modality in MODALITIES
        }
        self.first = {  # on the CPU; made anew from the same files where a run goes on
            modality: [parameter.detach().cpu().clone() for parameter in parameters]
            for modality, parameters in self.encoders.items()
        }

    @property
    def first_epoch(self) -> int:
        """The first epoch, from 0, in which it differs from plain training."""
        return min(self.after, default=0)

    @torch.no_grad()
    def begin_epoch(self, epoch: int, clips: PlainClips) -> None:
        """Set the encoders back."""
        if epoch not in self.after:
            return
        weights = self.world.first(partial(self._weights, clips.outputs("train"), clips.outputs("val")))
        log.info("after epoch %d encoders are set back by: audio %.3f, visual %.3f", epoch, *weights.values())
        for modality, weight in weights.items():
            for parameter, first in zip(self.encoders[modality], self.first[modality], strict=True):
                parameter.mul_(1 - weight).add_(first.to(parameter.device), alpha=weight)

    def _weights(self, train: dict[str, Tensor], val: dict[str, Tensor]) -> dict[Modality, float]:
        """w of each encoder."""
        weights: dict[Modality, float] = {}
        for modality in MODALITIES:
            weights[modality] = setback(self._purity(train, modality), self._purity(val, modality), self.strength)
        return weights

    def _purity(self, outputs: dict[str, Tensor], modality: Modality) -> float:
        features = outputs[modality].double().numpy()
        seed = seed_for(self.seed, "relearning", modality) % 2**32
        return purity(clusters(scaled(features), self.num_classes, seed), outputs["labels"].numpy())


def setback(train: float, val: float, strength: float) -> float:
    """w of the purities of both splits."""
    return float(np.tanh(strength * abs(train - val)))


def scaled(features: Array) -> Array:
    """Features (clips, width) from -1 to 1 in each dimension; 0 in one that is the same for all clips."""
    low, high = features.min(axis=0), features.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    values: Array = np.where(high > low, 2 * (features - low) / spread - 1, 0.0)
    return values


def clusters(features: Array, count: int, seed: int) -> Array:
    """(clips,) the number of each clip's cluster by k-means; each clip is its own where there are fewer of them."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if len(features) <= count:
        return np.arange(len(features))
    with threadpool_limits(limits=1):  # several threads add up in no fixed order
        found: Array = KMeans(count, n_init=10, random_state=seed).fit_predict(features)
    return found


def purity(cluster: Array, labels: Array) -> float:
    """The share of clips whose class is the one that most clips of their cluster have."""
    pure = sum(int(np.bincount(labels[cluster == number]).max()) for number in np.unique(cluster))
    return pure / len(labels)
