"""What `import avpt` offers beside the program; `avpt.masking` has the rest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from avpt.diagnosis.dead_channels import measure
from avpt.errors import ConfigError, StoreError
from avpt.files.records import InputSpec
from avpt.loading import transforms
from avpt.loading.dataset import ClipDataset, read_fbank, read_frames
from avpt.models import abri as abri_layers
from avpt.models.abnormal_channels import abnormal_report
from avpt.models.fusion import FusedModel
from avpt.models.layouts import largest_state
from avpt.runs.trained_model import TrainedModel, load_trained
from avpt.store.store import Store
from avpt.types import MODALITIES, Batch, Modality, Split

NORMALISATION = ("mean", "std", "picture_mean", "picture_std")  # of a pipeline
SPECTROGRAMS = ("sample_rate", "mel_bins", "spectrogram_frames")

__all__ = ["Clips", "Model", "abri", "fold", "inspect", "load_model", "open_store"]


def abri(model: nn.Module, *, alpha: float = 0.5, per: Literal["channel", "layer"] = "channel") -> nn.Module:
    """Turn every BatchNorm of a network into an ABRi layer (arXiv 2302.03533), in place, and return the network.

    Do so before the network moves to its device and before the optimiser is made: it has new parameters.

    Args:
        model: any network with BatchNorm1d, BatchNorm2d or timm's BatchNormAct2d.
        alpha: the share of the pre-trained branch at the start.
        per: whether each channel learns an alpha of its own, or each layer.

    Raises:
        ConfigError: it has no BatchNorm to convert, ABRi layers already, or a BatchNorm that ABRi does not know.
    """
    _check_network(model)
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is {alpha}; it must be 0 to 1")
    return abri_layers.convert(model, alpha, per)


def fold(model: nn.Module) -> nn.Module:
    """Turn every ABRi layer into the plain BatchNorm that it amounts to, in place, and return the network.

    Outputs in evaluation mode stay the same, and the state dict has the names of the network as it was before `abri`.
    A network without ABRi layers is returned as it is.

    Raises:
        ConfigError: it is not a network.
    """
    _check_network(model)
    return abri_layers.fold_network(model)


def inspect(
    model: nn.Module | Mapping[str, Any],
    inputs: Iterable[Tensor] | Tensor | None = None,
    *,
    threshold: float = 1e-6,
    dead_share: float = 0.999,
) -> dict[str, Any]:
    """Find abnormal BatchNorm channels and, where inputs are given, dead ones, as `avpt inspect` does.

    Args:
        model: a network, its state dict, or a checkpoint with one inside, such as `{"state_dict": ...}`. Of ABRi layers
            it is the pre-trained branch that is looked at.
        inputs: batches (batch, channels, height, width), or one, on the network's device, that are fed to it.
        threshold: channels with max(|gamma|, |beta|) below it are abnormal.
        dead_share: channels that are zero at this share of the positions behind the activation or more are dead.

    Returns:
        `layers`, a list of `name`, `channels`, `abnormal`, and `dead`, which is None where it was not measured;
        `abnormal_share` and `dead_share` over the channels of all (measured) layers, None where there are none.

    Raises:
        ConfigError: it holds no tensors, or inputs are given with a state dict, which can't be fed.
    """
    if not isinstance(model, nn.Module | Mapping):
        raise ConfigError(f"a network or its state_dict() can be inspected, not a {type(model).__name__}")
    state = model.state_dict() if isinstance(model, nn.Module) else largest_state(model)
    if not state and isinstance(model, Mapping) and model:
        raise ConfigError("there are no tensors to inspect in it; give a network, or its state_dict()")
    report = abnormal_report(state, threshold)
    dead: dict[str, Tensor] = {}
    if inputs is not None:
        if not isinstance(model, nn.Module):
            raise ConfigError("a state dict can't be fed; give the network itself to find dead channels")
        several = [inputs] if isinstance(inputs, Tensor) else inputs
        batches = (Batch((batch,), torch.zeros(len(batch)), torch.arange(len(batch))) for batch in several)
        (activity,) = measure([model], batches)
        dead = activity.dead(dead_share)
    for layer in report["layers"]:
        layer["dead"] = int(dead[layer["name"]].sum()) if layer["name"] in dead else None
    channels = sum(len(mask) for mask in dead.values())
    report["dead_share"] = sum(int(mask.sum()) for mask in dead.values()) / channels if channels else None
    return report


class Clips(Dataset[dict[str, Tensor]]):
    """The clips of one split of a store, without augmentation; a torch Dataset that `DataLoader` takes as it is.

    An item has `audio`, (1, frame, mel) float32, `visual`, (frames, 3, height, width) float32, both normalised, as far
    as they were asked for, and `label`, an int64 number, or (classes,) float32 where clips have several labels.
    """

    def __init__(self, store: Store, split: Split, modalities: Sequence[Modality], spec: InputSpec) -> None:
        self.ids, self.classes, self.pipeline = store.indices[split].ids, store.classes, spec
        self._dataset = ClipDataset(store.indices[split], modalities, spec, store.settings["frame_codec"])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        position = self._checked(position)
        item = self._dataset[0, position, position]
        values = {"label": item["label"]}
        if "audio" in item:
            values["audio"] = transforms.normalise_audio(item["audio"].clone(), self.pipeline.mean, self.pipeline.std)
        if "visual" in item:
            values["visual"] = transforms.normalise_visual(item["visual"], self.pipeline.colours)
        return values

    def arrays(self, position: int) -> dict[str, Any]:
        """A clip as it is stored.

        Returns:
            `fbank`, (frame, mel) log-mel without padding or normalisation, and `frames`, a list of (height, width, 3)
            uint8; what the clip lacks is empty.
        """
        position = self._checked(position)
        index, codec = self._dataset.index, self._dataset.frame_codec
        frames = read_frames(index, position, range(int(index.num_visual_frames[position])), codec)
        real = int(index.num_audio_frames[position])
        fbank = read_fbank(index, position)[:real].numpy()
        return {"fbank": fbank, "frames": [frame.permute(1, 2, 0).numpy() for frame in frames]}

    def _checked(self, position: int) -> int:
        if not -len(self) <= position < len(self):
            raise IndexError(f"there are {len(self)} clips, and no clip {position}")
        return position % len(self)


def open_store(
    path: str | Path,
    split: Split = "train",
    *,
    modalities: Sequence[Modality] | None = None,
    image_size: int = 224,
    num_frames: int = 3,
    pipeline: InputSpec | None = None,
) -> Clips:
    """Open a split of a store that `avpt preprocess` wrote.

    Args:
        path: of the store.
        split: train, val or test.
        modalities: what items hold; None is what every clip of the split has.
        image_size: pictures are resized and cropped in the middle to this height and width.
        num_frames: how many frames of each clip.
        pipeline: `pipeline` of a model that is to be fed: its picture size, number of frames and normalisation are
            taken, instead of those above, the store's own for sound, and ImageNet's for pictures.

    Raises:
        ConfigError: an argument is of the wrong kind, or out of range.
        StoreError: the store is missing or damaged, lacks the split or a modality, or holds other spectrograms than
            the pipeline says.
    """
    store = Store(_path(path, "a store"))
    modalities = cast(Sequence[Modality], [modalities]) if isinstance(modalities, str) else modalities
    if pipeline is not None and not isinstance(pipeline, InputSpec):
        raise ConfigError(f"pipeline is a {type(pipeline).__name__}; it must be the pipeline of a model or a store")
    if pipeline is not None:
        image_size, num_frames = pipeline.image_size, pipeline.num_frames
    if image_size < 8 or num_frames < 1:
        raise ConfigError(f"image_size {image_size} must be 8 or more, and num_frames {num_frames} 1 or more")
    if strange := [modality for modality in modalities or () if modality not in MODALITIES]:
        raise ConfigError(f"there is no modality {strange[0]!r:.40}; there are {' and '.join(MODALITIES)}")
    if split not in store.indices:
        raise StoreError(f"{path} has no {split} split; it has {', '.join(store.indices)}")
    index = store.indices[split]
    counts = {"audio": index.num_audio_frames, "visual": index.num_visual_frames}
    every = [modality for modality in MODALITIES if bool((counts[modality] > 0).all())]
    if lacking := [modality for modality in modalities or () if modality not in every]:
        raise StoreError(f"{path} has {split} clips without {lacking[0]}; `avpt info` counts them")
    spec = store.input_spec(image_size, num_frames)
    if pipeline is not None:
        if different := [name for name in SPECTROGRAMS if getattr(spec, name) != getattr(pipeline, name)]:
            name = different[0]
            raise StoreError(f"{path} has {name} {getattr(spec, name)}, the pipeline {getattr(pipeline, name)}")
        spec = replace(spec, **{name: getattr(pipeline, name) for name in NORMALISATION})
    return Clips(store, split, modalities or every, spec)


class Model(nn.Module):
    """A trained classifier, alone or fused, in evaluation mode, with what it takes to feed it.

    Attributes:
        classes: their names, in the order of the logits.
        modalities: what it takes.
        pipeline: how files and arrays become inputs: sample rate, mel bins, picture size, normalisation, ...
    """

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.network = trained.model
        self.classes, self.modalities, self.pipeline = trained.classes, trained.modalities, trained.input
        self.eval()

    def forward(self, audio: Tensor | None = None, visual: Tensor | None = None) -> Tensor:
        """Logits (batch, classes).

        Args:
            audio: (batch, 1, frame, mel), as `audio_input` makes them.
            visual: (batch, frames, 3, height, width), as `visual_input` makes them.

        Raises:
            ConfigError: a modality is missing; a fused model does with one of its two.
        """
        inputs = {"audio": audio, "visual": visual}
        given = [modality for modality in self.modalities if inputs[modality] is not None]
        if not given:
            raise ConfigError(f"the model takes {' and '.join(self.modalities)}")
        if isinstance(self.network, FusedModel):
            return self.network.outputs(audio, visual)["logits"]
        return cast(Tensor, self.network(inputs[given[0]]))

    def audio_input(self, waveform: Tensor | np.ndarray[Any, Any], sample_rate: int) -> Tensor:
        """The model's input (1, 1, frame, mel) from mono samples of -1 to 1, (samples,).

        Raises:
            ConfigError: it is not mono, or of another sample rate than the model was trained on.
        """
        from avpt.media.spectrograms import spectrogram  # which loads torchaudio

        samples = np.asarray(waveform, dtype=np.float32)
        if samples.ndim != 1 or not len(samples):
            raise ConfigError(f"a waveform is (samples,), not {samples.shape}; take the mean of its channels")
        if sample_rate != self.pipeline.sample_rate:
            raise ConfigError(
                f"the waveform has {sample_rate} Hz and the model takes {self.pipeline.sample_rate}; resample it with "
                "torchaudio.functional.resample"
            )
        fbank, _ = spectrogram(
            samples,
            sample_rate=sample_rate,
            mel_bins=self.pipeline.mel_bins,
            frames=self.pipeline.spectrogram_frames,
            pad=self.pipeline.pad,
        )
        stored = fbank.to(getattr(torch, self.pipeline.audio_dtype))  # as a store would have rounded it
        return transforms.normalise_audio(stored[None, None], self.pipeline.mean, self.pipeline.std)

    def visual_input(self, frames: Sequence[Tensor | np.ndarray[Any, Any]]) -> Tensor:
        """The model's input (1, frames, 3, height, width) from a clip's pictures, each (height, width, 3) uint8.

        Raises:
            ConfigError: there are none, or they are not RGB of 8 bits.
        """
        pictures = [torch.as_tensor(frame) for frame in frames]
        if not pictures or any(one.ndim != 3 or one.shape[2] != 3 or one.dtype != torch.uint8 for one in pictures):
            raise ConfigError("pictures are (height, width, 3) uint8, one or more")
        scaled = transforms.evaluation_frames(self.pipeline.image_size)
        chosen = transforms.draw_frames(len(pictures), self.pipeline.num_frames, None)
        batch = torch.stack([scaled(pictures[number].permute(2, 0, 1)) for number in chosen])
        return transforms.normalise_visual(batch[None], self.pipeline.colours)


def load_model(path: str | Path) -> Model:
    """Load a trained model: a run folder of `finetune-unimodal` or `fuse-train`, whose best model counts, or its file.

    Raises:
        ArtifactError: it is missing, damaged, or has no classifier.
    """
    return Model(load_trained(_path(path, "a trained model")))


def _path(value: str | Path, what: str) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{what} is opened by its path, not by a {type(value).__name__}")
    return Path(value)


def _check_network(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"ABRi is for a torch.nn.Module, not for a {type(model).__name__}")
