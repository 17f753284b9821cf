"""What is known of an encoder's BatchNorm layers from its parameters alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avpt.options import InspectConfig

if TYPE_CHECKING:
    from torch import Tensor

    from avpt.models.abnormal_channels import NormPair
    from avpt.models.any_encoder import AnyEncoder
    from avpt.types import Modality

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """An encoder, before or after training, and all that is known of its BatchNorm layers, by their names."""

    path: Path
    found: AnyEncoder
    own: dict[str, NormPair]  # weight and bias; of ABRi the pre-trained branch's
    acting: dict[str, NormPair]  # what the layer acts with; of ABRi both branches blended
    alpha: dict[str, Tensor]  # of ABRi, (channels,) or (1,)

    @property
    def modality(self) -> Modality:
        """What it is fed."""
        return self.found.spec.modality


def read(path: Path, config: InspectConfig, modality: Modality | None) -> Side:
    """An encoder and its BatchNorm parameters."""
    from avpt.models import abnormal_channels, any_encoder

    found = any_encoder.load_any_encoder(path, modality, config.arch)
    if found.made_for != found.spec.modality:
        log.warning(
            "%s is made for %s input: its first convolution is carried across to %s input, as `avpt init` does",
            *(path, found.made_for, found.spec.modality),
        )
    state = found.encoder.state_dict()
    layers = abnormal_channels.norm_layers(state)
    own = {layer: abnormal_channels.own_pair(state, layer) for layer in layers}
    alpha = {layer: state[f"{layer}.alpha"] for layer in layers if f"{layer}.alpha" in state}
    return Side(path, found, own, own | {layer: abnormal_channels.blended_pair(state, layer) for layer in alpha}, alpha)
