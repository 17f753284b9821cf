"""The processes of one job: those that torchrun started, or this one alone; torch is loaded where there are several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from avpt.errors import AvptError, OtherProcessError

if TYPE_CHECKING:
    from torch import Tensor, nn

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=30)  # longer than any process may make the others wait, as the first does when it writes
LOST = "another process of this job died or can't be reached; the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class World:
    """Which process this is, of how many; all of them call each method together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine, where each process has a device of its own

    @property
    def is_first(self) -> bool:
        """The first process prints and writes, and no other does."""
        return self.rank == 0

    def first(self, decide: Callable[[], Value]) -> Value:
        """What the first process, and no other, finds or decides; its error ends all of them."""
        if self.size == 1:
            return decide()
        import torch.distributed as dist

        box: list[Any] = [None, None]
        if self.is_first:
            try:
                box[0] = decide()
            except AvptError as error:
                box[1] = error
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1] if self.is_first else OtherProcessError(str(box[1]))
        value: Value = box[0]
        return value

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        total = tensor.cpu()
        if self.size > 1:
            import torch.distributed as dist

            total = total.clone()
            dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        if self.size == 1:
            return flag
        import torch

        return bool(self.sum(torch.tensor(int(flag))))

    def gather_rows(self, rows: Tensor, positions: Tensor, count: int) -> Tensor:
        """(count, ...) on the CPU, from rows that the processes have at different positions."""
        import torch

        whole = torch.zeros((count, *rows.shape[1:]), dtype=rows.dtype)
        whole[positions] = rows.cpu()
        return self.sum(whole)

    def spread_buffers(self, model: nn.Module) -> None:
        """Take over the running statistics of the first process, as the next training step would."""
        if self.size > 1:
            import torch.distributed as dist

            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model that averages its gradients over all processes."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        device = next(model.parameters()).device
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


@contextmanager
def join_world() -> Iterator[World]:
    """Meet the other processes of the job, as torchrun's environment says; torn down when the block ends.

    Raises:
        OtherProcessError: one of them died, or can't be met.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        yield World(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "peer", "NCCL"))
        if not lost:
            raise
        raise OtherProcessError(LOST) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
