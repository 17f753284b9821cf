"""Bitmaps for a page: frames, spectrograms, and both as a network sees them."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

SMALL = 128 * 128  # pixels up to which a picture is kept as it is, without loss
LARGEST = (512, 192)  # width and height of a picture on a page, pixels
SILENCE, LOUD = 1.0, 99.5  # percentiles of a spectrogram between which its colours run

Array = np.ndarray[Any, Any]


def spectrogram(fbank: Array, num_frames: int) -> Array:
    """A log-mel spectrogram (frames, mel) in colours, (mel, frames, 3) uint8: time to the right, low notes below.

    Colours run over the `num_frames` real frames; what is padding behind them is left out.
    """
    real = fbank[: max(1, num_frames)].astype(float).T[::-1]
    low, high = np.percentile(real, [SILENCE, LOUD])
    shades = np.clip((real - low) / max(high - low, 1e-6), 0, 1)
    colours: Array = np.round(matplotlib.colormaps["magma"](shades)[..., :3] * 255).astype(np.uint8)
    return colours


def data_uri(pixels: Array) -> tuple[str, tuple[int, int]]:
    """A picture (height, width, 3) uint8 as a data URI, and its (width, height); large ones scaled down, with loss."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    content, small = io.BytesIO(), image.width * image.height <= SMALL and image.width <= LARGEST[0]
    if not small:
        image.thumbnail(LARGEST)
    image.save(content, "PNG" if small else "JPEG", **({"optimize": True} if small else {"quality": 82}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}", image.size
