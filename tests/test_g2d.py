"""G2D against its formula, written out here."""

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

from avpt.models.encoder import Classifier
from avpt.models.fusion import FusionName
from avpt.training.balancing.g2d import G2d
from avpt.training.balancing.method import Step
from avpt.types import MODALITIES, Modality


def sure_of(modality: Modality) -> dict[Modality, Classifier]:
    """Teachers, of which one is the surer: its head gives the first class, the commonest, more."""
    known = teachers()
    for name, teacher in known.items():
        teacher.head.bias.data = torch.tensor([1.0, 0.0, 0.0]) * (1 if name == modality else -1)
    return known


def g2d_by_hand(fusion: FusionName, ahead: Modality, *, inside: bool = True, present: Tensor | None = None) -> State:
    """Gradients; `inside` the window."""
    model = joint_model(fusion, ARCH)
    sound, pictures = joint_inputs()
    there = torch.ones(CLIPS, 2) if present is None else present
    z = {"audio": model.audio(sound) * there[:, :1], "visual": model.visual(pictures[:, 0]) * there[:, 1:]}
    logits = model.fusion(z["audio"], z["visual"])
    loss, scores = functional.cross_entropy(logits, LABELS), {}
    known = sure_of(ahead)
    for number, (modality, inputs) in enumerate(zip(MODALITIES, (sound, pictures[:, 0]), strict=True)):
        teacher = known[modality].eval()
        with torch.no_grad():
            features = teacher.encoder(inputs) * there[:, [number]]
            p = teacher.head(features).softmax(dim=1)
        divergence = (p * (p.log() - logits.softmax(dim=1).log())).sum(dim=1)
        loss = loss + (divergence * there[:, number]).sum() / CLIPS + (z[modality] - features).square().mean()
        scores[modality] = sum(float(p[i, y] * there[i, number]) for i, y in enumerate(LABELS))
    gradients = gradients_of(model, loss)
    assert (scores["audio"] > scores["visual"]) is (ahead == "audio")
    for name, gradient in gradients.items():
        if inside and name.startswith(ahead) and gradient.ndim == 4:
            gradients[name] = torch.zeros_like(gradient)
    return gradients


@pytest.mark.parametrize("fusion", ["concat", "gated"])
@pytest.mark.parametrize("ahead", ["audio", "visual"])
def test_g2d_is_its_formula(fusion: FusionName, ahead: Modality) -> None:
    expected = g2d_by_hand(fusion, ahead)
    actual, state = step_of(G2d, fusion=fusion, teachers=lambda: sure_of(ahead))
    alike(actual, expected)
    assert state.factors == {"audio": float(ahead != "audio"), "visual": float(ahead != "visual")}
    assert all(not g.any() for name, g in actual.items() if name.startswith(ahead) and g.ndim == 4)


def test_g2d_keeps_to_its_window() -> None:
    for epoch, inside in ((0, False), (1, True), (2, True), (3, False)):
        actual, state = step_of(partial(G2d, window=(1, 2)), epoch=epoch, teachers=lambda: sure_of("audio"))
        alike(actual, g2d_by_hand("concat", "audio", inside=inside))  # they teach to the end
        assert state.factors["audio"] == (0 if inside else 1)


def test_with_modality_dropout() -> None:
    present = torch.ones(CLIPS, 2)
    present[1, 0] = present[2, 1] = 0
    actual, _ = step_of(G2d, present=present, teachers=lambda: sure_of("visual"))
    alike(actual, g2d_by_hand("concat", "visual", present=present))


def test_parts_and_processes_are_one_batch(tmp_path: Path) -> None:
    whole, _ = step_of(G2d, teachers=teachers)
    alike(step_of(G2d, accumulate=3, teachers=teachers)[0], whole)
    for gradients in in_processes(2, tmp_path, lambda world: step_of(G2d, world=world, teachers=teachers)[0]):
        alike(gradients, whole)


def test_nobody_waits_where_teachers_are_equally_sure() -> None:
    model = joint_model(arch=ARCH)
    method = G2d(run_of(model, teachers=teachers))
    method.scores = torch.ones(2, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert method.modulate(Step(0, 0, {})) == {"audio": 1.0, "visual": 1.0}
    assert all(bool(p.grad.all()) for p in model.parameters() if p.grad is not None)
    assert not method.scores.any()
