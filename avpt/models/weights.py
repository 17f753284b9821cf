"""Pre-trained weights: read from any layout without running code, fitted strictly, reported key by key."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor

from avpt.errors import ArtifactError, listed
from avpt.files.artifacts import model_file, read_tensors
from avpt.files.torch_files import load_torch
from avpt.models.abri import NEW, PRETRAINED, fold_state_dict
from avpt.models.encoder import CHANNELS, EncoderSpec, build_encoder
from avpt.models.fitting import misfits, wrong_values
from avpt.types import MODALITIES, Modality

log = logging.getLogger(__name__)

MOST_NESTED = 8  # levels of wrappers, or of prefixes
WRAPPERS = ("state_dict", "model")  # under which checkpoints keep their weights
PREFIXES = ("module.", "backbone.", "encoder.")
STREAMS: dict[Modality, tuple[str, ...]] = {
    "audio": ("audio_net.", "audio."),
    "visual": ("visual_net.", "visual."),
}
CLASSIFIERS = ("fc.", "head.", "classifier.")


@dataclass
class LoadReport:
    """What became of each key of a checkpoint."""

    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)  # key -> how
    dropped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    folded: bool = False  # ABRi layers were folded into plain BatchNorm first

    def record(self) -> dict[str, Any]:
        """The report as an artifact keeps it."""
        parts = {"loaded": self.loaded, "adapted": self.adapted, "dropped": self.dropped, "new": self.new}
        return {**parts, "folded": self.folded}


def imagenet_weights(arch: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights (IMAGENET1K_V1), from its cache or its download.

    Raises:
        ArtifactError: neither is available.
    """
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


def find_weights(name: str, arch: str, modality: Modality) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that `--weights` names: imagenet, a file, or a run folder. Returns what `read_weights` does."""
    return (imagenet_weights(arch), []) if name == "imagenet" else read_weights(model_file(Path(name)), modality)


def read_weights(path: Path, modality: Modality) -> tuple[dict[str, Tensor], list[str]]:
    """Read a safetensors file or a PyTorch checkpoint, unwrapped and without prefixes.

    Args:
        path: the file.
        modality: which stream to take from a file that holds two.

    Returns:
        The weights in torchvision's names, and the keys outside the encoder that were dropped.

    Raises:
        ArtifactError: not weights, damaged, or a pickle with code in it.
    """
    state = {name: value for name, value in _unwrap(_read(path)).items() if isinstance(value, Tensor)}
    dropped: list[str] = []
    others = [prefix for stream in STREAMS.values() for prefix in stream]
    levels = MOST_NESTED
    while "conv1.weight" not in state:
        prefixes = (*STREAMS[modality], *PREFIXES, *others)  # of two streams the modality's own, else the one there is
        inner = [prefix for prefix in prefixes if levels and any(key.startswith(prefix) for key in state)]
        levels -= 1
        if not inner:
            contents = (
                f"it holds {listed(sorted(state))}" if state else "it holds no tensors by name; a state_dict does"
            )
            raise ArtifactError(f"{path} is not a ResNet in torchvision's layout: no conv1.weight ({contents})")
        prefix = inner[0]
        dropped += [key for key in state if not key.startswith((prefix, *CLASSIFIERS))]
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    _check_plain(path, state)
    return state, dropped


def init_command(path: Path, modality: Modality | None = None) -> str:
    """The command that makes an encoder of weights that avpt did not write, for their own modality if none is named."""
    arch: list[str] = []
    with contextlib.suppress(ArtifactError):  # `init` says what is wrong with them
        state, _ = read_weights(path, modality or "audio")
        guess, (_, channels, *_) = guess_arch(state), (*state["conv1.weight"].shape, 0, 0)
        arch = [] if guess == "resnet18" else ["--arch", guess]
        modality = modality or next((known for known in MODALITIES if CHANNELS[known] == channels), None)
    modality = modality or "visual"
    words = ["avpt", "init", "--modality", modality, *arch, "--weights", str(path), "--out"]
    return shlex.join([*words, f"{modality}-init.safetensors"])


def _check_plain(path: Path, state: Mapping[str, Tensor]) -> None:
    """Check that every tensor is dense, in memory, and stores one number per element.

    Raises:
        ArtifactError: one is not; the message names its key.
    """
    for key, value in state.items():
        kind = "plain"
        if value.is_nested or value.layout != torch.strided:
            kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")  # sparse_coo, ...
        elif value.is_meta or value.is_quantized:
            kind = "without values (device meta)" if value.is_meta else "quantised"
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            kind = "expanded: larger than what is stored of it"
        if kind != "plain":
            raise ArtifactError(f"{path}: {key} is {kind}; save a state_dict() of plain tensors")


def _read(path: Path) -> Any:
    try:
        return read_tensors(path)
    except ArtifactError:
        if path.suffix == ".safetensors" or not path.is_file():
            raise
    try:
        return load_torch(path)
    except ArtifactError:
        raise
    except pickle.UnpicklingError:
        raise ArtifactError(
            f"{path} holds more than tensors (a pickle with code in it, or not a checkpoint at all) and is refused; "
            "where you trust it, save its state_dict() alone"
        ) from None
    except Exception as error:  # torch raises whatever its readers raise
        message = next(iter(str(error).splitlines()), "") if isinstance(error, OSError | RuntimeError) else ""
        reason = message or "neither safetensors nor what torch.save writes, or damaged"
        raise ArtifactError(
            f"{path} is not a readable checkpoint ({reason}); save a state_dict() with either"
        ) from None


def _unwrap(value: Any) -> dict[str, Any]:
    for _ in range(MOST_NESTED):  # a mapping may hold itself
        if not isinstance(value, Mapping):
            return {}
        inner = next((value[name] for name in WRAPPERS if isinstance(value.get(name), Mapping)), None)
        if inner is None:
            return {name: item for name, item in value.items() if isinstance(name, str)}
        value = inner
    return {}


def fit_weights(
    state: Mapping[str, Tensor], spec: EncoderSpec, conv1: Literal["sum", "mean", "random"], source: str
) -> tuple[dict[str, Tensor], LoadReport]:
    """Fit pre-trained weights to a plain-BatchNorm encoder of the given spec, strictly.

    Args:
        state: in torchvision's names; ABRi layers are folded first.
        spec: of the encoder; its norm layer is ignored.
        conv1: how the first convolution crosses between 1 and 3 input channels.
        source: what to call the weights in an error.

    Returns:
        A full state dict of the plain encoder (conv1 newly drawn where that is asked for), and the report.

    Raises:
        ArtifactError: keys or shapes do not fit; the message lists them all.
    """
    report = LoadReport(folded=any(".new_" in key for key in state))
    if report.folded:
        _check_abri(state, source)
    state = fold_state_dict(state) if report.folded else dict(state)
    fitted = build_encoder(EncoderSpec(spec.arch, spec.modality, "batchnorm")).state_dict()

    if "conv1.weight" in state and state["conv1.weight"].ndim == 4:
        weight, how = adapt_conv1(state["conv1.weight"], CHANNELS[spec.modality], conv1)
        if weight is None:
            del state["conv1.weight"]
            report.new.append("conv1.weight")
        else:
            state["conv1.weight"] = weight
        if how:
            report.adapted["conv1.weight"] = how

    report.dropped = [name for name in state if name.startswith(CLASSIFIERS)]
    state = {name: value for name, value in state.items() if name not in report.dropped}
    wanted = {name: value for name, value in fitted.items() if name not in report.new}
    for name in [name for name in wanted if name.endswith("num_batches_tracked")]:
        if name in state:
            state[name] = state[name].to(torch.int64)  # some tools make all numbers floating point
        else:
            del wanted[name]  # older checkpoints have none; it starts at 0
    wrong = misfits(wanted, state)
    fitted |= {name: state[name].to(value.dtype) for name, value in wanted.items() if name not in wrong}
    report.loaded = [name for name in wanted if name not in report.adapted]
    problems = [*wrong.values(), *wrong_values(fitted).values()]
    if problems:
        guess = guess_arch(state)
        if guess != spec.arch:  # then nearly nothing fits, and the list would only hide the reason
            few = listed(problems)
            raise ArtifactError(f"{source} does not fit {spec.arch}: it looks like {guess}: try --arch {guess} ({few})")
        raise ArtifactError(f"{source} does not fit {spec.arch}: {'; '.join(problems)}")
    return fitted, report


def _check_abri(state: Mapping[str, Tensor], source: str) -> None:
    """Check that ABRi layers are complete.

    Raises:
        ArtifactError: one is not; the message names its keys.
    """
    layers = dict.fromkeys(key.rpartition(".new_")[0] for key in state if ".new_" in key)
    for layer in layers:
        keys = [f"{layer}.{part}" for part in (*NEW, *PRETRAINED)]
        if lacking := [key for key in keys if key not in state]:
            raise ArtifactError(f"{source} has half of an ABRi layer: {listed(lacking)} missing; save all of it")
        shape = state[f"{layer}.weight"].shape
        for key in keys:
            shapes = (shape, (1,)) if key.endswith(".alpha") else (shape,)
            if len(shape) != 1 or state[key].shape not in shapes:
                raise ArtifactError(f"{source}: {key} is {tuple(state[key].shape)}, its layer {tuple(shape)}")


def adapt_conv1(weight: Tensor, channels: int, how: Literal["sum", "mean", "random"]) -> tuple[Tensor | None, str]:
    """Take the first convolution's weight (out, in, 7, 7) to another number of input channels.

    3 -> 1: the sum keeps the response to a grey image; 1 -> 3: repeated, divided by 3.

    Returns:
        The weight, or None where it must be drawn anew; and how it was changed, in words.
    """
    have = weight.shape[1]
    if have == channels:
        return weight, ""
    if how == "random":
        return None, ""
    if (have, channels) == (3, 1):
        adapted = weight.sum(1, keepdim=True) if how == "sum" else weight.mean(1, keepdim=True)
        return adapted, f"3 -> 1 channel, {how}"
    if (have, channels) == (1, 3):
        return weight.repeat(1, 3, 1, 1) / 3, "1 -> 3 channels, repeated / 3"
    raise ArtifactError(f"conv1 takes {have} channels, {channels} are needed; --conv1 random draws it anew")


def guess_arch(state: Mapping[str, Tensor]) -> str:
    """The smallest architecture that has the blocks of a state dict."""
    if "layer1.0.conv3.weight" in state:
        return "resnet50"
    return "resnet34" if "layer3.5.conv1.weight" in state else "resnet18"
