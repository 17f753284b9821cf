"""Architectures: torchvision's three ResNets, and by any other name timm's, whose facts are asked of timm itself."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, Literal, cast

from torch import Tensor, nn

from avpt.errors import AvptError, ConfigError
from avpt.files.records import IMAGENET, Colour, Deviation
from avpt.machine.light_imports import compiler_kept_off_later, without_compiler
from avpt.types import TORCHVISION

with without_compiler():
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

RESNETS: dict[str, tuple[type[Any], list[int]]] = {  # blocks of each of the four layers
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
assert tuple(RESNETS) == TORCHVISION

Size = tuple[int, int]  # height and width of pictures, or frames and mel bins of spectrograms


@dataclass(frozen=True)
class Architecture:
    """What has to be known of an architecture beside its layers."""

    name: str
    first_convolutions: tuple[str, ...]  # the layers that take the input's channels
    classifiers: tuple[str, ...]  # the layers that an encoder lacks
    picture_size: Size  # that its pre-trained weights were made for
    colours: tuple[Colour, Deviation]  # mean and standard deviation of the pictures that these were made with
    library: Literal["torchvision", "timm"]
    fixed_size: bool  # whether a network takes inputs of one size alone, which is chosen when it is built


def find_architecture(name: str) -> Architecture:
    """Look an architecture up.

    Args:
        name: resnet18, resnet34 or resnet50 of torchvision; any other name is timm's, with the tag of its weights or
            without.

    Raises:
        ConfigError: it is unknown.
        AvptError: it is timm's, which is not installed.
    """
    if name in RESNETS:
        return Architecture(name, ("conv1",), ("fc",), (224, 224), IMAGENET, "torchvision", fixed_size=False)
    timm = timm_package(name)
    base, _, tag = name.partition(".")
    if not timm.is_model(base) or (tag and not timm.models.is_model_pretrained(name)):
        known = list(
            dict.fromkeys([*RESNETS, *timm.list_models(), *(timm.list_pretrained(f"{base}.*") if tag else ())])
        )
        near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f"; do you mean {' or '.join(near)}" if near else ""
        raise ConfigError(f"there is no architecture {name!r:.80}{hint}; `avpt encoders PATTERN` lists them")
    facts = timm.get_pretrained_cfg(name)
    return Architecture(
        name,
        _names(facts.first_conv),
        _names(facts.classifier),
        tuple(facts.input_size[1:]),
        (tuple(facts.mean), tuple(facts.std)),
        "timm",
        bool(facts.fixed_input_size),
    )


def _names(value: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def create_network(name: str, channels: int, size: Size | None, num_classes: int = 0) -> nn.Module:
    """Build a network with random weights from torch's global generator.

    Args:
        name: of an architecture that `find_architecture` knows.
        channels: of the input.
        size: of the input, where the architecture takes one size alone.
        num_classes: of its classifier; 0 leaves that out.

    Raises:
        ConfigError: the architecture does not take that size or number of channels.
    """
    if name in RESNETS:
        block, layers = RESNETS[name]
        network = cast(Any, ResNet(block, layers))
        if channels != 3:
            network.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
        network.fc = nn.Linear(network.fc.in_features, num_classes) if num_classes else nn.Identity()
        return cast(nn.Module, network)
    sized = {} if size is None else {"img_size": size}
    create = timm_package(name).create_model
    try:
        with warnings.catch_warnings(action="ignore"):  # that other channels may not work, which is tried here
            network = create(name, pretrained=False, num_classes=num_classes, in_chans=channels, **sized)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # whatever its constructor raises
        asked = f"{channels} channel(s)" + ("" if size is None else f" of {size[0]}x{size[1]}")
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{name} can't be built for {asked}: {reason:.150}") from None
    return cast(nn.Module, network)


def fit_size(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an architecture that takes one size alone, made for another size, fitted to a network.

    timm's own function does so, which interpolates what depends on the size, such as the embeddings of positions.
    """
    for kind in type(network).__mro__:
        fit = getattr(sys.modules[kind.__module__], "checkpoint_filter_fn", None)
        if fit is not None:
            return dict(fit(dict(state), network))
    return dict(state)


def list_architectures(pattern: str) -> list[str]:
    """The names that fit a shell pattern, torchvision's first; without timm these are all.

    A pattern without `*`, `?` or `[` fits all names that contain it; upper and lower case are one. A pattern with a dot
    is about the tags of weights too, as in `resnet18.a1_in1k`.
    """
    pattern = pattern.lower()
    if not any(character in pattern for character in "*?["):
        pattern = f"*{pattern}*"
    own = [name for name in RESNETS if fnmatchcase(name, pattern)]
    if not find_spec("timm"):
        return own
    timm = timm_package(pattern)
    theirs = timm.list_models() + (timm.list_pretrained() if "." in pattern else [])
    return own + [name for name in theirs if fnmatchcase(name.lower(), pattern) and name not in RESNETS]


def timm_package(name: str) -> Any:
    """The package timm, which has an architecture of that name.

    Raises:
        AvptError: it is not installed.
    """
    if find_spec("timm") is None:
        raise AvptError(
            f"{name!r:.80} is not an architecture of torchvision's that avpt takes ({', '.join(RESNETS)}); for timm's: "
            "pip install 'avpt[timm]'"
        )
    with compiler_kept_off_later():
        import timm

    return timm
