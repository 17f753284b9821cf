"""Losses with smoothed labels, against the formulas written out here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import fitted, one_batch, small

from avpt.training import objective


@given(st.integers(1, 9), st.integers(2, 7), st.floats(0, 0.99), st.integers(0, 2**31))
def test_smoothed_losses(clips: int, classes: int, smoothing: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(scale=3, size=(clips, classes))
    labels = random.integers(0, classes, clips)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = []
    for row, label in zip(chances, labels, strict=True):
        wanted = [smoothing / classes + (1 - smoothing) * (k == label) for k in range(classes)]
        expected.append(-sum(share * math.log(chance) for share, chance in zip(wanted, row, strict=True)))
    actual = objective.clip_losses(torch.from_numpy(logits), torch.from_numpy(labels), smoothing=smoothing)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9, atol=1e-13)  # small ones are differences

    several = (random.random((clips, classes)) < 0.4).astype(np.float64)
    yes = 1 / (1 + np.exp(-logits))
    wanted_yes = several * (1 - smoothing) + 0.5 * smoothing
    expected_several = -(wanted_yes * np.log(yes) + (1 - wanted_yes) * np.log(1 - yes)).mean(axis=1)
    actual = objective.clip_losses(torch.from_numpy(logits), torch.from_numpy(several), smoothing=smoothing)
    np.testing.assert_allclose(actual.numpy(), expected_several, rtol=1e-9, atol=1e-13)


def test_smoothing_is_what_is_learnt_from_and_not_what_is_told(tmp_path: Path) -> None:
    """One step on 8 clips, 5 of them of one class, against its gradient written out."""
    few = one_batch()
    few.labels = torch.tensor([0, 1, 1, 1, 1, 0, 0, 1])
    for smoothing in (0.0, 0.3):
        (tmp_path / str(smoothing)).mkdir()
        model, start = small(), small()
        progress = fitted(tmp_path / str(smoothing), model, epochs=1, train=few, label_smoothing=smoothing)
        with torch.no_grad():
            features = start.encoder(few.inputs)
            chances = start.head(features).softmax(1)
            wanted = smoothing / 2 + (1 - smoothing) * torch.eye(2)[few.labels]
            errors = (chances - wanted) / 8
            torch.testing.assert_close(model.head.weight, start.head.weight - 0.1 * errors.T @ features)
            torch.testing.assert_close(model.head.bias, start.head.bias - 0.1 * errors.sum(0))
        loss = -chances[torch.arange(8), few.labels].log().mean().item()
        assert progress.records[0]["train"]["loss"] == pytest.approx(loss, rel=1e-5)  # without smoothing
