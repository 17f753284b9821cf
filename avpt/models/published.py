"""Pre-trained weights that torchvision and timm publish: taken from their caches, or downloaded."""

from __future__ import annotations

import contextlib
import io
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from avpt.errors import ArtifactError
from avpt.machine.light_imports import without_compiler
from avpt.models.architectures import RESNETS, Size, find_architecture, timm_package

with without_compiler():
    import torchvision

log = logging.getLogger(__name__)

SECONDS = 5.0  # that a server may take to answer: where there is no network, its absence is told soon


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
        with _impatiently():
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
        with _impatiently(), torch.random.fork_rng(devices=[]):
            if facts.hf_hub_id:
                _ask_hub(facts.hf_hub_id, facts.hf_hub_filename)
            network = timm.create_model(arch, pretrained=True, **sized)
    except Exception as error:  # whatever the hub's client raises, of which there are dozens
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        file, cache = (facts.hf_hub_filename or "model.safetensors"), "HF_HOME"
        if not facts.hf_hub_id:
            file, cache = Path(facts.url).name, "TORCH_HOME"
        raise ArtifactError(
            f"weights of {arch} are neither in timm's cache nor to be downloaded ({reason:.200}); fetch {file} from "
            f"{place} elsewhere and name that file instead, or set {cache} to a folder whose cache has it"
        ) from None
    state: dict[str, Tensor] = network.state_dict()
    return state


def _ask_hub(repository: str, file: str | None) -> None:
    """Ask the hub once about a repository, unless its weights are in the cache.

    The hub's own client asks for each file six times, and waits half a minute in all where no one answers.

    Raises:
        Exception: whatever its client raises where the hub is out of reach, or is not to be asked (HF_HUB_OFFLINE).
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    name, _, revision = repository.partition("@")
    version: dict[str, Any] = {"revision": revision} if revision else {}
    files = [file] if file else ["model.safetensors", "pytorch_model.bin"]
    if any(isinstance(huggingface_hub.try_to_load_from_cache(name, one, **version), str) for one in files):
        return
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    with contextlib.suppress(HfHubHTTPError):  # an answer, if no good one, of which the download tells more
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(name, files[0], **version), timeout=SECONDS)


@contextlib.contextmanager
def _impatiently() -> Iterator[None]:
    """Wait for no server for long, and keep its client quiet: on stdout only results belong."""
    hub = logging.getLogger("huggingface_hub")
    level, waited = hub.level, socket.getdefaulttimeout()
    hub.setLevel(logging.CRITICAL)
    socket.setdefaulttimeout(SECONDS)  # torch.hub's, which sets none
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        hub.setLevel(level)
        socket.setdefaulttimeout(waited)
