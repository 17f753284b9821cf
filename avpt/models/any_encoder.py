"""An encoder read for diagnosis from any file that `init --weights` reads, its ABRi layers kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from avpt.errors import ArtifactError, AvptError, ConfigError, listed
from avpt.files import artifacts
from avpt.files.artifacts import Header, Kind
from avpt.models.abnormal_channels import norm_layers
from avpt.models.abri import NEW
from avpt.models.architectures import find_architecture
from avpt.models.checkpoint import load_network
from avpt.models.encoder import (
    SOUND_SIZE,
    Encoder,
    EncoderSpec,
    Norm,
    build_encoder,
    describe_encoder,
    first_convolutions,
    takes_size,
)
from avpt.models.fitting import adapt_conv1, check_values, fit_weights, misfits, wrong_values
from avpt.models.known_architectures import ELSEWHERE, nothing_alike, recognise
from avpt.models.layouts import find_places
from avpt.models.weights import find_weights, guess_arch, little_precision, read_largest
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
        arch: None looks it up by the keys and shapes; for published weights it is resnet18.
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
        other = None if arch is not None or published or key is not None else _of_another(name, modality)
        if other is not None:
            return other
        if (what := str(error).removesuffix(f"; {ELSEWHERE}")) != str(error):  # which names this very command
            raise ArtifactError(f"{what}; leave --arch out" if arch is not None else what) from None
        raise


def _load_fitting(name: Path, modality: Modality | None, arch: str | None, key: str | None) -> AnyEncoder:
    """An encoder that others wrote, of an architecture that is named or one of torchvision's three."""
    wanted = _describe(arch or "resnet18", modality or "visual", "batchnorm")  # all take pictures, and not all sound
    state, layout = find_weights(str(name), wanted, key)
    if not norm_layers(state):
        raise ArtifactError(f"{name} has no BatchNorm layer, so there are no abnormal or dead channels to look for")
    first = f"{first_convolutions(wanted)[0]}.weight"
    if modality is None and str(name) not in ("imagenet", "pretrained"):
        other = state
        with suppress(ConfigError):  # where the architecture takes no sound there is no other
            other, _ = find_weights(str(name), replace(wanted, modality="audio"), key)
        if not torch.equal(state[first], other[first]):
            raise ConfigError(f"{name} holds two encoders; say which with --modality audio or --modality visual")
    passed_over = _without_parameters(state)
    for layer in passed_over:  # as what they amount to
        state[f"{layer}.weight"] = torch.ones_like(state[f"{layer}.running_var"])
        state[f"{layer}.bias"] = torch.zeros_like(state[f"{layer}.running_var"])

    made_for = _made_for(state[first], wanted, first)
    if made_for is None:
        shape = "x".join(map(str, state[first].shape))
        raise ArtifactError(f"{name}: {first} is {shape}; an encoder takes 1 channel (sound) or 3 (pictures)")
    if modality not in (None, made_for):
        _check_carried(name, wanted.arch, state[first], made_for)
    spec = _describe(arch or guess_arch(state), modality or made_for, _norm(state))
    abri = {key: value for key, value in state.items() if key.endswith(tuple(f".{part}" for part in NEW))}
    fitted, _ = fit_weights({key: state[key] for key in state if key not in abri}, spec, "sum", str(name))
    encoder = build_encoder(spec)
    if problems := misfits(encoder.state_dict(), fitted | abri):
        raise ArtifactError(f"{name} does not fit {spec.arch} with ABRi: {'; '.join(problems.values())}")
    encoder.load_state_dict(fitted | abri)
    check_values(name, encoder)
    _tell_precision(name, layout.dtype)
    _tell_passed_over(name, passed_over)
    hidden = {f"{layer}.{part}" for layer in passed_over for part in ("weight", "bias")}
    shown = {key: value for key, value in encoder.state_dict().items() if key not in hidden}
    return AnyEncoder(encoder, shown, spec, made_for, None)


def _describe(arch: str, modality: Modality, norm: Norm) -> EncoderSpec:
    """The spec of an encoder of its usual size, or of that of its pictures where it takes no sound of the usual one."""
    facts = find_architecture(arch)
    if modality == "audio" and facts.fixed_size:
        spec = EncoderSpec(arch, modality, "batchnorm", facts.picture_size)
        if not takes_size(spec, SOUND_SIZE) and takes_size(spec, facts.picture_size):
            return describe_encoder(arch, modality, norm, facts.picture_size)
    return describe_encoder(arch, modality, norm)


def _without_parameters(state: Mapping[str, Tensor]) -> list[str]:
    """The BatchNorm layers of weights that have neither gamma nor beta."""
    layers = [key.removesuffix(".running_var") for key in state if key.endswith(".running_var")]
    return [layer for layer in layers if f"{layer}.weight" not in state and f"{layer}.bias" not in state]


def _tell_passed_over(name: Path, layers: list[str]) -> None:
    if layers:
        log.warning("%s: passed over, as they have no gamma and beta (affine=False): %s", name, listed(layers))


def _tell_precision(name: Path, dtype: str) -> None:
    """Say below what the numbers of weights with half the precision or less are lost; `dtype` is empty for others."""
    if dtype:
        kinds = (getattr(torch, kind) for kind in dtype.split(" and "))
        least = max(torch.finfo(kind).smallest_normal * torch.finfo(kind).eps for kind in kinds)
        log.warning("%s holds %s weights: nothing below %.0e can be told from 0", name, dtype, least)


def _made_for(weight: Tensor, spec: EncoderSpec, first: str) -> Modality | None:
    """The modality whose channels the weights of a first convolution take."""
    taken = weight.shape[1] if weight.ndim == 4 else 0
    if made_for := next((known for known in MODALITIES if CHANNELS[known] == taken), None):
        return made_for
    for known in MODALITIES:  # it may take patches of the input as channels, as tresnet's does
        with suppress(ConfigError), torch.device("meta"):
            network = build_encoder(replace(spec, modality=known, mean=None, std=None))
            if network.state_dict()[first].shape == weight.shape:
                return known
    return None


def _check_carried(name: Path, arch: str, weight: Tensor, made_for: Modality) -> None:
    """Check that weights of a first convolution can be adapted to the channels of the other modality.

    Raises:
        ArtifactError: they can't.
    """
    if weight.shape[1] != CHANNELS[made_for]:
        raise ArtifactError(
            f"{name} is made for {made_for} input, and the first convolution of {arch} takes patches of it as "
            f"{weight.shape[1]} channels, which can't be carried across; leave --modality out"
        )


def _of_another(name: Path, modality: Modality | None) -> AnyEncoder | None:
    """The encoder of weights of another architecture than torchvision's three, or its BatchNorm parameters alone.

    None where these are of one of the three, and damaged, or have no parameters that can be read.

    Raises:
        ArtifactError: they are of another architecture, and have no BatchNorm.
    """
    state = read_largest(artifacts.model_file(name))
    layers = norm_layers(state)
    with torch.device("meta"):
        shapes = build_encoder(EncoderSpec(guess_arch(state), "visual", "batchnorm")).state_dict()
    if not layers and any("." in key for key in state) and not _begins_like(state, shapes):
        raise ArtifactError(f"{name} has no BatchNorm layer, so there are no abnormal or dead channels to look for")
    unfit = misfits(shapes, state)
    abri = any(".new_" in key for key in state)
    if not layers or abri or len(unfit) < LITTLE * len(shapes):  # one of torchvision's three, and damaged
        return None
    known = {key: value for key, value in state.items() if key.rpartition(".")[0] in layers}
    if wrong_values(known):
        return None
    known_as = recognise(state)
    why = f"it {nothing_alike()}" if known_as is None else known_as.advice()
    if known_as is not None and known_as.built:
        try:
            encoder = _load_fitting(name, modality, known_as.name, None)
        except AvptError as error:
            why = f"it looks like {known_as.name}, but {error}"
        else:
            log.info("%s looks like %s, and is read as that", name, known_as.name)
            return encoder
    log.warning("%s: only its BatchNorm parameters are looked at (%s)", name, why)
    _tell_precision(name, little_precision(known.values()))
    _tell_passed_over(name, _without_parameters(state))
    spec = EncoderSpec(known_as.name if known_as else UNKNOWN, modality or "visual", "batchnorm")
    return AnyEncoder(None, known, spec, spec.modality, None)


def _begins_like(state: Mapping[str, Tensor], shapes: Mapping[str, Tensor]) -> bool:
    first = next(iter(shapes))
    return any(first in place.wanted for place in find_places(dict(state), shapes))


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
    """The encoder with its first convolutions adapted to another modality's channels by a sum."""
    made_for = spec.modality
    spec = replace(spec, modality=modality, mean=None, std=None)
    state = dict(encoder.state_dict())
    for layer in first_convolutions(spec):
        key = f"{layer}.weight"
        _check_carried(name, spec.arch, state[key], made_for)
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
