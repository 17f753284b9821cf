"""How often a training step waits for the device: whoever looks at a number waits until it is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from small import Small
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from avpt.training.passes import Stepping, train_epoch
from avpt.training.state import EpochState, NotFiniteError, new_epoch
from avpt.training.world import World
from avpt.types import Batch

LOOKS = ("_local_scalar_dense", "is_nonzero", "equal", "_to_copy", "item")


class Looks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what would wait on a device: numbers that become Python's, and copies that the CPU looks at."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__.partition(".")[0] in LOOKS[:3]
        return func(*args, **(kwargs or {}))


def batches(steps: int, spoilt: int | None = None) -> Iterator[Batch]:
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        inputs, labels = torch.randn(4, 3, generator=draw), torch.tensor([0, 1, 1, 0])
        if step == spoilt:
            inputs[2] = float("nan")
        yield Batch((inputs,), labels, torch.arange(4 * step, 4 * step + 4))


def trained(steps: int, read_every: int, spoilt: int | None = None, looked: list[int] | None = None) -> EpochState:
    """Steps of a small model, and the state after them; `looked` receives how often each step looked at numbers."""
    torch.manual_seed(0)
    model, state, looks = Small(), new_epoch(4 * steps), Looks()
    watched: Mapping[str, Any] = {"encoder": list(model.encoder.parameters())}
    before = 0

    def after_step(rows: Tensor) -> None:
        nonlocal before
        if looked is not None:
            looked.append(looks.count + reads.count - before)
        before = looks.count + reads.count

    with reads, looks:
        train_epoch(
            model,
            batches(steps, spoilt),
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            state,
            epoch=0,
            first_step=0,
            set_rate=lambda step: None,
            stepping=Stepping(read_every=read_every),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            world=World(),
            watched=watched,
            after_step=after_step,
        )
    return state


class Reads:
    """Counts calls that copy a tensor to the CPU: on a CPU they do nothing that is dispatched."""

    def __init__(self) -> None:
        self.count, self.patch = 0, pytest.MonkeyPatch()

    def __enter__(self) -> Reads:
        for name in ("cpu", "tolist", "numpy"):
            self.patch.setattr(Tensor, name, self.counted(getattr(Tensor, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self.patch.undo()

    def counted(self, call: Any) -> Any:
        def counting(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            return call(*arguments, **options)

        return counting


reads = Reads()


def test_a_step_looks_at_no_number_but_every_so_often() -> None:
    looked: list[int] = []
    trained(12, read_every=4, looked=looked)
    assert [count > 0 for count in looked] == [False, False, False, True] * 3
    assert max(looked) <= 4 * 5 + 8  # on a CPU `tolist` looks at each number


def test_what_is_read_later_is_the_same() -> None:
    at_once, later = trained(10, read_every=1), trained(10, read_every=4)
    assert at_once.norms == later.norms
    assert at_once.step == later.step == 10
    for name in ("loss", "probability", "correct"):
        assert torch.equal(getattr(at_once, name), getattr(later, name))


@pytest.mark.parametrize("read_every", [1, 4])
def test_an_error_names_its_step_and_clips_however_late_it_is_seen(read_every: int) -> None:
    with pytest.raises(NotFiniteError, match="loss is nan") as error:
        trained(10, read_every, spoilt=4)
    assert error.value.step == 4
    assert error.value.positions.tolist() == [16, 17, 18, 19]
    assert error.value.damaged.tolist() == [18]


def test_no_checkpoint_has_what_is_unread() -> None:
    assert "unread" not in vars(trained(2, read_every=4).merged(World()))


def test_a_gradient_that_is_not_finite_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Overflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.weight = nn.Linear(3, 2), nn.Parameter(torch.zeros(()))

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.encoder(inputs) + self.weight.sqrt()  # whose derivative is infinite at 0
            return logits

    monkeypatch.setitem(globals(), "Small", Overflow)
    with pytest.raises(NotFiniteError, match="gradient is not finite") as error:
        trained(3, read_every=2)
    assert error.value.step == 0
