"""Which architecture of torchvision's or timm's some weights are of, looked up by the shapes that it would have."""

from __future__ import annotations

import importlib.util
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from avpt.machine.light_imports import without_compiler
from avpt.models.architectures import RESNETS, find_architecture, timm_package
from avpt.models.layouts import CLASSIFIERS, COUNTER, find_places
from avpt.types import CHANNELS

with without_compiler():
    import torchvision

log = logging.getLogger(__name__)

SECONDS = 8.0  # of one core, to look for at most, besides importing timm
TRIED = 6  # of torchvision's that are built, the likeliest
DEEPEST = 8  # dots in a key that are looked at
SMALL = 4  # numbers up to this one are in every code
ALIKE = 0.97  # share of tensors that fit, for weights to be of an architecture
CLASSES = 1013  # of the classifiers built here: of no tensor else the size, so that they are told from it
KEPT = 8  # answers
ELSEWHERE = "take weights of one that `avpt encoders` lists; `avpt inspect` shows the BatchNorm of any network"
NO_WORDS = frozenset({"weight", "bias", "running_mean", "running_var", COUNTER})


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
    if not everywhere or not any("." in key for key in state):  # those of a network have names within names
        return
    log.info("looking up which architecture these weights are of, which takes some seconds")
    outline = _outline(state)
    has_timm = importlib.util.find_spec("timm") is not None
    timm: Any = timm_package("timm") if has_timm else None
    others = set(torchvision.models.list_models(module=torchvision.models)) - set(RESNETS)
    for name in sorted(others, key=lambda one: (_unlike_torchvision(one, outline), one))[:TRIED]:
        yield Known(name, built=has_timm and timm.is_model(name)), _of_torchvision(name)
    if has_timm:
        for name in sorted(timm.list_models(), key=lambda one: (_unlike_timm(one, outline), len(one), one)):
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


@dataclass(frozen=True)
class _Outline:
    """What weights say of their architecture without one being built."""

    ends: frozenset[str]  # of their keys, after any dot
    words: frozenset[str]  # in their keys
    numbers: frozenset[int]  # of sizes, and of blocks in a row
    parameters: int  # how many


def _outline(state: Mapping[str, Tensor]) -> _Outline:
    ends: set[str] = set()
    words: set[str] = set()
    blocks: dict[tuple[str, ...], int] = {}
    for key in state:
        parts = tuple(key.rsplit(".", DEEPEST))  # a key may have a million dots
        ends |= {".".join(parts[start:]) for start in range(len(parts))}
        words |= {part.rstrip("0123456789") for part in parts}
        for at, part in enumerate(parts):
            if part.isdecimal() and len(part) <= 3:
                blocks[parts[:at]] = max(int(part) + 1, blocks.get(parts[:at], 0))
    numbers = {*blocks.values(), *(size for value in state.values() for size in value.shape)}
    parameters = sum(value.numel() for key, value in state.items() if ".running_" not in key)
    return _Outline(frozenset(ends), frozenset(words) - NO_WORDS - {""}, frozenset(numbers), max(parameters, 1))


def _unlike_torchvision(name: str, outline: _Outline) -> float:
    """How much speaks against one of torchvision's: words that are not in its code, and its number of parameters."""
    family = sys.modules[torchvision.models.get_model_builder(name).__module__]
    size = next(iter(torchvision.models.get_model_weights(name))).meta["num_params"]
    return len(outline.words - _spoken(family)) + 10 * abs(math.log(size / outline.parameters))


def _unlike_timm(name: str, outline: _Outline) -> float:
    """How much speaks against one of timm's: its first and last layers, and words and numbers in its code."""
    import timm

    facts, entry = find_architecture(name), timm.model_entrypoint(name)
    layers = (*facts.first_convolutions, *facts.classifiers)
    numbers = _constants(entry.__code__)
    return (
        3 * sum(f"{layer}.weight" not in outline.ends for layer in layers)
        + len(outline.words - _spoken(sys.modules[entry.__module__]))
        + len(numbers - outline.numbers)
        - len(numbers & outline.numbers) / 2
        + min((len(some - outline.numbers) / 2 - len(some & outline.numbers) for some in _widths(entry)), default=0)
    )


def _widths(entry: Any) -> list[set[int]]:
    """The widths of blocks that are written as strings (`ir_r2_k3_s2_e6_c24`), by each factor in the entry's code."""
    helpers = (vars(sys.modules[entry.__module__]).get(name) for name in entry.__code__.co_names)
    strings = [one for helper in helpers for one in _strings(getattr(helper, "__code__", None))]
    plain = {int(width) for one in strings for width in re.findall(r"_c(\d+)", one)}
    factors = {one for one in entry.__code__.co_consts if isinstance(one, float)} or {1.0}
    return [{max(8, 8 * round(width * factor / 8)) for width in plain} for factor in factors] if plain else []


def _strings(code: CodeType | None) -> list[str]:
    return [one for one in code.co_consts if isinstance(one, str)] if isinstance(code, CodeType) else []


def _constants(code: CodeType) -> set[int]:
    """The whole numbers in a function, such as widths and depths; small ones say little."""
    numbers: set[int] = set()
    waiting: list[object] = [code]
    while waiting:
        one = waiting.pop()
        if isinstance(one, CodeType | tuple):
            waiting += one.co_consts if isinstance(one, CodeType) else one
        elif isinstance(one, int) and one > SMALL:
            numbers.add(one)
    return numbers


@cache
def _spoken(module: ModuleType) -> set[str]:
    """The attributes and strings in the code of a module's functions and networks, its own and imported ones."""
    library = module.__name__.partition(".")[0]
    things = [one for one in vars(module).values() if str(getattr(one, "__module__", "")).startswith(f"{library}.")]
    helpers = {one.__module__ for one in things if one.__module__.startswith("timm.models._")}  # blocks and builders
    things += [one for helper in helpers for one in vars(sys.modules[helper]).values()]
    parts = [one for thing in things for one in (thing, *(vars(thing).values() if _is_network(thing) else ()))]
    waiting = [getattr(one, "__code__", None) for one in parts]
    words: set[str] = set()
    while waiting:
        if not isinstance(code := waiting.pop(), CodeType):
            continue
        strings = [one for one in code.co_consts if isinstance(one, str)]
        waiting += [one for one in code.co_consts if isinstance(one, CodeType)]
        words |= {*code.co_names, *(part.rstrip("0123456789%d_") for one in strings for part in one.split("."))}
    return words


def _is_network(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, nn.Module)
