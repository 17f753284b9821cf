"""Confidence-driven masking of FusT (arXiv 2302.03533) for a training loop of one's own.

From the probabilities of the true class that each encoder gave a clip in its epochs, to a confidence for each clip, to
the share of its inputs that is masked, to masked inputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from avpt.confidence.formulas import mask_ratios, statistics
from avpt.errors import ConfigError
from avpt.loading import transforms
from avpt.loading.masking import patches_to_mask

__all__ = ["confidence", "mask", "ratios"]


def confidence(probability: Tensor) -> Tensor:
    """How sure an encoder was of each clip: the mean over epochs, (clips,), of its true class's probability.

    Args:
        probability: (epochs, clips), as `dynamics.safetensors` of a run of `avpt finetune-unimodal` holds it.
    """
    return statistics(probability, torch.zeros_like(probability, dtype=torch.bool))["confidence"]


def ratios(
    audio: Tensor,
    visual: Tensor,
    *,
    ratio: float = 0.5,
    eta: float = 1.0,
    threshold: float = 0.5,
    mask: Literal["adaptive", "uniform"] = "adaptive",
) -> tuple[Tensor, Tensor]:
    """What share of each clip's audio and of its pictures is masked, (clips,) float64 each.

    The dominant rule: of the modality with the higher confidence c, r = ratio * tanh(eta * (c - c_other)) if
    c >= threshold; of the other one nothing.

    Args:
        audio: confidence, (clips,).
        visual: likewise, of the same clips.
        ratio: the most that is masked.
        eta: how fast that grows with the difference.
        threshold: how sure the dominant modality has to be.
        mask: adaptive, or uniform: the mean of these shares for every clip.

    Raises:
        ConfigError: these are not confidences of the same clips.
    """
    if audio.shape != visual.shape or audio.ndim != 1:
        raise ConfigError(
            f"confidences are (clips,) of the same clips, not {tuple(audio.shape)}, {tuple(visual.shape)}"
        )
    found = mask_ratios(
        {"audio": audio, "visual": visual},
        mask=mask,
        rule="dominant",
        ratio={"audio": ratio, "visual": ratio},
        eta=eta,
        threshold=threshold,
    )
    return found["audio"], found["visual"]


def mask(inputs: Tensor, ratios: Tensor, patch: tuple[int, int], *, generator: torch.Generator | None = None) -> Tensor:
    """A copy of a batch with whole patches, drawn at random, set to 0, which after normalisation is the mean.

    Args:
        inputs: normalised: spectrograms (clips, 1, frame, mel), or pictures (clips, frames, 3, height, width), each of
            whose frames is masked separately.
        ratios: (clips,) share of its patches that a clip loses, rounded down to whole patches.
        patch: (height, width): (frames, mel bins) of a spectrogram, pixels of a picture.
        generator: where the patches are drawn from, on the CPU; None is torch's own.

    Raises:
        ConfigError: a patch is larger than the inputs, or there is not one ratio for each clip.
    """
    if len(ratios) != len(inputs) or inputs.ndim not in (4, 5):
        raise ConfigError(
            f"{tuple(inputs.shape)} inputs do not go with {len(ratios)} ratios: there is one for each clip"
        )
    planes = inputs.clone().view(-1, *inputs.shape[-3:])
    patches = transforms.num_patches(planes.shape[-2], planes.shape[-1], patch)
    if not patches:
        size = f"{planes.shape[-2]}x{planes.shape[-1]}"
        raise ConfigError(f"a patch of {patch[0]}x{patch[1]} is larger than the {size} input; choose a smaller one")
    count = patches_to_mask(ratios.cpu(), patches).repeat_interleave(len(planes) // len(inputs)).to(inputs.device)
    scores = torch.rand(len(planes), patches, generator=generator).to(inputs.device)
    return transforms.mask_patches(planes, scores, count, patch).view_as(inputs)
