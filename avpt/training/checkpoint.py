"""A run's state on disk: one file, written whole, and the one before it in case a disk loses the last."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from avpt.errors import AvptError
from avpt.files.outputs import atomic
from avpt.files.torch_files import load_torch

log = logging.getLogger(__name__)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint; the one that it replaces stays beside it as `previous.pt`."""
    with atomic(path) as beside:
        try:
            torch.save(state, beside)
        except RuntimeError as error:  # how torch reports errors of the disk
            raise OSError(str(error)) from error
        if path.exists():
            path.replace(previous_of(path))


def load_checkpoint(path: Path, apply: Callable[[dict[str, Any]], None]) -> bool:
    """Pass the checkpoint to `apply`, or the one before where the last is damaged; False where there is none.

    Raises:
        AvptError: there are some, and none can be read.
    """
    candidates = [candidate for candidate in (path, previous_of(path)) if candidate.exists()]
    problem: Exception | None = None
    for candidate in candidates:
        try:
            apply(load_torch(candidate))
        except Exception as error:  # torch raises whatever its readers raise
            problem = problem or error
            continue
        if problem is not None:
            log.warning("%s is damaged (%s); going on from the one before it", path, type(problem).__name__)
            path.unlink(missing_ok=True)  # else it would replace the intact one at the next save
        return True
    if problem is not None:
        raise AvptError(f"{path} is damaged ({type(problem).__name__}); --overwrite starts the run over") from None
    return False


def previous_of(path: Path) -> Path:
    """The path of the checkpoint before the last."""
    return path.with_name("previous.pt")
