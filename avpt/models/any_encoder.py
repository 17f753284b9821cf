"""An encoder read for diagnosis from any file that `init --weights` reads, its ABRi layers kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from avpt.errors import ArtifactError, ConfigError
from avpt.files import artifacts
from avpt.files.artifacts import Header, Kind
from avpt.models.abnormal_channels import norm_layers
from avpt.models.abri import NEW
from avpt.models.architectures import CHANNELS
from avpt.models.checkpoint import load_network
from avpt.models.encoder import Encoder, EncoderSpec, Norm, build_encoder, first_convolutions
from avpt.models.fitting import check_values, misfits
from avpt.models.weights import adapt_conv1, find_weights, fit_weights, guess_arch
from avpt.types import MODALITIES, Modality

OWN: tuple[Kind, ...] = ("encoder", "classifier", "fused")  # artifacts that hold encoders


@dataclass(frozen=True)
class AnyEncoder:
    """An encoder on the CPU, and where it came from."""

    encoder: Encoder
    spec: EncoderSpec  # with the modality that it is fed
    made_for: Modality  # the modality that its own first convolution takes
    header: Header | None  # None where avpt did not write the file


def load_any_encoder(name: Path, modality: Modality | None, arch: str | None) -> AnyEncoder:
    """Read `imagenet`, a file or a run folder, strictly.

    Args:
        name: as `init --weights` takes it, except `random`.
        modality: what the encoder is to be fed, and which one to take from a file that holds two; None keeps its own.
            The first convolution of another modality is adapted by a sum, as `init` does.
        arch: None guesses it from the keys; for imagenet it is resnet18.

    Raises:
        ArtifactError: missing, unfinished, not a ResNet, without BatchNorm, or with values that are not numbers.
        ConfigError: it holds two encoders and `modality` does not say which.
    """
    published = str(name) in ("imagenet", "pretrained")
    if not published and not (name.is_file() or name.is_dir()):
        raise ArtifactError(f"{name} does not exist; inspect takes imagenet, a file with weights or a run folder")
    header = None if published else _own_header(artifacts.model_file(name))
    if header is not None and header.kind in OWN:
        return _load_own(name, modality, arch, header)
    state, _ = find_weights(str(name), arch or "resnet18", modality or "audio")
    if modality is None and not published:
        other, _ = find_weights(str(name), arch or "resnet18", "visual")
        if not torch.equal(state["conv1.weight"], other["conv1.weight"]):
            raise ConfigError(f"{name} holds two encoders; say which with --modality audio or --modality visual")
    if not norm_layers(state):
        raise ArtifactError(f"{name} has no BatchNorm layer, so there are no abnormal or dead channels to look for")

    taken = state["conv1.weight"].shape[1] if state["conv1.weight"].ndim == 4 else 0
    made_for = next((known for known in MODALITIES if CHANNELS[known] == taken), None)
    if made_for is None:
        shape = "x".join(map(str, state["conv1.weight"].shape))
        raise ArtifactError(f"{name}: conv1.weight is {shape}; an encoder takes 1 channel (sound) or 3 (pictures)")
    spec = EncoderSpec(arch or guess_arch(state), modality or made_for, _norm(state))
    abri = {key: value for key, value in state.items() if key.endswith(tuple(f".{part}" for part in NEW))}
    fitted, _ = fit_weights({key: state[key] for key in state if key not in abri}, spec, "sum", str(name))
    encoder = build_encoder(spec)
    if problems := misfits(encoder.state_dict(), fitted | abri):
        raise ArtifactError(f"{name} does not fit {spec.arch} with ABRi: {'; '.join(problems.values())}")
    encoder.load_state_dict(fitted | abri)
    check_values(name, encoder)
    return AnyEncoder(encoder, spec, made_for, header)


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
        encoder, spec = _carry_across(encoder, spec, modality)
    return AnyEncoder(encoder, spec, made_for, header)


def _carry_across(encoder: Encoder, spec: EncoderSpec, modality: Modality) -> tuple[Encoder, EncoderSpec]:
    """The encoder with its first convolutions adapted to another modality's channels by a sum."""
    spec = replace(spec, modality=modality, mean=None, std=None)
    state = dict(encoder.state_dict())
    for layer in first_convolutions(spec):
        weight, _ = adapt_conv1(state[f"{layer}.weight"], CHANNELS[modality], "sum")
        assert weight is not None
        state[f"{layer}.weight"] = weight
    carried = build_encoder(spec)
    carried.load_state_dict(state)
    return carried, spec


def _own_header(file: Path) -> Header | None:
    try:
        return artifacts.read_header(file)[0]
    except ArtifactError:
        return None  # not avpt's; what is wrong with it is reported where its weights are read


def _norm(state: dict[str, Tensor]) -> Norm:
    alphas = [value.numel() for key, value in state.items() if key.endswith(".alpha")]
    if not alphas:
        return "batchnorm"
    return "abri-layer" if max(alphas) == 1 else "abri-channel"
