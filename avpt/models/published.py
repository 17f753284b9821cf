"""Pre-trained weights that torchvision and timm publish: taken from their caches, or downloaded."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor

from avpt.errors import ArtifactError
from avpt.models.architectures import RESNETS, Size, find_architecture, timm_package

log = logging.getLogger(__name__)


def published_weights(arch: str, size: Size | None = None) -> dict[str, Tensor]:
    """The pre-trained weights of an architecture, in its library's names, with its classifier.

    Args:
        arch: as `find_architecture` takes it; a tag, as in `resnet18.a1_in1k`, chooses among timm's.
        size: of the inputs, where the architecture takes one size alone; timm fits the weights to it.

    Raises:
        ArtifactError: they are neither in the cache nor to be downloaded, or there are none.
    """
    return imagenet_weights(arch) if arch in RESNETS else _timm_weights(arch, size)


def imagenet_weights(arch: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights (IMAGENET1K_V1), from its cache or its download.

    Raises:
        ArtifactError: neither is available, or the architecture is not torchvision's.
    """
    if arch not in RESNETS:
        raise ArtifactError(
            f"imagenet names torchvision's weights, of {', '.join(RESNETS)}; for timm's weights of {arch}: "
            "--weights pretrained"
        )
    weights = torchvision.models.get_model_weights(arch).IMAGENET1K_V1
    cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not cache.exists():
        log.info("downloading %s to %s", weights.url, cache)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torch.hub prints there, where only results belong
            state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise ArtifactError(
            f"ImageNet weights of {arch} are neither in torchvision's cache nor to be downloaded ({error}); "
            f"fetch {weights.url} elsewhere and put it at {cache}, or name that file instead"
        ) from None
    return state


def _timm_weights(arch: str, size: Size | None) -> dict[str, Tensor]:
    find_architecture(arch)
    timm = timm_package(arch)
    facts = timm.get_pretrained_cfg(arch)
    if not facts.has_weights:
        raise ArtifactError(f"timm publishes no weights of {arch}; name a file, or take --weights random")
    place = f"https://huggingface.co/{facts.hf_hub_id}" if facts.hf_hub_id else facts.url
    log.info("taking timm's weights of %s, from its cache or %s", arch, place)
    sized = {} if size is None else {"img_size": size}
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
            network = timm.create_model(arch, pretrained=True, **sized)
    except Exception as error:  # whatever the hub's client raises, of which there are dozens
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArtifactError(
            f"weights of {arch} are neither in timm's cache nor to be downloaded ({reason:.200}); fetch them from "
            f"{place} elsewhere and name that file instead"
        ) from None
    state: dict[str, Tensor] = network.state_dict()
    return state
