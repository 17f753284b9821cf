"""What an encoder's parameters alone say about its BatchNorm layers."""

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
    """An encoder before or after training, with the parameters of its BatchNorm layers by the layers' names."""

    path: Path
    loaded: AnyEncoder
    own: dict[str, NormPair]  # weight and bias; for ABRi those of the pre-trained branch
    acting: dict[str, NormPair]  # what the layer applies; for ABRi both branches blended
    alpha: dict[str, Tensor]  # of ABRi layers alone, (channels,) or (1,)

    @property
    def modality(self) -> Modality:
        """The modality that the encoder is fed."""
        return self.loaded.spec.modality


def read(path: Path, config: InspectConfig, modality: Modality | None) -> Side:
    """Load an encoder and look up its BatchNorm parameters."""
    from avpt.models import abnormal_channels, any_encoder

    loaded = any_encoder.load_any_encoder(path, modality, config.arch, config.weights_key)
    if loaded.made_for != loaded.spec.modality:
        log.warning(
            "%s is made for %s input: its first convolution is carried across to %s input, as `avpt init` does",
            *(path, loaded.made_for, loaded.spec.modality),
        )
    state = loaded.state
    layers = abnormal_channels.norm_layers(state)
    own = {layer: abnormal_channels.own_pair(state, layer) for layer in layers}
    alpha = {layer: state[f"{layer}.alpha"] for layer in layers if f"{layer}.alpha" in state}
    acting = own | {layer: abnormal_channels.blended_pair(state, layer) for layer in alpha}
    return Side(path, loaded, own, acting, alpha)
