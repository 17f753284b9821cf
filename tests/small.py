"""A small model with BatchNorm, two batches of four clips, and a run of the training loop over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avpt.models.encoder import Encoder
from avpt.training.loop import Clips, Plan, fit
from avpt.training.optim import build_optimizer
from avpt.training.passes import Stepping
from avpt.training.state import Clock, EpochState, Progress
from avpt.training.watch import Watcher
from avpt.training.world import World
from avpt.types import Batch

State = dict[str, Tensor]


class SmallEncoder(Encoder, nn.Sequential):
    """Layers that can be frozen."""


class Small(nn.Module):
    """An "encoder" with BatchNorm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SmallEncoder(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(inputs))
        return logits

    def outputs(self, inputs: Tensor) -> State:
        return {"logits": self(inputs)}


class Two:
    """Two batches of four clips; a pass can be taken up in the middle."""

    def __init__(self, draws: Tensor | None = None) -> None:
        draw = torch.Generator().manual_seed(1)
        self.inputs, self.labels = torch.randn(8, 3, generator=draw), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
        self.draws = draws

    def __len__(self) -> int:
        return 2

    def epoch(self, number: int, start: int = 0) -> Any:
        for first in range(4 * start, 8, 4):
            rows = torch.arange(first, first + 4)
            positions = rows if self.draws is None else self.draws[rows]
            draws = None if self.draws is None else rows
            yield Batch((self.inputs[positions],), self.labels[positions], positions, draws=draws)


def one_batch() -> Two:
    class One(Two):
        def __len__(self) -> int:
            return 1

        def epoch(self, number: int, start: int = 0) -> Any:
            yield Batch((self.inputs,), self.labels, torch.arange(8))

    return One()


class Steps(Watcher):
    """Calls something after each step."""

    def __init__(self, after: Callable[[], None]) -> None:
        self.after = after

    def step_done(self, epoch: int, state: EpochState, clock: Clock, positions: Tensor) -> None:
        self.after()


def small() -> Small:
    torch.manual_seed(7)
    return Small()


def fitted(
    folder: Path,
    model: Small,
    *,
    epochs: int = 3,
    scale: float = 1.0,
    accuracies: Sequence[float] | None = None,
    patience: int | None = None,
    after: Callable[[], None] = lambda: None,
    watcher: Watcher | None = None,
    train: Two | None = None,
    lr: float = 0.1,
    momentum: float = 0.0,
    seen: list[State] | None = None,
    **stepping: Any,
) -> Progress:
    optimizer = build_optimizer(
        model,
        set(),
        set(model.encoder.parameters()),
        name="sgd",
        lr=lr,
        momentum=momentum,
        weight_decay=0.0,
        encoder_lr_scale=scale,
    )
    left = list(accuracies or [])

    def measure(outputs: State) -> dict[str, float]:
        if seen is not None:
            seen.append(outputs)
        return {"accuracy": left.pop(0) if accuracies else 0.5, "loss": 1.0}

    return fit(
        model,
        Clips(
            train=Two() if train is None else train,
            val=Two(),
            clean_train=None,
            ids=[str(i) for i in range(8)],
            num_val=8,
        ),
        Plan(
            epochs=epochs,
            rate=lambda epoch, step, steps: lr / (1 + epoch),
            stepping=Stepping(**stepping),
            measure=measure,
            watched={},
            patience=patience,
        ),
        optimizer=optimizer,
        checkpoint=folder / "last.pt",
        watcher=watcher or Steps(after),
        world=World(),
    )


def copied(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
