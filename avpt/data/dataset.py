"""From a store to batches on the device: which clips, in which order, with which augmentation and mask."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import h5py
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from avpt.data import transforms
from avpt.data.store import SplitIndex, open_shard
from avpt.errors import AvptError, StoreError
from avpt.processes import die_with_parent
from avpt.types import MODALITIES, Batch, Modality

T = TypeVar("T")

OPEN_SHARDS = 64  # per process; a data set has thousands, a process may open about one thousand files


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
    """What training does to a clip at random; depends on (seed, epoch, clip) alone."""

    crop_scale: tuple[float, float]
    flip: bool
    spec_augment: tuple[int, int]  # mel bins, frames


@dataclass(frozen=True)
class Masking:
    """How many patches of each training clip's inputs are masked."""

    patch: dict[Modality, tuple[int, int]]
    num_masked: dict[Modality, Tensor]  # (clips,) int64


def grid(spec: InputSpec, modality: Modality) -> tuple[int, int]:
    """(height, width) of the plane that patches are cut from."""
    return (spec.spectrogram_frames, spec.mel_bins) if modality == "audio" else (spec.image_size, spec.image_size)


class ClipDataset(Dataset[dict[str, Tensor]]):
    """Clips of one split by (epoch, position). Shards are opened on first read, once per process."""

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
        self._open: dict[Path, h5py.File] = {}
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}, "_process": 0}  # h5py objects can't be pickled

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, position = key
        clip_id = self.index.ids[position]
        item = {"position": torch.tensor(position)}
        label = torch.as_tensor(self.index.labels[position])
        item["label"] = label.float() if label.ndim else label
        with torch.random.fork_rng(devices=[]):  # torchvision and torchaudio draw from the global generator
            torch.default_generator.manual_seed(transforms.clip_seed(self.seed, epoch, clip_id, "augment"))
            if "audio" in self.modalities:
                item["audio"] = self._audio(position)
            if "visual" in self.modalities:
                item["visual"] = self._visual(position)
        if self.masking is not None:
            item |= self._scores(transforms.clip_seed(self.seed, epoch, clip_id, "mask"))
        return item

    def _audio(self, position: int) -> Tensor:
        """(1, frames, mel), as stored."""
        file = self._shard(position)
        fbank = torch.from_numpy(file["audio/fbank"][self.index.row[position]])
        if self.augmentation is not None and any(self.augmentation.spec_augment):
            fbank = transforms.spec_augment(fbank, *self.augmentation.spec_augment, fill=self.spec.mean)
        return fbank[None]

    def _visual(self, position: int) -> Tensor:
        """(frames, 3, height, width) uint8."""
        file, row = self._shard(position), self.index.row[position]
        first = int(file["visual/clip_offset"][row])
        generator = torch.default_generator if self.augmentation is not None else None
        chosen = transforms.draw_frames(int(self.index.num_visual_frames[position]), self.spec.num_frames, generator)
        frames = []
        for frame in chosen:
            start, stop = file["visual/byte_offset"][first + frame : first + frame + 2]
            height, width = file["visual/size"][first + frame]
            encoded = file["visual/bytes"][start:stop]
            frames.append(self._frames(transforms.decode_frame(encoded, self.frame_codec, int(height), int(width))))
        return torch.stack(frames)

    def _scores(self, seed: int) -> dict[str, Tensor]:
        assert self.masking is not None
        generator = torch.Generator().manual_seed(seed)
        scores = {}
        for modality in MODALITIES:
            patches = transforms.num_patches(*grid(self.spec, modality), self.masking.patch[modality])
            inputs = 1 if modality == "audio" else self.spec.num_frames
            scores[f"{modality}_scores"] = torch.rand(inputs, patches, generator=generator)
        return scores

    def _shard(self, position: int) -> h5py.File:
        if self._process != os.getpid():  # a fork must not read through its parent's open files
            self._open, self._process = {}, os.getpid()
        path = self.index.shards[self.index.shard[position]]
        file = self._open.pop(path) if path in self._open else open_shard(path)
        self._open[path] = file  # last in the dict: the one used latest
        if len(self._open) > OPEN_SHARDS:
            self._open.pop(next(iter(self._open))).close()
        return file


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


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position): shuffled by (seed, epoch) in training, in order in evaluation.

    Of several processes each takes a share of every batch in training, and of the whole split in evaluation.
    """

    def __init__(self, num_clips: int, batch_size: int, seed: int | None, process: int = 0, processes: int = 1) -> None:
        self.num_clips, self.seed, self.epoch, self.start = num_clips, seed, 0, 0
        self.process, self.processes = process, processes
        if seed is not None:
            self.edges = batch_bounds(num_clips, batch_size, processes)
            return
        if num_clips < processes:
            raise StoreError(f"a split has {num_clips} clip(s) for {processes} processes; start fewer")
        mine = len(share_of(range(num_clips), process, processes))
        self.edges = [*range(0, mine, max(1, batch_size // processes)), mine]

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: Sequence[int] = range(self.num_clips)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(transforms.clip_seed(self.seed, self.epoch, "", "order"))
            order = torch.randperm(self.num_clips, generator=generator).tolist()
        else:
            order = share_of(order, self.process, self.processes)
        for first, last in list(pairwise(self.edges))[self.start :]:
            batch = order[first:last]
            if self.seed is not None:
                batch = share_of(batch, self.process, self.processes)
            yield [(self.epoch, position) for position in batch]


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
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.dataset, self.device = dataset, device
        self.sampler = EpochSampler(len(dataset), batch_size, shuffle_seed, process, processes)
        workers = min(workers, len(self.sampler))
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)  # after multiprocessing's own, so that it runs before that
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
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

    def _prepare(self, item: dict[str, Tensor], total: int) -> Batch:
        spec, masking = self.dataset.spec, self.dataset.masking
        on_device = {
            name: value.to(self.device, non_blocking=True) for name, value in item.items() if name != "position"
        }
        inputs: dict[Modality, Tensor] = {}
        if "audio" in on_device:
            inputs["audio"] = transforms.normalise_audio(on_device["audio"], spec.mean, spec.std)
        if "visual" in on_device:
            inputs["visual"] = transforms.normalise_visual(on_device["visual"])
        if masking is not None:
            for modality, values in inputs.items():
                count = masking.num_masked[modality][item["position"]].to(self.device)
                scores = on_device[f"{modality}_scores"]
                flat = values.view(-1, *values.shape[-3:])  # each frame of a clip has patches of its own
                count = count.repeat_interleave(len(flat) // len(count))
                masked = transforms.mask_patches(flat, scores.flatten(0, 1), count, masking.patch[modality])
                inputs[modality] = masked.view_as(values)
        return Batch(tuple(inputs.values()), on_device["label"], item["position"], total)


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
    for process in multiprocessing.active_children():
        process.kill()


def _start_worker(number: int) -> None:
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to the whole group: the parent ends its workers itself
