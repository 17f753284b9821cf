"""The optimiser's treatment of encoders: a learning rate of their own, through a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import copied, fitted, one_batch, small


def test_encoders_learn_at_their_own_rate(tmp_path: Path) -> None:
    start, moved = copied(small()), {}
    for scale in (1.0, 0.25):
        (tmp_path / str(scale)).mkdir()
        model = small()
        fitted(tmp_path / str(scale), model, epochs=1, scale=scale, train=one_batch())
        moved[scale] = {name: value - start[name] for name, value in copied(model).items()}
    for name, step in moved[1.0].items():
        if "running" not in name and "tracked" not in name:
            by = 0.25 if name.startswith("encoder.") else 1.0
            torch.testing.assert_close(moved[0.25][name], by * step, rtol=1e-4, atol=1e-7)
            assert step.any() or name == "encoder.0.bias"  # which BatchNorm takes out again


def test_a_scaled_rate_follows_the_schedule_through_a_resumed_run(tmp_path: Path) -> None:
    model, rates = small(), list[dict[float, float]]()
    original = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append({group["lr_scale"]: group["lr"] for group in self.param_groups})
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        fitted(tmp_path, model, epochs=2, scale=0.5, lr=0.1)
        fitted(tmp_path, model, epochs=3, scale=0.5, lr=0.1)
    expected = [0.1, 0.1, 0.05, 0.05, 0.1 / 3, 0.1 / 3]
    assert [rate[1.0] for rate in rates] == pytest.approx(expected)
    assert [rate[0.5] for rate in rates] == pytest.approx([value / 2 for value in expected])
