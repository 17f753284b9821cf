"""OGM-GE against its formula, written out here."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from balancing import State, alike, run_of, step_of
from helpers import ARCH, WIDTH, in_processes
from joint import CLIPS, FUSION_NAMES, LABELS, joint_inputs, joint_model
from teachers import gradients_of
from torch import nn
from torch.nn import functional

from avpt.machine.seeds import seed_for
from avpt.models.fusion import FusedModel, FusionName, shares
from avpt.training.balancing.method import Balanced, Step
from avpt.training.balancing.ogm_ge import LateOgmGe, OgmGe
from avpt.training.state import EpochState
from avpt.training.world import World
from avpt.types import Batch


def ogm_step(*, alpha: float | None, window: tuple[int, int] = (0, 50), **step: Any) -> tuple[State, EpochState]:
    """Gradients of one step as the optimiser gets them, and what was noted; OGM-GE unless alpha is None."""
    return step_of(None if alpha is None else partial(OgmGe, alpha=alpha, window=window), **step)


@torch.no_grad()
def factors_by_hand(alpha: float, fusion: FusionName = "concat", arch: str = ARCH) -> dict[str, float]:
    """k of each encoder.

    For `concat` a share is W_u z_u + b/2, for `sum` W_u z_u + b_u; else f with the other feature there and away.
    """
    model = joint_model(fusion, arch)
    width = model.audio.width
    sound, pictures = joint_inputs()
    a, v = model.audio(sound), model.visual(pictures[:, 0])
    head = model.fusion
    if fusion == "sum":
        logits = [head.audio(a), head.visual(v)]  # type: ignore[operator]
    elif fusion == "concat":
        weight, bias = head.linear.weight, head.linear.bias  # type: ignore[union-attr]
        logits = [a @ weight[:, :width].T + bias / 2, v @ weight[:, width:].T + bias / 2]  # type: ignore[index, operator]
    else:
        none_a, none_v = torch.zeros_like(a), torch.zeros_like(v)
        both, only_a, only_v = head(a, v), head(a, none_v), head(none_a, v)
        logits = [(both - only_v + only_a) / 2, (both - only_a + only_v) / 2]
    scores = [sum(z[i].exp()[y] / z[i].exp().sum() for i, y in enumerate(LABELS.tolist())).item() for z in logits]
    actual = {}
    for name, rho in (("audio", scores[0] / scores[1]), ("visual", scores[1] / scores[0])):
        actual[name] = 1 - math.tanh(alpha * rho) if rho > 1 else 1.0
    assert sorted(actual.values())[1] == 1.0 > sorted(actual.values())[0]
    return actual


def is_convolution(name: str) -> bool:
    return not name.startswith("fusion.") and ("conv" in name or "downsample.0" in name)


def test_ogm_ge_is_its_formula() -> None:
    expected = factors_by_hand(0.8, arch="resnet18")
    plain, before = ogm_step(alpha=None, arch="resnet18")
    actual, state = ogm_step(alpha=0.8, arch="resnet18")
    assert state.factors == pytest.approx(expected, rel=1e-5)
    assert state.norms == before.norms  # of the loss alone
    assert before.factors == {}
    noises = {}
    for name, gradient in plain.items():
        if not is_convolution(name):
            assert torch.equal(actual[name], gradient), name
            continue
        assert gradient.ndim == 4
        spread = gradient.double().std().item() + 1e-8
        noise = (actual[name].double() - expected[name.partition(".")[0]] * gradient.double()) / spread
        count = noise.numel()
        assert abs(noise.mean().item()) < 5 / math.sqrt(count), name
        assert abs(noise.std().item() - 1) < 5 / math.sqrt(2 * count), name
        assert noise.abs().max() < 7
        noises[name] = noise
    assert len(noises) == 2 * 20
    alike = [noise.flatten() for name, noise in noises.items() if noise.shape == (64, 64, 3, 3)]
    assert len(alike) == 8
    crossed = torch.corrcoef(torch.stack(alike))
    assert (crossed - torch.eye(8)).abs().max() < 0.03  # each parameter has noise of its own


def ogm_by_hand(fusion: FusionName, alpha: float, step: int) -> State:
    """Gradients, with the noise that the run draws in a step."""
    model = joint_model(fusion)
    sound, pictures = joint_inputs()
    loss = functional.cross_entropy(model.fusion(model.audio(sound), model.visual(pictures[:, 0])), LABELS)
    factors, expected = factors_by_hand(alpha, fusion), gradients_of(model, loss)
    for name, gradient in expected.items():
        modality, _, inner = name.partition(".")
        if gradient.ndim == 4:  # of a convolution
            draw = torch.Generator().manual_seed(seed_for(5, step, "ogm-ge", modality, inner))
            noise = torch.randn(gradient.shape, generator=draw) * (gradient.std() + 1e-8)
            expected[name] = factors[modality] * gradient + noise
    return expected


@pytest.mark.parametrize("fusion", ["concat", "sum", "film"])
@pytest.mark.parametrize(("make", "epoch"), [(OgmGe, 3), (LateOgmGe, 5)])
def test_both_forms_gradients_with_any_fusion(make: type[OgmGe], epoch: int, fusion: FusionName) -> None:
    actual, _ = step_of(partial(make, alpha=0.8), fusion=fusion, epoch=epoch)
    alike(actual, ogm_by_hand(fusion, 0.8, 10 * epoch))


@pytest.mark.parametrize("fusion", FUSION_NAMES)
def test_ogm_ge_takes_any_fusions_shares(fusion: FusionName) -> None:
    _, state = ogm_step(alpha=0.3, fusion=fusion)
    assert state.factors == pytest.approx(factors_by_hand(0.3, fusion), rel=1e-5)


def test_ogm_ge_in_parts_and_before_clipping() -> None:
    actual, state = ogm_step(alpha=0.8)
    parts, same = ogm_step(alpha=0.8, accumulate=3)
    assert same.factors == pytest.approx(state.factors, rel=1e-5)
    clipped, _ = ogm_step(alpha=0.8, clip_grad=0.01)
    norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in actual.values()))
    assert norm > 0.1
    for name, gradient in actual.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-4 * scale)  # the same noise
        torch.testing.assert_close(clipped[name], gradient * (0.01 / norm), rtol=1e-3, atol=1e-6 * scale)


def test_ogm_ge_keeps_to_its_window() -> None:
    for epoch, inside in ((0, False), (1, True), (2, True), (3, False)):
        plain, _ = ogm_step(alpha=None, epoch=epoch)
        actual, state = ogm_step(alpha=0.8, window=(1, 2), epoch=epoch)
        changed = {name for name, gradient in plain.items() if not torch.equal(actual[name], gradient)}
        assert changed == ({name for name in plain if plain[name].ndim == 4} if inside else set())
        assert (state.factors == {"audio": 1.0, "visual": 1.0}) is not inside


def test_the_later_form_leaves_the_first_five_epochs_alone_and_ends_as_ogm_ge_does() -> None:
    for epoch, inside in ((0, False), (4, False), (5, True), (50, True), (51, False), (59, False)):
        _, state = step_of(partial(LateOgmGe, alpha=0.8), epoch=epoch)
        assert (min(state.factors.values()) < 1) is inside


def test_ogm_ges_noise_depends_on_seed_and_step_alone() -> None:
    actual, _ = ogm_step(alpha=0.0, epoch=1)  # k is 1, the noise is there
    torch.manual_seed(1)
    again, _ = ogm_step(alpha=0.0, epoch=1)
    others = [ogm_step(alpha=0.0, epoch=2)[0], ogm_step(alpha=0.0, epoch=1, seed=6)[0]]
    name = "visual.layer1.0.conv1.weight"
    assert torch.equal(actual[name], again[name])
    assert not any(torch.equal(actual[name], other[name]) for other in others)


def test_ogm_ge_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    def step(world: World) -> dict[str, Any]:
        gradients, state = ogm_step(alpha=0.8, world=world)
        return {"gradients": gradients, "factors": state.factors}

    expected = step(World())
    actual = in_processes(2, tmp_path, step)
    for name, gradient in expected["gradients"].items():
        assert torch.equal(actual[0]["gradients"][name], actual[1]["gradients"][name])
        scale = gradient.abs().max().item()
        torch.testing.assert_close(actual[0]["gradients"][name], gradient, rtol=1e-3, atol=1e-4 * scale)
    assert actual[0]["factors"] == actual[1]["factors"] == pytest.approx(expected["factors"], rel=1e-5)


@pytest.mark.parametrize(
    ("audio", "visual", "expected"),
    [(0.0, 0.0, (1.0, 1.0)), (0.5, 0.0, (0.0, 1.0)), (0.0, 0.5, (1.0, 0.0)), (0.4, 0.4, (1.0, 1.0))],
)
def test_ogm_ge_where_scores_are_0_or_equal(audio: float, visual: float, expected: tuple[float, float]) -> None:
    model = joint_model()
    balance = OgmGe(run_of(model), window=(0, 0))
    balance.scores = torch.tensor([audio, visual], dtype=torch.float64)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    actual = balance.modulate(Step(0, 0, {}))
    assert (actual["audio"], actual["visual"]) == pytest.approx(expected)
    assert not balance.scores.any()  # those of the next step begin at 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


class Narrow(nn.Sequential):
    """An encoder that compiles in seconds."""

    width = 4

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 4, 5, stride=3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.slow
def test_ogm_ge_sees_what_a_compiled_model_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    actual = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = FusedModel(Narrow(1), Narrow(3), "concat", 3)  # type: ignore[arg-type]
        balance = OgmGe(run_of(model), alpha=0.8, window=(0, 0))
        run = Balanced(model, balance, 0.0, compiled)
        for _ in range(2):
            sound, pictures = joint_inputs()
            _, losses = run(Batch((sound * 3, pictures), LABELS, torch.arange(CLIPS)), 0)
            losses["joint"].backward()
        actual.append(balance.modulate(Step(0, 0, {})))
    assert actual[1] == pytest.approx(actual[0], rel=1e-4)
    assert min(actual[0].values()) < 1


@pytest.mark.parametrize("name", FUSION_NAMES)
def test_shares_add_up_in_training_and_evaluation(name: FusionName) -> None:
    model = joint_model(name)
    for module in (model.train(), model.eval()):
        a, v = torch.randn(4, WIDTH, requires_grad=True), torch.randn(4, WIDTH)
        logits = module.fusion(a, v)
        audio, visual = shares(module.fusion, a, v, logits)
        torch.testing.assert_close(audio + visual, logits, rtol=1e-5, atol=1e-5)
