"""The smallest model that the training loop takes, and what it is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avpt.training.loop import Clips, Plan, fit
from avpt.training.passes import Stepping
from avpt.training.state import Clock, EpochState
from avpt.training.watch import Watcher
from avpt.training.world import World
from avpt.types import Batch

NUM_CLIPS, STEPS = 12, 3
CLIP_IDS = [f"clip {i}" for i in range(NUM_CLIPS)]


class Linear(nn.Module):
    """The smallest model that the loop takes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(inputs))
        return logits

    def outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self(inputs)}


class InOrder:
    """Batches of four clips."""

    def __init__(self, inputs: Tensor | None = None) -> None:
        self.inputs = torch.linspace(-1, 1, NUM_CLIPS * 3).view(NUM_CLIPS, 3).sin() if inputs is None else inputs

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for rows in torch.arange(NUM_CLIPS).view(STEPS, 4)[start:]:
            yield Batch((self.inputs[rows],), rows % 2, rows)

    def __len__(self) -> int:
        return STEPS


class AfterStep(Watcher):
    """Does something after each step, given the epoch (from 0) and its state."""

    def __init__(self, body: Callable[[int, EpochState], None]) -> None:
        self.body = body

    def step_done(self, epoch: int, state: EpochState, clock: Clock, positions: Tensor) -> None:
        self.body(epoch, state)


class Stop(BaseException):
    """What a signal becomes in these tests."""


def trained(folder: Path, *, model: Linear | None = None, epochs: int = 4, **options: Any) -> dict[str, Tensor]:
    """Train the smallest model and say what came of it."""
    torch.manual_seed(1)
    model = model or Linear()
    folder.mkdir(exist_ok=True)
    watched = {"encoder": list(model.encoder.parameters())}
    clips = Clips(train=InOrder(), val=InOrder(), clean_train=None, ids=CLIP_IDS, num_val=NUM_CLIPS)
    plan = Plan(
        epochs=epochs,
        rate=lambda epoch, step, steps: 0.1 / (1 + epoch * steps + step),
        stepping=Stepping(),
        measure=lambda outputs: {"accuracy": float(outputs["logits"].sum()), "loss": 0.5},
        watched=watched,
    )
    progress = fit(
        model,
        replace(clips, **{name: value for name, value in options.items() if hasattr(clips, name)}),
        replace(plan, **{name: value for name, value in options.items() if hasattr(plan, name)}),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        checkpoint=folder / "last.pt",
        watcher=options.get("watcher", Watcher()),
        world=World(),
    )
    actual = {f"last.{name}": value.clone() for name, value in model.state_dict().items()}
    actual |= {f"best.{name}": value for name, value in progress.best_model.items()}
    dynamics = {"probability": torch.stack(progress.probability), "correct": torch.stack(progress.correct)}
    return actual | dynamics | {"records": torch.tensor(list(json.dumps(progress.records).encode()))}
