"""From a dataset to batches on the device: loading processes, normalisation, masks."""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from avpt.errors import AvptError, StoreError
from avpt.loading import transforms
from avpt.loading.dataset import ClipDataset
from avpt.loading.memory import PREFETCHED, Collation, Memory
from avpt.loading.sampling import EpochSampler
from avpt.machine.processes import die_with_parent, start_forkserver
from avpt.types import Batch, Modality


class Loader:
    """Batches of a dataset on the device, normalised and masked; `epoch(n)` iterates over one pass.

    A pass may have `further` clips (n, 3) int64 beside the plain ones: position, and whether the features of sound and
    of pictures are there, 1 or 0. Clips withheld at random are the plain ones alone.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        device: torch.device,
        workers: int,
        shuffle_seed: int | None = None,
        weights: Tensor | None = None,
        further: Tensor | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.dataset, self.device, self._memory = dataset, device, Memory()
        self.sampler = EpochSampler(len(dataset), batch_size, shuffle_seed, process, processes, weights, further)
        workers = min(workers, len(self.sampler))
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)  # registered after multiprocessing's handler, so that it runs first
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            collate_fn=Collation(),
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,  # workers live for one pass: two loaders never have theirs at the same time
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """One pass, from batch `start` on; what is random about it depends on `number` and the seed alone."""
        self.sampler.epoch, self.sampler.start = number, start
        if self.loader.num_workers and multiprocessing.get_start_method() == "forkserver":
            start_forkserver(__name__)
        try:
            batches = iter(self.loader)
        except OSError as error:  # locks between processes are in shared memory too
            if error.errno != errno.ENOSPC or not self.loader.num_workers:
                raise
            raise AvptError(_full_memory()) from error
        for first, last in list(pairwise(self.sampler.edges))[start:]:
            with nullcontext() if self.loader.num_workers else _one_thread():
                item = _next(batches)
            assert item is not None
            yield self._prepare(item, last - first)

    def clips(self, number: int, positions: Sequence[int]) -> Batch:
        """Some clips as pass `number` has them, read by this process, without effect on any pass."""
        with _one_thread():
            item = self.loader.collate_fn([self.dataset[number, position, position] for position in positions])
        return self._prepare(item, len(positions))

    def _prepare(self, item: dict[str, Tensor], total: int) -> Batch:
        spec, masking = self.dataset.spec, self.dataset.masking
        # a worker's tensor keeps a file open as long as it exists, and results are kept for a whole pass
        item = {name: value if name in Collation.LARGE else value.clone() for name, value in item.items()}
        if (further := self.sampler.further) is not None:
            number = item["row"] - len(self.dataset)
            there = item.get("present", torch.ones(len(number), 2))
            there[number >= 0] = further[number[number >= 0], 1:].to(there.dtype)
            item["present"] = there
        inputs: dict[Modality, Tensor] = {}
        if "audio" in item:
            inputs["audio"] = transforms.normalise_audio(self._floats("audio", item["audio"]), spec.mean, spec.std)
        if "visual" in item:
            inputs["visual"] = transforms.normalise_visual(self._floats("visual", item["visual"]), spec.colours)
        if masking is not None:
            for modality, values in inputs.items():
                count = masking.num_masked[modality][item["position"]].to(self.device, non_blocking=True)
                scores = item[f"{modality}_scores"].to(self.device, non_blocking=True)
                flat = values.view(-1, *values.shape[-3:])  # each frame of a clip is masked separately
                count = count.repeat_interleave(len(flat) // len(count))
                masked = transforms.mask_patches(flat, scores.flatten(0, 1), count, masking.patch[modality])
                inputs[modality] = masked.view_as(values)
        label, *present = (
            item[name].to(self.device, non_blocking=True) for name in ("label", "present") if name in item
        )
        draws = None if self.sampler.weights is None and further is None else item["row"]
        return Batch((*inputs.values(), *present), label, item["position"], total, draws=draws)

    def _floats(self, modality: Modality, stored: Tensor) -> Tensor:
        """A float32 copy on the device."""
        if self.device.type == "cpu":
            return self._memory.floats(modality, stored.shape).copy_(stored)
        pinned = self.device.type == "cuda"  # otherwise a worker would overwrite what is still being copied
        return stored.to(self.device, non_blocking=pinned).to(torch.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, as loading processes do: several round the sums of a spectrogram otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _next(batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """The next batch, or None; a worker's StoreError is raised again with its one-line message."""
    try:
        return next(batches, None)
    except AvptError as error:  # torch puts the worker's traceback before it
        raise StoreError(str(error).strip().splitlines()[-1].removeprefix("avpt.errors.StoreError: ")) from error


@contextmanager
def explain_worker_deaths() -> Iterator[None]:
    """Turn the death of a loading process into a one-line error; torch raises it at any point in the main process.

    Raises:
        AvptError: a loading process died, or ran out of memory or files.
    """
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if message := _explain(str(error)):
            raise AvptError(message) from error
        raise


def _explain(error: str) -> str | None:
    """What an error of torch's loader means for the user; None if it is not a known one."""
    if not any(word in error for word in ("DataLoader worker", "shared memory", "ancdata")):
        return None
    if "Too many open files" in error or "ancdata" in error:
        return "too many files are open; raise `ulimit -n`, or try fewer --workers"
    if "shared memory" in error:  # a bus error too, if a process was writing when it became full
        return _full_memory()
    last = error.strip().splitlines()[-1]
    if "Caught " in error:  # the process is alive and reports an exception
        memory_lacks = "allocate memory" in error or "MemoryError" in error
        return f"a loading process has too little memory ({last}); try fewer --workers" if memory_lacks else None
    died = re.search(r"is killed by signal: ([^.]*)|exited unexpectedly", error)
    how = (died and (died[1] or died[0])) or last
    return f"a loading process died ({how}; out of memory?); try again with fewer --workers"


def _full_memory() -> str:
    memory = "/dev/shm"
    with suppress(OSError):
        usage = shutil.disk_usage(memory)
        memory += f" ({usage.total / 2**20:.1f} MiB, {usage.free / 2**20:.1f} free)"
    return (
        f"{memory} is full: loading processes hand batches over in it; give it more, as with "
        "`docker run --shm-size`, or try fewer --workers or a smaller --batch-size"
    )


def _end_workers() -> None:
    """Kill workers that an error left behind: they ignore SIGTERM, so multiprocessing would wait for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise an error since they were killed
    for process in multiprocessing.active_children():
        process.kill()


def _start_worker(number: int) -> None:
    die_with_parent()
    # SIGTERM is sent to the whole group, but the parent ends its workers itself
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
