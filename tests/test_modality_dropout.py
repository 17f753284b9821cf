"""Modality dropout: which modality is withheld from which clips, and what the model makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import WIDTH, Experiment
from joint import FUSION_NAMES, augmented_clips, joint_inputs, joint_model

from avpt.loading import transforms
from avpt.loading.dataset import ClipDataset
from avpt.loading.loader import Loader
from avpt.models.fusion import FusionName
from avpt.types import MODALITIES

CPU = torch.device("cpu")


def test_either_modality_is_withheld_from_a_share_of_the_clips() -> None:
    drawn = torch.stack([transforms.draw_present(0.3, seed) for seed in range(6000)])
    away = 1 - drawn
    assert not (away.sum(1) > 1).any()
    for share in away.mean(0).tolist():
        assert abs(share - 0.15) < 4 * math.sqrt(0.15 * 0.85 / 6000)
    assert transforms.draw_present(0.0, 1).tolist() == [1, 1]
    assert all(transforms.draw_present(1.0, seed).sum() == 1 for seed in range(100))


@pytest.mark.parametrize("name", FUSION_NAMES)
def test_a_withheld_modality_has_no_features(name: FusionName) -> None:
    model = joint_model(name)
    sound, pictures = joint_inputs()
    present = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    with torch.no_grad():
        actual = model(sound[:3], pictures[:3], present)
        a, v = model.audio(sound[:3]), model.visual(pictures[:3, 0])
        nothing = torch.zeros(1, WIDTH)
        expected = torch.cat([model.fusion(a[:1], nothing), model.fusion(nothing, v[1:2]), model.fusion(a[2:], v[2:])])
    torch.testing.assert_close(actual, expected)


def test_what_is_withheld_depends_on_the_clip_alone(experiment: Experiment) -> None:
    clips = augmented_clips(experiment, modality_dropout=0.5)
    said: dict[tuple[int, int], dict[int, list[float]]] = {}
    for processes, workers in ((1, 0), (1, 2), (2, 0)):
        actual: dict[int, list[float]] = {}
        for process in range(processes):
            loader = Loader(clips, 6, device=CPU, workers=workers, shuffle_seed=1, process=process, processes=processes)
            for batch in loader.epoch(4):
                assert len(batch.inputs) == 3
                actual |= dict(zip(batch.positions.tolist(), batch.inputs[2].tolist(), strict=True))
        said[processes, workers] = actual
    assert said[1, 0] == said[1, 2] == said[2, 0]
    assert len(said[1, 0]) == 18
    assert {tuple(present) for present in said[1, 0].values()} == {(1, 1), (0, 1), (1, 0)}
    evaluated = ClipDataset(clips.index, MODALITIES, clips.spec, clips.frame_codec)
    assert all(len(batch.inputs) == 2 for batch in Loader(evaluated, 6, device=CPU, workers=0).epoch(4))
