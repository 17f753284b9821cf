"""Whether tensors fit a network and are finite, and pre-trained weights fitted to an encoder, reported key by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avpt.errors import ArtifactError, listed
from avpt.models.abnormal_channels import norm_layers
from avpt.models.abri import NEW, PRETRAINED, fold_state_dict, norm_eps
from avpt.models.architectures import fit_size
from avpt.models.encoder import EncoderSpec, build_encoder, classifiers, first_convolutions
from avpt.models.known_architectures import ELSEWHERE, nothing_alike, recognise
from avpt.models.layouts import CLASSIFIERS, Layout
from avpt.types import CHANNELS

DTYPES = {  # the types that weights may have, by their names in safetensors
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
}


def describe_tensors(shapes: Mapping[str, tuple[str, list[int]]]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that a safetensors file declares, without values; and what is wrong with the types of the others."""
    known = {name: one for name, one in shapes.items() if one[0] in DTYPES}
    state = {name: torch.empty(shape, dtype=DTYPES[dtype], device="meta") for name, (dtype, shape) in known.items()}
    return state, [f"{name} is {dtype}" for name, (dtype, _) in shapes.items() if dtype not in DTYPES]


def misfits(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str]:
    """What keeps a state dict from being the wanted one, by key: it is missing, unknown, of another shape or type.

    Any floating-point type may stand for any other. Values are ignored, so that both may be on the meta device.
    """
    problems = {name: f"{name} is missing" for name in wanted if name not in state}
    problems |= {name: f"{name} is unknown" for name in state if name not in wanted}
    for name, value in wanted.items():
        if name not in state:
            continue
        have = state[name]
        if have.shape != value.shape:
            problems[name] = f"{name} is {tuple(have.shape)}, not {tuple(value.shape)}"
        elif have.is_floating_point() != value.is_floating_point():
            what = "floating point" if value.is_floating_point() else "whole numbers"
            problems[name] = f"{name} is {str(have.dtype).removeprefix('torch.')}, not {what}"
    return problems


def wrong_values(state: Mapping[str, Tensor]) -> dict[str, str]:
    """What is wrong with values that no training can have left, by key."""
    wrong = {}
    for name, value in state.items():
        if not value.isfinite().all():
            wrong[name] = f"{name} holds infinite values or NaN"
        elif name.endswith("running_var") and (value < 0).any():
            wrong[name] = f"{name} holds negative variances"
    return wrong


def check_values(path: Path, network: nn.Module) -> None:
    """Check that all values of a network are numbers, and no variance is negative.

    Raises:
        ArtifactError: some are not; the message names the first key with such values.
    """
    for name, what in wrong_values(network.state_dict()).items():
        which = f"values that are not numbers ({name})" if "NaN" in what else f"negative variances ({name})"
        raise ArtifactError(f"{path} holds {which}; train it again with a lower --lr")


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
        weight, how = adapt_conv1(state[key], CHANNELS[spec.modality], conv1, f"{source}: {key}")
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


def adapt_conv1(
    weight: Tensor, channels: int, how: Literal["sum", "mean", "random"], name: str
) -> tuple[Tensor | None, str]:
    """Take the first convolution's weight (out, in, 7, 7) to another number of input channels.

    3 -> 1: the sum keeps the response to a grey image; 1 -> 3: repeated, divided by 3.

    Returns:
        The weight, or None where it must be drawn anew; and how it was changed, in words.

    Raises:
        ArtifactError: there is no way from its number of channels to the other; the message begins with `name`.
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
    raise ArtifactError(
        f"{name} takes {have} channels, and {channels} {'is' if channels == 1 else 'are'} needed; `avpt init --conv1 "
        "random` draws it anew"
    )
