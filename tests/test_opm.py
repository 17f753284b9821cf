"""OPM against its formula, written out here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from balancing import State, alike, run_of, step_of
from helpers import ARCH, in_processes
from joint import CLIPS, LABELS, joint_inputs, joint_model
from torch import Tensor
from torch.nn import functional

from avpt.loading.sampling import share_of
from avpt.machine.seeds import seed_for
from avpt.models.fusion import FusionName
from avpt.training.balancing.opm import Opm

FUSIONS: tuple[FusionName, ...] = ("concat", "sum")
STEP = 60  # number of the step that `step_of` takes in epoch 6


def drawn(*what: object) -> float:
    """What the method draws for a purpose, in the run of tests/balancing.py."""
    return seed_for(5, STEP, "opm", *what) / 2**63


def opm_by_hand(
    fusion: FusionName, q: float, present: Tensor | None = None, clips: Sequence[int] = range(CLIPS)
) -> tuple[State, list[float], Tensor]:
    """Gradients of a step of some clips, q of both modalities, and (2, clips) which features stay."""
    model = joint_model(fusion, ARCH)
    sound, pictures = (values[list(clips)] for values in joint_inputs())
    labels = LABELS[list(clips)]
    features = [model.audio(sound), model.visual(pictures[:, 0])]
    if present is not None:
        features = [values * there[:, None] for values, there in zip(features, present.T, strict=True)]
    (a, v), head = features, model.fusion
    if fusion == "sum":
        logits = [head.audio(a), head.visual(v)]  # type: ignore[operator]
    else:
        weight, bias = head.linear.weight, head.linear.bias  # type: ignore[union-attr]
        width = a.shape[1]
        logits = [a @ weight[:, :width].T + bias / 2, v @ weight[:, width:].T + bias / 2]  # type: ignore[index, operator]
    scores = [sum(z[i].softmax(0)[y].item() for i, y in enumerate(labels.tolist())) for z in logits]
    shares = []
    for mine, other in (scores, scores[::-1]):
        ahead = math.tanh(max(mine / other - 1, 0.0))
        shares.append(min(max(q * (1 + 0.5 * ahead), 0.0), 1.0) if ahead > 0 else 0.0)
    stays = torch.tensor(
        [[drawn(m, i) >= share for i in clips] for m, share in zip(("audio", "visual"), shares, strict=True)]
    )
    theta = (shares[0] * a.shape[1] + shares[1] * v.shape[1]) / (a.shape[1] + v.shape[1])
    a, v = ((values * there[:, None]) / (1 - theta) for values, there in zip((a, v), stays, strict=True))
    counted = [i for i in range(len(clips)) if bool(a[i].any()) or bool(v[i].any())]
    loss = functional.cross_entropy(head(a, v)[counted], labels[counted])
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, shares, stays


def opm_step(q: float = 0.5, p: float = 1.0, epoch: int = 6, **step: Any) -> State:
    return step_of(partial(Opm, q=q, p=p), epoch=epoch, **step)[0]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("q", [0.5, 0.95])
def test_opm_is_its_formula(fusion: FusionName, q: float) -> None:
    expected, shares, stays = opm_by_hand(fusion, q)
    assert sorted(shares)[0] == 0.0 < q < sorted(shares)[1]
    assert not stays.all()
    actual, state = step_of(partial(Opm, q=q, p=1.0), fusion=fusion, epoch=6)
    alike(actual, expected)
    _, plain = step_of(None, fusion=fusion, epoch=6)
    assert torch.equal(state.probability, plain.probability)  # that of whole features
    assert torch.equal(state.loss, plain.loss)


def test_clips_without_features_do_not_count() -> None:
    present = torch.ones(CLIPS, 2)
    _, shares, stays = opm_by_hand("concat", 0.9)
    ahead = 0 if shares[0] else 1
    lost = torch.nonzero(~stays[ahead])[0]
    present[lost, 1 - ahead] = 0  # the modality that stays is one that the clip does not have
    expected, _, again = opm_by_hand("concat", 0.9, present)
    assert not again[ahead][lost].any()
    alike(opm_step(0.9, present=present), expected)


def test_opm_lets_some_batches_be() -> None:
    plain, _ = step_of(None, epoch=6)
    chance = drawn("batch")
    for p, touched in ((chance - 0.01, False), (chance + 0.01, True)):
        actual = opm_step(p=p)
        assert all(torch.equal(actual[name], gradient) for name, gradient in plain.items()) is not touched


def test_opm_waits_for_its_first_epoch() -> None:
    for epoch, touched in ((0, False), (5, False), (6, True), (59, True)):
        plain, _ = step_of(None, epoch=epoch)
        actual = opm_step(q=1.0, epoch=epoch)
        assert all(torch.equal(actual[name], gradient) for name, gradient in plain.items()) is not touched


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0.0, 0.0), (0.0, 0.0)),
        ((2.0, 2.0), (0.0, 0.0)),
        ((1.0, 0.0), (0.75, 0.0)),
        ((1.0, 3.0), (0.0, 0.5 * (1 + 0.5 * math.tanh(2)))),
    ],
)
def test_shares_where_scores_are_0_or_equal(scores: tuple[float, float], expected: tuple[float, float]) -> None:
    method = Opm(run_of(joint_model(arch=ARCH)))
    assert method.shares(torch.tensor(scores, dtype=torch.float64)) == pytest.approx(expected)
    assert Opm(run_of(joint_model(arch=ARCH)), q=0.9, gain=1.0).shares(torch.tensor([3.0, 1.0])) == [1.0, 0.0]


def test_parts_draw_as_the_whole_does() -> None:
    whole = opm_step(q=0.0)  # nothing is withheld, whatever the sums of the parts
    alike(opm_step(q=0.0, accumulate=3), whole)


def test_each_process_withholds_by_its_own_clips(tmp_path: Path) -> None:
    """Which clips lose their features depends on the clip, not on where it stands in the process's share."""
    actual = in_processes(2, tmp_path, lambda world: opm_step(q=0.5, world=world))
    shares = [share_of(range(CLIPS), process, 2) for process in range(2)]
    parts = [opm_by_hand("concat", 0.5, clips=clips)[0] for clips in shares]
    expected = {
        name: torch.stack([len(clips) / CLIPS * part[name] for clips, part in zip(shares, parts, strict=True)]).sum(0)
        for name in parts[0]
    }
    for gradients in actual:
        alike(gradients, expected)
