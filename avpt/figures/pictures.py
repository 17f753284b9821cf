"""Bitmaps for a page: spectrograms in colours, and any picture as a data URI."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

SMALL = 128 * 128  # pixels up to which a picture is kept as it is, as PNG
LARGEST = (512, 192)  # width and height of a picture on a page, pixels
SILENCE, LOUD = 1.0, 99.5  # percentiles of a colour_spectrogram at the two ends of the colour scale

Array = np.ndarray[Any, Any]


def colour_spectrogram(fbank: Array, num_frames: int) -> Array:
    """Colour a log-mel colour_spectrogram (frames, mel) as (mel, frames, 3) uint8: time to the right, low notes below.

    Only the `num_frames` real frames are shown, without the padding behind them.
    """
    real = fbank[: max(1, num_frames)].astype(float).T[::-1]
    low, high = np.percentile(real, [SILENCE, LOUD])
    shades = np.clip((real - low) / max(high - low, 1e-6), 0, 1)
    colours: Array = np.round(matplotlib.colormaps["magma"](shades)[..., :3] * 255).astype(np.uint8)
    return colours


def encode_picture(pixels: Array) -> tuple[str, tuple[int, int]]:
    """Encode (height, width, 3) uint8 as a data URI, large ones scaled down and as JPEG, with (width, height)."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    content, small = io.BytesIO(), image.width * image.height <= SMALL and image.width <= LARGEST[0]
    if not small:
        image.thumbnail(LARGEST)
    image.save(content, "PNG" if small else "JPEG", **({"optimize": True} if small else {"quality": 82}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}", image.size
