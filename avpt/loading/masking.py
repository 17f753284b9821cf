"""From a mask ratio per clip to the number of patches that are masked."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from avpt.errors import ConfigError
from avpt.loading.dataset import InputSpec, Masking, grid
from avpt.loading.transforms import num_patches
from avpt.types import MODALITIES, Modality

log = logging.getLogger(__name__)

FEW_PATCHES = 64  # with fewer, small ratios are rounded down to no patch


def patches_to_mask(ratios: Tensor, patches: int) -> Tensor:
    """floor(ratio * patches), (clips,) int64, where rounding errors do not count as below a whole number."""
    rounding = 16 * torch.finfo(ratios.dtype).eps  # 0.29 of 100 is 28.999999999999996 in float64
    return torch.floor(ratios.double() * patches * (1 + rounding)).long()


def count_patches(modality: Modality, plane: tuple[int, int], patch: tuple[int, int], *, warn: bool = True) -> int:
    """The number of patches in a (height, width) plane; warns if they are few.

    Raises:
        ConfigError: a patch is larger than the input.
    """
    (height, width), size = plane, f"{patch[0]}x{patch[1]}"
    patches = num_patches(height, width, patch)
    if not patches:
        raise ConfigError(f"--{modality}-patch {size} is larger than the {height}x{width} input; choose a smaller one")
    if warn and patches < FEW_PATCHES:
        log.warning(
            "--%s-patch %s cuts the %dx%d input into %d patches, so that small ratios mask nothing; try --%s-patch %s",
            *(modality, size, height, width, patches, modality, _smaller(modality, height, width)),
        )
    return patches


def count_masked(
    modality: Modality, ratios: Tensor, plane: tuple[int, int], patch: tuple[int, int], *, warn: bool = True
) -> Tensor:
    """How many patches of each clip are masked, (clips,) int64; warns, once, of patches that ratios can do little with.

    Raises:
        ConfigError: a patch is larger than the input.
    """
    patches = count_patches(modality, plane, patch, warn=False)
    masked = patches_to_mask(ratios, patches)
    if not warn:
        return masked
    cut = f"--{modality}-patch {patch[0]}x{patch[1]} cuts the {plane[0]}x{plane[1]} input into {patches} patches"
    if (ratios > 0).any() and not masked.any():
        height, width = (min(side, 4 * edge) for side, edge in zip(plane, patch, strict=True))  # to halve small ones
        log.warning(
            "%s: every ratio is less than one of them, so that nothing is masked; set --%s-patch %s",
            *(cut, modality, _smaller(modality, height, width)),
        )
    elif whole := int((masked == patches).sum()):
        log.warning("%s: %d clip(s) lose all of them; set a lower --mask-ratio or --mask-eta", cut, whole)
    else:
        count_patches(modality, plane, patch)
    return masked


def plan_masking(
    ratios: dict[Modality, Tensor], inputs: InputSpec, patch: dict[Modality, tuple[int, int]], *, warn: bool = True
) -> Masking:
    """Compute how many patches of each training clip are masked."""
    return Masking(patch, {m: count_masked(m, ratios[m], grid(inputs, m), patch[m], warn=warn) for m in MODALITIES})


def most_masked(masking: Masking, count: int) -> list[int]:
    """Positions of the clips of which most is masked, alternating between modalities, ties in order."""
    orders = [masking.num_masked[m].argsort(descending=True, stable=True)[:count].tolist() for m in MODALITIES]
    return list(dict.fromkeys(position for turn in zip(*orders, strict=True) for position in turn))[:count]


def _smaller(modality: Modality, height: int, width: int) -> str:
    """The value of an option for a patch that gives an 8 x 8 grid or a finer one."""
    rows, columns = max(1, height // 8), max(1, width // 8)
    return f"{rows}x{columns}" if modality == "audio" else str(min(rows, columns))
