"""Figures and tensors as blocks of a page, and numbers as words."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from avpt.figures.pictures import colour_spectrogram, encode_picture
from avpt.figures.style import render
from avpt.files.records import InputSpec
from avpt.loading.dataset import read_fbank, read_frames
from avpt.loading.pictures import picture
from avpt.report.page.blocks import Figure, Picture
from avpt.store.store import SplitIndex, Store
from avpt.types import Modality

if TYPE_CHECKING:
    from matplotlib import figure as matplotlib_figure
    from torch import Tensor


def make_figure(figure: matplotlib_figure.Figure, alt: str, caption: str) -> Figure:
    """Make a block of a figure, without its own background."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # browsers have other fonts
        return Figure(render(figure, "svg"), alt, caption)


def show_stored_clip(store: Store, index: SplitIndex, position: int, label: str) -> list[Picture]:
    """Show a clip as it is stored: its middle frame and its spectrogram, if it has them."""
    pictures = []
    num_visual, num_audio = int(index.num_visual_frames[position]), int(index.num_audio_frames[position])
    if num_visual:
        (frame,) = read_frames(index, position, [(num_visual - 1) // 2], store.settings["frame_codec"])
        pictures.append(make_picture(frame.permute(1, 2, 0).numpy(), f"frame of a clip of class {label}"))
    if num_audio:
        pixels = colour_spectrogram(read_fbank(index, position).numpy(), num_audio)
        seconds = f"{num_audio / 100:.1f} s"
        pictures.append(make_picture(pixels, f"spectrogram of a clip of class {label}, {seconds}"))
    return pictures


def show_inputs(inputs: dict[Modality, Tensor], spec: InputSpec, alt: str, caption: str) -> Picture:
    """Show a clip's inputs as the network sees them."""
    return make_picture(picture(inputs, spec.colours).permute(1, 2, 0).numpy(), alt, caption)


def make_picture(pixels: np.ndarray[Any, Any], alt: str, caption: str = "") -> Picture:
    """Make a picture of pixels (height, width, 3) uint8."""
    uri, size = encode_picture(pixels)
    return Picture(uri, alt, size, caption)


def name_label(store: Store, index: SplitIndex, position: int) -> str:
    """Name the class or classes of a clip."""
    label = index.labels[position]
    if label.ndim == 0:
        return store.classes[int(label)]
    return ", ".join(store.classes[i] for i in np.flatnonzero(label)) or "none"


def percent(share: float | None, digits: int = 1) -> str:
    """0.873 -> 87.3 %; None -> a dash."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """0.015 -> +1.5 points; negative numbers get a true minus sign."""
    return f"{100 * difference:+.1f} points".replace("-", "−")
