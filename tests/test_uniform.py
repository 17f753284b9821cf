"""Heads of their own: Uniform and MMPareto, against their formulas written out here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from balancing import State, alike, run_of, step_of
from helpers import in_processes
from joint import LABELS, joint_inputs, joint_model
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional

from avpt.models.fusion import FusionName
from avpt.training.balancing.method import Step
from avpt.training.balancing.mmpareto import MMPareto, joint_weight
from avpt.training.balancing.uniform import Uniform

FUSIONS: tuple[FusionName, ...] = ("concat", "gated")


def losses_by_hand(fusion: FusionName) -> tuple[nn.Module, dict[str, Tensor]]:
    """The joint loss and those of both heads, whose weights are drawn as the method's are."""
    model = joint_model(fusion)
    torch.manual_seed(7)
    model.balance = Uniform(run_of(model))
    sound, pictures = joint_inputs()
    a, v = model.audio(sound), model.visual(pictures[:, 0])
    logits = {"joint": model.fusion(a, v), "audio": model.balance.audio(a), "visual": model.balance.visual(v)}
    return model, {name: functional.cross_entropy(values, LABELS) for name, values in logits.items()}


def gradients_of(model: nn.Module, loss: Tensor) -> State:
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


def uniform_by_hand(fusion: FusionName, gamma: float) -> State:
    model, losses = losses_by_hand(fusion)
    found = gradients_of(model, losses["joint"] + losses["audio"] + losses["visual"])
    return {name: gradient * (gamma if is_of_encoder(name) else 1) for name, gradient in found.items()}


def mmpareto_by_hand(fusion: FusionName, gamma: float) -> tuple[State, dict[str, float]]:
    """Gradients, and by encoder the cosine of the joint gradient and its own."""
    model, losses = losses_by_hand(fusion)
    apart = {name: gradients_of(model, loss) for name, loss in losses.items()}
    expected = gradients_of(model, losses["joint"] + losses["audio"] + losses["visual"])
    cosines = {}
    for encoder in ("audio", "visual"):
        names = [name for name in expected if name.startswith(f"{encoder}.")]
        g_m, g_u = (torch.cat([apart[of][name].flatten() for name in names]).double() for of in ("joint", encoder))
        cosines[encoder] = float(torch.cosine_similarity(g_m, g_u, dim=0))
        k_m = 0.5
        if cosines[encoder] <= 0:  # the shortest vector between the two, looked for along the segment
            k_m = shortest(g_m, g_u)
            k_m = min(max(k_m, 0.001), 0.999)
        for name in names:
            g_m, g_u = apart["joint"][name], apart[encoder][name]
            h = 2 * k_m * g_m + 2 * (1 - k_m) * g_u
            expected[name] = gamma * h * max(1.0, float((g_m + g_u).norm() / h.norm()))
    return expected, cosines


def shortest(g_m: Tensor, g_u: Tensor) -> float:
    """Where on the segment between two vectors the shortest one lies, as the weight of the first; it is looked for."""
    found = minimize_scalar(
        lambda k: float((k * g_m + (1 - k) * g_u).norm()), bounds=(0, 1), method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x)


def is_of_encoder(name: str) -> bool:
    return name.startswith(("audio.", "visual."))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_uniform_is_its_formula(fusion: FusionName, gamma: float) -> None:
    actual, _ = step_of(partial(Uniform, gamma=gamma), fusion=fusion)
    alike(actual, uniform_by_hand(fusion, gamma))
    assert {"balance.audio.weight", "balance.visual.bias"} < set(actual)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_mmpareto_is_its_formula(fusion: FusionName) -> None:
    expected, _ = mmpareto_by_hand(fusion, 1.5)
    actual, state = step_of(MMPareto, fusion=fusion)
    alike(actual, expected)
    assert state.norms == pytest.approx(step_of(Uniform, fusion=fusion)[1].norms, rel=1e-4)  # before it is balanced


@pytest.mark.parametrize("length", [0.2, 1.0, 3.0])
def test_mmpareto_where_the_losses_disagree(length: float) -> None:
    first, second = nn.Parameter(torch.zeros(30)), nn.Parameter(torch.zeros(5, 4))
    joint = {p: torch.randn_like(p) for p in (first, second)}
    own = {p: length * (0.5 * torch.randn_like(g) - g) for p, g in joint.items()}
    g_m, g_u = (torch.cat([g[p].flatten() for p in (first, second)]).double() for g in (joint, own))
    assert g_m @ g_u < 0
    assert joint_weight(joint, own, [first, second]) == pytest.approx(shortest(g_m, g_u), abs=1e-6)


@pytest.mark.parametrize("gamma", [1.5, 0.7])
def test_mmpareto_changes_encoders_by_whether_their_losses_disagree(gamma: float) -> None:
    """The audio encoder's losses pull apart, the visual encoder's do not; all tensors of one get the same weights."""
    model = joint_model()
    method = MMPareto(run_of(model), gamma=gamma)
    joint = {p: torch.randn_like(p) for p in model.parameters()}
    own = {
        "audio": {p: 1.2 * torch.randn_like(p) - 1.8 * joint[p] for p in model.audio.parameters()},
        "visual": {p: torch.randn_like(p) + joint[p] for p in model.visual.parameters()},
    }
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    method.modulate(Step(0, 0, {"joint": joint, **own}))
    for encoder, agree in (("audio", False), ("visual", True)):
        parameters = [*model.get_submodule(encoder).parameters()]
        g_m, g_u = (torch.cat([g[p].flatten() for p in parameters]).double() for g in (joint, own[encoder]))
        assert (g_m @ g_u > 0) == agree
        k_m = 0.5 if agree else shortest(g_m, g_u)
        assert agree or 0.6 < k_m < 0.9
        for parameter in parameters:
            g_m, g_u = joint[parameter], own[encoder][parameter]
            h = 2 * k_m * g_m + 2 * (1 - k_m) * g_u
            assert parameter.grad is not None
            scale = max(1.0, float((g_m + g_u).norm() / h.norm()))
            torch.testing.assert_close(parameter.grad, gamma * h * scale, rtol=1e-4, atol=1e-5)
    assert all(bool((p.grad == 3).all()) for p in model.fusion.parameters() if p.grad is not None)


def test_mmpareto_of_gradients_that_are_0() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    none, some = {parameter: torch.zeros(3)}, {parameter: torch.ones(3)}
    assert joint_weight(none, some, [parameter]) == 0.999
    assert joint_weight(some, none, [parameter]) == 0.001
    model = joint_model()
    method = MMPareto(run_of(model))
    nothing = {p: torch.zeros_like(p) for p in model.parameters()}
    method.modulate(Step(0, 0, dict.fromkeys(("joint", "audio", "visual"), nothing)))
    assert not any(p.grad.any() for p in model.audio.parameters() if p.grad is not None)


@pytest.mark.parametrize("make", [Uniform, MMPareto])
def test_parts_and_processes_are_one_batch(make: Callable[..., Any], tmp_path: Path) -> None:
    whole, _ = step_of(make)
    parts, _ = step_of(make, accumulate=3)
    alike(parts, whole)
    first, second = in_processes(2, tmp_path, lambda world: step_of(make, world=world)[0])
    alike(first, whole)
    assert all(torch.equal(gradient, second[name]) for name, gradient in first.items())


def test_uniform_leaves_the_joint_answer_to_the_fusion() -> None:
    _, plain = step_of(None)
    _, state = step_of(Uniform)
    assert torch.equal(state.loss, plain.loss)
    assert torch.equal(state.probability, plain.probability)
