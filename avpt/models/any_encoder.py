"""An encoder read for diagnosis from any file that `init --weights` reads, its ABRi layers kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from avpt.errors import ArtifactError, ConfigError
from avpt.files import artifacts
from avpt.files.artifacts import Header, Kind
from avpt.models.abnormal_channels import norm_layers
from avpt.models.abri import NEW
from avpt.models.checkpoint import load_network
from avpt.models.encoder import Encoder, EncoderSpec, Norm, build_encoder, describe_encoder, first_convolutions
from avpt.models.fitting import adapt_conv1, check_values, fit_weights, misfits, wrong_values
from avpt.models.known_architectures import recognise
from avpt.models.weights import find_weights, guess_arch, read_largest
from avpt.types import CHANNELS, MODALITIES, Modality

log = logging.getLogger(__name__)

LITTLE = 0.1  # share of an architecture's tensors that may be lacking before weights are taken for another one's
OWN: tuple[Kind, ...] = ("encoder", "classifier", "fused")  # artifacts that hold encoders


UNKNOWN = "unknown"  # the name of an architecture that is not recognised


@dataclass(frozen=True)
class AnyEncoder:
    """An encoder on the CPU, and where it came from."""

    encoder: Encoder | None  # None where only parameters are known, as its architecture is not one that avpt builds
    state: Mapping[str, Tensor]
    spec: EncoderSpec  # with the modality that it is fed
    made_for: Modality  # the modality that its own first convolution takes
    header: Header | None  # None where avpt did not write the file


def load_any_encoder(name: Path, modality: Modality | None, arch: str | None, key: str | None = None) -> AnyEncoder:
    """Read published weights, a file or a run folder, strictly.

    Args:
        name: as `init --weights` takes it, except `random`.
        modality: what the encoder is to be fed, and which one to take from a file that holds two; None keeps its own.
            The first convolution of another modality is adapted by a sum, as `init` does.
        arch: None guesses it from the keys; for published weights it is resnet18.
        key: which of several weights in a file, as `init --weights-key` takes it.

    Raises:
        ArtifactError: missing, unfinished, without BatchNorm, or with values that are not numbers.
        ConfigError: it holds two encoders and `modality` does not say which.
    """
    published = str(name) in ("imagenet", "pretrained")
    if not published and not (name.is_file() or name.is_dir()):
        raise ArtifactError(f"{name} does not exist; inspect takes imagenet, a file with weights or a run folder")
    header = None if published else artifacts.own_header(artifacts.model_file(name))
    if header is not None and header.kind in OWN:
        return _load_own(name, modality, arch, header)
    try:
        return _load_fitting(name, modality, arch, key)
    except ArtifactError as error:
        found = None if arch is not None or published or key is not None else _parameters_alone(name, modality)
        if found is None:
            raise
        log.warning("%s: only its BatchNorm parameters are looked at (%s)", name, error)
        return found


def _load_fitting(name: Path, modality: Modality | None, arch: str | None, key: str | None) -> AnyEncoder:
    """An encoder that others wrote, of an architecture that is named or one of torchvision's three."""
    wanted = describe_encoder(arch or "resnet18", modality or "audio", "batchnorm")
    state, layout = find_weights(str(name), wanted, key)
    if layout.dtype:
        kinds = (getattr(torch, kind) for kind in layout.dtype.split(" and "))
        least = max(torch.finfo(kind).smallest_normal * torch.finfo(kind).eps for kind in kinds)
        log.warning("%s holds %s weights: nothing below %.0e can be told from 0", name, layout.dtype, least)
    if not norm_layers(state):
        raise ArtifactError(f"{name} has no BatchNorm layer, so there are no abnormal or dead channels to look for")
    first = f"{first_convolutions(wanted)[0]}.weight"
    if modality is None and str(name) not in ("imagenet", "pretrained"):
        other, _ = find_weights(str(name), replace(wanted, modality="visual"), key)
        if not torch.equal(state[first], other[first]):
            raise ConfigError(f"{name} holds two encoders; say which with --modality audio or --modality visual")

    taken = state[first].shape[1] if state[first].ndim == 4 else 0
    made_for = next((known for known in MODALITIES if CHANNELS[known] == taken), None)
    if made_for is None:
        shape = "x".join(map(str, state[first].shape))
        raise ArtifactError(f"{name}: {first} is {shape}; an encoder takes 1 channel (sound) or 3 (pictures)")
    spec = describe_encoder(arch or guess_arch(state), modality or made_for, _norm(state))
    abri = {key: value for key, value in state.items() if key.endswith(tuple(f".{part}" for part in NEW))}
    fitted, _ = fit_weights({key: state[key] for key in state if key not in abri}, spec, "sum", str(name))
    encoder = build_encoder(spec)
    if problems := misfits(encoder.state_dict(), fitted | abri):
        raise ArtifactError(f"{name} does not fit {spec.arch} with ABRi: {'; '.join(problems.values())}")
    encoder.load_state_dict(fitted | abri)
    check_values(name, encoder)
    return AnyEncoder(encoder, encoder.state_dict(), spec, made_for, None)


def _parameters_alone(name: Path, modality: Modality | None) -> AnyEncoder | None:
    """The BatchNorm parameters of weights of any other architecture; None where these have none that can be read."""
    state = read_largest(artifacts.model_file(name))
    layers = norm_layers(state)
    with torch.device("meta"):
        shapes = build_encoder(EncoderSpec(guess_arch(state), "visual", "batchnorm")).state_dict()
    unfit = misfits(shapes, state)
    abri = any(".new_" in key for key in state)
    if not layers or abri or len(unfit) < LITTLE * len(shapes):  # one of torchvision's three, and damaged
        return None
    known = {key: value for key, value in state.items() if key.rpartition(".")[0] in layers}
    if wrong_values(known):
        return None
    found = recognise(state)
    spec = EncoderSpec(found.name if found else UNKNOWN, modality or "visual", "batchnorm")
    return AnyEncoder(None, known, spec, spec.modality, None)


def _load_own(name: Path, modality: Modality | None, arch: str | None, header: Header) -> AnyEncoder:
    """An encoder of an artifact or run folder of avpt's own."""
    loaded = load_network(name, *OWN)
    if modality is None and len(loaded.encoders) > 1:
        raise ConfigError(f"{name} holds two encoders; say which with --modality audio or --modality visual")
    made_for = modality if modality in loaded.encoders else next(iter(loaded.encoders))
    encoder, spec = loaded.encoder(made_for), loaded.encoders[made_for]
    if arch not in (None, spec.arch):
        raise ArtifactError(f"{name} is a {spec.arch}, not a {arch}; leave --arch out")
    if not norm_layers(encoder.state_dict()):
        raise ArtifactError(f"{name} has no BatchNorm layer, so there are no abnormal or dead channels to look for")
    if modality not in (None, made_for):
        encoder, spec = _carry_across(name, encoder, spec, modality)
    return AnyEncoder(encoder, encoder.state_dict(), spec, made_for, header)


def _carry_across(name: Path, encoder: Encoder, spec: EncoderSpec, modality: Modality) -> tuple[Encoder, EncoderSpec]:
    """The encoder of a file with its first convolutions adapted to another modality's channels by a sum."""
    spec = replace(spec, modality=modality, mean=None, std=None)
    state = dict(encoder.state_dict())
    for layer in first_convolutions(spec):
        key = f"{layer}.weight"
        weight, _ = adapt_conv1(state[key], CHANNELS[modality], "sum", f"{name}: {key}")
        assert weight is not None
        state[key] = weight
    carried = build_encoder(spec)
    carried.load_state_dict(state)
    return carried, spec


def _norm(state: dict[str, Tensor]) -> Norm:
    alphas = [value.numel() for key, value in state.items() if key.endswith(".alpha")]
    if not alphas:
        return "batchnorm"
    return "abri-layer" if max(alphas) == 1 else "abri-channel"
