"""A step of every balancing method with a learning rate, and in bfloat16, against the computations of their tests."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from balancing import alike, step_of
from norms import METHODS, PARTS, STEPS, norm
from test_ogm_ge import Narrow

from avpt.models.fusion import FusedModel
from avpt.options import BALANCING


def test_every_method_is_there() -> None:
    assert METHODS.keys() == {"none", *BALANCING}


@pytest.mark.parametrize("name", METHODS)
def test_parameters_move_as_by_the_formula(name: str) -> None:
    moved = METHODS[name]()
    assert moved.actual.keys() == moved.expected.keys() == moved.before.keys()
    for key, expected in moved.expected.items():
        step = float((expected - moved.before[key]).abs().max())
        error = float((moved.actual[key] - expected).abs().max())
        assert error <= 1e-3 * step + 1e-6, key
    for part, prefixes in PARTS.items():
        if any(key.startswith(prefixes) for key in moved.before):
            before, after, by_hand = (norm(state, part) for state in (moved.before, moved.actual, moved.expected))
            assert after == pytest.approx(by_hand, rel=1e-6)
            assert part != "encoders" or abs(after - before) > 1e-6 * before


@pytest.mark.parametrize("name", STEPS)
def test_a_step_in_bfloat16_is_near_that_in_float32(name: str) -> None:
    make, options, _ = STEPS[name]
    exact, of_exact = step_of(make, **options)
    actual, state = step_of(make, precision="bf16", **options)
    assert actual.keys() == exact.keys()
    assert all(gradient.dtype == torch.float32 and bool(gradient.isfinite().all()) for gradient in actual.values())
    assert not all(torch.equal(gradient, exact[key]) for key, gradient in actual.items())
    torch.testing.assert_close(state.loss, of_exact.loss, rtol=0.02, atol=0.0)
    for prefixes in PARTS.values():
        keys = [key for key in exact if key.startswith(prefixes)]
        if keys:
            first, second = (torch.cat([state[key].flatten() for key in keys]) for state in (actual, exact))
            assert float(torch.cosine_similarity(first, second, dim=0)) > 0.98
            assert math.isclose(float(first.norm()), float(second.norm()), rel_tol=0.1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("name", ["mmpareto", "agm", "opm"])  # losses apart, a second forward pass, other features
def test_a_compiled_step_is_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    make, options, _ = STEPS[name]
    gradients = []
    for compiled in (True, False):
        torch.manual_seed(0)
        model = FusedModel(Narrow(1), Narrow(3), "concat", 3)  # type: ignore[arg-type]
        gradients.append(step_of(make, model=model, compiled=compiled, **options)[0])
    alike(*gradients)
