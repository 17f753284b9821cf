"""Dynamics -> confidence -> mask ratios: pure functions (arXiv 2302.03533, FusT)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from avpt.types import MODALITIES, Modality

Region = Literal["easy", "ambiguous", "hard"]


def statistics(probability: Tensor, correct: Tensor) -> dict[str, Tensor]:
    """Compute the statistics of a data map (Swayamdipta et al. 2020), and forgetting; each (clips,) float32.

    Args:
        probability: (epochs, clips) of the true class.
        correct: (epochs, clips) bool.

    Returns:
        `confidence`, the mean over epochs; `variability`, the standard deviation over epochs (of these
        epochs themselves, not an estimate for more); `correctness`, the share of epochs predicted right;
        `forgetting`, how many times a clip that was predicted right was predicted wrong in the epoch after
        (Toneva et al. 2019): 0 also for a clip that was never learnt, whose correctness is 0.
    """
    exact = probability.double()
    forgotten = correct[:-1] & ~correct[1:]
    return {
        "confidence": exact.mean(dim=0).float(),
        "variability": exact.std(dim=0, correction=0).float(),
        "correctness": correct.double().mean(dim=0).float(),
        "forgetting": forgotten.sum(dim=0).float(),
    }


def rank_clips(region: Region, confidence: Tensor, variability: Tensor, tie: Tensor) -> Tensor:
    """Positions of all clips, (clips,) int64, those first that belong most to a region of the data map.

    easy: the highest confidence; hard: the lowest confidence; ambiguous: the highest variability.

    Args:
        region: of the map.
        confidence: (clips,).
        variability: (clips,).
        tie: (clips,) int64, the order of clips that are equal in this.
    """
    value = {"easy": -confidence, "hard": confidence, "ambiguous": -variability}[region].double()
    by_tie = tie.argsort(stable=True)
    return by_tie[value[by_tie].argsort(stable=True)]


def no_ratios(num_clips: int) -> dict[Modality, Tensor]:
    """Ratios of zero for every clip, (clips,) per modality: nothing is masked."""
    return {modality: torch.zeros(num_clips, dtype=torch.float64) for modality in MODALITIES}


def mask_ratios(
    confidence: dict[Modality, Tensor],
    *,
    mask: Literal["adaptive", "uniform", "none"],
    rule: Literal["dominant", "released"],
    ratio: dict[Modality, float],
    eta: float,
    threshold: float,
) -> dict[Modality, Tensor]:
    """Compute how much of each clip's input is masked, (clips,) per modality.

    In float64: in float32, 0.7 would be less than 0.7.

    dominant: r_m = rho_m * tanh(eta * d_m) if d_m = c_m - c_other > 0 and c_m >= tau, else 0.
    released: if c_v >= tau, r_a = rho_a * tanh(eta * (c_a - c_v)); else if c_a >= tau,
    r_v = rho_v * tanh(eta * (c_v - c_a)); this is what the released code does, where a ratio <= 0 masks nothing.
    uniform: the mean of these ratios over the clips, for every clip; negative ones count under the released rule only.

    Args:
        confidence: mean confidence per modality, (clips,).
        ratio: rho per modality.
        eta: how fast the ratio grows with the difference.
        threshold: tau.
    """
    audio, visual = confidence["audio"].double(), confidence["visual"].double()
    if mask == "none":
        return no_ratios(len(audio))
    raw: dict[Modality, Tensor] = {
        "audio": ratio["audio"] * torch.tanh(eta * (audio - visual)),
        "visual": ratio["visual"] * torch.tanh(eta * (visual - audio)),
    }
    if rule == "dominant":
        applies: dict[Modality, Tensor] = {
            "audio": (audio > visual) & (audio >= threshold),
            "visual": (visual > audio) & (visual >= threshold),
        }
    else:
        applies = {"audio": visual >= threshold, "visual": (visual < threshold) & (audio >= threshold)}
    ratios = {modality: torch.where(applies[modality], raw[modality], 0.0) for modality in raw}
    if mask == "uniform":
        ratios = {modality: values.mean().expand(len(values)) for modality, values in ratios.items()}
    return {modality: values.clamp(min=0) for modality, values in ratios.items()}


def spread(ratios: dict[Modality, Tensor], known: Tensor, num_clips: int) -> dict[Modality, Tensor]:
    """Spread the ratios of the known clips over all clips, (clips,); the others are not masked."""
    return {m: zeros.index_copy(0, known, ratios[m]) for m, zeros in no_ratios(num_clips).items()}
