"""How it all came about: every command, versions, checksums, and a graph of artifacts."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from avpt import artifacts
from avpt.errors import AvptError
from avpt.lineage import Node
from avpt.pages.blocks import Block, Command, Graph, Heading, Section, Text, Vertex
from avpt.story.commands import COMMANDS, broken, command_of
from avpt.story.experiment import Experiment

LABEL = 22  # characters of a name in the graph


def section(experiment: Experiment, folder: Path) -> Section:
    """The graph, then a command for each artifact, in the order in which they are to be run."""
    blocks: list[Block] = [Heading("What was made from what"), graph(experiment), Heading("Commands")]
    blocks.append(
        Text(
            "Run in this order, in the folder of this page, these make every artifact again. Options that are not named "
            "are at their defaults; words in capitals stand for inputs that were not found. The same bytes come out on "
            "the same kind of machine, with the same number of threads."
        )
    )
    for node in experiment.nodes:
        if node.kind in COMMANDS:
            words = command_of(node, experiment.origins[node.path], folder)
            blocks.append(Command(experiment.name(node), broken(words), facts(experiment, node)))
    return Section("provenance", "Provenance", blocks)


def facts(experiment: Experiment, node: Node) -> list[tuple[str, str]]:
    """Checksums, versions, and what the bytes hang on."""
    own = experiment.checksums[node.path]
    found = [("fingerprint" if node.kind == "store" else "sha256", own)] if own else []
    found += [(f"made from {name}", checksum) for name, checksum in sorted(node.inputs.items())]
    file = node.files[0] if node.files else None
    if file is not None:
        try:
            header, _ = artifacts.read_header(file)
        except AvptError:
            return found
        found.append(("avpt", header.avpt))
        found += [(name, str(value)) for name, value in sorted(header.environment.items())]
    return found


def graph(experiment: Experiment) -> Graph:
    """A column for each step, a row for each artifact; what was not found is there, dashed."""
    column = {"store": 0, "encoder": 0, "classifier": 1, "confidence": 2, "fused": 3, "probe": 4, "evaluation": 4}
    rows: Counter[int] = Counter()
    vertices: list[Vertex] = []
    places: dict[str, int] = {}

    def place(key: str, at: int, label: str, kind: str) -> None:
        if key not in places:
            places[key] = len(vertices)
            vertices.append(Vertex(at, rows[at], short(label), kind))
            rows[at] += 1

    crossed = any(origin and origin.is_run for node in experiment.of_kind("encoder") for origin in _origins(experiment, node))
    for node in experiment.nodes:
        at = depth(experiment, node) if crossed else column[node.kind]
        place(os.fspath(node.path), at, experiment.name(node), node.kind)
    shift = 0
    for lost in experiment.missing:
        owner = vertices[places[os.fspath(lost.owner)]]
        shift = max(shift, 1 if owner.column == 0 else 0)
        place(lost.checksum, owner.column - 1, lost.name, "missing")
    if shift:
        vertices[:] = [Vertex(v.column + 1, v.row, v.label, v.kind) for v in vertices]
    edges = [
        (places[os.fspath(origin.path)], places[os.fspath(node.path)])
        for node in experiment.nodes
        for origin in _origins(experiment, node)
        if origin is not None
    ]
    edges += [(places[lost.checksum], places[os.fspath(lost.owner)]) for lost in experiment.missing]
    kinds = Counter(vertex.kind for vertex in vertices)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return Graph(vertices, sorted(set(edges)), f"graph of {counts}; edges lead from what was used to what was made")


def depth(experiment: Experiment, node: Node) -> int:
    """Steps from what was made from nothing, along the longest way."""
    below = [depth(experiment, origin) for origin in _origins(experiment, node) if origin is not None]
    return 1 + max(below) if below else 0


def _origins(experiment: Experiment, node: Node) -> list[Node | None]:
    return list(experiment.origins[node.path].values())


def short(name: str) -> str:
    """The end of a name, which tells more than its beginning."""
    return name if len(name) <= LABEL else "…" + name[-LABEL + 1 :]
