"""Linear probes: how well a linear classifier does on the features of a frozen encoder."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

Array = np.ndarray[Any, Any]

STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # C of scikit-learn: the smaller, the stronger the penalty
MOST_STEPS = 100  # of Newton's method
BALANCE = 1e-3  # the largest gradient at an optimum, relative to that of the penalty alone
NOTHING = 1e-10  # absolute allowance for rounding, for a gradient whose terms are of the order of one


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features as they are: their standardisation is part of its weights."""

    weight: Array  # (classes, width) float64: large where a feature hardly varies
    bias: Array  # (classes,) float64
    strength: float
    converged: bool  # this fit and those of the other strengths, as the choice depends on them too

    def logits(self, features: Array) -> Array:
        """Logits (clips, classes) float64 of features (clips, width)."""
        logits: Array = features.astype(np.float64) @ self.weight.T + self.bias
        return logits


def fit_probe(train: tuple[Array, Array], val: tuple[Array, Array], score: Callable[[Array, Array], float]) -> Probe:
    """Fit logistic regression to standardised features: multinomial, or with several labels each one against the rest.

    Args:
        train: features (clips, width), and labels (clips,) from 0 without a gap, or (clips, classes) of 0 and 1.
        val: the same for the clips by which the strength is chosen.
        score: of (logits, labels); the strength with the highest score is taken, the smallest of equals.
    """
    features, labels = train
    scaler = StandardScaler().fit(features.astype(np.float64))
    scaled = scaler.transform(features.astype(np.float64))
    targets = [labels] if labels.ndim == 1 else list(labels.T)
    best: Probe | None = None
    highest, converged = -np.inf, True
    for strength in STRENGTHS:
        rows = [_fit(target, scaled, strength, single=labels.ndim == 1) for target in targets]
        weight = np.concatenate([row.weight for row in rows]) / scaler.scale_
        bias = np.concatenate([row.bias for row in rows]) - weight @ scaler.mean_
        converged &= all(row.converged for row in rows)
        probe = Probe(weight, bias, strength, converged)
        value = score(probe.logits(val[0]), val[1])
        if value > highest:
            best, highest = probe, value
    assert best is not None, "scores are numbers"
    return replace(best, converged=converged)


def _fit(target: Array, scaled: Array, strength: float, *, single: bool) -> Probe:
    """Fit one regression; a target that is the same for every clip needs no weights."""
    if len(np.unique(target)) == 1:
        return Probe(np.zeros((1, scaled.shape[1])), np.zeros(1), strength, converged=True)
    # Start at zero: with a weak penalty the loss is so flat that a fit would stay where a previous one ended.
    tolerance = BALANCE / 100 / max(10.0, strength * len(scaled))  # of a single weight's gradient
    regression = LogisticRegression(C=strength, solver="newton-cg", max_iter=MOST_STEPS, tol=tolerance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `converged` reports it
        regression.fit(scaled, target)
    converged = _is_optimum(regression, target, scaled)
    weight, bias = regression.coef_, regression.intercept_
    if single and len(weight) == 1:  # for two classes scikit-learn keeps the lead of the second alone
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Probe(weight, bias, strength, converged)


def _is_optimum(regression: LogisticRegression, target: Array, scaled: Array) -> bool:
    """Whether the gradients of the loss and of the penalty cancel.

    The weights are then off by about `BALANCE` of their size at most, as the penalty makes the objective convex.
    """
    errors = regression.predict_proba(scaled) - (target[:, None] == regression.classes_)
    errors = errors[:, -len(regression.coef_) :]  # for two classes there is only the row of the second
    penalty = regression.coef_ / (regression.C * len(scaled))
    gradient = np.concatenate([errors.T @ scaled / len(scaled) + penalty, errors.mean(axis=0)[:, None]], axis=1)
    return bool(np.linalg.norm(gradient) <= BALANCE * np.linalg.norm(penalty) + NOTHING)


def mcnemar(first: Array, second: Array) -> dict[str, Any]:
    """Test exactly whether two classifiers are right equally often, by the clips that only one of them gets right.

    McNemar, Psychometrika 1947; two-sided, by the binomial distribution.

    Args:
        first: (clips,) bool, right or not.
        second: the same for the other classifier, on the same clips.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return {"joint_only": only_first, "stage1_only": only_second, "p": p}
