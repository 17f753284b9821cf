"""A picture of a clip as a network sees it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from avpt.files.records import IMAGENET, Colour
from avpt.types import Modality

MASKED = (255, 0, 255)  # magenta: rare in frames, and not a grey as in spectrograms
MARGIN = 4  # pixels between the parts of a picture
RANGE = 1.5  # a normalised spectrogram is shown from -1.5, black, to 1.5, white: three standard deviations


def picture(inputs: Mapping[Modality, Tensor], mean_std: tuple[Colour, Colour] = IMAGENET) -> Tensor:
    """Paint the spectrogram, with time to the right and low frequencies at the bottom, and the frames, side by side.

    Masked parts are magenta.

    Args:
        inputs: one clip, normalised and masked: audio (1, frame, mel) and / or visual (frames, 3, height, width).
        mean_std: what the frames were normalised with.

    Returns:
        (3, height, width) uint8, on the CPU.
    """
    parts: list[Tensor] = []
    if "audio" in inputs:
        grey = inputs["audio"].cpu()[0].T.flip(0)
        parts.append(_painted((grey[None] / RANGE + 1) / 2, grey == 0))
    if "visual" in inputs:
        mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in mean_std)
        parts += [_painted(frame * std + mean, (frame == 0).all(dim=0)) for frame in inputs["visual"].cpu()]
    height = max(part.shape[1] for part in parts)
    sheet = torch.full((3, height, sum(part.shape[2] + MARGIN for part in parts) - MARGIN), 255, dtype=torch.uint8)
    left = 0
    for part in parts:
        sheet[:, : part.shape[1], left : left + part.shape[2]] = part
        left += part.shape[2] + MARGIN
    return sheet


def _painted(values: Tensor, masked: Tensor) -> Tensor:
    """(3, height, width) uint8 from values (1 or 3, height, width) of 0 to 1, magenta where masked (height, width)."""
    colours = (values.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, *masked.shape)
    return torch.where(masked, torch.tensor(MASKED, dtype=torch.uint8).view(3, 1, 1), colours)
