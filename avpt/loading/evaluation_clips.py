"""The clips of any store as a trained model takes them: its classes, its sizes and, optionally, noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avpt.errors import StoreError
from avpt.loading.dataset import ClipDataset, InputSpec
from avpt.loading.transforms import clip_seed
from avpt.media.spectrograms import PADDING, log_mel, samples_needed
from avpt.store.splits import carve
from avpt.store.store import SplitIndex, Store
from avpt.types import Modality, Split


@dataclass(frozen=True)
class Noise:
    """White noise to add to one modality."""

    modality: Modality
    snr: float  # dB


def all_splits(store: Store, carved: float | None) -> dict[Split, SplitIndex]:
    """The splits that have clips.

    Args:
        store: the store.
        carved: the share of train that becomes val if the store has none, as in training; None if the store is not
            the one that the model was trained on.
    """
    splits = {split: index for split, index in store.indices.items() if len(index)}
    if carved is not None and "val" not in splits and "train" in splits:
        splits["train"], splits["val"] = carve(splits["train"], carved)
    return splits


@dataclass(frozen=True)
class Matched:
    """The clips of a split whose classes a model knows, with labels as it numbers them."""

    index: SplitIndex
    left_out: int  # clips of other classes
    labels_left_out: int  # unknown labels of clips that also have known ones
    unknown: list[str]  # classes of the clips that are left out
    unknown_labels: list[str]  # classes of the labels that are left out


def match_classes(index: SplitIndex, there: Sequence[str], known: Sequence[str]) -> Matched:
    """Match a store's classes with a model's by name; a clip none of whose labels the model knows is left out."""
    number = {name: i for i, name in enumerate(known)}
    to_known = np.array([number.get(name, -1) for name in there], dtype=np.int64)
    if index.labels.ndim == 1:
        labels = to_known[index.labels]
        keep = np.flatnonzero(labels >= 0)
        lost, strangers = 0, np.unique(index.labels[labels < 0])
        lost_strangers = strangers[:0]
    else:
        labels = np.zeros((len(index), len(known)), index.labels.dtype)
        labels[:, to_known[to_known >= 0]] = index.labels[:, to_known >= 0]
        keep = np.flatnonzero(labels.any(axis=1))
        lost = int(index.labels[keep].sum() - labels[keep].sum())
        strangers = np.flatnonzero(np.delete(index.labels, keep, axis=0).any(axis=0))
        lost_strangers = np.flatnonzero(index.labels[keep].any(axis=0) & (to_known < 0))
    return Matched(
        index=replace(index, labels=labels).take(keep),
        left_out=len(index) - len(keep),
        labels_left_out=lost,
        unknown=[there[i] for i in strangers],
        unknown_labels=[there[i] for i in lost_strangers],
    )


def check_spectrograms(store: Store, spec: InputSpec, indices: Sequence[SplitIndex]) -> None:
    """Check that a store's spectrograms are, or can be cut or padded to, those that a model takes.

    Longer ones are cut. Shorter ones are padded, but only if no clip fills them: its audio might have been cut off.

    Raises:
        StoreError: they can't; the message says what differs and how to preprocess.
    """
    have, frames = store.settings, int(store.settings["spectrogram_frames"])
    names = [name for name in ("sample_rate", "mel_bins", "pad") if have[name] != getattr(spec, name)]
    fits = frames >= spec.spectrogram_frames or (
        spec.pad == "zero" and all(int(index.num_audio_frames.max(initial=0)) < frames for index in indices)
    )
    if names or not fits:
        names += [] if fits else ["spectrogram_frames"]
        differences = ", ".join(f"{name} {have[name]} against {getattr(spec, name)}" for name in names)
        options = " ".join(f"--{name.replace('_', '-')} {getattr(spec, name)}" for name in names)
        raise StoreError(
            f"{store.path} holds other spectrograms than the model was trained on ({differences}); "
            f"preprocess its clips with {options}"
        )


def different_frames(settings: Mapping[str, Any], spec: InputSpec) -> list[str]:
    """The settings by which a store's frames differ from those that a model was trained on."""
    names = ("fps", "max_frames", "frame_size", "frame_codec", "frame_accuracy")
    pairs = [(name, settings.get(name, getattr(InputSpec, name, None)), getattr(spec, name)) for name in names]
    return [f"{name} {there} against {wanted}" for name, there, wanted in pairs if there != wanted]


class EvaluationDataset(ClipDataset):
    """The clips of one split as a trained model takes them, with noise where that is set."""

    noise: Noise | None = None  # that is added

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Tensor]:
        item = super().__getitem__(key)
        _, position, _ = key
        if "audio" in item:
            item["audio"] = fit_frames(item["audio"], self.spec.spectrogram_frames)
        if self.noise is None:
            return item
        modality = self.noise.modality
        seed = clip_seed(self.seed, 0, self.index.ids[position], f"{modality} noise")
        generator = torch.Generator().manual_seed(seed)
        if modality == "audio":
            real = int(self.index.num_audio_frames[position])
            item["audio"] = add_noise_to_audio(item["audio"], real, self.spec.sample_rate, self.noise.snr, generator)
        else:
            item["visual"] = add_noise_to_frames(item["visual"], self.noise.snr, generator)
        return item


def fit_frames(fbank: Tensor, frames: int) -> Tensor:
    """Cut or pad a spectrogram (..., frames, mel)."""
    lacking = frames - fbank.shape[-2]
    if lacking <= 0:
        return fbank[..., :frames, :]
    return torch.nn.functional.pad(fbank, (0, 0, 0, lacking), value=PADDING)


def add_noise_to_audio(
    fbank: Tensor, num_frames: int, sample_rate: int, snr: float, generator: torch.Generator
) -> Tensor:
    """Add white noise to a log-mel spectrogram, in the domain of mel power: log(exp(a) + g exp(n)).

    a is the clip's log-mel and n that of a white-noise waveform of the same length. The gain g makes the total mel
    power of the clip's real frames exceed the noise's by `snr` dB: sum exp(a) / (g sum exp(n)) = 10^(snr / 10).

    Args:
        fbank: (1, frames, mel), before normalisation.
        num_frames: how many of the frames are not padding; padding stays as it is.
        sample_rate: Hz.
        snr: dB.
        generator: draws the noise.
    """
    real = min(num_frames, fbank.shape[1])
    waveform = torch.randn(samples_needed(real, sample_rate), generator=generator).numpy()
    noise = log_mel(waveform, sample_rate=sample_rate, mel_bins=fbank.shape[2]).double()
    clean = fbank[0, :real].double()
    gain = clean.flatten().logsumexp(0) - noise.flatten().logsumexp(0) - snr / 10 * math.log(10)
    noisy = fbank.float()
    noisy[0, :real] = torch.logaddexp(clean, noise + gain).float()
    return noisy


def add_noise_to_frames(frames: Tensor, snr: float, generator: torch.Generator) -> Tensor:
    """Add white Gaussian noise to the pixels of each picture, rounded and clipped to 0..255.

    Its variance is the picture's own variance (over all pixels and colours) divided by 10^(snr / 10).

    Args:
        frames: (frames, 3, height, width) uint8, at the size that the encoder takes.
        snr: dB.
        generator: draws the noise.
    """
    pixels = frames.double()
    power = pixels.var(dim=(1, 2, 3), keepdim=True, correction=0)
    noise = torch.randn(frames.shape, generator=generator, dtype=torch.float64)
    noisy = pixels + noise * (power / 10 ** (snr / 10)).sqrt()
    return noisy.round().clamp(0, 255).to(torch.uint8)
