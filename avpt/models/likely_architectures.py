"""Which architectures weights are likely of: those whose code has their names and numbers, so that few are built."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType, ModuleType
from typing import Any

from torch import Tensor, nn

from avpt.machine.light_imports import without_compiler
from avpt.models.architectures import find_architecture
from avpt.models.layouts import COUNTER

with without_compiler():
    import torchvision

DEEPEST = 8  # dots in a key that are looked at
SMALL = 4  # numbers up to this one are in every code
NO_WORDS = frozenset({"weight", "bias", "running_mean", "running_var", COUNTER})


@dataclass(frozen=True)
class Outline:
    """What weights say of their architecture without one being built."""

    ends: frozenset[str]  # of their keys, after any dot
    words: frozenset[str]  # in their keys
    numbers: frozenset[int]  # of sizes, and of blocks in a row
    parameters: int  # how many


def make_outline(state: Mapping[str, Tensor]) -> Outline:
    """Read off what a state dict says."""
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
    return Outline(frozenset(ends), frozenset(words) - NO_WORDS - {""}, frozenset(numbers), max(parameters, 1))


def unlike_torchvision(name: str, outline: Outline) -> float:
    """How much speaks against one of torchvision's: words that are not in its code, and its number of parameters."""
    family = sys.modules[torchvision.models.get_model_builder(name).__module__]
    size = next(iter(torchvision.models.get_model_weights(name))).meta["num_params"]
    return len(outline.words - _spoken(family)) + 10 * abs(math.log(size / outline.parameters))


def unlike_timm(name: str, outline: Outline) -> float:
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
