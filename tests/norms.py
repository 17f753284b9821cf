"""What a step of each balancing method does to the parameters, beside what it does by the computations of the tests.

`PYTHONPATH=recipes python tests/norms.py` prints the table: for encoders, fusion and heads of a method's own the norm
of all their parameters before, after by avpt, and after by the independent computation, and the largest difference
of a parameter. For `smv` it is two epochs of small batches, as its copies are an epoch's; for `relearning` the
setback between two epochs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import test_agm
import test_dgl
import test_g2d
import test_g_blend
import test_ogm_ge
import test_opm
import test_pmr
import test_relearning
import test_smv
import test_umt
import test_uniform
import torch
from balancing import Make, State, run_of, step_of
from helpers import ARCH
from joint import LABELS, joint_inputs, joint_model
from teachers import gradients_of, teachers
from torch.nn import functional

from avpt.models.fusion import FusedModel
from avpt.training.balancing.agm import Agm
from avpt.training.balancing.dgl import Dgl
from avpt.training.balancing.g2d import G2d
from avpt.training.balancing.g_blend import GBlend
from avpt.training.balancing.method import Joint
from avpt.training.balancing.mmpareto import MMPareto
from avpt.training.balancing.ogm_ge import LateOgmGe, OgmGe
from avpt.training.balancing.opm import Opm
from avpt.training.balancing.umt import Umt
from avpt.training.balancing.uniform import Uniform
from avpt.training.watch import Watcher

LR = 0.1
PARTS = {"encoders": ("audio.", "visual."), "fusion": ("fusion.",), "heads": ("balance.",)}
BLENDED = {"audio": 0.5, "visual": 0.2, "joint": 0.3}


@dataclass(frozen=True)
class Moved:
    """The parameters by name."""

    before: State
    actual: State  # after, by avpt
    expected: State  # after, by the independent computation


def parameters(model: FusedModel) -> State:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def joint_loss(model: FusedModel) -> torch.Tensor:
    sound, pictures = joint_inputs()
    return functional.cross_entropy(model.fusion(model.audio(sound), model.visual(pictures[:, 0])), LABELS)


def plain() -> State:
    model = joint_model()
    return gradients_of(model, joint_loss(model))


def blend(joint: Joint) -> GBlend:
    """Within a super-epoch."""
    method = GBlend(joint)
    method.weights.copy_(torch.tensor([*BLENDED.values()]))
    return method


def blended() -> State:
    model = test_g_blend.new_model("concat")
    losses = test_g_blend.losses_of(model, torch.arange(len(LABELS)))
    return gradients_of(model, sum((weight * losses[name] for name, weight in BLENDED.items()), torch.zeros(())))


# by method: what makes it, how the step is taken, and the gradients by the independent computation
STEPS: dict[str, tuple[Make | None, dict[str, Any], Callable[[], State]]] = {
    "none": (None, {}, plain),
    "uniform": (Uniform, {}, lambda: test_uniform.uniform_by_hand("concat", 1.0)),
    "mmpareto": (MMPareto, {}, lambda: test_uniform.mmpareto_by_hand("concat", 1.5)[0]),
    "umt": (Umt, {"teachers": teachers}, test_umt.umt_by_hand),
    "agm": (partial(Agm, alpha=1.7), {}, lambda: test_agm.agm_by_hand(alpha=1.7)[0]),
    "pmr": (test_pmr.pmr, {}, lambda: test_pmr.pmr_by_hand("concat", 1.0, test_pmr.clip_outputs())[0]),
    "opm": (partial(Opm, p=1.0), {"epoch": 6}, lambda: test_opm.opm_by_hand("concat", 0.5)[0]),
    "dgl": (Dgl, {}, lambda: test_dgl.dgl_by_hand("concat", 4.0)),
    "g-blend": (blend, {}, blended),
    "g2d": (
        G2d,
        {"teachers": lambda: test_g2d.sure_of("audio")},
        lambda: test_g2d.g2d_by_hand("concat", "audio"),
    ),
    "ogm-ge": (partial(OgmGe, alpha=0.8), {}, lambda: test_ogm_ge.ogm_by_hand("concat", 0.8, 0)),
    "ogm-ge-late": (partial(LateOgmGe, alpha=0.8), {"epoch": 5}, lambda: test_ogm_ge.ogm_by_hand("concat", 0.8, 50)),
}


def in_a_step(name: str) -> Moved:
    make, options, gradients = STEPS[name]
    model = joint_model()
    step_of(make, model=model, lr=LR, **options)
    before = joint_model()
    if make is not None:
        torch.manual_seed(7)  # as the method's heads are drawn
        before.balance = make(run_of(before, teachers=options.get("teachers")))
    start = parameters(before)
    moves = gradients()
    expected = {key: value - LR * moves[key] if key in moves else value for key, value in start.items()}
    return Moved(start, parameters(model), expected)


def in_a_setback() -> Moved:
    """Between two epochs: its steps are plain ones."""
    first, before, after = test_relearning.relearnt(40)
    weights = test_relearning.weights_by_hand(2.0)
    names = [name for name, _ in joint_model().named_parameters()]
    expected = {}
    for name in names:
        w = weights.get(name.partition(".")[0], 0.0)  # the fusion stays
        expected[name] = w * first[name] + (1 - w) * before[name]
    return Moved({name: before[name] for name in names}, {name: after[name] for name in names}, expected)


def in_an_epoch_of_copies() -> Moved:
    expected, _, _ = test_smv.smv_by_hand("concat")
    with tempfile.TemporaryDirectory() as folder:
        model, _ = test_smv.smv_run(Path(folder), Watcher())
    return Moved(parameters(joint_model("concat", ARCH)), parameters(model), expected)


METHODS: dict[str, Callable[[], Moved]] = {name: partial(in_a_step, name) for name in STEPS}
METHODS |= {"relearning": in_a_setback, "smv": in_an_epoch_of_copies}


def norm(state: State, part: str) -> float:
    values = [value.double().flatten() for name, value in state.items() if name.startswith(PARTS[part])]
    return float(torch.cat(values).norm())


def rows() -> list[str]:
    """The table, as Markdown."""
    lines = [
        "| method | parameters | norm before | after, avpt | after, independently | largest difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, measure in METHODS.items():
        moved = measure()
        for part, prefixes in PARTS.items():
            of_part = [key for key in moved.before if key.startswith(prefixes)]
            if of_part:
                norms = [f"{norm(state, part):.8f}" for state in (moved.before, moved.actual, moved.expected)]
                worst = max(float((moved.actual[key] - moved.expected[key]).abs().max()) for key in of_part)
                lines.append(f"| {name} | {part} | {' | '.join(norms)} | {worst:.1e} |")
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
