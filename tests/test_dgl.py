"""DGL against its formula, written out here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from balancing import State, alike, run_of, step_of
from helpers import ARCH, in_processes
from joint import CLIPS, LABELS, joint_inputs, joint_model
from teachers import gradients_of
from torch import Tensor, nn
from torch.nn import functional

from avpt.errors import ConfigError
from avpt.models.fusion import FusionName
from avpt.training.balancing.dgl import Dgl, fixed


def dgl_by_hand(fusion: FusionName, alpha: float, present: Tensor | None = None) -> State:
    """The gradient of each loss over everything, of which only the part that it is for is kept."""
    model = joint_model(fusion, ARCH)
    sound, pictures = joint_inputs()
    there = torch.ones(CLIPS, 2) if present is None else present
    a, v = model.audio(sound) * there[:, :1], model.visual(pictures[:, 0]) * there[:, 1:]
    both = gradients_of(model, functional.cross_entropy(model.fusion(a, v), LABELS))
    sound_alone = functional.cross_entropy(model.fusion(a, torch.zeros_like(v)), LABELS)
    pictures_alone = functional.cross_entropy(model.fusion(torch.zeros_like(a), v), LABELS)
    alone = gradients_of(model, alpha * (sound_alone + pictures_alone))
    return {name: both[name] if name.startswith("fusion.") else alone[name] for name in both}


@pytest.mark.parametrize("fusion", ["concat", "sum", "film"])
@pytest.mark.parametrize("alpha", [4.0, 0.5])
def test_dgl_is_its_formula(fusion: FusionName, alpha: float) -> None:
    actual, _ = step_of(partial(Dgl, alpha=alpha), fusion=fusion)
    alike(actual, dgl_by_hand(fusion, alpha))


def test_with_modality_dropout() -> None:
    present = torch.ones(CLIPS, 2)
    present[1, 0] = present[2, 1] = 0
    alike(step_of(Dgl, present=present)[0], dgl_by_hand("concat", 4.0, present))


def test_parts_and_processes_are_one_batch(tmp_path: Path) -> None:
    whole, _ = step_of(Dgl)
    alike(step_of(Dgl, accumulate=3)[0], whole)
    for gradients in in_processes(2, tmp_path, lambda world: step_of(Dgl, world=world)[0]):
        alike(gradients, whole)


def test_a_fusion_that_makes_nothing_of_sound_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing of audio features alone"):
        Dgl(run_of(joint_model("gated", ARCH)))


def test_each_modality_alone_changes_no_statistics_of_the_fusion() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            logits: Tensor = self.linear(self.norm(torch.cat([audio, visual], dim=1)))
            return logits

    fusion = Normed()
    before = {name: value.clone() for name, value in fusion.state_dict().items()}
    logits = fixed(fusion, torch.randn(6, 4, requires_grad=True), torch.zeros(6, 4))
    assert logits.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in fusion.state_dict().items())
