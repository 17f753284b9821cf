"""What commands load before they begin: nothing that takes seconds and is not needed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from avpt.diagnosis.group_tests import sign_test

HEAVY = ("torch._dynamo", "scipy.stats", "sklearn")


def loaded_by(code: str) -> list[str]:
    """The heavy packages that are there once a fresh interpreter has run some code."""
    code = f"{code}\nimport sys\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_reports_and_workers_load_neither_a_compiler_nor_statistics() -> None:
    modules = (
        *("report.chapters.results", "report.chapters.learning", "report.chapters.verdicts.three_questions"),
        *("media.decode", "loading.loader", "loading.evaluation_clips", "models.checkpoint", "runs.training_run"),
    )
    calls = (
        "avpt.models.architectures.timm_package('test_resnet')",
        "avpt.training.metrics.measure(torch.zeros(2, 2), torch.tensor([0, 1]))",
    )
    assert loaded_by("\n".join(["import torch", *(f"import avpt.{name}" for name in modules), *calls])) == []


def test_what_stands_in_for_the_compiler_gives_way_to_it() -> None:
    code = """
import sys, avpt.models.encoder
from torchvision.ops import roi_align
assert "torch._dynamo.utils" not in sys.modules
assert roi_align.__globals__["is_compile_supported"]("cpu") in (True, False)
from torch._dynamo.utils import counters
"""
    assert loaded_by(code)[:1] == ["torch._dynamo"]


def test_what_else_is_asked_of_the_compiler_comes_from_itself() -> None:
    """Another name, and to be kept out of some functions."""
    code = """
import sys, torch
from avpt.machine.light_imports import without_compiler
looked = []
with without_compiler():
    @torch.compiler.disable
    def inner(x):
        looked.append(torch.compiler.is_compiling())
        return x + 1
    @torch.compiler.disable(recursive=False)
    def other(x):
        return inner(x) * 2
def outer(x):
    looked.append(torch.compiler.is_compiling())
    return other(x) + inner(x)
assert outer(torch.ones(1)) == 6
assert "torch._dynamo" not in sys.modules
with without_compiler():
    from torch._dynamo.utils import counters
import torch._dynamo.utils as real
assert real.counters is counters
looked.clear()
assert torch.compile(outer, backend="eager")(torch.ones(1)) == 6
assert looked == [True, False, False]
"""
    assert loaded_by(code)[:1] == ["torch._dynamo"]


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_signs_are_tested_as_scipy_does(gains: int, losses: int) -> None:
    expected = binomtest(gains, gains + losses).pvalue if gains + losses else 1.0
    assert sign_test(gains, losses) == pytest.approx(expected, rel=1e-9)
