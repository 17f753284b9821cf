"""The graph of a report: its lines run beside the boxes, and each can be told from the others."""

from __future__ import annotations

import re
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from avpt.report.page.blocks import Graph, Vertex
from avpt.report.page.routes import BOX, route

Segment = tuple[int, int, int, int]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Boxes anywhere in a small grid, each at a place of its own, and any lines between them."""
    places = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=10, unique=True))
    ends = st.tuples(*[st.integers(0, len(places) - 1)] * 2).filter(lambda edge: edge[0] != edge[1])
    edges = draw(st.lists(ends, max_size=15, unique=True))
    return Graph([Vertex(*place, "name", "fused") for place in places], edges, "a graph")


def segments(line: str) -> list[Segment]:
    """The straight pieces of a path of right angles: (left, top, right, bottom)."""
    found = re.findall(r"([MHV])(-?\d+)(?: (-?\d+))?", line)
    x, y = int(found[0][1]), int(found[0][2])
    pieces = []
    for letter, number, _ in found[1:]:
        before = x, y
        x, y = (int(number), y) if letter == "H" else (x, int(number))
        pieces.append((min(before[0], x), min(before[1], y), max(before[0], x), max(before[1], y)))
    return pieces


@given(graphs())
def test_no_line_runs_under_a_box_or_out_of_the_drawing(graph: Graph) -> None:
    routes = route(graph)
    for line in routes.lines:
        for left, top, right, bottom in segments(line):
            assert min(left, top) >= 0
            assert right <= routes.width
            assert bottom <= routes.height
            for x, y in routes.boxes:
                assert not (left < x + BOX[0] and right > x and top < y + BOX[1] and bottom > y)


@given(graphs())
def test_lines_from_different_boxes_are_never_on_top_of_one_another(graph: Graph) -> None:
    routes = route(graph)
    by_source: dict[int, list[Segment]] = defaultdict(list)
    for (start, _), line in zip(graph.edges, routes.lines, strict=True):
        by_source[start] += segments(line)
    for one, pieces in by_source.items():
        others = [piece for other, several in by_source.items() if other != one for piece in several]
        for left, top, right, bottom in pieces:
            for x1, y1, x2, y2 in others:
                assert not (top == bottom == y1 == y2 and max(left, x1) < min(right, x2))
                assert not (left == right == x1 == x2 and max(top, y1) < min(bottom, y2))


@given(graphs())
def test_lines_lead_from_box_to_box(graph: Graph) -> None:
    routes = route(graph)
    for (start, end), line in zip(graph.edges, routes.lines, strict=True):
        first, *_, last = re.findall(r"\d+", line)
        assert int(first) == routes.boxes[start][0] + BOX[0]
        assert int(last) == routes.boxes[end][0]
    assert len(set(routes.boxes)) == len(routes.boxes)
