"""Linear probes: what a linear classifier can do with the features of an encoder that stays as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

Array = np.ndarray[Any, Any]

STRENGTHS = tuple(10.0**power for power in range(-4, 5))  # C of scikit-learn: small ones hold the weights back
MOST_STEPS = 1000  # of L-BFGS
TOLERANCE = 1e-6  # of its gradient: at scikit-learn's 1e-4 a weak penalty is still without effect where the fit ends


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features as they are: their standardisation is part of its weights."""

    weight: Array  # (classes, width) float64: large where a feature hardly varies
    bias: Array  # (classes,) float64
    strength: float
    converged: bool

    def logits(self, features: Array) -> Array:
        """(clips, classes) float64 of features (clips, width)."""
        logits: Array = features.astype(np.float64) @ self.weight.T + self.bias
        return logits


def fit_probe(train: tuple[Array, Array], val: tuple[Array, Array], score: Callable[[Array, Array], float]) -> Probe:
    """Logistic regression on standardised features: multinomial, or of several labels each one against the rest.

    Args:
        train: features (clips, width), and labels (clips,) from 0 without a gap, or (clips, classes) of 0 and 1.
        val: of the clips that choose the strength.
        score: of (logits, labels); the strength with the highest is taken, of equals the smallest.
    """
    features, labels = train
    scaler = StandardScaler().fit(features.astype(np.float64))
    scaled = scaler.transform(features.astype(np.float64))
    targets = [labels] if labels.ndim == 1 else list(labels.T)
    regressions = [LogisticRegression(max_iter=MOST_STEPS, tol=TOLERANCE, warm_start=True) for _ in targets]
    best: Probe | None = None
    highest = -np.inf
    for strength in STRENGTHS:
        rows = [
            _fit(*pair, scaled, strength, single=labels.ndim == 1) for pair in zip(regressions, targets, strict=True)
        ]
        weight = np.concatenate([row.weight for row in rows]) / scaler.scale_
        bias = np.concatenate([row.bias for row in rows]) - weight @ scaler.mean_
        converged = all(row.converged for row in rows)
        probe = Probe(weight, bias, strength, converged)
        value = score(probe.logits(val[0]), val[1])
        if value > highest:
            best, highest = probe, value
    assert best is not None, "scores are numbers"
    return best


def _fit(regression: LogisticRegression, target: Array, scaled: Array, strength: float, *, single: bool) -> Probe:
    """One regression; what every clip has, or none, can't be told by anything."""
    if len(np.unique(target)) == 1:
        return Probe(np.zeros((1, scaled.shape[1])), np.zeros(1), strength, converged=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
        regression.set_params(C=strength).fit(scaled, target)
    weight, bias = regression.coef_, regression.intercept_
    if single and len(weight) == 1:  # of two classes scikit-learn keeps the second's lead
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Probe(weight, bias, strength, bool(regression.n_iter_.max() < MOST_STEPS))


def mcnemar(first: Array, second: Array) -> dict[str, Any]:
    """Exact test of whether two classifiers are right equally often, from clips that only one gets right.

    McNemar, Psychometrika 1947; two-sided, by the binomial distribution.

    Args:
        first: (clips,) bool, right or not.
        second: of the same clips.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    told_apart = only_first + only_second
    p = float(binomtest(only_first, told_apart, 0.5).pvalue) if told_apart else 1.0
    return {"joint_only": only_first, "stage1_only": only_second, "p": p}
