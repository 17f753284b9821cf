"""The parts of a page as plain records, which `html` renders. All words are text, never markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from avpt.types import Table


@dataclass(frozen=True)
class Heading:
    """The heading of a part of a section."""

    text: str
    block: str = "heading"


@dataclass(frozen=True)
class Text:
    """A paragraph; if `missing`, it says what can't be shown, why not, and what to do."""

    text: str
    missing: bool = False
    block: str = "text"


@dataclass(frozen=True)
class Grid:
    """A table, in a box of its own that scrolls sideways."""

    table: Table
    block: str = "grid"


@dataclass(frozen=True)
class Figure:
    """A drawing."""

    svg: bytes
    alt: str  # a description in numbers for readers who can't see the drawing
    caption: str
    block: str = "figure"


@dataclass(frozen=True)
class Figures:
    """Drawings side by side where there is room."""

    figures: Sequence[Figure]
    block: str = "figures"


@dataclass(frozen=True)
class Picture:
    """A bitmap, as a data URI."""

    uri: str
    alt: str
    size: tuple[int, int]  # width and height in pixels
    caption: str = ""

    @property
    def zoom(self) -> int:
        """How many times larger small pictures are shown, their pixels as squares."""
        width, height = self.size
        return max(1, min(round(112 / height), 512 // width))


@dataclass(frozen=True)
class Card:
    """A clip: its pictures and lines of text about it."""

    title: str
    pictures: Sequence[Picture]
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Cards:
    """Clips side by side."""

    title: str
    cards: Sequence[Card]
    block: str = "cards"


@dataclass(frozen=True)
class Strip:
    """A few clips in one row, as wide as the page; on a narrow one their pictures shrink."""

    cards: Sequence[Card]
    block: str = "strip"


@dataclass(frozen=True)
class Dot:
    """A number as a dot on an axis, with those that it is the mean of."""

    kind: str  # audio, visual or joint: its colour
    words: str
    name: str  # as code, below the words
    number: str  # the number in words, with its spread
    note: str  # below the number
    place: float  # on the axis, from 0 at its low end to 1 at its high one
    each: Sequence[float] = ()  # places of the single ones, if there are several, joined by a line


@dataclass(frozen=True)
class Dots:
    """Dots below one another, on one axis whose range is printed."""

    title: str
    dots: Sequence[Dot]
    ticks: Sequence[tuple[float, str]]  # their places and labels
    block: str = "dots"


@dataclass(frozen=True)
class Badges:
    """The answers in a row of links to the verdicts."""

    verdicts: Sequence[Verdict]
    block: str = "badges"


@dataclass(frozen=True)
class Facts:
    """Facts about something, as pairs of name and value."""

    name: str
    pairs: Sequence[tuple[str, str]]
    block: str = "facts"


@dataclass(frozen=True)
class Terms:
    """Terms and what they mean."""

    pairs: Sequence[tuple[str, str]]
    block: str = "terms"


@dataclass(frozen=True)
class Fold:
    """Blocks that are shown when a reader unfolds them."""

    title: str
    blocks: Sequence[Block]
    block: str = "fold"


@dataclass(frozen=True)
class Command:
    """One or more commands to be copied, and foldable facts about them as pairs of name and value."""

    name: str
    line: str
    facts: Sequence[tuple[str, str]] = ()
    block: str = "command"


@dataclass(frozen=True)
class Vertex:
    """An artifact in a graph: its column and row, its label, its kind, and the modality that it is for, if one."""

    column: int
    row: int
    label: str
    kind: str
    modality: str = ""


@dataclass(frozen=True)
class Graph:
    """Artifacts and what they were made from, left to right; edges are pairs of positions in `vertices`."""

    vertices: Sequence[Vertex]
    edges: Sequence[tuple[int, int]]
    alt: str
    block: str = "graph"


Block = (
    Heading | Text | Grid | Figure | Figures | Cards | Strip | Dots | Badges | Facts | Terms | Fold | Command | Graph
)


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    name: str  # the anchor of links to it
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Verdict:
    """What this data says about a claim: one line, and below it, folded, the evidence."""

    claim: str
    answer: Literal["yes", "no", "unclear", "not measured"]
    headline: str
    details: Sequence[str] = ()
    short: str = ""  # the claim in a few words, for the top of the page
    further: Sequence[Verdict] = ()  # questions that follow from this one; their evidence is among its details


@dataclass(frozen=True)
class Page:
    """The whole page. Its first screen is the summary with the verdicts, before which a reader needs nothing."""

    title: str
    lead: Sequence[str]  # the background, and how the verdicts were reached: folded, below them
    verdicts: Sequence[Verdict]
    sections: Sequence[Section]
    provenance: dict[str, Any] = field(default_factory=dict)
    summary: Sequence[Block] = ()
