"""Balancing methods where losses are scaled, as half precision needs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from balancing import alike, step_of
from teachers import teachers
from test_pmr import pmr

from avpt.machine.own_classes import import_class
from avpt.options import BALANCING
from avpt.training.balancing.method import Balancing, Joint
from avpt.training.balancing.opm import Opm

EPOCH = 6  # in which all of them act but those that prepare an epoch


def make_of(name: str) -> Callable[[Joint], Balancing]:
    if name == "pmr":
        return pmr  # with its prototypes
    if name == "opm":
        return partial(Opm, p=1.0)
    return import_class(BALANCING[name], Balancing, "--balance")


@pytest.mark.parametrize("name", BALANCING)
def test_scaled_losses_change_nothing(name: str) -> None:
    """Every gradient that a method sees is unscaled: those of single losses, too."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    exact, state = step_of(make_of(name), epoch=EPOCH, teachers=teachers)
    scaled, of_scaled = step_of(make_of(name), epoch=EPOCH, teachers=teachers, scaler=scaler)
    alike(scaled, exact)
    assert of_scaled.norms == pytest.approx(state.norms, rel=1e-4)
    assert of_scaled.factors == pytest.approx(state.factors, rel=1e-4)
