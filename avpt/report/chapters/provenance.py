"""How it all came about: every command, versions, checksums, and a graph of artifacts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from avpt.errors import AvptError
from avpt.files import artifacts
from avpt.report.experiment import Experiment, common_name
from avpt.report.page.blocks import Block, Command, Graph, Heading, Section, Text, Vertex
from avpt.report.shell_commands import COMMANDS, broken, command_of
from avpt.runs.lineage import Node

LATE = ("confidence", "fused", "probe", "evaluation")  # each in a column of its own
LABEL = 20  # characters of a name in the graph


def section(experiment: Experiment, folder: Path) -> Section:
    """The graph, then a command for each artifact, in the order in which they are to be run."""
    blocks: list[Block] = [Heading("What was made from what"), graph(experiment), Heading("Commands")]
    blocks.append(
        Text(
            "Run in this order, in the folder of this page, these make every artifact again. Options that are not "
            "named are at their defaults; words in capitals stand for inputs that were not found. The same bytes "
            "come out on the same kind of machine, with the same number of threads."
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
    """A column for each step, a row for each artifact, seeds together; what was not found is there, dashed."""
    vertices: list[Vertex] = []
    places: dict[str, int] = {}  # by what the nodes of a vertex have in common
    taken: set[tuple[int, int]] = set()

    def place(key: str, column: int, row: int, label: str, kind: str) -> None:
        while (column, row) in taken:
            row += 1
        taken.add((column, row))
        places[key] = len(vertices)
        vertices.append(Vertex(column, row, short(label), kind))

    alike: dict[str, list[Node]] = {}
    for node in experiment.nodes:
        alike.setdefault(experiment.kin[node.path], []).append(node)
    lost = {missing.checksum: missing for missing in experiment.missing}
    first = 1 if lost else 0
    late = {kind: max([first + depth(experiment, node) for node in experiment.of_kind(kind)] or [0]) for kind in LATE}
    for missing in lost.values():
        place(missing.checksum, 0, 0, missing.name, "missing")
    for key, nodes in alike.items():
        node = nodes[0]
        init = experiment.origin(node, "init")
        if node.kind == "classifier" and init is not None:
            row = vertices[places[experiment.kin[init.path]]].row
        elif node.kind in ("encoder", "classifier"):  # a row of its own, so that what it is used for is seen
            row = 1 + max([vertex.row for vertex in vertices] or [0])
        else:
            row = 0 if node.kind == "store" else 1
        label = common_name(experiment, nodes) if len(nodes) > 1 else experiment.name(node)
        label = label.removesuffix(".safetensors")
        count = f" × {len(nodes)}" if len(nodes) > 1 else ""
        place(key, late.get(node.kind, first + depth(experiment, node)), row, f"{label}{count}", node.kind)
    edges = {
        (places[experiment.kin[origin.path]], places[experiment.kin[node.path]])
        for node in experiment.nodes
        for origin in _origins(experiment, node)
        if origin is not None
    }
    edges |= {(places[missing.checksum], places[experiment.kin[missing.owner]]) for missing in experiment.missing}
    kinds = Counter(vertex.kind for vertex in vertices)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return Graph(vertices, sorted(edges), f"graph of {counts}; edges lead from what was used to what was made")


def depth(experiment: Experiment, node: Node) -> int:
    """Steps from what was made from nothing, along the longest way."""
    below = [depth(experiment, origin) for origin in _origins(experiment, node) if origin is not None]
    return 1 + max(below) if below else 0


def _origins(experiment: Experiment, node: Node) -> list[Node | None]:
    return list(experiment.origins[node.path].values())


def short(name: str) -> str:
    """The end of a name, which tells more than its beginning."""
    return name if len(name) <= LABEL else "…" + name[-LABEL + 1 :]
