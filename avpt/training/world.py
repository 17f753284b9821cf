"""The processes of one job: those that torchrun started, or this one alone; torch is loaded if there are several."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from avpt.errors import AvptError, ConfigError, OtherProcessError
from avpt.machine.processes import number_of, place_in_job, signal_when_parent_dies

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch._C._distributed_c10d import Store

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=30)  # longer than any process may make the others wait, as the first does when it writes
NEWS = timedelta(seconds=20)  # the others wait so long for the first process's error, and it for them to read it
LOST = "another process of this job died or can't be reached ({}); the same command goes on from the last checkpoint"
CUT_OFF = (
    "this process can't work with the others ({}); mend that, and the same command goes on from the last checkpoint"
)
# words of backends about a connection; any other error is this process's own
OF_OTHERS = re.compile(r"peer|remote|time[d -]*out|connect|socket|broken pipe|heartbeat", re.IGNORECASE)
PLACE_IN_SOURCE = re.compile(r"\[[^\]]*\.(?:cc|cpp|h|hpp):\d+\] *")
LAST_PORT = 65_535
LONGEST_CAUSE = 300  # characters of a backend's error


@dataclass(frozen=True)
class World:
    """Which process this is, of how many; all of them call each method together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine, where each process has a device of its own
    local_size: int = 1  # processes on this machine

    @property
    def is_first(self) -> bool:
        """The first process prints and writes, and no other does."""
        return self.rank == 0

    def first(self, decide: Callable[[], Value]) -> Value:
        """What `decide` returns in the first process, which alone calls it; an error of it ends all of them."""
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
            raise box[1] if self.is_first else OtherProcessError()
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

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, in their order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_sorted(self, numbers: Tensor) -> list[int]:
        """The numbers of all processes, sorted."""
        return sorted(number for part in self.gather(numbers.tolist()) for number in part)

    def least(self, number: int) -> int:
        """The smallest of all processes' numbers."""
        if self.size == 1:
            return number
        import torch
        import torch.distributed as dist

        smallest = torch.tensor(number)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
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

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of some tensors, which stay on their device, by its mean over all processes."""
        if self.size == 1 or not tensors:
            return
        import torch
        import torch.distributed as dist

        whole = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(whole)
        means = torch.split(whole / self.size, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def spread_buffers(self, model: nn.Module) -> None:
        """Take over the running statistics of the first process, as the next training step would."""
        if self.size > 1:
            import torch.distributed as dist

            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model, wrapped to average its gradients over all processes."""
        if self.size == 1:
            return model
        import torch
        from torch.nn.parallel import DistributedDataParallel

        # Looking for unused parameters keeps it from dividing the gradients anew after its first step: the order in
        # which those of three or more processes are added depends on it, and a resumed run has its first step later.
        device = next(model.parameters()).device
        whole = torch.nn.ModuleDict({"model": model})
        whole.register_parameter("unused", torch.nn.Parameter(torch.zeros(1, device=device)))  # else it warns of none
        whole.forward = model.__call__
        return DistributedDataParallel(
            whole, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=True
        )


@contextmanager
def join_world() -> Iterator[World]:
    """Connect to the other processes of the job, as torchrun's environment says, until the block ends.

    An error that all of them have is reported by the first alone.

    Raises:
        OtherProcessError: one of them died, or can't be reached; it has no message where the first reports more.
    """
    rank, size, local_rank, local_size = place_in_job()
    if size == 1:
        yield World()
        return
    import torch
    import torch.distributed as dist

    if lacking := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        if rank:
            raise OtherProcessError  # all of them lack it, and the first says so
        raise ConfigError(
            f"WORLD_SIZE is {size} without {' and '.join(lacking)}, where the processes meet; torchrun sets that"
        )
    number_of("MASTER_PORT", LAST_PORT)
    world = World(rank, size)
    signal_when_parent_dies(signal.SIGTERM)  # torchrun starts its processes in sessions of their own
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT, rank=rank, world_size=size)
        if local_rank is None or local_size is None:
            machines = world.gather(this_machine())
            local_rank = machines[:rank].count(machines[rank]) if local_rank is None else local_rank
            local_size = machines.count(machines[rank])
        world = World(rank, size, local_rank, local_size)
        yield world
    except OtherProcessError:
        with suppress(RuntimeError):
            _job_store().set(_key_of_reader(world.rank), "")
        raise
    except AvptError as error:
        if dist.is_initialized() and _first_reports(world, str(error)):
            raise OtherProcessError from error
        raise
    except RuntimeError as error:
        of_the_job = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "peer", "NCCL"))
        if not of_the_job:
            raise
        cause = _cause(error)
        if OF_OTHERS.search(cause):
            raise OtherProcessError(LOST.format(cause)) from error
        if dist.is_initialized() and _first_reports(world, cause):
            raise OtherProcessError from error
        raise AvptError(CUT_OFF.format(cause)) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _cause(error: Exception) -> str:
    """A backend's error as one line, without the place in its source and the stack that it may add."""
    text = str(error).partition("\nException raised from")[0]
    head, _, last = text.partition("Last error:")  # NCCL's explanation; before it is a mere number
    cause = f"NCCL: {last.strip()}" if last.strip() else head
    cause = ". ".join(filter(None, map(str.strip, PLACE_IN_SOURCE.sub("", cause).splitlines())))
    return cause if len(cause) <= LONGEST_CAUSE else f"{cause[:LONGEST_CAUSE]} ..."


def this_machine() -> str:
    """A name that no other machine has, nor any other container on this one."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"


def _first_reports(world: World, message: str) -> bool:
    """Whether the first process fails with the same message.

    It puts its message into the job's store and stays until all have read it: the store may end with its process.
    """
    store = _job_store()
    try:
        if world.is_first:
            store.set("avpt-error", message)
            store.wait([_key_of_reader(rank) for rank in range(1, world.size)], NEWS)
            return False
        store.wait(["avpt-error"], NEWS)
        reported = store.get("avpt-error").decode()
        store.set(_key_of_reader(world.rank), "")
        return reported == message
    except RuntimeError:  # no message came, or the store is gone
        return False


def _key_of_reader(rank: int) -> str:
    return f"avpt-error-read-{rank}"


def _job_store() -> Store:
    import torch.distributed as dist

    store: Store = dist.distributed_c10d._get_default_store()
    return store
