"""What clips reveal about encoders: which channels are dead, and the feature maps of one clip."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avpt.commands._inspect_parameters import Side
from avpt.errors import StoreError, listed
from avpt.machine.progress import track_batches
from avpt.machine.workers import loading_workers
from avpt.options import FinetuneConfig, InspectConfig

if TYPE_CHECKING:
    from torch import Tensor

    from avpt.diagnosis.dead_channels import Activity
    from avpt.loading.dataset import InputSpec
    from avpt.store.store import SplitIndex, Store
    from avpt.types import Batch, Modality

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurements:
    """What feeding a store's clips to one encoder or two revealed."""

    sides: list[Activity]
    dead: list[dict[str, Tensor]]  # per side and layer, (channels,) bool; without shortcuts
    clips: int
    example: str  # the clip of the feature maps
    picture: Tensor  # that clip's first input, (1, frame, mel) or (3, height, width)


def measure(config: InspectConfig, path: Path, before: Side, after: Side | None) -> Measurements:
    """Feed the same clips to both encoders, in one pass.

    Raises:
        StoreError: the store is missing or damaged, or can't feed these encoders.
    """
    from avpt.diagnosis import dead_channels
    from avpt.loading.evaluation_clips import EvaluationDataset
    from avpt.loading.loader import Loader, explain_worker_deaths
    from avpt.store.store import Store
    from avpt.training import runtime

    store = Store(path)
    index = clips_of(config, store, before.modality)
    spec = input_of(config, store, index, [side for side in (after, before) if side is not None])
    device = runtime.start(config.seed, config.device)
    encoders = []
    for side in (before, after):
        if side is not None and side.loaded.encoder is None:
            raise StoreError(f"{side.path} is of no architecture that avpt builds; if it is, --arch says which")
        if side is not None and side.loaded.encoder is not None:
            encoders.append(side.loaded.encoder.to(device))
    dataset = EvaluationDataset(index, [before.modality], spec, store.settings["frame_codec"], seed=config.seed)
    workers = loading_workers(config.workers, clips=len(index))
    # shuffled, so that batches are alike; the loader makes none of a single clip
    loader = Loader(dataset, config.batch_size, device=device, workers=workers, shuffle_seed=config.seed)
    first: list[Batch] = []

    def batches() -> Iterator[Batch]:
        for batch in track_batches(loader.epoch(0), len(index), "inspect"):
            if not first:
                first.append(batch.part(slice(0, 1)))
            yield batch

    with explain_worker_deaths():
        sides = dead_channels.measure(encoders, batches(), config.zero)
    return Measurements(
        sides,
        [
            {layer: mask for layer, mask in activity.dead(config.dead_share).items() if layer in before.own}
            for activity in sides
        ],
        len(index),
        index.ids[int(first[0].positions)],
        first[0].inputs[0].flatten(0, -4)[0].cpu(),
    )


def clips_of(config: InspectConfig, store: Store, modality: Modality) -> SplitIndex:
    """The clips to look at; the seed draws them where the split has more than --clips.

    Raises:
        StoreError: the store has no such split, too few clips, or lacks the modality.
    """
    import numpy as np

    from avpt.store.splits import require_modalities

    index = store.indices.get(config.split)
    if index is None or len(index) < 2:
        usable = [split for split, clips in store.indices.items() if len(clips) > 1]
        raise StoreError(
            f"{store.path} has {0 if index is None else len(index)} {config.split} clips, and two or more are needed; "
            f"--split can be {listed(usable) or 'nothing'}"
        )
    require_modalities(store, config.split, index, [modality])
    if len(index) <= config.clips:
        return index
    return index.take(np.sort(np.random.default_rng(config.seed).permutation(len(index))[: config.clips]))


def input_of(config: InspectConfig, store: Store, index: SplitIndex, sides: list[Side]) -> InputSpec:
    """How clips become inputs: as the first side with a recorded pipeline has it, or else as the defaults say.

    Raises:
        StoreError: the store can't give these inputs.
    """
    from dataclasses import replace

    from avpt.files.model_headers import read_input
    from avpt.loading.evaluation_clips import check_spectrograms, different_frames

    sizes = ("image_size", "num_frames")
    asked = {name: value for name in sizes if (value := getattr(config, name)) is not None}
    modality = sides[0].modality
    for side in sides:
        header = side.loaded.header
        if side.loaded.made_for == modality and header is not None and header.spec.get("input"):
            spec = replace(read_input(side.path, header), **asked)
            if modality == "audio":
                check_spectrograms(store, spec, [index])
            elif differ := different_frames(store.settings, spec):
                log.warning("%s holds other frames than %s was trained on (%s)", store.path, side.path, listed(differ))
            return spec
    usual = {name: FinetuneConfig.defaults()[name] for name in sizes}
    return store.input_spec(**usual | asked)
