"""Which clips make a batch, in which order, on which process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Sampler

from avpt.errors import StoreError
from avpt.loading import transforms

T = TypeVar("T")


def batch_bounds(num_clips: int, batch_size: int, processes: int = 1) -> list[int]:
    """The edges of batches of nearly equal size, without dropping clips; each process gets two or more, for BatchNorm.

    There are ceil(N / B) batches whose sizes differ by at most one; fewer if a process would get a single clip.
    """
    if num_clips < 2 * processes:
        each = "" if processes == 1 else f", two for each of {processes} processes"
        raise StoreError(f"the training split has {num_clips} clip(s); at least {2 * processes} are needed{each}")
    batches = min(-(-num_clips // batch_size), num_clips // (2 * processes))
    return [i * num_clips // batches for i in range(batches + 1)]


def share_of(items: Sequence[T], process: int, processes: int) -> Sequence[T]:
    """The part of some items that one of the processes takes; the sizes of parts differ by at most one."""
    return items[process * len(items) // processes : (process + 1) * len(items) // processes]


class EpochSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of (epoch, position, row): shuffled by (seed, epoch) in training, in order in evaluation.

    With `weights` (clips,), training draws as many clips as there are, with replacement, by these weights. With
    `further` clips, whose first column is their position, it has these besides, anywhere among the others; their rows
    follow those of the others. Each of several processes takes a share of every batch in training, and of the whole
    split in evaluation.
    """

    def __init__(
        self,
        num_clips: int,
        batch_size: int,
        seed: int | None,
        process: int = 0,
        processes: int = 1,
        weights: Tensor | None = None,
        further: Tensor | None = None,
    ) -> None:
        self.num_clips, self.seed, self.epoch, self.start = num_clips, seed, 0, 0
        self.process, self.processes, self.weights, self.further = process, processes, weights, further
        if seed is not None:
            count = num_clips if further is None else num_clips + len(further)
            self.edges = batch_bounds(count, batch_size, processes)
            return
        if num_clips < processes:
            raise StoreError(f"a split has {num_clips} clip(s) for {processes} processes; start fewer")
        mine = len(share_of(range(num_clips), process, processes))
        self.edges = [*range(0, mine, max(1, batch_size // processes)), mine]

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        positions, rows = self._order()
        for first, last in list(pairwise(self.edges))[self.start :]:
            mine: Sequence[int] = range(first, last)
            if self.seed is not None:
                mine = share_of(mine, self.process, self.processes)
            part = slice(mine[0], mine[-1] + 1)
            pairs = zip(positions[part].tolist(), rows[part].tolist(), strict=True)
            yield [(self.epoch, position, row) for position, row in pairs]

    def _order(self) -> tuple[Tensor, Tensor]:
        """Positions and rows (draws,) in the epoch's order; in evaluation, only those of this process."""
        if self.seed is None:
            mine = torch.tensor(share_of(range(self.num_clips), self.process, self.processes))
            return mine, mine
        generator = torch.Generator().manual_seed(transforms.clip_seed(self.seed, self.epoch, "", "order"))
        if self.weights is None:
            positions = rows = torch.randperm(self.num_clips, generator=generator)
        else:
            positions = torch.multinomial(self.weights, self.num_clips, replacement=True, generator=generator)
            rows = torch.arange(self.num_clips)
        if self.further is None:
            return positions, rows
        positions = torch.cat([positions, self.further[:, 0]])
        rows = torch.cat([rows, self.num_clips + torch.arange(len(self.further))])
        mixed = torch.randperm(len(rows), generator=generator)
        return positions[mixed], rows[mixed]
