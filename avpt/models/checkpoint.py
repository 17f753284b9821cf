"""Encoders read back from avpt's own artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchvision.models import ResNet

from avpt import artifacts
from avpt.errors import ArtifactError
from avpt.models.encoder import EncoderSpec, build_encoder, encoder_spec
from avpt.types import Modality


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder on the CPU, and where it came from."""

    encoder: ResNet
    spec: EncoderSpec
    input: dict[str, Any] | None  # the input pipeline it was trained with; None for an encoder fresh from `init`


def load_encoder(path: Path, modality: Modality) -> LoadedEncoder:
    """Read an encoder artifact, or the best model of a stage-1 run folder, ABRi kept.

    Raises:
        ArtifactError: missing, unfinished, of another kind or modality, or tensors that do not fit its spec.
    """
    artifact = artifacts.load(artifacts.model_file(path), "encoder", "classifier")
    state = artifact.tensors
    if artifact.header.kind == "classifier":
        state = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    try:
        spec = encoder_spec(artifact.header.spec["encoder"])
        encoder = build_encoder(spec)
        encoder.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{path} does not fit its own spec ({next(iter(str(error).splitlines()), '')}); make it again"
        ) from None
    if spec.modality != modality:
        article = "an" if spec.modality == "audio" else "a"
        raise ArtifactError(
            f"{path} is {article} {spec.modality} encoder, {modality} is needed here; "
            f"carry it across with `avpt init --modality {modality} --weights {path}`"
        )
    return LoadedEncoder(encoder, spec, artifact.header.spec.get("input"))


def check_frozen(loaded: LoadedEncoder, path: Path) -> None:
    """Refuse to freeze an encoder whose new ABRi branch has seen nothing: its running statistics are still 0 and 1.

    Raises:
        ArtifactError: it is fresh from `init`.
    """
    if loaded.input is None and loaded.spec.norm != "batchnorm":
        raise ArtifactError(
            f"{path} is fresh from `avpt init --bn abri`: the new branch of its BatchNorm has no statistics yet, so "
            "--freeze-encoders would freeze nonsense; train it with `avpt finetune-unimodal` first, or use another --bn"
        )


def check_input(loaded: LoadedEncoder, path: Path, wanted: dict[str, Any]) -> None:
    """Refuse an encoder that was trained on spectrograms of another make than the store holds.

    Raises:
        ArtifactError: with what differs.
    """
    if loaded.input is None or loaded.spec.modality != "audio":
        return
    names = ("sample_rate", "mel_bins", "spectrogram_frames")
    different = [
        f"{name} {loaded.input[name]} against {wanted[name]}" for name in names if loaded.input[name] != wanted[name]
    ]
    if different:
        raise ArtifactError(
            f"{path} was trained on other spectrograms than the store holds ({', '.join(different)}); "
            "preprocess the clips with the same options, or start from weights with `avpt init`"
        )
