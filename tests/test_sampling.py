"""Balanced sampling: which clips are drawn how often, on which process, and what a second draw of a clip is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from joint import augmented_clips
from small import Two, fitted, small

from avpt.loading.loader import Loader
from avpt.loading.sampling import EpochSampler
from avpt.store.splits import balancing_weights
from avpt.types import MODALITIES

CPU = torch.device("cpu")


def test_classes_are_drawn_equally_often() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 30, 15, 5])
    weights = torch.from_numpy(balancing_weights(labels))
    sampler = EpochSampler(100, 16, 3, weights=weights)
    epochs, counts = 80, np.zeros(100)
    for epoch in range(epochs):
        sampler.epoch = epoch
        batches = list(sampler)
        assert [row for batch in batches for _, _, row in batch] == list(range(100))
        assert {number for batch in batches for number, _, _ in batch} == {epoch}
        drawn = [position for batch in batches for _, position, _ in batch]
        assert len(set(drawn)) < 100
        np.add.at(counts, drawn, 1)
    by_class = np.array([counts[labels == k].sum() for k in range(4)])
    expected = 100 * epochs / 4
    assert ((by_class - expected) ** 2 / expected).sum() < 21.1  # chi-square, 3 degrees of freedom, p 0.0001
    for k in range(4):  # and within a class its clips
        clips = counts[labels == k]
        even = expected / len(clips)
        assert (abs(clips - even) < 5 * math.sqrt(even)).all()


def test_several_labels_count_under_the_rarest() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]], np.uint8)  # rarest: 1, 0, 0, 2
    assert balancing_weights(labels).tolist() == pytest.approx([1, 0.5, 0.5, 1])


@given(st.integers(8, 90), st.integers(4, 20), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2**31))
@settings(max_examples=30)
def test_processes_share_the_draws(num_clips: int, batch_size: int, processes: int, start: int, seed: int) -> None:
    weights = torch.arange(1, num_clips + 1, dtype=torch.float64)
    samplers = [EpochSampler(num_clips, batch_size, seed, rank, processes, weights) for rank in range(processes)]
    steps = list(zip(*samplers, strict=True))
    rows = [row for shared in steps for share in shared for _, _, row in share]
    assert rows == list(range(num_clips))
    for sampler in samplers:
        sampler.start = start
    assert list(zip(*samplers, strict=True)) == steps[start:]


def test_a_clip_that_is_drawn_twice_looks_different(experiment: Experiment) -> None:
    clips = augmented_clips(experiment)
    draws = [clips[0, 3, row] for row in (3, 5, 6)]
    for modality in MODALITIES:
        assert not torch.equal(draws[0][modality], draws[1][modality])
        assert not torch.equal(draws[1][modality], draws[2][modality])
        assert torch.equal(draws[1][modality], clips[0, 3, 5][modality])
    assert {int(draw["label"]) for draw in draws} == {int(clips.index.labels[3])}


@pytest.mark.parametrize("workers", [0, 2])
def test_drawn_batches_say_which_draw_and_which_clip(experiment: Experiment, workers: int) -> None:
    clips = augmented_clips(experiment)
    weights = torch.zeros(18, dtype=torch.float64)
    weights[[4, 9]] = 1
    batches = list(Loader(clips, 5, device=CPU, workers=workers, shuffle_seed=0, weights=weights).epoch(1))
    assert torch.equal(torch.cat([batch.rows for batch in batches]), torch.arange(18))
    assert set(torch.cat([batch.positions for batch in batches]).tolist()) == {4, 9}
    for batch in batches:
        for i, (position, row) in enumerate(zip(batch.positions.tolist(), batch.rows.tolist(), strict=True)):
            label = int(clips[1, position, row]["label"])
            assert int(batch.labels[i]) == label == int(clips.index.labels[position])


def test_training_means_are_over_draws(tmp_path: Path) -> None:
    draws = torch.tensor([1, 1, 1, 5, 6, 1, 5, 5])
    progress = fitted(tmp_path, small(), epochs=1, lr=0.0, train=Two(draws))
    model, losses, right = small().train(), list[float](), list[bool]()
    for batch in Two(draws).epoch(0):
        with torch.no_grad():
            chances = model(*batch.inputs).softmax(1)
        losses += (-chances[torch.arange(4), batch.labels].log()).tolist()
        right += (chances.argmax(1) == batch.labels).tolist()
    learnt = progress.records[0]["train"]
    assert learnt["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert learnt["accuracy"] == np.mean(right)
