"""What a clip holds, by PyAV and torch alone, and how like that a picture is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch


def full_decode(path: Path) -> tuple[list[Fraction], list[np.ndarray]]:
    """Every frame that decodes: its time from the container's start, and its stored pixels."""
    times, pictures = [], []
    with av.open(str(path), metadata_errors="replace") as container:
        stream: Any = container.streams.best("video")
        stream.thread_count = 1  # what a decoder makes of damaged pictures depends on its threads
        origin = Fraction(container.start_time or 0, 1_000_000)
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                times.append(frame.pts * frame.time_base - origin)
                pictures.append(frame.to_ndarray(format="rgb24"))
    return times, pictures


def assert_similar(rgb: np.ndarray, expected: np.ndarray, tolerance: float = 4.0) -> None:
    """The mean difference is what two filters make of one picture, not what two pictures differ by."""
    assert rgb.shape == expected.shape
    assert np.abs(rgb.astype(float) - expected).mean() < tolerance


def shrink(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    image = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(image, (height, width), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).clamp(0, 255).numpy()
