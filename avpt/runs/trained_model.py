"""A trained model read back from a path with everything that it takes to use it: classes and input pipeline."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avpt.files.artifacts import Header
from avpt.loading.dataset import InputSpec
from avpt.loading.evaluation_clips import check_spectrograms, different_frames
from avpt.models.checkpoint import load_network, read_input
from avpt.models.encoder import Classifier
from avpt.models.fusion import FusedModel
from avpt.options import TrainConfig, allows, recorded_option
from avpt.store.splits import require_modality
from avpt.store.store import SplitIndex, Store
from avpt.types import Modality, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A classifier or a fused model on the CPU, in evaluation mode."""

    model: Classifier | FusedModel
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


def check_clips(
    store: Store, splits: Mapping[Split, SplitIndex], modalities: Sequence[Modality], spec: InputSpec
) -> None:
    """Check that a store's clips fit a model's input pipeline; frames made with other settings lead to a warning.

    Raises:
        StoreError: clips lack a modality, or their spectrograms were made with other settings.
    """
    for split, index in splits.items():
        for modality in modalities:
            require_modality(store, split, index, modality)
    if "audio" in modalities:
        check_spectrograms(store, spec, list(splits.values()))
        if (stream := store.settings.get("audio_stream")) != spec.audio_stream:
            named = ["left out" if one is None else one for one in (stream, spec.audio_stream)]
            message = "%s holds the sound of other streams than the model was trained on (--audio-stream %s against %s)"
            log.warning(message, store.path, *named)
    if "visual" in modalities and (different := different_frames(store.settings, spec)):
        log.warning("%s holds other frames than the model was trained on (%s)", store.path, ", ".join(different))
