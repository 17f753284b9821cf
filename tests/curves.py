"""What TensorBoard makes of the event files of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import rows_of
from PIL import Image

from avpt.training.run_writer import read_timings


def flat(row: Mapping[str, Any]) -> dict[str, float]:
    one = {name: value for name, value in row.items() if not isinstance(value, dict) and name != "epoch"}
    two = {f"{name}/{key}": v for name, values in row.items() if isinstance(values, dict) for key, v in values.items()}
    return one | two


def events(folder: Path) -> Any:
    """What TensorBoard makes of a run's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Value by step of each curve; no step is there twice."""
    actual = events(folder)
    whole = {}
    for name in actual.Tags()["scalars"]:
        points = [(event.step, event.value) for event in actual.Scalars(name)]
        whole[name] = dict(points)
        assert len(whole[name]) == len(points), f"{name} has a step twice: {points}"
    return whole


def images(folder: Path) -> dict[str, dict[int, Any]]:
    """(height, width, 3) uint8 by step of each picture."""
    actual = events(folder)
    whole = {}
    for name in actual.Tags()["images"]:
        pictures = [(event.step, event.encoded_image_string) for event in actual.Images(name)]
        whole[name] = {step: np.asarray(Image.open(io.BytesIO(encoded))) for step, encoded in pictures}
        assert len(whole[name]) == len(pictures), f"{name} has a step twice"
    return whole


def assert_curves_say_what_the_files_say(run: Path) -> None:
    expected: dict[str, dict[int, float]] = {}
    for row in rows_of(run / "metrics.jsonl"):
        for name, value in flat(row).items():
            expected.setdefault(name, {})[row["epoch"]] = value
    for epoch, timing in read_timings(run).items():
        for name, value in flat({"timing": timing}).items():
            if name != "timing/epoch":
                expected.setdefault(name, {})[epoch] = value
    actual = curves(run / "tensorboard")
    assert actual.keys() == expected.keys()
    assert {"lr", "train/loss", "val/accuracy", "timing/clips_per_second", "timing/waiting"} <= actual.keys()
    for name, points in expected.items():
        assert actual[name] == pytest.approx(points, rel=1e-6), name
