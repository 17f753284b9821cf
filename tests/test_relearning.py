"""Diagnosing and re-learning against its formula, written out here."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from balancing import State, run_of, step_of
from helpers import ARCH, in_processes
from joint import joint_model
from sklearn.cluster import KMeans
from sklearn.preprocessing import MinMaxScaler
from torch import Tensor

from avpt.machine.seeds import seed_for
from avpt.models.fusion import FusionName
from avpt.training.balancing.method import PlainClips
from avpt.training.balancing.relearning import Relearning, clusters, purity, scaled, setback
from avpt.training.world import World
from avpt.types import Split

CLASSES = 3


def features_of(split: Split) -> dict[str, Tensor]:
    """Sound that is told apart in train alone, and pictures that are in neither split."""
    draw = torch.Generator().manual_seed({"train": 1, "val": 2, "test": 3}[split])
    labels = torch.arange(60 if split == "train" else 24) % CLASSES
    noise = [torch.randn(len(labels), width, generator=draw) for width in (5, 4)]
    audio = noise[0] + (6 * torch.eye(5)[labels] if split == "train" else 0)
    return {"audio": audio, "visual": torch.cat([noise[1], torch.full((len(labels), 1), 3.0)], dim=1), "labels": labels}


def weights_by_hand(strength: float) -> dict[str, float]:
    actual = {}
    for modality in ("audio", "visual"):
        purities = []
        for split in ("train", "val"):
            outputs = features_of(split)
            points = MinMaxScaler((-1, 1)).fit_transform(outputs[modality].double().numpy())
            seed = seed_for(5, "relearning", modality) % 2**32
            found = KMeans(CLASSES, n_init=10, random_state=seed).fit_predict(points)
            pairs = Counter(zip(found.tolist(), outputs["labels"].tolist(), strict=True))
            majority = [max(count for (cluster, _), count in pairs.items() if cluster == c) for c in range(CLASSES)]
            purities.append(sum(majority) / len(found))
        actual[modality] = math.tanh(strength * abs(purities[0] - purities[1]))
    assert actual["audio"] > 0.5 > actual["visual"] > 0
    return actual


def relearnt(
    epoch: int,
    fusion: FusionName = "concat",
    world: World | None = None,
    outputs: Callable[[Split], dict[str, Tensor]] = features_of,
) -> tuple[State, State, State]:
    """State of a model as training begins, before and after the beginning of an epoch."""
    model = joint_model(fusion, ARCH)
    method = model.balance = Relearning(run_of(model, world=world), strength=2.0)
    first = copy.deepcopy(model.state_dict())
    draw = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += torch.rand(value.shape, generator=draw)
    before = copy.deepcopy(model.state_dict())
    method.begin_epoch(epoch, PlainClips(outputs))
    return first, before, model.state_dict()


@pytest.mark.parametrize("fusion", ["concat", "film"])
def test_encoders_are_set_back_by_the_formula(fusion: FusionName) -> None:
    weights = weights_by_hand(2.0)
    first, before, after = relearnt(40, fusion)
    names = {name for name, _ in joint_model(fusion, ARCH).named_parameters() if not name.startswith("fusion.")}
    for name, value in after.items():
        if name not in names:
            assert torch.equal(value, before[name]), name  # the head, and running statistics
            continue
        w = weights[name.partition(".")[0]]
        torch.testing.assert_close(value, w * first[name] + (1 - w) * before[name])
        assert not torch.equal(value, before[name]), name


def test_other_epochs_change_nothing() -> None:
    for epoch in (0, 19, 21, 59):
        _, before, after = relearnt(epoch)
        assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_steps_are_those_of_plain_training() -> None:
    plain, _ = step_of(None, epoch=20)
    actual, state = step_of(Relearning, epoch=20)
    assert set(actual) == set(plain)
    assert all(torch.equal(gradient, plain[name]) for name, gradient in actual.items())
    assert state.factors == {}


def test_nothing_of_it_is_in_a_checkpoint() -> None:
    model = joint_model(arch=ARCH)
    names = set(model.state_dict())
    model.balance = Relearning(run_of(model))
    assert set(model.state_dict()) == names


def test_processes_agree(tmp_path: Path) -> None:
    """Even where k-means comes to other clusters in each of them, as it may on two machines."""

    def elsewhere(split: Split) -> dict[str, Tensor]:
        return features_of("test" if split == "train" else split)

    alone = relearnt(20)[2]
    assert not all(torch.equal(value, alone[name]) for name, value in relearnt(20, outputs=elsewhere)[2].items())
    first, second = in_processes(
        2, tmp_path, lambda world: relearnt(20, world=world, outputs=features_of if world.is_first else elsewhere)[2]
    )
    assert all(torch.equal(value, first[name]) and torch.equal(value, second[name]) for name, value in alone.items())


def test_purity_at_its_edges() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1]).numpy()
    assert purity(torch.tensor([4, 4, 0, 0, 0]).numpy(), labels) == 1.0
    assert purity(torch.zeros(5, dtype=torch.int64).numpy(), labels) == 0.6
    few = torch.randn(3, 2).numpy()
    assert clusters(few, 3, 0).tolist() == [0, 1, 2]  # fewer clips than classes, or as many
    assert clusters(few, 7, 0).tolist() == [0, 1, 2]
    assert setback(0.4, 0.4, 3.0) == 0.0
    constant = scaled(torch.tensor([[1.0, 5.0], [1.0, 7.0], [1.0, 6.0]]).numpy())
    assert constant.tolist() == [[0.0, -1.0], [0.0, 1.0], [0.0, 0.0]]


def test_when_it_is_done_can_be_set() -> None:
    model = joint_model(arch=ARCH)
    seen: list[Split] = []

    def outputs(split: Split) -> dict[str, Tensor]:
        seen.append(split)
        return features_of(split)

    method = partial(Relearning, after=(1,))(run_of(model))
    for epoch in range(3):
        method.begin_epoch(epoch, PlainClips(outputs))
    assert seen == ["train", "val"]
