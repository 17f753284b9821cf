"""Where in a checkpoint an encoder's weights stand: under which mappings, and below which prefix of their keys."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from avpt.errors import ArtifactError, listed
from avpt.types import Modality

MOST_NESTED = 8  # levels of wrappers, or of prefixes
LEAST = 0.1  # share of an architecture's keys below a prefix that may be meant: any block has a conv1
MOST_MAPPINGS = 20_000  # an optimiser has one for each parameter
STREAMS: dict[Modality, frozenset[str]] = {
    "audio": frozenset({"audio_net", "audio"}),
    "visual": frozenset({"visual_net", "visual"}),
}
AVERAGED = frozenset({"ema", "swa", "averaged"})  # words in the names of averaged weights
CLASSIFIERS = ("fc.", "head.", "classifier.")
COUNTER = "num_batches_tracked"  # which older checkpoints lack


@dataclass(frozen=True, eq=False)
class Place:
    """Where the keys of an architecture may stand: below a prefix in one mapping of a checkpoint."""

    path: tuple[str, ...]  # of the mapping
    prefix: str  # with its last dot, or empty
    tensors: dict[str, Tensor]  # all of the mapping
    wanted: frozenset[str]  # the architecture's keys that stand there

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that lead here."""
        return (*self.path, *(self.prefix.removesuffix(".").split(".") if self.prefix else ()))

    @property
    def name(self) -> str:
        """What `--weights-key` calls this place."""
        return ".".join(self.parts) or "."

    @property
    def averaged(self) -> str:
        """Of averages over training, to judge by their name: as much of it as says so. Else nothing."""
        lengths = (at for at, part in enumerate(self.parts, 1) if AVERAGED & set(part.lower().split("_")))
        return ".".join(self.parts[: next(lengths, 0)])

    def state(self) -> dict[str, Tensor]:
        """The tensors below the prefix, without it."""
        pairs = self.tensors.items()
        return {key.removeprefix(self.prefix): value for key, value in pairs if key.startswith(self.prefix)}


@dataclass
class Layout:
    """How the weights lay in a file, and what lay beside them."""

    dropped: list[str] = field(default_factory=list)  # keys of tensors beside the encoder
    wrapper: str = ""  # the names of the mappings around it
    prefix: str = ""  # what was stripped from its keys
    left: list[str] = field(default_factory=list)  # what else is in the file, with its class where it is foreign
    averaged: list[str] = field(default_factory=list)  # places of averaged weights that were not taken
    dtype: str = ""  # where it has half the precision or less

    def record(self) -> dict[str, Any]:
        """What an artifact keeps of it, besides the keys that were dropped."""
        parts = {"wrapper": self.wrapper, "prefix": self.prefix, "left": self.left, "dtype": self.dtype}
        return {name: value for name, value in parts.items() if value}

    def sentences(self) -> list[str]:
        """What is worth telling, a line each."""
        parts = [f"its weights are taken from under {self.wrapper}"] if self.wrapper else []
        parts += [f"the prefix {self.prefix} is stripped"] if self.prefix else []
        parts += [f"left lying: {listed(self.left, 8)}"] if self.left else []
        lines = ["; ".join(parts)] if parts else []
        if self.averaged:
            first = self.averaged[0]
            lines.append(
                f"averaged weights are there too, under {listed(self.averaged)}: --weights-key {first} takes them"
            )
        if self.dtype:
            lines.append(f"the weights are {self.dtype}: small numbers were lost when they were saved")
        return lines


def find_places(value: Any, wanted: Collection[str]) -> list[Place]:
    """Every place at which any of an architecture's keys stand, the outermost first."""
    places = []
    deepest = max(key.count(".") for key in wanted)
    for path, mapping in _mappings(value):
        tensors = {key: one for key, one in mapping.items() if isinstance(one, Tensor) and isinstance(key, str)}
        if not tensors or any(part.lower().startswith("optim") for part in path):
            continue
        below: dict[str, set[str]] = {}
        for key in tensors:
            parts = key.rsplit(".", deepest + 1)  # a key may have a million dots
            for start in range(len(parts)):
                if (inner := ".".join(parts[start:])) in wanted:
                    below.setdefault(key.removesuffix(inner), set()).add(inner)
        places += [
            Place(path, prefix, tensors, frozenset(keys))
            for prefix, keys in below.items()
            if prefix.count(".") <= MOST_NESTED and (not prefix or prefix.endswith("."))
        ]
    return places


def largest_state(value: Any) -> dict[str, Tensor]:
    """The tensors of the mapping that has most of them."""
    states = [
        {k: v for k, v in one.items() if isinstance(v, Tensor) and isinstance(k, str)} for _, one in _mappings(value)
    ]
    return max(states, key=len, default={})


def _mappings(value: Any) -> list[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """All mappings below names, with these, the outermost first."""
    known: set[int] = set()
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), value)] if isinstance(value, Mapping) else []
    every = level[:0]
    for _ in range(MOST_NESTED):  # a mapping may hold itself
        every += level
        known |= {id(mapping) for _, mapping in level}
        inner = [((*path, key), one) for path, mapping in level for key, one in mapping.items() if isinstance(key, str)]
        level = [(path, one) for path, one in inner if isinstance(one, Mapping) and id(one) not in known]
        if not level or len(every) > MOST_MAPPINGS:
            break
    return every


def choose_place(
    places: Sequence[Place],
    shapes: Mapping[str, Tensor],
    first: Sequence[str],
    modality: Modality,
    key: str | None,
    source: Path,
) -> Place | None:
    """The place whose weights are meant, of those where an architecture's keys stand.

    Args:
        places: as `find_places` has them.
        shapes: the architecture's tensors, which may be on the meta device.
        first: the keys of its first convolutions; where none of them stands there is no encoder.
        modality: which stream of two is meant.
        key: what the user calls the place, by its name or by a part of that; None leaves it to be the only one.
        source: what to call the file in an error.

    Returns:
        The place, or None where there is none; where no place has all keys, the one that has most.

    Raises:
        ArtifactError: there are several, or none of this name.
    """
    begun = [place for place in places if place.wanted & set(first)]
    if key is not None:
        begun = _named(begun, shapes, key, source)
    own, others = STREAMS[modality], frozenset().union(*STREAMS.values()) - STREAMS[modality]
    if any(own & set(place.parts) for place in begun):  # else the other stream alone starts this one
        begun = [place for place in begun if not others & set(place.parts)]
    complete = [place for place in begun if is_complete(place, shapes)]
    if key is None:
        complete = [place for place in complete if not place.averaged] or complete
    if len(complete) > 1:  # the keys of a ResNet-18 stand in a ResNet-50 as well
        complete = [place for place in complete if _has_shapes(place, shapes, first)] or complete
    if not complete:
        return max(begun, key=lambda place: (not place.averaged, len(place.wanted)), default=None)
    if len(complete) > 1:
        names = [place.name for place in complete]
        raise ArtifactError(
            f"{source} holds several encoders that fit: {listed(names)}; say which with --weights-key {names[0]}"
        )
    return complete[0]


def may_be_encoder(place: Place, shapes: Mapping[str, Tensor]) -> bool:
    """Whether so many of an architecture's keys stand there that an encoder may be meant, and not one of its blocks."""
    return not place.prefix or len(place.wanted) >= len(shapes) * LEAST


def is_complete(place: Place, shapes: Mapping[str, Tensor]) -> bool:
    """Whether all of an architecture's keys stand there, but for counters."""
    return all(name in place.wanted for name in shapes if not name.endswith(COUNTER))


def _has_shapes(place: Place, shapes: Mapping[str, Tensor], first: Sequence[str]) -> bool:
    return all(
        place.tensors[place.prefix + name].shape == value.shape
        for name, value in shapes.items()
        if name not in first and not name.endswith(COUNTER)
    )


def _named(places: Sequence[Place], shapes: Mapping[str, Tensor], key: str, source: Path) -> list[Place]:
    """The places that a user means: of just this name, else those ending in it, else those below it, else near it."""
    asked = tuple(part for part in key.split(".") if part)
    size = len(asked)
    ways = (
        lambda parts: parts == asked,
        lambda parts: size > 0 and parts[-size:] == asked,
        lambda parts: size > 0 and parts[:size] == asked,
        lambda parts: any(parts[start : start + size] == asked for start in range(1, len(parts))) and size > 0,
    )
    for fits in ways:
        if meant := [place for place in places if fits(place.parts)]:
            return meant
    names = [place.name for place in places if may_be_encoder(place, shapes)]
    if names == ["."]:
        raise ArtifactError(f"{source} has no weights at --weights-key {key}, but at its top; leave that option out")
    near = difflib.get_close_matches(key, names, 3, 0.4) or names
    there = f"there are {listed(near)}" if near else "nor anywhere else in it"
    raise ArtifactError(f"{source} has no encoder of this architecture at --weights-key {key}; {there}")


def take(
    value: Any, place: Place, places: Sequence[Place], shapes: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Layout]:
    """The weights at a place, their keys without prefix, and what became of the rest of the file.

    Args:
        value: the whole file.
        place: the one that is meant.
        places: all of them.
        shapes: the architecture's tensors.
    """
    layout = Layout(wrapper=".".join(place.path), prefix=place.prefix)
    state = dict(place.tensors)
    for part in place.prefix.split(".")[:-1]:
        layout.dropped += [key for key in state if not key.startswith((f"{part}.", *CLASSIFIERS))]
        state = {key.removeprefix(f"{part}."): one for key, one in state.items() if key.startswith(f"{part}.")}
    rivals = [one for one in places if one is not place and is_complete(one, shapes)]
    inside = tuple(one.prefix.removeprefix(place.prefix) for one in rivals if _is_below(one, place))
    if inside:  # other encoders, of which this one's keys are no part
        layout.dropped += [key for key in state if key.startswith(inside)]
        state = {key: one for key, one in state.items() if not key.startswith(inside)}
    layout.averaged = list(dict.fromkeys(one.averaged for one in rivals if one.averaged and not place.averaged))
    layout.left = _left(value, place.path)
    return state, layout


def _is_below(place: Place, other: Place) -> bool:
    return place.path == other.path and place.prefix != other.prefix and place.prefix.startswith(other.prefix)


def _left(value: Any, path: Sequence[str]) -> list[str]:
    """The names that lie beside the mappings on the way to the weights."""
    left: list[str] = []
    for depth, step in enumerate((*path, None)):
        outer = "".join(f"{name}." for name in path[:depth])
        for name, one in value.items():
            if name != step and not (step is None and isinstance(one, Tensor)):
                left.append(f"{outer}{name}".encode(errors="replace").decode())  # half a character can't be shown
        value = value[step] if step is not None else value
    return left
