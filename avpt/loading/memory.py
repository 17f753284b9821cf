"""Reusable memory for batches: allocating memory costs more than filling it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

PREFETCHED = 2  # batches that each worker prepares ahead


class Collation:
    """Collates clips into batches, in a worker, with the large tensors in shared memory that is reused in turn.

    Allocating shared memory costs more than filling it. There are enough turns for all batches that a worker prepares
    ahead and for the one that the parent is still reading.
    """

    LARGE = ("audio", "visual")

    def __init__(self) -> None:
        self._memory: dict[tuple[str, int], Tensor] = {}
        self._turn = 0

    def __call__(self, clips: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack the clips' tensors, by name."""
        self._turn = (self._turn + 1) % (PREFETCHED + 1)
        return {name: self._stack(name, [clip[name] for clip in clips]) for name in clips[0]}

    def _stack(self, name: str, values: list[Tensor]) -> Tensor:
        if get_worker_info() is None:
            return torch.stack(values)
        if name not in self.LARGE:
            # otherwise the thread that sends it would do that; if it fails there, the main process waits for ever
            return torch.stack(values).share_memory_()  # type: ignore[no-untyped-call, no-any-return]
        memory = self._memory.get((name, self._turn))
        if memory is None or len(memory) < len(values):
            memory = torch.empty(len(values), *values[0].shape, dtype=values[0].dtype)
            self._memory[name, self._turn] = memory.share_memory_()  # type: ignore[no-untyped-call]
        return torch.stack(values, out=memory[: len(values)])


class Memory:
    """Memory of released tensors, reused for the next: allocating memory costs more than filling it."""

    def __init__(self) -> None:
        self._free: dict[str, list[np.ndarray[Any, Any]]] = {}

    def floats(self, use: str, shape: Sequence[int]) -> Tensor:
        """A float32 tensor on the CPU with undefined content."""
        size, free = math.prod(shape), self._free.setdefault(use, [])
        memory = free.pop() if free else np.empty(size, np.float32)
        if len(memory) < size:
            memory = np.empty(size, np.float32)
        lent = memory[:size]  # exists as long as the tensor, its views, and what autograd saves of them
        weakref.finalize(lent, _take_back, free, memory).atexit = False
        return torch.from_numpy(lent).view(*shape)


def _take_back(free: list[np.ndarray[Any, Any]], memory: np.ndarray[Any, Any]) -> None:
    if not free:
        free.append(memory)
