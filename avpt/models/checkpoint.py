"""Encoders and whole models read back from avpt's own artifacts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avpt.errors import ArtifactError, ConfigError, listed
from avpt.files import artifacts
from avpt.files.artifacts import ForeignWeightsError, Header, Kind
from avpt.files.model_headers import check_kind, read_input
from avpt.files.records import InputSpec
from avpt.models.abnormal_channels import has_unmoved_statistics
from avpt.models.encoder import Classifier, Encoder, EncoderSpec, build_encoder, encoder_spec
from avpt.models.fitting import check_values, describe_tensors, misfits
from avpt.models.fusion import FUSIONS, FusedModel, recorded_fusion
from avpt.models.weights import init_step
from avpt.types import MODALITIES, Modality

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder on the CPU, and where it came from."""

    encoder: Encoder
    spec: EncoderSpec
    input: InputSpec | None  # the input pipeline it was trained with; None for an encoder fresh from `init`
    store: str | None  # fingerprint of the store that it was trained on


def load_encoder(path: Path, modality: Modality) -> LoadedEncoder:
    """Read an encoder artifact, or the best model of a stage-1 run folder, ABRi kept.

    Raises:
        ArtifactError: missing, unfinished, of another kind or modality, not written by avpt (the message has the
            command that makes an encoder of it), or tensors that do not fit its spec.
    """
    try:
        loaded = load_network(path, "encoder", "classifier")
    except ForeignWeightsError as error:
        step = init_step(path, modality, then=", and name that here")
        raise ArtifactError(f"{error.what}; {step}") from None
    ((made_for, spec),) = loaded.encoders.items()
    if made_for != modality:
        article = "an" if made_for == "audio" else "a"
        raise ArtifactError(
            f"{path} is {article} {made_for} encoder, {modality} is needed here; "
            f"carry it across with `avpt init --modality {modality} --weights {path}`"
        )
    values = loaded.header.spec.get("input")
    pipeline = None if values is None else read_input(path, loaded.header)
    encoder = build_encoder(spec)  # draws at random: the head, which training draws next, depends on that
    encoder.load_state_dict(loaded.encoder(modality).state_dict())
    return LoadedEncoder(encoder, spec, pipeline, loaded.header.inputs.get("store"))


def check_frozen(encoder: Encoder, path: Path) -> None:
    """Refuse to use an encoder as it is if its new ABRi branch still has its initial running statistics, 0 and 1.

    Its other branch normalises, so the blend is meaningless. Where no BatchNorm normalises, a warning is logged.

    Raises:
        ArtifactError: it is fresh from `init --bn abri`.
    """
    state = encoder.state_dict()
    if has_unmoved_statistics({name: value for name, value in state.items() if ".new_running_" in name}):
        raise ArtifactError(
            f"{path} is fresh from `avpt init --bn abri`: the new branch of its BatchNorm has no statistics yet, so "
            "as it is it gives nonsense; train it with `avpt finetune-unimodal` first, or use another --bn"
        )
    if has_unmoved_statistics(state):
        log.warning("%s has BatchNorm statistics that no data has moved yet: it does not normalise", path)


def check_input(loaded: LoadedEncoder, path: Path, wanted: dict[str, Any]) -> None:
    """Refuse an encoder that was trained on spectrograms made with other settings than the store's.

    Raises:
        ArtifactError: they differ; the message says in what.
    """
    if loaded.input is None or loaded.spec.modality != "audio":
        return
    names = ("sample_rate", "mel_bins", "spectrogram_frames")
    different = [
        f"{name} {value} against {wanted[name]}"
        for name in names
        if (value := getattr(loaded.input, name)) != wanted[name]
    ]
    if different:
        raise ArtifactError(
            f"{path} was trained on other spectrograms than the store holds ({', '.join(different)}); "
            "preprocess the clips with the same options, or start from weights with `avpt init`"
        )


@dataclass(frozen=True)
class LoadedNetwork:
    """A trained network on the CPU, in evaluation mode, and the header of its artifact."""

    network: Encoder | Classifier | FusedModel  # an encoder without a head, one with a head, or two fused
    encoders: dict[Modality, EncoderSpec]
    header: Header

    def encoder(self, modality: Modality) -> Encoder:
        """The network's encoder of a modality."""
        network = self.network
        if isinstance(network, Encoder):
            return network
        if isinstance(network, Classifier):
            return network.encoder
        return network.audio if modality == "audio" else network.visual

    @property
    def head(self) -> nn.Linear | None:
        """The linear head of a classifier; None for any other network."""
        head: nn.Linear | None = getattr(self.network, "head", None)
        return head


def load_network(path: Path, *kinds: Kind) -> LoadedNetwork:
    """Rebuild the network that an artifact, or the best model of a run folder, holds.

    Args:
        path: the artifact or run folder.
        kinds: those that are accepted, out of encoder, classifier and fused.

    Raises:
        ArtifactError: missing, unfinished, of another kind, or tensors that do not fit its spec.
    """
    file = artifacts.model_file(path)
    header, shapes = artifacts.read_header(file)
    check_kind(path, header, *kinds)
    if header.kind == "fused":
        check_fusion(path, header)
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("balance.")}  # only training has
    problems: list[str]
    try:
        with torch.device("meta"):  # takes no memory, whatever the spec says
            network, encoders = _build(header)
        state, problems = describe_tensors(shapes)
        problems += misfits(network.state_dict(), state).values()
    except KeyError as error:
        problems = [f"it has no {error.args[0]}"]
    except (ConfigError, TypeError, ValueError, RuntimeError) as error:
        problems = [str(error)[:200]]
    if problems:
        raise ArtifactError(f"{path} does not fit its own spec ({listed(problems)}); make it again")
    tensors = artifacts.load(file, header.kind).tensors
    wanted = {name: value.dtype for name, value in network.state_dict().items()}
    if any(name not in wanted for name, _ in network.named_buffers()):  # what is not saved has to be computed
        with torch.random.fork_rng(devices=[]):
            network, encoders = _build(header)
    network.load_state_dict({name: tensors[name].to(dtype, copy=True) for name, dtype in wanted.items()}, assign=True)
    check_values(path, network)
    return LoadedNetwork(network.eval(), encoders, header)


def check_fusion(path: Path, header: Header) -> None:
    """Refuse a fused model whose fusion is a class of somebody's own that is not trusted, or can't be imported.

    Raises:
        ArtifactError: it is; the message says how to trust it.
    """
    named = str(header.spec.get("fusion"))
    try:
        _ = recorded_fusion(named) if ":" in named else None
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}") from None


def _build(header: Header) -> tuple[Encoder | Classifier | FusedModel, dict[Modality, EncoderSpec]]:
    """The network that a header's spec describes, with random weights."""
    spec = header.spec
    if header.kind in ("encoder", "classifier"):
        own = encoder_spec(spec["encoder"])
        encoder = build_encoder(own)
        network = encoder if header.kind == "encoder" else Classifier(encoder, _num_classes(header))
        return network, {own.modality: own}
    audio, visual = encoder_spec(spec["audio"]), encoder_spec(spec["visual"])
    named = str(spec["fusion"])
    if (audio.modality, visual.modality) != MODALITIES or (":" not in named and named not in FUSIONS):
        raise ValueError(f"unknown fusion {named} of {audio.modality} and {visual.modality}")
    model = FusedModel(build_encoder(audio), build_encoder(visual), recorded_fusion(named), _num_classes(header))
    return model, {"audio": audio, "visual": visual}


def _num_classes(header: Header) -> int:
    classes = header.classes
    if not classes or not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise ValueError("the class names are missing, or not all different")
    if header.spec["num_classes"] != len(classes) or not isinstance(header.spec["multi_label"], bool):
        raise ValueError("the number of classes is not that of their names")
    return len(classes)
