"""What a clip holds, by PyAV and torch alone, and how like that a picture is."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from avpt.media import streams
from avpt.media.audio import read_waveform
from avpt.media.clip import Notes
from avpt.media.video import read_frames


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


NEAR = 0.025  # seconds by which sound may be off where a container's stamps are coarse


def lag(heard: np.ndarray, expected: np.ndarray, most: int) -> int:
    """How many samples `heard` comes too late, by cross-correlation."""
    size = min(len(heard), len(expected))
    length = 1 << (2 * size).bit_length()
    spectrum = np.fft.rfft(heard[:size], length) * np.conj(np.fft.rfft(expected[:size], length))
    correlation = np.fft.irfft(spectrum, length)
    around = np.concatenate([correlation[-most:], correlation[: most + 1]])
    return int(around.argmax()) - most


def shows_the_same(path: Path, plainly: Callable[[Callable[[], Any]], Any], accuracy: Any) -> None:
    """Segments of a clip are the same pictures, or the same error, by the quick way and by the plain way."""

    def pictures(start: float, end: float | None) -> Any:
        notes = Notes()
        options: dict[str, Any] = {"start": start, "end": end, "accuracy": accuracy, "notes": notes}
        actual = read_frames(path, fps=3.7, max_frames=12, frame_size=64, **options)
        if start > 0 or accuracy == "keyframe":
            notes.troubles.clear()  # the quick way passes over packets that may be damaged
        return [(time, rgb.tobytes()) for time, rgb in actual or ()], notes.troubles

    for start, end in ((0.0, None), (0.7, 1.7), (5.3, None)):
        quick, plain = plainly(partial(pictures, start, end))
        assert quick == plain


def sounds_the_same(path: Path, plainly: Callable[[Callable[[], Any]], Any]) -> None:
    """Segments of a clip are the same sound, or the same error, by the quick way and by the plain way."""
    for start, end in ((0.0, None), (0.7, 1.7), (5.3, None)):
        quick, plain = plainly(partial(read_waveform, path, 16000, start=start, end=end))
        if not isinstance(plain, np.ndarray):
            assert type(quick) is type(plain)
            assert quick == plain
        elif start < streams.SEEK_BEYOND:
            np.testing.assert_array_equal(quick, plain)
        else:
            assert abs(len(quick) - len(plain)) <= NEAR * 16000
            assert plain.std() < 1e-4 or abs(lag(quick, plain, 800)) <= NEAR * 16000


def read(path: Path, fps: float = 1.0, max_frames: int = 100, frame_size: int = 256, **options: Any) -> Any:
    shown = read_frames(path, fps=fps, max_frames=max_frames, frame_size=frame_size, **options)
    assert shown is not None
    assert [time for time, _ in shown] == pytest.approx([k / fps for k in range(len(shown))])
    for _, rgb in shown:
        assert rgb.dtype == np.uint8
        assert rgb.flags.c_contiguous
    return [rgb for _, rgb in shown]


def shows_what_decodes(path: Path) -> list[tuple[int, np.ndarray]]:
    """Check the picture of each second against a full decode; returns it with its place among all."""
    times, pictures = full_decode(path)
    shown = []
    for k, rgb in enumerate(read(path, frame_size=96)):
        latest = max((i for i, time in enumerate(times) if time <= k + 1e-6), default=0)
        height, width = pictures[latest].shape[:2]
        scale = min(1.0, 96 / min(height, width))
        assert_similar(rgb, shrink(pictures[latest], round(height * scale), round(width * scale)))
        shown.append((latest, rgb))
    return shown


def colours_by_arithmetic(path: Path) -> None:
    """4:2:0 chroma lies on the left, halfway between rows, as MPEG has it where nothing is said; BT.601, limited."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    depth = 16 if "10" in frame.format.name else 8
    y, u, v = (
        np.frombuffer(bytes(plane), f"u{depth // 8}").reshape(plane.height, -1)[:, : plane.width].astype(float)
        for plane in frame.planes
    )
    rows, columns = (np.arange(y.shape[0]) + 0.5) / 2 - 0.5, np.arange(y.shape[1]) / 2

    def between(chroma: np.ndarray) -> np.ndarray:
        wide = np.stack([np.interp(columns, np.arange(chroma.shape[1]), row) for row in chroma])
        return np.stack([np.interp(rows, np.arange(len(wide)), column) for column in wide.T], axis=1)

    scale = 4 if depth == 16 else 1
    y = (y / scale - 16) / 219
    u, v = ((between(chroma) / scale - 128) / 224 for chroma in (u, v))
    r, b = y + 2 * (1 - 0.299) * v, y + 2 * (1 - 0.114) * u
    expected = 255 * np.stack([r, (y - 0.299 * r - 0.114 * b) / 0.587, b], axis=2).clip(0, 1)
    error = np.abs(read(path, frame_size=1000)[0] - expected)
    assert error.max() < 2
    assert error.mean() < 0.3
