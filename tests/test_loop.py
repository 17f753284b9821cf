"""The parts of the training loop, one by one: a run's state on disk, an epoch's record, the best weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from avpt.errors import AvptError
from avpt.training.loop import epoch_record, note_epoch
from avpt.training.passes import Stepping
from avpt.training.run_state import LOSABLE, RunState, first_not_finite, new_run, resume, save
from avpt.training.state import new_epoch
from avpt.training.watch import Watcher
from avpt.training.world import World

NUM_CLIPS, STEPS = 4, 3


def run_at(path: Path, seed: int = 0) -> RunState:
    """A run that has taken a step, so that its optimiser has sums."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    sizes = {"num_clips": NUM_CLIPS, "num_steps": STEPS}
    return new_run(model, optimizer, Stepping(), path / "last.pt", Watcher(), World(), **sizes)


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    begun = run_at(tmp_path)
    assert not resume(begun)
    begun.epoch.step, begun.epoch.loss[1] = 2, 0.25
    begun.progress.records.append({"epoch": 1})
    save(begun)
    other = run_at(tmp_path, seed=1)
    assert resume(other)
    assert (other.epoch.step, other.epoch.loss.tolist()) == (2, [0.0, 0.25, 0.0, 0.0])
    assert other.progress.records == [{"epoch": 1}]
    for name, value in begun.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])


@pytest.mark.parametrize("what", range(len(LOSABLE)))
def test_numbers_that_are_lost_are_not_saved(tmp_path: Path, what: int) -> None:
    run = run_at(tmp_path)
    assert first_not_finite(run) == len(LOSABLE)
    average = torch.optim.swa_utils.AveragedModel(run.model)
    run = replace(run, average=average)
    momentum = run.optimizer.state[next(run.model.parameters())]["momentum_buffer"]
    places: list[Tensor] = [
        next(run.model.parameters()),
        next(run.model.buffers()),
        next(average.module.parameters()),
        momentum,
    ]
    with torch.no_grad():
        places[what].view(-1)[0] = math.inf
    assert first_not_finite(run) == what
    with pytest.raises(AvptError, match=f"{LOSABLE[what]} are no longer numbers after epoch 0; nothing was saved yet"):
        save(run)
    assert not run.checkpoint.exists()


def test_a_place_without_clips(tmp_path: Path) -> None:
    seen = replace(run_at(tmp_path).epoch, step=2, norms={"encoder": 3.0}, loss=torch.ones(NUM_CLIPS))
    emptied = seen.without_clips()
    assert (emptied.step, emptied.norms, emptied.loss.tolist()) == (2, {"encoder": 3.0}, [0.0] * NUM_CLIPS)
    assert seen.loss.tolist() == [1.0] * NUM_CLIPS


def test_the_record_of_an_epoch() -> None:
    seen = replace(new_epoch(NUM_CLIPS), loss=torch.tensor([1.0, 2.0, 3.0, 4.0]), step=STEPS, norms={"encoder": 6.0})
    seen.correct[0] = True
    values = {"accuracy": 0.5, "loss": 0.1}
    record = epoch_record(1, lambda epoch, step, steps: 100 * epoch + 10 * step + steps, STEPS, seen, values)
    expected = {"epoch": 2, "lr": 123, "train": {"loss": 2.5, "accuracy": 0.25}, "val": values}
    assert record == expected | {"gradient_norm": {"encoder": 2.0}}
    more = replace(seen, skipped=1, factors={"audio": 1.5})
    record = epoch_record(1, lambda *_: 0.0, STEPS, more, values)
    assert (record["skipped_steps"], record["gradient_factor"]) == (1, {"audio": 0.5})
    assert record["gradient_norm"] == {"encoder": 3.0}  # a step that is skipped has none


def test_the_first_of_equally_good_epochs_is_kept(tmp_path: Path) -> None:
    run = run_at(tmp_path)
    for epoch, accuracy in enumerate((0.5, 0.75, 0.75, 0.25), 1):
        nn.init.constant_(next(run.model.parameters()), epoch)
        run.epoch.step = STEPS
        note_epoch(run, {"epoch": epoch, "val": {"accuracy": accuracy, "loss": 1.0}}, new_epoch(NUM_CLIPS))
        assert run.epoch.step == 0
    assert (run.progress.best_epoch, run.progress.best_value) == (2, 0.75)
    assert set(run.progress.best_model["0.weight"].flatten().tolist()) == {2.0}
    assert len(run.progress.records) == len(run.progress.probability) == len(run.progress.correct) == 4
