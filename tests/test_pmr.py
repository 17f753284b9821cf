"""PMR against its formula, written out here."""

from __future__ import annotations

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

from avpt.models.fusion import FusionName
from avpt.training.balancing.method import Forward, Joint, PlainClips
from avpt.training.balancing.pmr import Pmr, distances
from avpt.types import MODALITIES, Modality

Outputs = dict[str, Tensor]
WIDTH = joint_model(arch=ARCH).audio.width


def clip_outputs(seed: int = 0, classes: tuple[int, ...] = (0, 1, 2)) -> Outputs:
    """Features of clips between two epochs."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes).repeat(5)
    audio, visual = (torch.randn(len(labels), WIDTH, generator=draw) for _ in range(2))
    return {"audio": audio, "visual": visual, "labels": labels, "logits": torch.zeros(len(labels), 3)}


def clips_ahead(modality: Modality, fusion: FusionName) -> Outputs:
    """Clips between two epochs by whose class means this modality is the one ahead."""
    drawn = (clip_outputs(seed) for seed in range(50))
    return next(outputs for outputs in drawn if (pmr_by_hand(fusion, 1.0, outputs)[1] > 1) is (modality == "audio"))


def pmr(joint: Joint, outputs: Outputs | None = None, **options: Any) -> Pmr:
    """Before its first epoch."""
    method = Pmr(joint, **options)
    method.begin_epoch(method.window[0], PlainClips(lambda split: clip_outputs() if outputs is None else outputs))
    return method


def class_means(outputs: Outputs, modality: str) -> Tensor:
    return torch.stack(
        [outputs[modality][outputs["labels"] == c].mean(dim=0) for c in sorted({*outputs["labels"].tolist()})]
    )


def pmr_by_hand(
    fusion: FusionName, alpha: float, outputs: Outputs, present: Tensor | None = None
) -> tuple[State, float]:
    """Gradients, and rho."""
    model = joint_model(fusion, ARCH)
    sound, pictures = joint_inputs()
    there = torch.ones(CLIPS, 2) if present is None else present
    z = {"audio": model.audio(sound) * there[:, :1], "visual": model.visual(pictures[:, 0]) * there[:, 1:]}
    losses, scores = {}, {}
    for number, (modality, features) in enumerate(z.items()):
        d = -(features[:, None] - class_means(outputs, modality)).square().sum(dim=2).sqrt()
        each = functional.cross_entropy(d, LABELS, reduction="none") * there[:, number]
        losses[modality] = each.sum() / CLIPS
        scores[modality] = sum(float(d[i].detach().softmax(0)[y]) for i, y in enumerate(LABELS) if there[i, number])
    rho = scores["audio"] / scores["visual"]
    loss = functional.cross_entropy(model.fusion(z["audio"], z["visual"]), LABELS)
    return gradients_of(model, loss + alpha * losses["visual" if rho > 1 else "audio"]), rho


@pytest.mark.parametrize("fusion", ["concat", "film"])
@pytest.mark.parametrize("ahead", MODALITIES)
def test_pmr_is_its_formula(fusion: FusionName, ahead: Modality) -> None:
    outputs = clips_ahead(ahead, fusion)
    expected, _ = pmr_by_hand(fusion, 2.5, outputs)
    actual, state = step_of(partial(pmr, alpha=2.5, outputs=outputs), fusion=fusion)
    alike(actual, expected)
    assert state.factors == {}
    for modality, norm in state.norms.items():  # of the loss with its weights, which is what is minimised
        own = [gradient for name, gradient in expected.items() if name.startswith(f"{modality}.")]
        assert norm == pytest.approx(float(torch.cat([gradient.flatten() for gradient in own]).norm()), rel=1e-4)


def test_with_modality_dropout() -> None:
    present = torch.ones(CLIPS, 2)
    present[1, 0] = present[2, 1] = present[3, 1] = 0
    expected, _ = pmr_by_hand("concat", 1.0, clip_outputs(), present)
    alike(step_of(pmr, present=present)[0], expected)


def test_prototypes_follow_the_encoders() -> None:
    method = pmr(run_of(joint_model(arch=ARCH)), clip_outputs(0), momentum=0.2)
    first, second = clip_outputs(0), clip_outputs(1)
    torch.testing.assert_close(method.prototypes("audio"), class_means(first, "audio"))
    method.begin_epoch(1, PlainClips(lambda split: second if split == "train" else first))
    for modality in ("audio", "visual"):
        expected = 0.8 * class_means(second, modality) + 0.2 * class_means(first, modality)
        torch.testing.assert_close(method.prototypes(modality), expected)
    assert {"audio_prototypes", "visual_prototypes", "seen"} == set(method.state_dict())


def test_pmr_keeps_to_its_window() -> None:
    plain, _ = step_of(None)
    expected, _ = pmr_by_hand("concat", 1.0, clip_outputs())
    for epoch, inside in ((0, False), (1, True), (2, True), (3, False)):
        actual, _ = step_of(partial(pmr, window=(1, 2)), epoch=epoch)
        alike(actual, expected if inside else plain)
    method = Pmr(run_of(joint_model(arch=ARCH)), window=(1, 2))
    for epoch in (0, 3):
        method.begin_epoch(epoch, PlainClips(lambda split: pytest.fail("there is nothing to look at")))


def test_equal_scores_change_nothing() -> None:
    class Even(Pmr):
        def modulate(self, step: Any) -> dict[str, float]:
            self.scores = torch.ones(2, dtype=torch.float64)
            return super().modulate(step)

    def even(joint: Joint) -> Pmr:
        method = Even(joint)
        method.begin_epoch(0, PlainClips(lambda split: clip_outputs()))
        return method

    alike(step_of(even)[0], step_of(None)[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_without_clips_is_left_out(smoothing: float) -> None:
    outputs = clip_outputs(classes=(0, 2))
    method = pmr(run_of(joint_model(arch=ARCH)), outputs)
    assert method.seen.tolist() == [True, False, True]
    assert not method.prototypes("audio")[1].any()
    model = joint_model(arch=ARCH)
    features = torch.randn(4, WIDTH, requires_grad=True)
    labels = torch.tensor([0, 2, 2, 0])
    forward = Forward(
        model, (features, features), features, features, torch.zeros(4, 3), labels, 0, smoothing, 0, torch.arange(4)
    )
    loss = method.losses(forward)["audio"]
    d = -torch.stack([(features - mean).norm(dim=1) for mean in class_means(outputs, "audio")], dim=1)
    torch.testing.assert_close(loss, functional.cross_entropy(d, labels // 2, label_smoothing=smoothing))
    (gradient,) = torch.autograd.grad(loss, features)
    assert gradient.isfinite().all()


def test_features_at_a_prototype_have_no_gradient() -> None:
    features = torch.ones(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(distances(features, torch.ones(1, 4)).sum(), features)
    assert not gradient.any()


def test_parts_and_processes_are_one_batch(tmp_path: Path) -> None:
    make: Callable[[Joint], Pmr] = partial(pmr, alpha=2.5)
    whole, _ = step_of(make)
    alike(step_of(make, accumulate=3)[0], whole)
    for gradients in in_processes(2, tmp_path, lambda world: step_of(make, world=world)[0]):
        alike(gradients, whole)
