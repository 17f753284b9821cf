"""One step of a balancing method on the joint model of tests/joint.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import ARCH
from joint import CLIPS, LABELS, joint_inputs, joint_model
from torch import Tensor, nn

from avpt.loading.sampling import share_of
from avpt.models.fusion import FusedModel, FusionName
from avpt.training.balancing.method import Balanced, Balancing, Joint
from avpt.training.passes import Stepping, train_epoch
from avpt.training.state import EpochState, new_epoch
from avpt.training.world import World
from avpt.types import MODALITIES, Batch

State = dict[str, Tensor]
Make = Callable[[Joint], Balancing]


def no_teachers() -> dict[Any, nn.Module]:
    raise AssertionError("a method asked for teachers")


def run_of(model: FusedModel, *, seed: int = 5, world: World | None = None, teachers: Any = no_teachers) -> Joint:
    return Joint(model, 3, 60, seed, World() if world is None else world, teachers)


def step_of(
    make: Make | None,
    *,
    fusion: FusionName = "concat",
    arch: str = ARCH,
    epoch: int = 0,
    seed: int = 5,
    world: World | None = None,
    teachers: Any = no_teachers,
    present: Tensor | None = None,
    model: FusedModel | None = None,
    lr: float = 0.0,
    compiled: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    **stepping: Any,
) -> tuple[State, EpochState]:
    """Gradients of one step as the optimiser gets them, by name, and what was noted; plain joint training for None.

    The model of tests/joint.py is made for it, unless there is one.
    """
    world = World() if world is None else world
    model = joint_model(fusion, arch) if model is None else model
    trained: nn.Module = model
    method = None
    if make is not None:
        torch.manual_seed(7)  # heads of its own
        method = model.balance = make(run_of(model, seed=seed, world=world, teachers=teachers))
        trained = Balanced(model, method, 0.0, compiled)
    mine = torch.tensor(share_of(range(CLIPS), world.rank, world.size))
    inputs = joint_inputs() if present is None else (*joint_inputs(), present)
    state = new_epoch(CLIPS)
    train_epoch(
        world.parallel(trained),
        [Batch(tuple(values[mine] for values in inputs), LABELS[mine], mine, CLIPS)],
        torch.optim.SGD(model.parameters(), lr=lr),
        state,
        epoch=epoch,
        first_step=10 * epoch,
        set_rate=lambda step: None,
        stepping=Stepping(balance=method, **stepping),
        scaler=torch.amp.GradScaler("cpu", enabled=False) if scaler is None else scaler,
        world=world,
        watched={modality: list(model.get_submodule(modality).parameters()) for modality in MODALITIES},
        after_step=lambda rows: None,
    )
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, state


def alike(actual: State, expected: State) -> None:
    """The same parameters have gradients, and equal ones but for rounding."""
    assert set(actual) == set(expected)
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(actual[name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-9, msg=lambda m: name + m)  # noqa: B023
