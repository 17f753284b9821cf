"""Every benchmark runs at a tiny size and prints the record it promises; nothing here judges a time."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from media import Clips

ROOT = Path(__file__).resolve().parent.parent


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests/benchmarks/NAME.py."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "benchmarks" / f"{name}.py"), *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


def benchmark(name: str, *arguments: str) -> dict[str, Any]:
    """Run tests/benchmarks/NAME.py and return the one JSON line it prints."""
    result = run(name, *arguments)
    (line,) = result.stdout.splitlines()
    record = json.loads(line)
    assert isinstance(record, dict)
    return record


@pytest.mark.parametrize("arch", ["resnet18", "test_efficientnet"])
def test_abri(arch: str) -> None:
    record = benchmark(
        "abri", "--arch", arch, "--image-size", "32", "--batch-size", "2", "--pairs", "2", "--warmup", "1"
    )
    assert set(record) == {
        "benchmark",
        "train_ratio",
        "eval_ratio",
        "two_branch_train_ratio",
        "two_branch_eval_ratio",
        "targets",
        "settings",
        "torch",
        "threads",
        "method",
    }
    ratios = [value for key, value in record.items() if key.endswith("_ratio")]
    assert len(ratios) == 4
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios)
    assert record["targets"] == {"train": 1.05, "eval": 1.03}
    assert record["settings"]["image_size"] == 32


def test_abri_launches_little_more_than_batch_norm() -> None:
    """Seven operations a layer and step: one to blend and four for its gradients, two for the statistics."""
    counted = benchmark("abri", "--count", "--image-size", "32", "--batch-size", "2")
    assert counted["plain_train_operations"] > 100
    assert counted["train_operations"] <= counted["plain_train_operations"] + 7 * 20
    assert counted["eval_operations"] <= counted["plain_eval_operations"] + 12 * 20


def test_abri_of_several_architectures_is_a_table() -> None:
    arguments = ("--image-size", "32", "--batch-size", "2", "--pairs", "1", "--warmup", "0")
    result = run("abri", "--arch", "test_resnet", "test_efficientnet", *arguments)
    archs = [json.loads(line)["settings"]["arch"] for line in result.stdout.splitlines()]
    assert archs == ["test_resnet", "test_efficientnet"]
    assert [line.split()[0] for line in result.stderr.splitlines()[-2:]] == archs


@pytest.mark.slow
def test_preprocess(clips: Clips, tmp_path: Path) -> None:
    for name in ("red.webm", "mono.wav"):
        shutil.copy(clips[name], tmp_path)
    record = benchmark("preprocess", "--clips", str(tmp_path), "--repeat", "2", "--rounds", "1")
    assert record["clips"] == 4
    assert record["target"] == {"drop_ratio": 0.8}
    assert 0 < record["drop_ratio"] < math.inf
    assert record["clips_per_second"].keys() >= {"preprocess", "drop"}
    assert record["bytes_per_clip"] > 2 * 1024 * 128  # float16 log-mel alone
    assert record["memory_mib"].keys() == {"command", "worker"}


@pytest.mark.slow
def test_loader() -> None:
    record = benchmark("loader", "--clips", "6", "--batch-size", "3", "--rounds", "1", "--size", "64", "48")
    assert record["targets"] == {"jpeg_ratio": 3.0, "raw_ratio": 5.0}
    assert record["recordings"] > 5
    assert record["jpeg_clock_ratio"] > 0
    assert record["raw_clock_ratio"] > 0
    assert record["clips_per_core_second"].keys() == {"jpeg", "raw", "script"}


@pytest.mark.parametrize("modality", ["visual", pytest.param("joint", marks=pytest.mark.slow)])
def test_epoch(modality: str) -> None:
    small = ("--size", "40", "32", "--image-size", "32", "--num-frames", "1", "--spectrogram-frames", "64")
    steps = ("--modality", modality, "--batch-size", "2", "--steps", "2", "--pairs", "1")
    record = benchmark("epoch", *small, *steps)
    assert record["target"] == 1.05
    assert 0 < record["ratio"] < math.inf
    assert 0 < record["processor_ratio"] < math.inf
    assert 0 <= record["waiting"] < 1
    assert record["seconds_per_step"].keys() == {"loaded", "held"}


@pytest.mark.slow
def test_memory() -> None:
    record = benchmark("memory", "--clips", "20", "40", "--batch-size", "8", "--workers", "1", "--epochs", "1")
    assert record["target"] == "flat"
    assert record["megabytes"].keys() == {"20", "40"}
    assert all(held["parent"] > 10 and held["worker"] > 10 for held in record["megabytes"].values())
    assert record["growth"].keys() == {"parent", "worker"}


def test_startup() -> None:
    record = benchmark("startup", "--pairs", "1", "--warmup", "0")
    assert record["help_ratio"] > 0
    assert record["command_help_ratio"] > 0
    assert record["target"] == 1.2
