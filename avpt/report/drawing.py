"""Figures and tensors as blocks of a page, and numbers as words."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgb

from avpt.figures.pictures import colour_spectrogram, encode_picture
from avpt.figures.style import AUDIO, VISUAL, render
from avpt.files.records import InputSpec
from avpt.loading.dataset import read_fbank, read_frames
from avpt.loading.pictures import MARGIN, picture
from avpt.report.page.blocks import Figure, Picture
from avpt.store.store import SplitIndex, Store
from avpt.types import Modality

if TYPE_CHECKING:
    from matplotlib import figure as matplotlib_figure
    from torch import Tensor

MOST_LOOKED_AT = 24  # frames of a clip among which the one to show is looked for
LAST_PARTS = 2  # of a clip's path, that name it
SPECTROGRAM = "Spectrograms: time to the right, 10 ms a column; pitch upwards, a mel bin a row; brighter is louder."
HIDDEN: dict[Modality, str] = {"audio": AUDIO, "visual": VISUAL}  # the colour of masks, as of points in the scatter


def make_figure(figure: matplotlib_figure.Figure, alt: str, caption: str) -> Figure:
    """Make a block of a figure, without its own background."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # browsers have other fonts
        return Figure(render(figure, "svg"), alt, caption)


def show_stored_clip(store: Store, index: SplitIndex, position: int, label: str) -> list[Picture]:
    """Show a clip as it is stored: its most telling frame and its spectrogram, if it has them."""
    pictures = []
    num_visual, num_audio = int(index.num_visual_frames[position]), int(index.num_audio_frames[position])
    if num_visual:
        seen = sorted({int(place) for place in np.linspace(0, num_visual - 1, min(num_visual, MOST_LOOKED_AT))})
        frame = pick_telling(list(read_frames(index, position, seen, store.settings["frame_codec"])))
        pictures.append(make_picture(frame.permute(1, 2, 0).numpy(), f"frame of a clip of class {label}", "a frame"))
    if num_audio:
        pixels = colour_spectrogram(read_fbank(index, position).numpy(), num_audio)
        seconds = f"{num_audio / 100:.1f} s"
        pictures.append(
            make_picture(pixels, f"spectrogram of a clip of class {label}, {seconds}", f"0 to {seconds} →, pitch ↑")
        )
    return pictures


def pick_telling(frames: Sequence[Tensor]) -> Tensor:
    """Pick the frame of the greatest contrast, as many films begin and end black; of equal ones the first.

    Args:
        frames: each (3, height, width) uint8.
    """
    return max(frames, key=lambda frame: round(float(frame.double().mean(dim=0).std(correction=0)), 6))


def show_input(
    modality: Modality, whole: Tensor, masked: Tensor | None, spec: InputSpec, alt: str, caption: str
) -> Picture:
    """Show one modality of a clip as the network sees it, in the colours of clips as stored.

    Args:
        modality: which one.
        whole: (1, frame, mel) or (frames, 3, height, width), normalised, without a mask.
        masked: the same with its mask, which is painted in the colour that means this modality in all figures.
        spec: how frames were normalised.
        alt: a description.
        caption: a line below.
    """
    hidden = None if masked is None else masked == 0
    paint = np.round(np.multiply(to_rgb(HIDDEN[modality]), 255)).astype(np.uint8)
    if modality == "audio":
        pixels = colour_input(whole[0].numpy())
        if hidden is not None:
            pixels[hidden[0].T.flip(0).numpy()] = paint
        return make_picture(pixels, alt, caption)
    pixels = picture({"visual": whole}, spec.colours).permute(1, 2, 0).numpy()
    if hidden is not None:
        width = whole.shape[3]
        for number, patches in enumerate(hidden.all(dim=1).numpy()):
            left = number * (width + MARGIN)
            pixels[:, left : left + width][patches] = paint
    return make_picture(pixels, alt, caption)


def colour_input(fbank: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Colour a whole network input (frame, mel) like a stored spectrogram; the padding at its end is as silence."""
    changes = np.flatnonzero((fbank != fbank[-1]).any(axis=1))
    real = int(changes[-1]) + 1 if len(changes) else len(fbank)
    coloured = colour_spectrogram(fbank, real)
    padding = np.zeros((coloured.shape[0], len(fbank) - real, 3), np.uint8)
    return np.concatenate([coloured, padding], axis=1)


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


def name_clip(clip_id: str) -> str:
    """Name a clip by the last parts of its path, which say most of it: kitchen/day-2/0007.mp4 -> …/day-2/0007.mp4."""
    parts = clip_id.split("/")
    return clip_id if len(parts) <= LAST_PARTS else "/".join(["…", *parts[-LAST_PARTS:]])


def percent(share: float | None, digits: int = 1) -> str:
    """0.873 -> 87.3 %; None -> a dash."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """0.015 -> +1.5 points; negative numbers get a true minus sign."""
    return f"{100 * difference:+.1f} points".replace("-", "−")
