"""G-Blend against its formula, written out here, through the training loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from balancing import State, alike, run_of, step_of
from helpers import ARCH, in_processes
from joint import CLIPS, LABELS, joint_inputs, joint_model
from torch import Tensor
from torch.nn import functional
from toy import AfterStep, Stop

from avpt.loading.sampling import share_of
from avpt.models.fusion import FusedModel, FusionName
from avpt.training.balancing.g_blend import GBlend, blend
from avpt.training.loop import Clips, Plan, fit
from avpt.training.passes import Stepping
from avpt.training.state import EpochState, Progress
from avpt.training.watch import Watcher
from avpt.training.world import World
from avpt.types import Batch, Split

EVERY, EPOCHS, NUM_VAL = 2, 3, 3
NAMES = ("audio", "visual", "joint")


class Some:
    """A process's share of batches of some clips of tests/joint.py, in another order each epoch if they are trained on.

    Without training there is one batch, so that each process has as many.
    """

    def __init__(self, count: int, size: int, world: World, *, shuffled: bool = False) -> None:
        self.count, self.size, self.world, self.shuffled = count, size, world, shuffled

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        order = torch.arange(self.count).roll(number if self.shuffled else 0)
        for rows in [order[first : first + self.size] for first in range(0, self.count, self.size)][start:]:
            mine = rows[torch.tensor(share_of(range(len(rows)), self.world.rank, self.world.size))]
            yield Batch(tuple(values[mine] for values in joint_inputs()), LABELS[mine], mine, len(rows))


def clips_of(world: World) -> Clips:
    def plain(split: Split) -> Some:
        return Some(*((CLIPS, CLIPS) if split == "train" else (NUM_VAL, NUM_VAL)), world)

    return Clips(
        train=Some(CLIPS, 4, world, shuffled=True),
        val=plain("val"),
        clean_train=None,
        ids=[f"clip {i}" for i in range(CLIPS)],
        num_val=NUM_VAL,
        plain=plain,
    )


def rate(epoch: int, step: int, steps: int) -> float:
    return 0.1 / (1 + epoch + step / steps)


def new_model(fusion: FusionName, world: World | None = None) -> FusedModel:
    model = joint_model(fusion, ARCH)
    torch.manual_seed(7)
    model.balance = GBlend(run_of(model, world=world), every=EVERY)
    model.balance.epochs = EPOCHS
    return model


def run(
    folder: Path, watcher: Watcher, fusion: FusionName = "concat", world: World | None = None
) -> tuple[FusedModel, Progress]:
    """A super-epoch and a half; every step is saved."""
    world = World() if world is None else world
    model = new_model(fusion, world)
    assert isinstance(model.balance, GBlend)
    folder.mkdir(exist_ok=True)
    progress = fit(
        model,
        clips_of(world),
        Plan(
            epochs=EPOCHS,
            rate=rate,
            stepping=Stepping(balance=model.balance, checkpoint_every=1),
            measure=lambda outputs: {"accuracy": float(outputs["logits"].sum()), "loss": 0.5},
            watched={"audio": list(model.audio.parameters())},
        ),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        checkpoint=folder / "last.pt",
        watcher=watcher,
        world=world,
    )
    return model, progress


def losses_of(model: FusedModel, rows: Tensor) -> dict[str, Tensor]:
    """Each loss, mean over some clips."""
    sound, pictures = (values[rows] for values in joint_inputs())
    a, v = model.audio(sound), model.visual(pictures[:, 0])
    assert model.balance is not None
    logits = {"audio": model.balance.audio(a), "visual": model.balance.visual(v), "joint": model.fusion(a, v)}  # type: ignore[operator]
    return {name: functional.cross_entropy(values, LABELS[rows]) for name, values in logits.items()}


def learn(model: FusedModel, optimizer: torch.optim.Optimizer, epochs: range, weights: dict[str, float]) -> None:
    train = clips_of(World()).train
    for epoch in epochs:
        for step, batch in enumerate(train.epoch(epoch)):
            losses = losses_of(model, batch.positions)
            optimizer.param_groups[0]["lr"] = rate(epoch, step, len(train))
            optimizer.zero_grad()
            sum(weight * losses[name] for name, weight in weights.items()).backward()  # type: ignore[union-attr]
            optimizer.step()


def by_hand(fusion: FusionName) -> tuple[State, dict[str, float]]:
    """Parameters after all epochs, and the weights of the last super-epoch; BatchNorm is frozen."""
    model = new_model(fusion)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    weights: dict[str, float] = {}
    for first in (0, EVERY):
        epochs = range(first, min(first + EVERY, EPOCHS))
        worth = {}
        for name in NAMES:
            alone = copy.deepcopy(model)
            with torch.no_grad():
                train, val = (losses_of(alone, torch.arange(count))[name].item() for count in (CLIPS, NUM_VAL))
            of_alone = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
            of_alone.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            learn(alone, of_alone, epochs, {name: 1.0})
            with torch.no_grad():
                after, val_after = (losses_of(alone, torch.arange(count))[name].item() for count in (CLIPS, NUM_VAL))
            worth[name] = abs(val - val_after) / ((val_after - after) - (val - train)) ** 2
        weights = {name: value / sum(worth.values()) for name, value in worth.items()}
        learn(model, optimizer, epochs, weights)
    return {name: p.detach() for name, p in model.named_parameters()}, weights


def near(actual: State, expected: State) -> None:
    """Equal but for rounding, which the division by O^2 makes larger."""
    assert set(actual) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-2, atol=1e-3 * value.abs().max().item())


@pytest.mark.parametrize("fusion", ["concat", "gated"])
def test_a_run_is_its_formula(fusion: FusionName, tmp_path: Path) -> None:
    expected, weights = by_hand(fusion)
    model, progress = run(tmp_path, Watcher(), fusion)
    assert model.balance is not None
    actual = dict(zip(NAMES, model.balance.weights.tolist(), strict=True))  # type: ignore[operator]
    assert actual == pytest.approx(weights, rel=1e-2)
    assert sum(actual.values()) == pytest.approx(1)
    near({name: p.detach() for name, p in model.named_parameters()}, expected)
    assert [len(values) for values in progress.probability] == [CLIPS] * EPOCHS


class StopWhileBusy(Watcher):
    """Stops when a pass without the run's own steps has come so far."""

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def busy(self, what: str, done: int = 0, total: int = 0) -> None:
        if what == self.doing:
            raise Stop


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Progress]:
    model, progress = run(tmp_path_factory.mktemp("undisturbed"), Watcher())
    return model.state_dict(), progress


@pytest.mark.parametrize(
    "stop", [StopWhileBusy("trying visual alone, epoch 1 of 1"), StopWhileBusy("looking at train"), (1, 1)]
)
def test_a_run_that_stops_ends_with_the_same_bytes(
    stop: Watcher | tuple[int, int], undisturbed: tuple[State, Progress], tmp_path: Path
) -> None:
    def after_step(epoch: int, state: EpochState) -> None:
        if (epoch, state.step) == stop:
            raise Stop

    state, progress = undisturbed
    with pytest.raises(Stop):
        run(tmp_path, stop if isinstance(stop, Watcher) else AfterStep(after_step))
    again, same = run(tmp_path, Watcher())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())
    assert same.records == progress.records


def test_two_processes_are_one(undisturbed: tuple[State, Progress], tmp_path: Path) -> None:
    first, second = in_processes(
        2, tmp_path, lambda world: run(tmp_path / "run", Watcher(), world=world)[0].state_dict()
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    near(*({n: v for n, v in state.items() if v.is_floating_point()} for state in (first, undisturbed[0])))


@pytest.mark.parametrize("fusion", ["concat", "gated"])
def test_a_step_has_the_weights(fusion: FusionName) -> None:
    def weighted(joint: object) -> GBlend:
        method = GBlend(joint)  # type: ignore[arg-type]
        method.weights.copy_(torch.tensor([0.5, 0.2, 0.3]))
        return method

    model = new_model(fusion)
    losses = losses_of(model, torch.arange(CLIPS))
    (0.5 * losses["audio"] + 0.2 * losses["visual"] + 0.3 * losses["joint"]).backward()  # type: ignore[no-untyped-call]
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    alike(step_of(weighted, fusion=fusion)[0], expected)
    alike(step_of(weighted, fusion=fusion, accumulate=3)[0], expected)


def test_weights_at_their_edges() -> None:
    before = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert blend(before, before).tolist() == pytest.approx([1 / 3] * 3)  # nothing gained
    assert blend(before, before / 0).tolist() == pytest.approx([1 / 3] * 3)
    after = torch.tensor([[0.5, 0.5], [0.5, 0.8], [0.0, 1.2]], dtype=torch.float64)
    worth = torch.tensor([0.5 / 1e-8, 0.2 / 0.09, 0.2 / 1.44], dtype=torch.float64)
    torch.testing.assert_close(blend(before, after), worth / worth.sum())  # the first did not overfit at all
