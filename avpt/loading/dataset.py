"""The clips of one split as a model's input: which frames, with which augmentation, from which seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from avpt.errors import StoreError
from avpt.files.artifacts import pack_ids
from avpt.files.records import InputSpec as InputSpec
from avpt.loading import transforms
from avpt.media.codecs import DamagedFrameError, decode_frame
from avpt.store.store import SplitIndex
from avpt.types import MODALITIES, FrameCodec, Modality


@dataclass(frozen=True)
class Augmentation:
    """The random changes to a training clip; they depend on seed, epoch, clip and which draw of the clip it is."""

    crop_scale: tuple[float, float]
    flip: bool
    spec_augment: tuple[int, int]  # mel bins, frames
    modality_dropout: float = 0.0  # share of the clips that lose one of their modalities


@dataclass(frozen=True)
class Masking:
    """How many patches of each training clip's inputs are masked."""

    patch: dict[Modality, tuple[int, int]]
    num_masked: dict[Modality, Tensor]  # (clips,) int64


def grid(spec: InputSpec, modality: Modality) -> tuple[int, int]:
    """The (height, width) of the plane that is cut into patches."""
    return (spec.spectrogram_frames, spec.mel_bins) if modality == "audio" else (spec.image_size, spec.image_size)


def read_fbank(index: SplitIndex, position: int) -> Tensor:
    """Read the spectrogram of a clip, (frames, mel), as stored."""
    shape = index.shards.fbank_shape
    row, values = int(index.row[position]), math.prod(shape)
    stored = index.shards.read(int(index.shard[position]), "audio/fbank", row * values, values)
    return torch.from_numpy(stored).view(shape)


def read_frames(index: SplitIndex, position: int, chosen: Sequence[int], codec: FrameCodec) -> Iterator[Tensor]:
    """Read the chosen frames of a clip, each (3, height, width) uint8, one by one.

    Raises:
        StoreError: a frame is damaged.
    """
    read = partial(index.shards.read, int(index.shard[position]))
    available = int(index.num_visual_frames[position])
    (first,) = read("visual/clip_offset", int(index.row[position]), 1).tolist()
    edges = read("visual/byte_offset", first, available + 1).tolist()
    sizes = read("visual/size", 2 * first, 2 * available).reshape(-1, 2).tolist()
    for frame in chosen:
        encoded = read("visual/bytes", edges[frame], edges[frame + 1] - edges[frame])
        height, width = sizes[frame]
        try:
            yield decode_frame(encoded, codec, height, width)
        except DamagedFrameError:
            path = index.shards.paths[index.shard[position]]
            raise StoreError(f"{path} holds a damaged frame; look at it with `avpt verify --deep`") from None


class ClipDataset(Dataset[dict[str, Tensor]]):
    """The clips of one split by (epoch, position, row); `Batch.rows` says what a row is."""

    def __init__(
        self,
        index: SplitIndex,
        modalities: Sequence[Modality],
        spec: InputSpec,
        frame_codec: FrameCodec,
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
        # each worker would end up with a copy of a list: reading a string writes its reference count
        ids = pack_ids(index.ids)
        self._id_bytes, self._id_offsets = ids["id_bytes"].numpy(), ids["id_offsets"].numpy()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Tensor]:
        epoch, position, row = key
        start, stop = self._id_offsets[position : position + 2]
        clip_id = self._id_bytes[start:stop].tobytes().decode()

        def seed(use: str) -> int:
            use += "" if row == position else f":{row}"  # a clip that is drawn twice is augmented differently
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
