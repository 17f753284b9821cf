"""UMT against its formula, written out here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from balancing import State, alike, run_of, step_of
from helpers import ARCH, in_processes
from joint import CLIPS, LABELS, joint_inputs, joint_model
from teachers import gradients_of, teachers
from torch import Tensor
from torch.nn import functional

from avpt.models.fusion import FusionName
from avpt.training.balancing.umt import Umt


def umt_by_hand(fusion: FusionName = "concat", weight: float = 10.0, present: Tensor | None = None) -> State:
    model = joint_model(fusion, ARCH)
    sound, pictures = joint_inputs()
    there = torch.ones(CLIPS, 2) if present is None else present
    a, v = model.audio(sound) * there[:, :1], model.visual(pictures[:, 0]) * there[:, 1:]
    known = {modality: teacher.eval() for modality, teacher in teachers().items()}
    with torch.no_grad():
        of_a = known["audio"].encoder(sound) * there[:, :1]
        of_v = known["visual"].encoder(pictures[:, 0]) * there[:, 1:]
    loss = functional.cross_entropy(model.fusion(a, v), LABELS)
    loss = loss + weight * ((a - of_a).square().mean() + (v - of_v).square().mean())
    return gradients_of(model, loss)


@pytest.mark.parametrize("fusion", ["concat", "gated"])
@pytest.mark.parametrize("weight", [10.0, 0.5])
def test_umt_is_its_formula(fusion: FusionName, weight: float) -> None:
    actual, _ = step_of(partial(Umt, weight=weight), fusion=fusion, teachers=teachers)
    alike(actual, umt_by_hand(fusion, weight))


def test_umt_ends_with_its_window() -> None:
    plain, _ = step_of(None)
    for epoch, inside in ((0, False), (1, True), (2, True), (3, False)):
        actual, _ = step_of(partial(Umt, window=(1, 2)), epoch=epoch, teachers=teachers)
        alike(actual, umt_by_hand() if inside else plain)


def test_a_withheld_modality_is_not_taught() -> None:
    present = torch.ones(CLIPS, 2)
    present[1, 0] = present[2, 1] = 0
    actual, _ = step_of(Umt, present=present, teachers=teachers)
    alike(actual, umt_by_hand(present=present))


def test_parts_and_processes_are_one_batch(tmp_path: Path) -> None:
    whole, _ = step_of(Umt, teachers=teachers)
    alike(step_of(Umt, accumulate=3, teachers=teachers)[0], whole)
    for gradients in in_processes(2, tmp_path, lambda world: step_of(Umt, world=world, teachers=teachers)[0]):
        alike(gradients, whole)


def test_teachers_stay_as_they_are_and_are_not_saved() -> None:
    known = teachers()
    before = {name: value.clone() for name, value in known["audio"].state_dict().items()}
    step_of(Umt, teachers=lambda: known)
    assert all(torch.equal(value, before[name]) for name, value in known["audio"].state_dict().items())
    assert not any(module.training for module in known["audio"].modules())
    assert not [*Umt(run_of(joint_model(arch=ARCH), teachers=lambda: known)).state_dict()]
