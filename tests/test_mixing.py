"""Mixing clips with one another, and averaging weights over the steps, against the formulas written out here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import State, Two, copied, fitted, small
from torch import Tensor, nn

from avpt.models.encoder import freeze
from avpt.training import objective
from avpt.training.mixing import average_weights, mix_clips
from avpt.types import Batch


def mixed(batch: Batch, step: int = 0, alpha: float = 0.4, seed: int = 0, part: int = 0) -> Batch:
    return mix_clips(batch, step, alpha=alpha, num_classes=5, seed=seed, part=part)


@pytest.mark.parametrize("shape", [(1, 8, 6), (3, 3, 8, 8), (2, 3, 8, 8)])
def test_mixed_clips_and_labels(shape: tuple[int, ...]) -> None:
    inputs, labels = torch.randn(4, *shape), torch.tensor([2, 0, 1, 4])
    batch = Batch((inputs,), labels, torch.tensor([7, 3, 5, 1]), draws=torch.arange(4))
    before, state = inputs.clone(), torch.get_rng_state()
    actual = mixed(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(inputs, before)
    assert actual.targets is not None
    weight = actual.targets[0, 2].item()
    assert 0 < weight < 1
    assert type(actual.inputs[0]) is Tensor
    for i in range(4):
        partner = (i - 1) % 4
        torch.testing.assert_close(actual.inputs[0][i], weight * inputs[i] + (1 - weight) * inputs[partner])
        wanted = torch.zeros(5)
        wanted[labels[i]] += weight
        wanted[labels[partner]] += 1 - weight
        torch.testing.assert_close(actual.targets[i], wanted)
        assert actual.labels[i] == labels[i if weight > 0.5 else partner]
    assert torch.equal(actual.positions, batch.positions)
    assert torch.equal(actual.rows, torch.arange(4))

    logits = torch.randn(4, 5)
    logs = logits.log_softmax(1)
    own, other = -logs[torch.arange(4), labels], -logs[torch.arange(4), labels.roll(1)]
    loss = objective.loss(logits, actual.labels, actual.targets)
    torch.testing.assert_close(loss, (weight * own + (1 - weight) * other).mean())
    parts = [actual.part(slice(0, 2)), actual.part(slice(2, 4))]
    halves = [
        objective.loss(logits[i : i + 2], part.labels, part.targets) for i, part in zip((0, 2), parts, strict=True)
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), loss)


def test_mixed_clips_of_several_labels() -> None:
    labels = torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0]])
    actual = mixed(Batch((torch.randn(3, 1, 4, 4),), labels, torch.arange(3)))
    assert actual.targets is not None
    weight = actual.targets[0, 0].item()
    torch.testing.assert_close(actual.targets, weight * labels + (1 - weight) * labels[[2, 0, 1]])
    assert torch.equal(actual.labels, torch.maximum(labels, labels[[2, 0, 1]]))


def test_weights_are_beta_distributed_and_depend_on_seed_step_and_process() -> None:
    batch = Batch((torch.zeros(2, 1, 4, 4),), torch.tensor([0, 1]), torch.arange(2))

    def weight(**options: Any) -> float:
        targets = mixed(batch, **options).targets
        assert targets is not None
        return targets[0, 0].item()

    drawn = np.array([weight(step=step, alpha=0.4) for step in range(800)])
    variance = 1 / (4 * (2 * 0.4 + 1))  # of Beta(a, a)
    assert abs(drawn.mean() - 0.5) < 4 * math.sqrt(variance / 800)
    assert drawn.var() == pytest.approx(variance, rel=0.12)
    assert weight(step=3) == weight(step=3)
    assert len({weight(step=3), weight(step=4), weight(step=3, seed=1), weight(step=3, part=1)}) == 4


def test_mixed_clips_are_what_is_learnt_from(tmp_path: Path) -> None:
    model = small()
    steps: list[int] = []

    def mix(batch: Batch, step: int) -> Batch:
        steps.append(step)
        return Batch((batch.inputs[0] * 0,), batch.labels, batch.positions, targets=torch.full((4, 2), 0.5))

    progress = fitted(tmp_path, model, epochs=2, lr=0.0, mix=mix)
    assert steps == [0, 1, 2, 3]  # counted over the run
    with torch.no_grad():
        logits = small().head(small().state_dict()["encoder.1.bias"][None])
    loss = -logits.log_softmax(1).mean().item()
    assert progress.records[0]["train"]["loss"] == pytest.approx(loss, rel=1e-5)


# --- averages ----------------------------------------------------------------------------------------------------


def test_the_average_is_its_recursion_and_is_judged(tmp_path: Path) -> None:
    model, steps, seen = small(), list[State](), list[State]()
    average = average_weights(model, 0.4)  # less than the warm-up's from the sixth step on
    accuracies = [0.2, 0.6, 0.4]
    progress = fitted(
        tmp_path,
        model,
        accuracies=accuracies,
        after=lambda: steps.append(copied(model)),
        seen=seen,
        average=average,
    )
    assert len(steps) == 6
    expected, after_epoch = dict(steps[0]), []
    for number, now in enumerate(steps[1:], start=2):
        decay = min(0.4, number / (9 + number))
        for name, value in now.items():
            floats = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if floats else value
        if number % 2 == 0:
            after_epoch.append(dict(expected))
    judge = small().eval()
    for outputs, weights in zip(seen, after_epoch, strict=True):
        judge.load_state_dict(weights)
        with torch.no_grad():
            torch.testing.assert_close(outputs["logits"], judge(Two().inputs))
    torch.testing.assert_close(dict(average.module.state_dict()), expected)
    assert int(expected["encoder.1.num_batches_tracked"]) == 6
    assert progress.best_epoch == 2
    torch.testing.assert_close(progress.best_model, after_epoch[1])


@pytest.mark.parametrize(("decay", "steps", "least", "most"), [(0.999, 104, 92, 95), (0.99, 3000, 2890, 2910)])
def test_an_average_is_not_left_where_it_began(decay: float, steps: int, least: float, most: float) -> None:
    """Of a weight that is t after t steps: 0.999 from the first step on would be at 5 after 104 of them."""
    model = nn.Linear(1, 1, bias=False).double()
    average = average_weights(model, decay)
    for step in range(1, steps + 1):
        nn.init.constant_(model.weight, step)
        average.update_parameters(model)
    assert least < float(average.module.state_dict()["weight"]) < most


def test_an_average_of_what_does_not_move_is_that(tmp_path: Path) -> None:
    model = small()
    model.encoder[1].num_batches_tracked.fill_(1000)  # type: ignore[operator]
    freeze(model.encoder)
    before = copied(model)
    average = average_weights(model, 0.999)
    fitted(tmp_path, model, epochs=5, average=average)
    for state in (copied(model), copied(average.module)):
        for name, value in state.items():
            assert torch.equal(value, before[name]) is name.startswith("encoder."), name
