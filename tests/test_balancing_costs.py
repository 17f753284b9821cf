"""What balancing methods cost, as help and the guide say it: counted in a step."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import balancing
import pytest
from helpers import avpt
from joint import CLIPS
from teachers import teachers
from test_pmr import pmr
from torch import Tensor, nn

from avpt.machine.own_classes import import_class
from avpt.options import BALANCING, COSTS
from avpt.training.balancing.method import Balancing, Joint, Step
from avpt.training.balancing.opm import Opm

PAGE = Path(__file__).parent.parent / "avpt" / "guide" / "balancing.md"
METHODS = {name: import_class(named, Balancing, "--balance") for name, named in BALANCING.items()}

# beyond the 1 forward pass, 1 backward pass, 1 pass of the fusion and 1 gradient of plain training:
# passes of an encoder forward (with teachers), and backward; passes of the fusion; gradients of an encoder
COUNTED: dict[str, tuple[int, int, int, int]] = {
    "uniform": (0, 0, 0, 0),
    "mmpareto": (0, 1, 0, 2),
    "umt": (1, 0, 0, 0),
    "agm": (1, 3, 2, 2),
    "pmr": (0, 1, 0, 2),
    "dgl": (0, 0, 3, 0),
    "g2d": (1, 0, 0, 0),
    "ogm-ge": (0, 0, 2, 0),
    "ogm-ge-late": (0, 0, 2, 0),
    "opm": (0, 0, 3, 0),
    "relearning": (0, 0, 0, 0),
    "smv": (0, 0, 0, 0),
    "g-blend": (0, 0, 0, 0),
}


def count_step(make: Callable[[Joint], Balancing], **step: Any) -> tuple[int, int, int, int]:
    """Passes of whole batches through the audio encoder and its teacher, back through it, and through the fusion."""
    passes: Counter[str] = Counter()
    watched: list[nn.Module] = []

    def audio_passed(_: nn.Module, inputs: tuple[Tensor, ...], features: Tensor) -> None:
        if len(inputs[0]) == CLIPS:
            passes["forward"] += 1
            if features.requires_grad:
                features.register_hook(lambda gradient: passes.update(["backward"]))  # type: ignore[no-untyped-call]

    def fusion_passed(_: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        passes["fusion"] += len(inputs[0]) == CLIPS

    def watching(joint: Joint) -> Balancing:
        method = make(joint)
        watched.append(joint.model.audio)
        joint.model.audio.register_forward_hook(audio_passed)
        joint.model.fusion.register_forward_hook(fusion_passed)
        if method.taught:
            method.teachers()["audio"].encoder.register_forward_hook(audio_passed)  # type: ignore[operator]
        change = method.modulate

        def modulate(step: Step) -> dict[str, float]:
            first = next(joint.model.audio.parameters())
            passes["gradients"] = 1 + sum(first in own for own in step.apart.values())  # the other is its `grad`
            return change(step)

        object.__setattr__(method, "modulate", modulate)
        return method

    balancing.step_of(watching, teachers=teachers, **step)
    return passes["forward"], passes["backward"], passes["fusion"], passes["gradients"]


@pytest.mark.parametrize("name", BALANCING)
def test_a_step_costs_what_is_said(name: str) -> None:
    plain = count_step(Balancing)
    assert plain == (1, 1, 1, 1)
    make: Callable[[Joint], Balancing] = METHODS[name]
    if name == "pmr":
        make = pmr  # with its prototypes
    if name == "opm":
        make = partial(Opm, p=1.0)
    epoch = 6 if name in ("opm", "ogm-ge-late") else 0  # in which it acts
    more = tuple(some - one for some, one in zip(count_step(make, epoch=epoch), plain, strict=True))
    assert more == COUNTED[name]

    passes, memory = COSTS[name]
    forward, backward, fusion, gradients = more
    assert re.findall(r"(\d) forward", passes) == ([str(forward)] if forward else [])
    assert re.findall(r"(\d) backward", passes) == ([str(backward)] if backward else [])
    assert re.findall(r"(\d) gradients", memory) == ([str(gradients)] if gradients else [])
    if not forward:
        assert re.findall(r"(\d) passes of the fusion", passes) == ([str(fusion)] if fusion else [])


def test_help_and_the_page_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [*COSTS] == [*BALANCING]
    rows = re.findall(r"^\| `([\w-]+)` \| .*? \| (.*?) \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: (passes, memory) for name, passes, memory in rows}.items() >= COSTS.items()
    monkeypatch.setenv("COLUMNS", "4000")
    said = next(line for line in avpt("fuse-train", "--help").stdout.splitlines() if "--balance " in line)
    for name, (passes, memory) in COSTS.items():
        (part,) = re.findall(rf"[:;,] {name}[:,].*?(?:;|\.)", said)
        assert passes in part
        assert memory in part or memory == "nothing"
