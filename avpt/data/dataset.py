"""From a store to batches on the device: which clips, in which order, with which augmentation and mask."""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import signal
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from avpt.artifacts import pack_ids
from avpt.data import transforms
from avpt.data.store import SplitIndex
from avpt.errors import AvptError, StoreError
from avpt.processes import die_with_parent
from avpt.types import MODALITIES, Batch, Modality

T = TypeVar("T")

PREFETCHED = 2  # batches that each worker is ahead


@dataclass(frozen=True)
class InputSpec:
    """How stored values become a model's input; part of every model's spec."""

    sample_rate: int
    mel_bins: int
    spectrogram_frames: int
    pad: str
    fps: float
    max_frames: int
    frame_size: int
    mean: float  # of the training split's log-mel
    std: float
    image_size: int
    num_frames: int
    audio_dtype: str = "float16"  # these three make a clip file the same input as a store would
    frame_codec: str = "jpeg"
    frame_accuracy: str = "exact"


@dataclass(frozen=True)
class Augmentation:
    """What training does to a clip at random; depends on (seed, epoch, clip) alone, and on which draw of it this is."""

    crop_scale: tuple[float, float]
    flip: bool
    spec_augment: tuple[int, int]  # mel bins, frames
    modality_dropout: float = 0.0  # share of the clips of which one modality, either, is withheld


@dataclass(frozen=True)
class Masking:
    """How many patches of each training clip's inputs are masked."""

    patch: dict[Modality, tuple[int, int]]
    num_masked: dict[Modality, Tensor]  # (clips,) int64


def grid(spec: InputSpec, modality: Modality) -> tuple[int, int]:
    """(height, width) of the plane that patches are cut from."""
    return (spec.spectrogram_frames, spec.mel_bins) if modality == "audio" else (spec.image_size, spec.image_size)


def read_fbank(index: SplitIndex, position: int) -> Tensor:
    """The spectrogram of a clip, (frames, mel), as stored."""
    shape = index.shards.fbank_shape
    row, values = int(index.row[position]), math.prod(shape)
    stored = index.shards.read(int(index.shard[position]), "audio/fbank", row * values, values)
    return torch.from_numpy(stored).view(shape)


def read_frames(index: SplitIndex, position: int, chosen: Sequence[int], codec: str) -> Iterator[Tensor]:
    """The chosen frames of a clip, each (3, height, width) uint8, one after the other.

    Raises:
        StoreError: one is damaged.
    """
    read = partial(index.shards.read, int(index.shard[position]))
    available = int(index.num_visual_frames[position])
    (first,) = read("visual/clip_offset", int(index.row[position]), 1).tolist()
    edges = read("visual/byte_offset", first, available + 1).tolist()
    sizes = read("visual/size", 2 * first, 2 * available).reshape(-1, 2).tolist()
    for frame in chosen:
        encoded = read("visual/bytes", edges[frame], edges[frame + 1] - edges[frame])
        try:
            yield transforms.decode_frame(encoded, codec, *sizes[frame])
        except RuntimeError:
            path = index.shards.paths[index.shard[position]]
            raise StoreError(f"{path} holds a damaged frame; look at it with `avpt verify --deep`") from None


class ClipDataset(Dataset[dict[str, Tensor]]):
    """Clips of one split by (epoch, position, row): see `Batch.rows`."""

    def __init__(
        self,
        index: SplitIndex,
        modalities: Sequence[Modality],
        spec: InputSpec,
        frame_codec: str,
        *,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        masking: Masking | None = None,
    ) -> None:
        self.index, self.modalities, self.spec, self.frame_codec = index, modalities, spec, frame_codec
        self.seed, self.augmentation, self.masking = seed, augmentation, masking
        self._frames = (
            transforms.evaluation_frames(spec.image_size)
            if augmentation is None
            else transforms.training_frames(spec.image_size, augmentation.crop_scale, augmentation.flip)
        )
        # of a list each worker would come to own a copy: to look at a string is to write its reference count
        ids = pack_ids(index.ids)
        self._id_bytes, self._id_offsets = ids["id_bytes"].numpy(), ids["id_offsets"].numpy()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Tensor]:
        epoch, position, row = key
        start, stop = self._id_offsets[position : position + 2]
        clip_id = self._id_bytes[start:stop].tobytes().decode()

        def seed(use: str) -> int:
            use += "" if row == position else f":{row}"  # a clip that is drawn twice looks different each time
            return transforms.clip_seed(self.seed, epoch, clip_id, use)

        item = {"position": torch.tensor(position), "row": torch.tensor(row)}
        label = torch.as_tensor(self.index.labels[position])
        item["label"] = label.float() if label.ndim else label
        with torch.random.fork_rng(devices=[]):  # torchvision and torchaudio draw from the global generator
            torch.default_generator.manual_seed(seed("augment"))
            if "audio" in self.modalities:
                item["audio"] = self._audio(position)
            if "visual" in self.modalities:
                item["visual"] = self._visual(position)
        if self.masking is not None:
            item |= self._scores(seed("mask"))
        if self.augmentation is not None and self.augmentation.modality_dropout:
            item["present"] = transforms.draw_present(self.augmentation.modality_dropout, seed("dropout"))
        return item

    def _audio(self, position: int) -> Tensor:
        """(1, frames, mel), as stored."""
        fbank = read_fbank(self.index, position)
        if self.augmentation is not None and any(self.augmentation.spec_augment):
            fbank = transforms.spec_augment(fbank, *self.augmentation.spec_augment, fill=self.spec.mean)
        return fbank[None]

    def _visual(self, position: int) -> Tensor:
        """(frames, 3, height, width) uint8."""
        available = int(self.index.num_visual_frames[position])
        generator = torch.default_generator if self.augmentation is not None else None
        chosen = transforms.draw_frames(available, self.spec.num_frames, generator)
        frames = read_frames(self.index, position, chosen, self.frame_codec)
        return torch.stack([self._frames(frame) for frame in frames])

    def _scores(self, seed: int) -> dict[str, Tensor]:
        assert self.masking is not None
        generator = torch.Generator().manual_seed(seed)
        scores = {}
        for modality in MODALITIES:
            patches = transforms.num_patches(*grid(self.spec, modality), self.masking.patch[modality])
            inputs = 1 if modality == "audio" else self.spec.num_frames
            scores[f"{modality}_scores"] = torch.rand(inputs, patches, generator=generator)
        return scores


def batch_bounds(num_clips: int, batch_size: int, processes: int = 1) -> list[int]:
    """Edges of batches of nearly equal size: none dropped, none that leaves a process one clip (BatchNorm needs two).

    ceil(N / B) batches whose sizes differ by one at most; fewer where else a clip would be alone.
    """
    if num_clips < 2 * processes:
        each = "" if processes == 1 else f", two for each of {processes} processes"
        raise StoreError(f"the training split has {num_clips} clip(s); at least {2 * processes} are needed{each}")
    batches = min(-(-num_clips // batch_size), num_clips // (2 * processes))
    return [i * num_clips // batches for i in range(batches + 1)]


def share_of(items: Sequence[T], process: int, processes: int) -> Sequence[T]:
    """The part of some items that one of the processes takes; sizes differ by one at most."""
    return items[process * len(items) // processes : (process + 1) * len(items) // processes]


class EpochSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of (epoch, position, row): shuffled by (seed, epoch) in training, in order in evaluation.

    With `weights` (clips,) training draws as many clips as there are, again and again, each time by these weights.
    Of several processes each takes a share of every batch in training, and of the whole split in evaluation.
    """

    def __init__(
        self,
        num_clips: int,
        batch_size: int,
        seed: int | None,
        process: int = 0,
        processes: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        self.num_clips, self.seed, self.epoch, self.start = num_clips, seed, 0, 0
        self.process, self.processes, self.weights = process, processes, weights
        if seed is not None:
            self.edges = batch_bounds(num_clips, batch_size, processes)
            return
        if num_clips < processes:
            raise StoreError(f"a split has {num_clips} clip(s) for {processes} processes; start fewer")
        mine = len(share_of(range(num_clips), process, processes))
        self.edges = [*range(0, mine, max(1, batch_size // processes)), mine]

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order = self._order()
        for first, last in list(pairwise(self.edges))[self.start :]:
            draws: Sequence[int] = range(first, last)
            if self.seed is not None:
                draws = share_of(draws, self.process, self.processes)
            positions = order[draws[0] : draws[-1] + 1].tolist()
            rows = positions if self.weights is None else draws
            yield [(self.epoch, position, row) for position, row in zip(positions, rows, strict=True)]

    def _order(self) -> Tensor:
        """Positions (clips,) as the epoch takes them; in evaluation those of this process."""
        if self.seed is None:
            return torch.tensor(share_of(range(self.num_clips), self.process, self.processes))
        generator = torch.Generator().manual_seed(transforms.clip_seed(self.seed, self.epoch, "", "order"))
        if self.weights is None:
            return torch.randperm(self.num_clips, generator=generator)
        return torch.multinomial(self.weights, self.num_clips, replacement=True, generator=generator)


class Collation:
    """Clips to batches, in a worker: the large tensors take turns in shared memory that stays.

    New shared memory costs more than to fill it. There are turns enough for all batches of a worker that are on their
    way and for the one that the parent is still reading.
    """

    LARGE = ("audio", "visual")

    def __init__(self) -> None:
        self._memory: dict[tuple[str, int], Tensor] = {}
        self._turn = 0

    def __call__(self, clips: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack what the clips have, by name."""
        self._turn = (self._turn + 1) % (PREFETCHED + 1)
        return {name: self._stack(name, [clip[name] for clip in clips]) for name in clips[0]}

    def _stack(self, name: str, values: list[Tensor]) -> Tensor:
        if get_worker_info() is None or name not in self.LARGE:
            return torch.stack(values)
        memory = self._memory.get((name, self._turn))
        if memory is None or len(memory) < len(values):
            memory = torch.empty(len(values), *values[0].shape, dtype=values[0].dtype)
            self._memory[name, self._turn] = memory.share_memory_()  # type: ignore[no-untyped-call]
        return torch.stack(values, out=memory[: len(values)])


class Memory:
    """Memory of tensors that nobody holds any more, for the next: new memory costs more than to fill it."""

    def __init__(self) -> None:
        self._free: dict[str, list[np.ndarray[Any, Any]]] = {}

    def floats(self, use: str, shape: Sequence[int]) -> Tensor:
        """A float32 tensor on the CPU; what is in it is undefined."""
        size, free = math.prod(shape), self._free.setdefault(use, [])
        memory = free.pop() if free else np.empty(size, np.float32)
        if len(memory) < size:
            memory = np.empty(size, np.float32)
        lent = memory[:size]  # lives as long as the tensor, its views, and what autograd saves of them
        weakref.finalize(lent, _take_back, free, memory).atexit = False
        return torch.from_numpy(lent).view(*shape)


def _take_back(free: list[np.ndarray[Any, Any]], memory: np.ndarray[Any, Any]) -> None:
    if not free:
        free.append(memory)


class Loader:
    """Batches of a dataset on the device, normalised and masked; `epoch(n)` iterates over one pass."""

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        device: torch.device,
        workers: int,
        shuffle_seed: int | None = None,
        weights: Tensor | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.dataset, self.device, self._memory = dataset, device, Memory()
        self.sampler = EpochSampler(len(dataset), batch_size, shuffle_seed, process, processes, weights)
        workers = min(workers, len(self.sampler))
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)  # after multiprocessing's own, so that it runs before that
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            collate_fn=Collation(),
            num_workers=workers,
            persistent_workers=workers > 0 and shuffle_seed is not None,  # others hold their memory for a pass only
            prefetch_factor=PREFETCHED if workers else None,
            pin_memory=device.type == "cuda",
            worker_init_fn=partial(_start_worker, os.getpid()),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """One pass, from batch `start` on; what is random about it depends on `number` and the seed alone."""
        self.sampler.epoch, self.sampler.start = number, start
        batches = iter(self.loader)
        for first, last in list(pairwise(self.sampler.edges))[start:]:
            item = _next(batches)
            assert item is not None
            yield self._prepare(item, last - first)

    def clips(self, number: int, positions: Sequence[int]) -> Batch:
        """Some clips as pass `number` feeds them, read by this process; no pass is changed by that."""
        item = self.loader.collate_fn([self.dataset[number, position, position] for position in positions])
        return self._prepare(item, len(positions))

    def _prepare(self, item: dict[str, Tensor], total: int) -> Batch:
        spec, masking = self.dataset.spec, self.dataset.masking
        # a worker's tensor holds a file open for as long as it lives, and results are kept for a whole pass
        item = {name: value if name in Collation.LARGE else value.clone() for name, value in item.items()}
        inputs: dict[Modality, Tensor] = {}
        if "audio" in item:
            inputs["audio"] = transforms.normalise_audio(self._floats("audio", item["audio"]), spec.mean, spec.std)
        if "visual" in item:
            inputs["visual"] = transforms.normalise_visual(self._floats("visual", item["visual"]))
        if masking is not None:
            for modality, values in inputs.items():
                count = masking.num_masked[modality][item["position"]].to(self.device)
                scores = item[f"{modality}_scores"].to(self.device, non_blocking=True)
                flat = values.view(-1, *values.shape[-3:])  # each frame of a clip has patches of its own
                count = count.repeat_interleave(len(flat) // len(count))
                masked = transforms.mask_patches(flat, scores.flatten(0, 1), count, masking.patch[modality])
                inputs[modality] = masked.view_as(values)
        label, *present = (
            item[name].to(self.device, non_blocking=True) for name in ("label", "present") if name in item
        )
        draws = None if self.sampler.weights is None else item["row"]
        return Batch((*inputs.values(), *present), label, item["position"], total, draws=draws)

    def _floats(self, modality: Modality, stored: Tensor) -> Tensor:
        """A copy on the device."""
        if self.device.type == "cpu":
            return self._memory.floats(modality, stored.shape).copy_(stored)
        pinned = self.device.type == "cuda"  # else a worker would write into what is still being copied
        return stored.to(self.device, non_blocking=pinned).to(torch.float32)


def _next(batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """The next batch, or None; what a worker says of an error is brought back to its one line."""
    try:
        return next(batches, None)
    except AvptError as error:  # torch puts the worker's traceback before it
        raise StoreError(str(error).strip().splitlines()[-1].removeprefix("avpt.errors.StoreError: ")) from error


@contextmanager
def deaths_told() -> Iterator[None]:
    """Tell the death of a loading process in one line; torch raises it wherever the main process stands.

    Raises:
        AvptError: one died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise AvptError("a loading process died (out of memory?); try again with fewer --workers") from error


def _end_workers() -> None:
    """Multiprocessing would ask those that an error left behind to end, and wait for ever: they ignore SIGTERM."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise that they were killed
    for process in multiprocessing.active_children():
        process.kill()


def _start_worker(parent: int, number: int) -> None:
    die_with_parent()
    if os.getppid() != parent:  # it died before that was asked for
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to the whole group: the parent ends its workers itself
