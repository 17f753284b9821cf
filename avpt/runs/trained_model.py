"""A trained model read back from a path with everything that it takes to use it: classes and input pipeline."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avpt.files.artifacts import Header
from avpt.files.model_headers import read_input
from avpt.loading.dataset import InputSpec
from avpt.loading.evaluation_clips import check_spectrograms, different_frames
from avpt.models.checkpoint import load_network
from avpt.models.encoder import Classifier
from avpt.models.ensemble import Ensemble
from avpt.models.fusion import FusedModel
from avpt.options import TrainConfig, allows, recorded_option
from avpt.store.splits import require_modalities
from avpt.store.store import SplitIndex, Store
from avpt.types import MODALITIES, Modality, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A classifier, a fused model or two classifiers together, on the CPU, in evaluation mode."""

    model: Classifier | FusedModel | Ensemble
    modalities: tuple[Modality, ...]  # those that it takes, in the order of its inputs
    input: InputSpec
    classes: list[str]
    multi_label: bool
    header: Header

    def option(self, name: str) -> Any:
        """An option of the training, or its default where the header does not have it."""
        return training_option(self.header, name)


def training_option(header: Header, name: str) -> Any:
    """An option of a model's training, or its default where the header does not have it."""
    value = recorded_option(header.kind, header.config, name)
    return value if allows(TrainConfig, name, value) else TrainConfig.defaults()[name]


def load_trained(path: Path) -> TrainedModel:
    """The model that stands for a path: a classifier or fused artifact, or the best model of a run folder.

    Raises:
        ArtifactError: missing, damaged, an encoder without a head, or something else altogether.
    """
    loaded = load_network(path, "classifier", "fused")
    assert isinstance(loaded.network, Classifier | FusedModel)
    return TrainedModel(
        model=loaded.network,
        modalities=tuple(loaded.encoders),
        input=read_input(path, loaded.header),
        classes=loaded.header.classes,
        multi_label=loaded.header.spec["multi_label"],
        header=loaded.header,
    )


def join_classifiers(first: TrainedModel, second: TrainedModel) -> TrainedModel:
    """A classifier of sound and one of pictures as one model, which takes both inputs as these two did.

    Options of its training are those of the first. It counts as trained on a store if both were, with the same val.

    Args:
        first: of either modality.
        second: of the other, which knows the same classes.
    """
    by_modality = {one.modalities: one for one in (first, second)}
    audio, visual = by_modality["audio",], by_modality["visual",]
    assert isinstance(audio.model, Classifier)
    assert isinstance(visual.model, Classifier)
    sound = ("sample_rate", "mel_bins", "spectrogram_frames", "pad", "mean", "std", "audio_dtype", "audio_stream")
    return replace(
        first,
        model=Ensemble(audio.model, visual.model, first.multi_label).eval(),
        modalities=MODALITIES,
        input=replace(visual.input, **{name: getattr(audio.input, name) for name in sound}),
        header=replace(first.header, inputs=first.header.inputs if _same_val(first, second) else {}),
    )


def _same_val(first: TrainedModel, second: TrainedModel) -> bool:
    """Whether two models were trained on one store, and have the same val where that has none."""
    held = [(one.header.inputs.get("store"), one.option("val_fraction")) for one in (first, second)]
    return held[0] == held[1]


def check_clips(
    store: Store, splits: Mapping[Split, SplitIndex], modalities: Sequence[Modality], spec: InputSpec
) -> None:
    """Check that a store's clips fit a model's input pipeline; frames made with other settings lead to a warning.

    Raises:
        StoreError: clips lack a modality, or their spectrograms were made with other settings.
    """
    for split, index in splits.items():
        require_modalities(store, split, index, modalities)
    if "audio" in modalities:
        check_spectrograms(store, spec, list(splits.values()))
        if (stream := store.settings.get("audio_stream")) != spec.audio_stream:
            named = ["left out" if one is None else one for one in (stream, spec.audio_stream)]
            message = "%s holds the sound of other streams than the model was trained on (--audio-stream %s against %s)"
            log.warning(message, store.path, *named)
    if "visual" in modalities and (different := different_frames(store.settings, spec)):
        log.warning("%s holds other frames than the model was trained on (%s)", store.path, ", ".join(different))
