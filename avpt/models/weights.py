"""Pre-trained weights: found in a file of any layout, and read without running code."""

from __future__ import annotations

import pickle
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from avpt.errors import ArtifactError, listed
from avpt.files.artifacts import model_file, own_header, read_tensors
from avpt.files.content_kinds import is_something_else
from avpt.files.torch_files import Checkpoint, is_saved_by_torch, load_checkpoint
from avpt.models.architectures import RESNETS
from avpt.models.encoder import EncoderSpec, build_encoder, first_convolutions
from avpt.models.known_architectures import ELSEWHERE, nothing_alike, recognise
from avpt.models.layouts import Layout, choose_place, find_places, largest_state, may_be_encoder, take
from avpt.models.published import imagenet_weights, published_weights
from avpt.types import CHANNELS, MODALITIES, Modality


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
    layout.dtype = little_precision(state[name] for name in place.wanted if name in state)
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


def little_precision(values: Iterable[Tensor]) -> str:
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
    """The command that makes an encoder of weights that avpt did not write, for their own modality if none is named.

    Raises:
        ArtifactError: `init` could not take them.
    """
    arch: list[str] = []
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


def init_step(path: Path, modality: Modality | None = None, then: str = "") -> str:
    """What to do with weights that avpt did not write, in words, and `then`; or why `init` could not take them."""
    try:
        command = init_command(path, modality)
    except ArtifactError as error:
        return f"`avpt init` can't take it: {error}"
    known = " (NAME: one that `avpt encoders` lists; none of them was recognised)" if "--arch NAME" in command else ""
    return f"make an encoder of it with `{command}`{known}{then}"


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


def guess_arch(state: Mapping[str, Tensor]) -> str:
    """The smallest architecture that has the blocks of a state dict."""
    if "layer1.0.conv3.weight" in state:
        return "resnet50"
    return "resnet34" if "layer3.5.conv1.weight" in state else "resnet18"
