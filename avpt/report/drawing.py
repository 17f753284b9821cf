"""From figures and tensors to the blocks of a page."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from avpt.figures.pictures import colour_spectrogram, encode_picture
from avpt.figures.style import render
from avpt.loading.dataset import read_fbank, read_frames
from avpt.loading.pictures import picture
from avpt.report.page.blocks import Figure, Picture
from avpt.store.store import SplitIndex, Store
from avpt.types import Modality

if TYPE_CHECKING:
    from matplotlib import figure as matplotlib_figure
    from torch import Tensor


def drawn(figure: matplotlib_figure.Figure, alt: str, caption: str) -> Figure:
    """A figure on the page's own ground."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # the browser has other fonts
        return Figure(render(figure, "svg"), alt, caption)


def stored(store: Store, index: SplitIndex, position: int, label: str) -> list[Picture]:
    """A clip as the store has it: its middle frame and its spectrogram, whichever there are."""
    pictures = []
    frames, sound = int(index.num_visual_frames[position]), int(index.num_audio_frames[position])
    if frames:
        (frame,) = read_frames(index, position, [(frames - 1) // 2], store.settings["frame_codec"])
        pictures.append(bitmap(frame.permute(1, 2, 0).numpy(), f"frame of a clip of class {label}"))
    if sound:
        pixels = colour_spectrogram(read_fbank(index, position).numpy(), sound)
        seconds = f"{sound / 100:.1f} s"
        pictures.append(bitmap(pixels, f"spectrogram of a clip of class {label}, {seconds}"))
    return pictures


def fed(inputs: dict[Modality, Tensor], alt: str, caption: str) -> Picture:
    """A clip's inputs as the network sees them."""
    return bitmap(picture(inputs).permute(1, 2, 0).numpy(), alt, caption)


def bitmap(pixels: np.ndarray[Any, Any], alt: str, caption: str = "") -> Picture:
    """Pixels (height, width, 3) uint8 as a picture."""
    uri, size = encode_picture(pixels)
    return Picture(uri, alt, size, caption)


def label_of(store: Store, index: SplitIndex, position: int) -> str:
    """The class or classes of a clip."""
    label = index.labels[position]
    if label.ndim == 0:
        return store.classes[int(label)]
    return ", ".join(store.classes[i] for i in np.flatnonzero(label)) or "none"


def percent(share: float | None, digits: int = 1) -> str:
    """0.873 -> 87.3 %; a dash for what is not known."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """+0.015 -> +1.5 points; a minus sign is one."""
    return f"{100 * difference:+.1f} points".replace("-", "−")
