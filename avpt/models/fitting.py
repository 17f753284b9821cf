"""Whether tensors fit a network and are finite: the checks that every reader of weights makes before it takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from avpt.errors import ArtifactError

DTYPES = {  # the types that weights may have, by their names in safetensors
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
}


def describe_tensors(shapes: Mapping[str, tuple[str, list[int]]]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that a safetensors file declares, without values; and what is wrong with the types of the others."""
    known = {name: one for name, one in shapes.items() if one[0] in DTYPES}
    state = {name: torch.empty(shape, dtype=DTYPES[dtype], device="meta") for name, (dtype, shape) in known.items()}
    return state, [f"{name} is {dtype}" for name, (dtype, _) in shapes.items() if dtype not in DTYPES]


def misfits(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str]:
    """What keeps a state dict from being the wanted one, by key: it is missing, unknown, of another shape or type.

    Any floating-point type may stand for any other. Values are ignored, so that both may be on the meta device.
    """
    problems = {name: f"{name} is missing" for name in wanted if name not in state}
    problems |= {name: f"{name} is unknown" for name in state if name not in wanted}
    for name, value in wanted.items():
        if name not in state:
            continue
        have = state[name]
        if have.shape != value.shape:
            problems[name] = f"{name} is {tuple(have.shape)}, not {tuple(value.shape)}"
        elif have.is_floating_point() != value.is_floating_point():
            what = "floating point" if value.is_floating_point() else "whole numbers"
            problems[name] = f"{name} is {str(have.dtype).removeprefix('torch.')}, not {what}"
    return problems


def wrong_values(state: Mapping[str, Tensor]) -> dict[str, str]:
    """What is wrong with values that no training can have left, by key."""
    wrong = {}
    for name, value in state.items():
        if not value.isfinite().all():
            wrong[name] = f"{name} holds infinite values or NaN"
        elif name.endswith("running_var") and (value < 0).any():
            wrong[name] = f"{name} holds negative variances"
    return wrong


def check_values(path: Path, network: nn.Module) -> None:
    """Check that all values of a network are numbers, and no variance is negative.

    Raises:
        ArtifactError: some are not; the message names the first key with such values.
    """
    for name, what in wrong_values(network.state_dict()).items():
        which = f"values that are not numbers ({name})" if "NaN" in what else f"negative variances ({name})"
        raise ArtifactError(f"{path} holds {which}; train it again with a lower --lr")
