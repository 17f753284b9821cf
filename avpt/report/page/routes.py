"""Where the boxes and lines of a graph lie: lines run between rows and columns of boxes, and so never under one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from avpt.report.page.blocks import Graph

BOX = (152, 34)  # pixels
APART = 7  # between two lines that run side by side, pixels
BESIDE, ABOVE = 14, 7  # between a box and the first line beside or above it, pixels
EDGE = 2  # of the drawing, pixels


@dataclass(frozen=True)
class Routes:
    """A graph in pixels."""

    boxes: Sequence[tuple[int, int]]  # left upper corners, one per vertex
    lines: Sequence[str]  # of each edge, as the path of an SVG
    width: int
    height: int


@dataclass
class Gap:
    """The space beside a column or a row of boxes: each source has a track of its own in it."""

    margin: int
    tracks: dict[int, int] = field(default_factory=dict)  # source -> number of its track

    def enter(self, source: int) -> None:
        """Give a source a track, unless it has one."""
        self.tracks.setdefault(source, len(self.tracks))

    @property
    def size(self) -> int:
        """Its width or height."""
        return 2 * self.margin + APART * max(0, len(self.tracks) - 1)

    def place(self, source: int, end: int) -> int:
        """Where the track of a source lies, if the gap ends at `end`."""
        return end - self.size + self.margin + APART * self.tracks[source]


def route(graph: Graph) -> Routes:
    """Place boxes and lines.

    A line leaves its box to the right, goes up or down in the gap before the next column and, unless it ends there,
    along the gap above a row to the gap before the column that it ends in. What comes from one box shares its tracks;
    lines from different boxes cross, but never run on top of one another.
    """
    vertices = graph.vertices
    columns, rows = (1 + max(getattr(vertex, side) for vertex in vertices) for side in ("column", "row"))
    beside = [Gap(BESIDE) for _ in range(columns + 1)]  # before each column, and behind the last
    above = [Gap(ABOVE) for _ in range(rows)]
    for start, end in sorted(graph.edges):
        source, target = vertices[start], vertices[end]
        beside[source.column + 1].enter(start)
        if target.column != source.column + 1:
            above[source.row].enter(start)
            beside[target.column].enter(start)
    left, top = pile(beside, BOX[0]), pile(above, BOX[1])
    ends = spread_ends(graph)
    lines = []
    for start, end in graph.edges:
        source, target = vertices[start], vertices[end]
        leave = beside[source.column + 1].place(start, left[source.column + 1])
        path = f"M{left[source.column] + BOX[0]} {top[source.row] + BOX[1] // 2} H{leave}"
        if target.column != source.column + 1:
            path += f" V{above[source.row].place(start, top[source.row])}"
            path += f" H{beside[target.column].place(start, left[target.column])}"
        lines.append(f"{path} V{top[target.row] + ends[start, end]} H{left[target.column]}")
    boxes = [(left[vertex.column], top[vertex.row]) for vertex in vertices]
    right = left[columns] if beside[columns].tracks else left[columns - 1] + BOX[0]
    return Routes(boxes, lines, right + EDGE, top[-1] + BOX[1] + EDGE)


def spread_ends(graph: Graph) -> dict[tuple[int, int], int]:
    """Spread the ends of lines over the height of their boxes; the middle is for a straight line from the next box."""
    vertices, ends = graph.vertices, dict[tuple[int, int], int]()
    entering: dict[int, list[int]] = {}
    for start, end in sorted(graph.edges, key=lambda edge: (vertices[edge[0]].row, edge)):
        source, target = vertices[start], vertices[end]
        if (source.row, source.column + 1) == (target.row, target.column):
            ends[start, end] = BOX[1] // 2
        else:
            entering.setdefault(end, []).append(start)
    for end, starts in entering.items():
        places = len(starts) + len(starts) % 2  # an even number leaves the middle free
        for place, start in enumerate(starts, 1):
            ends[start, end] = BOX[1] * place // (places + 1)
    return ends


def pile(gaps: Sequence[Gap], size: int) -> list[int]:
    """Pile up boxes of one size with their gaps before them, the first without: where each box begins."""
    places: list[int] = []
    end = 0
    for number, gap in enumerate(gaps):
        places.append(end + gap.size if gap.tracks or number else EDGE)
        end = places[-1] + size
    return places
