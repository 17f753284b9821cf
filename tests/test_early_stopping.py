"""Runs that stop early, and values that are not numbers, which are never saved: through the whole loop."""

from __future__ import annotations

import math
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small import fitted, small

from avpt.errors import AvptError
from avpt.machine.processes import InterruptedWork
from avpt.training.display import _Board
from avpt.training.mixing import average_weights


@pytest.mark.parametrize(
    ("patience", "accuracies", "done", "best"),
    [
        (1, [0.5, 0.5, 0.9], 2, 1),  # an equal one is no better
        (2, [0.5, 0.6, 0.6, 0.1, 0.9], 4, 2),
        (3, [0.5, 0.6, 0.6, 0.1, 0.9, 0.8], 6, 5),
        (9, [0.5, 0.4, 0.3], 3, 1),
    ],
)
def test_a_run_stops_when_nothing_gets_better(
    tmp_path: Path, patience: int, accuracies: list[float], done: int, best: int
) -> None:
    steps: list[int] = []
    progress = fitted(
        tmp_path,
        small(),
        epochs=len(accuracies),
        accuracies=accuracies,
        patience=patience,
        after=lambda: steps.append(1),
    )
    assert (len(progress.records), progress.best_epoch, len(steps)) == (done, best, 2 * done)
    again = fitted(
        tmp_path, small(), epochs=len(accuracies), accuracies=[], patience=patience, after=lambda: steps.append(1)
    )
    assert len(steps) == 2 * done  # nothing is left to do
    assert again.records == progress.records


def test_a_run_that_stopped_early_has_no_time_left(tmp_path: Path) -> None:
    board = _Board(9, 2, {}, ["loss", "accuracy"], [])
    fitted(tmp_path, small(), epochs=9, accuracies=[0.5, 0.4], patience=1, watcher=board)
    assert (board.place(), board.left()) == ("2 epochs", "")


def test_a_stopped_run_goes_on_to_where_it_would_have_stopped(tmp_path: Path) -> None:
    accuracies = [0.5, 0.6, 0.6, 0.1, 0.9]
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = fitted(
        whole, small(), epochs=5, accuracies=accuracies, patience=2, average=average_weights(small(), 0.9)
    )
    model, count = small(), [0]

    def interrupt() -> None:
        count[0] += 1
        if count[0] == 5:  # the first step of the third epoch
            signal.raise_signal(signal.SIGINT)

    with pytest.raises((KeyboardInterrupt, InterruptedWork)):
        fitted(
            tmp_path,
            model,
            epochs=5,
            accuracies=accuracies,
            patience=2,
            after=interrupt,
            average=average_weights(small(), 0.9),
        )
    actual = fitted(
        tmp_path, small(), epochs=5, accuracies=accuracies[2:], patience=2, average=average_weights(small(), 0.9)
    )
    assert actual.records == expected.records
    assert len(actual.records) == 4
    for name, value in expected.best_model.items():
        assert torch.equal(actual.best_model[name], value)


# --- values that are not numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("running_var", "BatchNorm's running statistics are no longer numbers after step 1 of epoch 2"),
        ("average", "the averaged weights are no longer numbers after step 1 of epoch 2"),
        ("momentum", "the optimiser's sums are no longer numbers after step 1 of epoch 2"),
    ],
)
def test_what_is_not_a_number_is_never_saved(tmp_path: Path, value: float, where: str, says: str) -> None:
    """Weights and losses may look right beside it: a variance of infinity makes every output 0."""
    model, steps = small(), list[int]()
    average = average_weights(model, 0.5)

    def spoil() -> None:
        steps.append(len(steps))
        if len(steps) != 3:
            return
        if where == "running_var":
            model.get_buffer("encoder.1.running_var")[2] = value
        elif where == "average":
            average.get_parameter("module.head.bias").data[0] = value
        else:
            optimizers[0].state[model.head.bias]["momentum_buffer"] = torch.tensor([value, 0.0])

    optimizers, sgd = list[torch.optim.Optimizer](), torch.optim.SGD

    def seen(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
        optimizers.append(sgd(*arguments, **options))
        return optimizers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.optim.SGD", seen)
        with pytest.raises(AvptError, match=re.escape(says)):
            fitted(tmp_path, model, after=spoil, average=average, checkpoint_every=1, momentum=0.5)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["epoch"]["step"] == 0
    assert all(values.isfinite().all() for part in ("model", "average") for values in saved[part].values())
