"""Pre-trained weights: read from any layout without running code, fitted strictly, reported key by key."""

from __future__ import annotations

import logging
import pickle
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from avpt.errors import ArtifactError, listed
from avpt.files.artifacts import model_file, own_header, read_tensors
from avpt.files.content_kinds import is_something_else
from avpt.files.torch_files import Checkpoint, is_saved_by_torch, load_checkpoint
from avpt.models.abnormal_channels import norm_layers
from avpt.models.abri import NEW, PRETRAINED, fold_state_dict, norm_eps
from avpt.models.architectures import RESNETS, fit_size
from avpt.models.encoder import EncoderSpec, build_encoder, classifiers, first_convolutions
from avpt.models.fitting import misfits, wrong_values
from avpt.models.known_architectures import nothing_alike, recognise
from avpt.models.layouts import CLASSIFIERS, Layout, choose_place, find_places, largest_state, may_be_encoder, take
from avpt.models.published import imagenet_weights, published_weights
from avpt.types import CHANNELS, MODALITIES, Modality

log = logging.getLogger(__name__)

ELSEWHERE = "take weights of one that `avpt encoders` lists; `avpt inspect` shows the BatchNorm of any network"


@dataclass
class LoadReport:
    """What became of each key of a checkpoint."""

    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)  # key -> how
    dropped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    folded: bool = False  # ABRi layers were folded into plain BatchNorm first
    layout: Layout = field(default_factory=Layout)  # of the file

    def record(self) -> dict[str, Any]:
        """The report as an artifact keeps it."""
        dropped = self.dropped + self.layout.dropped
        parts = {"loaded": self.loaded, "adapted": self.adapted, "dropped": dropped, "new": self.new}
        return {**parts, "folded": self.folded, **self.layout.record()}


def find_weights(name: str, spec: EncoderSpec, key: str | None = None) -> tuple[dict[str, Tensor], Layout]:
    """The weights that `--weights` names: published ones, a file, or a run folder. Returns what `read_weights` does.

    Raises:
        ArtifactError: what `read_weights` and `published_weights` raise, or a key for what is no file.
    """
    if name not in ("imagenet", "pretrained"):
        return read_weights(model_file(Path(name)), spec, key)
    if key is not None:
        raise ArtifactError(f"--weights-key {key} is for a file; {name} is one set of weights")
    return imagenet_weights(spec.arch) if name == "imagenet" else published_weights(spec.arch, spec.size), Layout()


def read_weights(path: Path, spec: EncoderSpec, key: str | None = None) -> tuple[dict[str, Tensor], Layout]:
    """Read a safetensors file or a PyTorch checkpoint, unwrapped and without prefixes.

    Args:
        path: the file.
        spec: of an encoder: the architecture whose keys to look for, and which stream to take from a file with two.
        key: where in the file they stand; None leaves it to be the only place.

    Returns:
        The weights in the architecture's names, and how they lay in the file.

    Raises:
        ArtifactError: not weights, damaged, a pickle with code in it, or several encoders.
    """
    with torch.device("meta"):
        shapes = build_encoder(replace(spec, norm="batchnorm")).state_dict()
    first = [f"{name}.weight" for name in first_convolutions(spec)] or list(shapes)[:1]
    held = _read(path)
    places = find_places(held.value, shapes)
    place = choose_place(places, shapes, first, spec.modality, key, path)
    if place is None or not may_be_encoder(place, shapes):
        raise ArtifactError(_no_encoder(path, held, spec, first))
    state, layout = take(held.value, place, places, shapes)
    _check_plain(path, state)
    if lost := [name for name in shapes if (*place.path, place.prefix + name) in held.foreign]:
        what = held.foreign[(*place.path, place.prefix + lost[0])]
        raise ArtifactError(f"{path}: {listed(lost)} is a {what}, not a tensor; save a state_dict() of tensors")
    layout.left = [_with_class(name, held.foreign) for name in layout.left]
    layout.dtype = _little_precision(state[name] for name in place.wanted if name in state)
    if own_header(path) is not None:  # its layout is ours, and nobody needs to be told
        layout.wrapper = layout.prefix = ""
    return state, layout


def read_largest(path: Path) -> dict[str, Tensor]:
    """The tensors of the mapping in a file that has most of them, whatever they are of.

    Raises:
        ArtifactError: not weights, damaged, or a pickle with code in it.
    """
    state = largest_state(_read(path).value)
    _check_plain(path, state)
    return state


def _with_class(name: str, foreign: Mapping[tuple[str, ...], str]) -> str:
    """A name that was left lying, and of what classes that are not torch's own it or something in it is."""
    keys = tuple(name.split("."))
    inside = dict.fromkeys(kind for at, kind in foreign.items() if ".".join(at).startswith(f"{name}."))
    own = foreign.get(keys)
    if own or not inside:
        return f"{name} ({own})" if own else name
    return f"{name} (with {listed(list(inside), 2)})"


def _little_precision(values: Iterable[Tensor]) -> str:
    """The type of weights with half the precision or less; empty where there are none."""
    kinds = {value.dtype for value in values if value.is_floating_point() and value.element_size() < 4}
    return " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))


def _no_encoder(path: Path, held: Checkpoint, spec: EncoderSpec, first: list[str]) -> str:
    """Why a file has no encoder of an architecture."""
    state = largest_state(held.value)
    if held.networks and not state:
        key, kind = next(iter(held.networks.items()))
        return f"{path} holds a whole network at {key} ({kind}), which is code; save its state_dict() alone"
    if state and (known := recognise(state)) is not None and known.name != spec.arch:
        return f"{path} does not fit {spec.arch}: {known.advice()} ({listed(sorted(state))})"
    if any("." in key for key in state):  # of a network, which has names within names
        return f"{path} {nothing_alike()}: no {first[0]}, and it holds {listed(sorted(state))}; {ELSEWHERE}"
    contents = f"it holds {listed(sorted(state))}" if state else "it holds no tensors by name; a state_dict does"
    if held.foreign and not state:
        kinds = [f"{'.'.join(keys)} ({kind})" for keys, kind in held.foreign.items()]
        contents += f"; it holds {listed(kinds)}"
    kind = "a ResNet in torchvision's layout" if spec.arch in RESNETS else spec.arch
    return f"{path} is not {kind}: no {first[0]} ({contents})"


def init_command(path: Path, modality: Modality | None = None) -> str:
    """The command that makes an encoder of weights that avpt did not write, for their own modality if none is named."""
    arch: list[str] = []
    with suppress(ArtifactError):  # `init` says what is wrong with them
        state = read_largest(path)
        known = recognise(state)
        if known is None or not known.built:
            arch = ["--arch", "NAME"] if state else []  # which of the others it is, if any, has to be known
        elif known.name != "resnet18":
            arch = ["--arch", known.name]
        channels = next((value.shape[1] for value in state.values() if value.ndim == 4), 0)
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


def _read(path: Path) -> Checkpoint:
    try:
        return Checkpoint(read_tensors(path))
    except ArtifactError:
        if path.suffix == ".safetensors" or not path.is_file() or is_something_else(path):
            raise
    try:
        return load_checkpoint(path)
    except ArtifactError:
        raise
    except pickle.UnpicklingError:
        raise ArtifactError(
            f"{path} holds more than tensors (a pickle with code in it, or not a checkpoint at all) and is refused; "
            "where you trust it, save its state_dict() alone"
            if is_saved_by_torch(path)
            else f"{path} is not a checkpoint; weights are a safetensors file, or what torch.save writes"
        ) from None
    except Exception as error:  # torch raises whatever its readers raise
        message = next(iter(str(error).splitlines()), "") if isinstance(error, OSError | RuntimeError) else ""
        reason = message or "neither safetensors nor what torch.save writes, or damaged"
        raise ArtifactError(
            f"{path} is not a readable checkpoint ({reason}); save a state_dict() with either"
        ) from None


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
    encoder = build_encoder(replace(spec, norm="batchnorm"))
    fitted = encoder.state_dict()
    state = fold_state_dict(state, norm_eps(encoder)) if report.folded else dict(state)
    if spec.size is not None:
        state = fit_size(encoder, state)

    for name in first_convolutions(spec):
        key = f"{name}.weight"
        if key not in state or state[key].ndim != 4 or state[key].shape == fitted[key].shape:
            continue  # the last: it may take patches of the picture as channels, as tresnet's does
        weight, how = adapt_conv1(state[key], CHANNELS[spec.modality], conv1)
        if weight is None:
            del state[key]
            report.new.append(key)
        else:
            state[key] = weight
        if how:
            report.adapted[key] = how

    heads = (*CLASSIFIERS, *(f"{name}." for name in classifiers(spec)))
    report.dropped = [name for name in state if name.startswith(heads) and name not in fitted]
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
    if problems and (what := _odd_norm(state, wanted)):
        raise ArtifactError(f"{source} does not fit {spec.arch}: {what}")
    if problems:
        everywhere = len([name for name in state if name in wrong]) > len(state) / 10
        known = recognise(state, everywhere=everywhere) if wrong else None
        if known is not None and known.name != spec.arch:  # then the list would only hide the reason
            few = listed(problems)
            raise ArtifactError(f"{source} does not fit {spec.arch}: {known.advice()} ({few})")
        if known is None and everywhere:
            raise ArtifactError(f"{source} {nothing_alike()}; as {spec.arch}: {listed(problems)}; {ELSEWHERE}")
        if not wrong:  # all is there, but for values that no training leaves
            raise ArtifactError(f"{source}: {'; '.join(problems)}; take a checkpoint from before training diverged")
        raise ArtifactError(f"{source} does not fit {spec.arch}: {'; '.join(problems)}")
    return fitted, report


def _odd_norm(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What is special about the BatchNorm of weights that do not fit for want of it; empty where it is not that."""
    layers = norm_layers(wanted)

    def lack(*parts: str) -> list[str]:
        return [layer for layer in layers if not any(f"{layer}.{part}" in state for part in parts)]

    gone = lack("weight", "bias", "running_mean", "running_var")
    biases = [key for key in state if key.endswith(".bias") and key not in wanted and f"{key[:-5]}.weight" in wanted]
    if gone and biases:
        return (
            f"its BatchNorm is fused into the convolutions ({listed(gone, 3)} missing, {listed(biases, 3)} there "
            "instead); take the weights from before that"
        )
    if plain := [layer for layer in lack("weight", "bias") if layer not in gone]:
        has = "has" if len(plain) == 1 else "have"
        return (
            f"{listed(plain)} {has} no gamma and beta (a BatchNorm with affine=False), and avpt's BatchNorm has both; "
            "save them as 1 and 0, which amounts to the same"
        )
    still = [layer for layer in lack("running_mean", "running_var") if layer not in gone]
    if still and still == layers:
        return (
            f"{listed(still)} have no running statistics (track_running_stats=False, or no BatchNorm at all); take "
            "weights that have them"
        )
    return ""


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
