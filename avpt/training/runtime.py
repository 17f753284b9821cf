"""Device, seeds and determinism."""

from __future__ import annotations

import os
from typing import Any

import torch

from avpt.errors import ConfigError


def start(seed: int, device: str, precision: str = "fp32", local_rank: int = 0) -> torch.device:
    """Fix the global generators, ask for deterministic kernels, and resolve the device.

    Each of several processes on a machine takes the CUDA device of its `local_rank`, unless one is named.

    Raises:
        ConfigError: the device does not exist here, or can't calculate in that precision.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
    torch.use_deterministic_algorithms(True, warn_only=True)
    # filling is a debugging aid that costs time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(seed)
    resolved = resolve_device(device)
    if resolved.type == "cuda":
        if resolved.index is None:
            resolved = torch.device("cuda", local_rank)
        torch.cuda.set_device(resolved)
    if precision == "fp16" and resolved.type != "cuda":
        raise ConfigError(f"--precision fp16 needs a CUDA device, not {resolved.type}; use bf16 or fp32")
    return resolved


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one, else the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {name} can't be used here ({next(iter(str(error).splitlines()), '')}); try auto or cpu"
        ) from None
    return device


def environment(device: torch.device) -> dict[str, Any]:
    """What the bytes of a result hang on besides options and inputs."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
