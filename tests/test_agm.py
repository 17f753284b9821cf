"""AGM against its formula, written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from balancing import State, alike, run_of, step_of
from helpers import ARCH, in_processes
from joint import CLIPS, LABELS, joint_inputs, joint_model
from teachers import gradients_of
from torch import Tensor
from torch.nn import functional

from avpt.models.encoder import EncoderSpec, build_encoder
from avpt.models.fusion import FusedModel, FusionName
from avpt.training.balancing.agm import Agm
from avpt.training.balancing.method import Balanced, Joint, Step
from avpt.types import MODALITIES, Batch


class Times(torch.autograd.Function):
    """Leaves values as they are, and multiplies the gradient that flows back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def agm_by_hand(
    fusion: FusionName = "concat",
    alpha: float = 1.0,
    means: tuple[float, float] = (0.0, 0.0),
    present: Tensor | None = None,
) -> tuple[State, dict[str, float], list[float]]:
    """Gradients, kappa and S of both modalities; `means` are T."""
    model = joint_model(fusion, ARCH)
    there = torch.ones(CLIPS, 2) if present is None else present

    def logits(sound: Tensor, pictures: Tensor) -> Tensor:
        a, v = model.audio(sound) * there[:, :1], model.visual(pictures[:, 0]) * there[:, 1:]
        value: Tensor = model.fusion(a, v)
        return value

    sound, pictures = joint_inputs()
    nothing, black = torch.zeros_like(sound), torch.zeros_like(pictures)
    both, only_a, only_v = logits(sound, pictures), logits(sound, black), logits(nothing, pictures)
    m_a, m_v = (both - only_v + only_a) / 2, (both - only_a + only_v) / 2
    s_a, s_v = (float(functional.cross_entropy(m.detach().double(), LABELS)) for m in (m_a, m_v))
    r_a, q_a = math.exp(s_v - s_a), math.exp(means[1] - means[0])
    kappa = {
        "audio": math.exp(alpha * min(q_a - r_a, 10)),
        "visual": math.exp(alpha * min(1 / q_a - 1 / r_a, 10)),
    }
    loss = functional.cross_entropy(Times.apply(m_a, kappa["audio"]) + Times.apply(m_v, kappa["visual"]), LABELS)
    return gradients_of(model, loss), kappa, [s_a, s_v]


def agm_with(means: tuple[float, float], steps: int, **options: Any) -> tuple[Callable[[Joint], Agm], list[Agm]]:
    """What makes the method some steps later, and where it then is."""
    made: list[Agm] = []

    def make(joint: Joint) -> Agm:
        method = Agm(joint, **options)
        method.mean_scores.copy_(torch.tensor(means))
        method.steps.fill_(steps)
        made.append(method)
        return method

    return make, made


@pytest.mark.parametrize("fusion", ["concat", "gated"])
@pytest.mark.parametrize("means", [(0.0, 0.0), (1.4, 0.8)])
def test_agm_is_its_formula(fusion: FusionName, means: tuple[float, float]) -> None:
    make, made = agm_with(means, 3, alpha=1.7)
    actual, state = step_of(make, fusion=fusion)
    expected, kappa, scores = agm_by_hand(fusion, 1.7, means)
    assert kappa["audio"] != pytest.approx(kappa["visual"], rel=1e-3)
    assert state.factors == pytest.approx(kappa, rel=1e-4)
    alike(actual, expected)
    after = [(3 * mean + score) / 4 for mean, score in zip(means, scores, strict=True)]
    assert made[0].mean_scores.tolist() == pytest.approx(after, rel=1e-5)
    assert int(made[0].steps) == 4


def test_the_norms_recorded_are_of_the_joint_loss() -> None:
    assert step_of(Agm)[1].norms == pytest.approx(step_of(None)[1].norms, rel=1e-4)


def test_agm_keeps_to_its_window() -> None:
    plain, _ = step_of(None)
    for epoch, inside in ((0, False), (1, True), (2, True), (3, False)):
        make, made = agm_with((0.3, 0.9), 1, window=(1, 2))
        actual, state = step_of(make, epoch=epoch)
        alike(actual, agm_by_hand(means=(0.3, 0.9))[0] if inside else plain)
        assert (state.factors == {"audio": 1.0, "visual": 1.0}) is not inside
        assert int(made[0].steps) == (1 if epoch == 3 else 2)  # before the window it measures


def test_with_modality_dropout() -> None:
    present = torch.ones(CLIPS, 2)
    present[1, 0] = present[2, 1] = 0
    expected, kappa, _ = agm_by_hand(present=present)
    actual, state = step_of(Agm, present=present)
    assert state.factors == pytest.approx(kappa, rel=1e-4)
    alike(actual, expected)


def test_parts_and_processes_are_one_batch(tmp_path: Path) -> None:
    whole, state = step_of(partial(Agm, alpha=1.7))
    parts, same = step_of(partial(Agm, alpha=1.7), accumulate=3)
    assert same.factors == pytest.approx(state.factors, rel=1e-5)
    alike(parts, whole)
    for gradients in in_processes(2, tmp_path, lambda world: step_of(partial(Agm, alpha=1.7), world=world)[0]):
        alike(gradients, whole)


def test_what_it_runs_in_evaluation_mode_leaves_no_trace() -> None:
    def after(balanced: bool) -> tuple[FusedModel, State]:
        torch.manual_seed(3)
        audio, visual = (build_encoder(EncoderSpec(ARCH, modality, "batchnorm")) for modality in MODALITIES)
        model = FusedModel(audio, visual, "concat", 3).train()
        model.visual.frozen = True
        model.visual.eval()
        batch = Batch(joint_inputs(), LABELS, torch.arange(CLIPS))
        if balanced:
            Balanced(model, Agm(run_of(model)), 0.0, False)(batch, 0)
        else:
            model(*batch.inputs)
        return model, model.state_dict()

    model, state = after(True)
    _, plain = after(False)
    assert all(torch.equal(value, plain[name]) for name, value in state.items())
    assert all(module.training for module in model.audio.modules())
    assert not any(module.training for module in model.visual.modules())


def test_scores_far_apart_and_certain() -> None:
    model = joint_model(arch=ARCH)
    method = Agm(run_of(model), alpha=2.5)
    none: dict[str, dict[Any, Tensor]] = {"audio": {}, "visual": {}}
    method.sums = torch.tensor([0.0, 18.4, 1.0], dtype=torch.float64)
    factors = method.modulate(Step(0, 0, none))
    assert factors == {"audio": 0.0, "visual": pytest.approx(math.exp(2.5 * (1 - math.exp(-18.4))))}
    method.mean_scores.copy_(torch.tensor([0.0, 18.4]))
    method.sums = torch.tensor([18.4, 0.0, 1.0], dtype=torch.float64)
    assert method.modulate(Step(0, 1, none))["audio"] == math.exp(2.5 * 10)
    assert not method.sums.any()
