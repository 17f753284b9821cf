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


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The keys of tensors that hold infinite values or NaN."""
    return [name for name, value in state.items() if not value.isfinite().all()]


def check_finite(path: Path, network: nn.Module) -> None:
    """Check that all values of a network are numbers.

    Raises:
        ArtifactError: some are not; the message names the first key with such values.
    """
    if wrong := not_finite(network.state_dict()):
        raise ArtifactError(f"{path} holds values that are not numbers ({wrong[0]}); train it again with a lower --lr")
