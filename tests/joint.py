"""Both modalities in small: a joint model with frozen BatchNorm, its inputs, and augmented clips of a store."""

from __future__ import annotations

from typing import Any

import torch
from helpers import ARCH, Experiment
from torch import Tensor, nn

from avpt.loading.dataset import Augmentation, ClipDataset
from avpt.models.encoder import EncoderSpec, build_encoder, freeze
from avpt.models.fusion import FusedModel, FusionName
from avpt.store.store import Store
from avpt.types import MODALITIES

FUSION_NAMES: tuple[FusionName, ...] = ("concat", "sum", "film", "gated")
CLIPS = 7
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def joint_model(fusion: FusionName = "concat", arch: str = ARCH) -> FusedModel:
    """BatchNorm of its encoders stays as it is, so that a clip's features do not depend on the others."""
    torch.manual_seed(3)
    audio = build_encoder(EncoderSpec(arch, "audio", "batchnorm"))
    visual = build_encoder(EncoderSpec(arch, "visual", "abri-channel"))
    model = FusedModel(audio, visual, fusion, 3)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)  # timm starts some at 0, through which no gradient goes
    for encoder in (audio, visual):
        freeze(encoder)
        encoder.requires_grad_(True)
    return model


def joint_inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    return torch.randn(CLIPS, 1, 32, 32, generator=draw), torch.randn(CLIPS, 1, 3, 32, 32, generator=draw)


def augmented_clips(experiment: Experiment, **augmentation: Any) -> ClipDataset:
    store = Store(experiment.store)
    spec = store.input_spec(image_size=32, num_frames=1)
    jitter = Augmentation((0.3, 1.0), True, (4, 6), **augmentation)
    codec = store.settings["frame_codec"]
    return ClipDataset(store.indices["train"], MODALITIES, spec, codec, seed=2, augmentation=jitter)
