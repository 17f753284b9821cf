"""Which architecture of torchvision's or timm's some weights are of, looked up by the shapes that it would have."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from avpt.machine.light_imports import without_compiler
from avpt.models.architectures import RESNETS, timm_package
from avpt.models.layouts import CLASSIFIERS, COUNTER, find_places
from avpt.models.likely_architectures import make_outline, unlike_timm, unlike_torchvision
from avpt.types import CHANNELS

with without_compiler():
    import torchvision

log = logging.getLogger(__name__)

SECONDS = 8.0  # of one core, to look for at most, besides importing timm
FEWEST = 8  # tensors that can be looked up
TRIED = 6  # of torchvision's that are built, the likeliest
ALIKE = 0.97  # share of tensors that fit, for weights to be of an architecture
CLASSES = 1013  # of the classifiers built here: of no tensor else the size, so that they are told from it
KEPT = 8  # answers
ELSEWHERE = "take weights of one that `avpt encoders` lists; `avpt inspect` shows the BatchNorm of any network"


@dataclass(frozen=True)
class Known:
    """An architecture that weights are of."""

    name: str
    built: bool  # by avpt

    def advice(self) -> str:
        """What it looks like, and what to do."""
        if self.built:
            return f"it looks like {self.name}: try --arch {self.name}"
        return f"it looks like torchvision's {self.name}, which is none of avpt's encoders"


def nothing_alike() -> str:
    """What can be said of weights that are of none of the architectures looked up."""
    if importlib.util.find_spec("timm") is None:
        return "is not recognised as any of torchvision's architectures (timm, which has more, is not installed)"
    return "is not recognised as any of torchvision's or timm's architectures"


def recognise(state: Mapping[str, Tensor], *, everywhere: bool = True, seconds: float = SECONDS) -> Known | None:
    """The architecture that a state dict is of, whatever stands before its keys; None where none of all known fits.

    Only shapes are compared, without the classifier, and without the number of input channels. What takes time is
    to build architectures, so the likeliest go first: those whose code has the names and numbers of the weights.

    The last answers are kept.

    Args:
        state: the weights.
        everywhere: search torchvision and timm, which takes seconds, besides the ResNets that avpt has of its own.
        seconds: of one core, to search for.
    """
    question = (_compared(state), everywhere, importlib.util.find_spec("timm") is None)
    if question not in _answers:
        if len(_answers) >= KEPT:
            _answers.clear()
        _answers[question] = _search(state, everywhere, seconds)
    return _answers[question]


_Compared = frozenset[tuple[str, tuple[int, ...]]]
_answers: dict[tuple[_Compared, bool, bool], Known | None] = {}  # whoever asks again need not wait again


def _compared(state: Mapping[str, Tensor]) -> _Compared:
    """The names and shapes that are compared: without a common prefix, classifier, counters and input channels."""
    names = {key: key for key in state}
    for _ in range(2):  # below the prefix of the network, and of its body
        paths = zip(*(name.split(".")[:-1] for name in names.values()), strict=False)
        shared = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, paths))
        names = {key: name.split(".", shared)[-1] for key, name in names.items()}
        names = {key: name for key, name in names.items() if not name.startswith(CLASSIFIERS)}
    shapes = {
        key: (one.shape[0], *one.shape[2:]) if one.ndim == 4 and one.shape[1] in CHANNELS.values() else one.shape
        for key, one in state.items()
    }
    return frozenset((name, tuple(shapes[key])) for key, name in names.items() if not name.endswith(COUNTER))


def _search(state: Mapping[str, Tensor], everywhere: bool, seconds: float) -> Known | None:
    spent, best, nearest = 0.0, 0.0, None
    for known, build in _candidates(state, everywhere):
        begun = time.process_time()
        with suppress(Exception):  # one that can't be built without values, or without another package
            with torch.device("meta"):
                share = alike(state, build().state_dict())
            if share > best:
                best, nearest = share, known
        spent += time.process_time() - begun
        if best == 1 or spent > seconds:
            break
    return nearest if best >= ALIKE else None


def alike(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The share of tensors that are in both and have the same shape, under whatever prefix most are."""
    body = {key: value for key, value in wanted.items() if CLASSES not in value.shape and not key.endswith(COUNTER)}
    place = max(find_places(dict(state), body), key=lambda place: len(place.wanted), default=None)
    if place is None:
        return 0.0
    have = {key: value for key, value in place.state().items() if not key.endswith(COUNTER)}
    extra = [key for key in have if key not in wanted and not key.startswith(("fc.", "head.", "classifier."))]
    same = [key for key in place.wanted if _same(have[key], body[key])]
    return len(same) / (len(body) + len(extra))


def _same(one: Tensor, two: Tensor) -> bool:
    if one.ndim == two.ndim == 4 and two.shape[1] == 3:  # the first convolution, of any number of channels
        return one.shape[0] == two.shape[0] and one.shape[2:] == two.shape[2:]
    return one.shape == two.shape


def _candidates(state: Mapping[str, Tensor], everywhere: bool) -> Iterator[tuple[Known, Callable[[], nn.Module]]]:
    """Architectures to try, the likeliest first."""
    for name in RESNETS:
        yield Known(name, built=True), _of_torchvision(name)
    # those of a network have names within names, and are many: of a few, every architecture would have to be built
    if not everywhere or len(state) < FEWEST or not any("." in key for key in state):
        return
    log.info("looking up which architecture these weights are of, which takes some seconds")
    outline = make_outline(state)
    has_timm = importlib.util.find_spec("timm") is not None
    timm: Any = timm_package("timm") if has_timm else None
    others = set(torchvision.models.list_models(module=torchvision.models)) - set(RESNETS)
    for name in sorted(others, key=lambda one: (unlike_torchvision(one, outline), one))[:TRIED]:
        yield Known(name, built=has_timm and timm.is_model(name)), _of_torchvision(name)
    if has_timm:
        for name in sorted(timm.list_models(), key=lambda one: (unlike_timm(one, outline), len(one), one)):
            yield Known(name, built=True), _of_timm(name)


def _of_torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        extra: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **extra)
        return model

    return build


def _of_timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = timm_package(name).create_model(name, pretrained=False, num_classes=CLASSES)
        return model

    return build
