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
        *("report.chapters.results", "report.chapters.stage2_together", "report.chapters.verdicts.questions"),
        *("media.decode", "loading.loader", "loading.evaluation_clips", "models.checkpoint", "runs.training_run"),
    )
    assert loaded_by("\n".join(f"import avpt.{name}" for name in modules)) == []


def test_what_stands_in_for_the_compiler_gives_way_to_it() -> None:
    code = """
import sys, avpt.models.encoder
from torchvision.ops import roi_align
assert "torch._dynamo.utils" not in sys.modules
assert roi_align.__globals__["is_compile_supported"]("cpu") in (True, False)
from torch._dynamo.utils import counters
"""
    assert loaded_by(code)[:1] == ["torch._dynamo"]


def test_another_name_that_is_asked_of_it_comes_from_the_compiler_itself() -> None:
    code = """
from avpt.machine.light_imports import without_compiler
with without_compiler():
    from torch._dynamo.utils import counters
import torch._dynamo.utils as real
assert real.counters is counters
"""
    assert loaded_by(code)[:1] == ["torch._dynamo"]


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_signs_are_tested_as_scipy_does(gains: int, losses: int) -> None:
    expected = binomtest(gains, gains + losses).pvalue if gains + losses else 1.0
    assert sign_test(gains, losses) == pytest.approx(expected, rel=1e-9)


def test_timm_loads_no_compiler_and_its_methods_are_kept_from_it_all_the_same() -> None:
    code = """
import avpt.models.encoder, sys, torch
from avpt.models.architectures import timm_package
timm = timm_package("resnet18d")
assert "torch._dynamo" not in sys.modules
from timm.layers import disable_compiler
assert disable_compiler(lambda number: number + 1)(2) == 3
assert "torch._dynamo" in sys.modules
assert torch.compiler.disable.__module__ == "torch.compiler"
"""
    assert loaded_by(code)[:1] == ["torch._dynamo"]
