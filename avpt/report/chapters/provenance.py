"""How everything was made: every command, versions, checksums, and a graph of artifacts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from avpt.errors import AvptError, listed
from avpt.files import artifacts
from avpt.files.outputs import sha256_if_there
from avpt.report.experiment import Experiment, find_common_name
from avpt.report.manifest_commands import command_of_manifest, find_manifests
from avpt.report.page.blocks import Block, Command, Facts, Fold, Graph, Heading, Section, Text, Vertex
from avpt.report.script import Step, write_script
from avpt.report.shell_commands import COMMANDS, command_of, command_of_page, find_folder
from avpt.runs.groups import seed_of
from avpt.runs.lineage import Node

LATE = ("confidence", "fused", "probe", "evaluation")  # each in a column of its own
LABEL = 20  # characters of a name in the graph


def section(experiment: Experiment, page: Path, options: Sequence[str] = ()) -> Section:
    """Write the section: the graph, then a command for each artifact and for the page, in the order to run them in.

    Args:
        experiment: what the page is about.
        page: where it is written.
        options: its own, as words of its command.
    """
    folder = page.absolute().parent
    blocks: list[Block] = [Heading("What was made from what"), draw_graph(experiment), Heading("Commands")]
    manifests = find_manifests(experiment)
    base = find_folder(experiment, folder, manifests)
    told = {path: command_of_manifest(path, record, base) for path, record in manifests.items()}
    first = {path: words for path, words in told.items() if words is not None and path.is_relative_to(base)}
    where = os.path.relpath(base, folder)
    where = "the folder of this page" if where == "." else f"`{where}`, seen from this page,"
    blocks.append(
        Text(
            f"Run in an empty folder, or in {where} this script makes every artifact and this page again. What no "
            f"command makes ({list_unmade(experiment, first)}) must be there first where its path is a relative one. "
            "Options that are not named are at their defaults; words in capitals stand for inputs that "
            "were not found. The same bytes come out on the same kind of machine, with the same number of threads"
            f"{'; of a manifest where the clips lie in the same place, seen from it' if first else ''}."
        )
    )
    made = [node for node in experiment.nodes if node.kind in COMMANDS]
    commands = {
        node.path: command_of(node, find_origins(experiment, node, first), base, experiment.files.get(node.path))
        for node in made
    }
    groups = arrange_groups(experiment, made)
    steps = [Step([commands[node.path] for node in nodes], list_seeds(experiment, nodes)) for nodes in groups]
    if not is_ordered(experiment, groups, steps):
        steps = [Step([commands[node.path]]) for node in made]
    steps[:0] = [Step([list(words)]) for words in dict.fromkeys(map(tuple, first.values()))]  # of all folds one
    steps.append(Step([command_of_page(experiment, base, page.absolute(), options)]))
    blocks.append(Command("One script", write_script(steps)))
    blocks.append(
        Text(
            "A sha256 is that of a file's bytes, as `sha256sum` prints it. A fingerprint stands for what a store holds "
            "(labels, options, the clips' data), and no file has it."
        )
    )
    facts = [Facts(experiment.name(node), list_facts(experiment, node)) for node in made]
    blocks.append(Fold("Checksums and versions of each artifact", facts))
    return Section("provenance", "Provenance", blocks)


def list_unmade(experiment: Experiment, manifests: Mapping[Path, object]) -> str:
    """What must be there before the script runs; clips alone where it makes all manifests."""
    files = {path for files in experiment.files.values() for name, path in files.items() if name == "manifest"}
    if not manifests:
        return "manifests with their clips, weights of others"
    others = [path.name for path in sorted(files - manifests.keys())]
    return f"clips, {f'{listed(others, 3)}, ' if others else ''}weights of others"


def find_origins(experiment: Experiment, node: Node, manifests: Collection[Path]) -> dict[str, Node | None]:
    """What an artifact was made from, and the manifest among that where the script makes it."""
    file = experiment.files.get(node.path, {}).get("manifest")
    made = {"manifest": Node(file, "manifest", {}, {}, (file,))} if file is not None and file in manifests else {}
    return {**experiment.origins[node.path], **made}


def arrange_groups(experiment: Experiment, made: Sequence[Node]) -> list[list[Node]]:
    """Arrange artifacts that differ in the seed alone in groups: stores, then the others in their order."""
    groups: dict[str, list[Node]] = {}
    for node in made:
        groups.setdefault(experiment.kin[node.path], []).append(node)
    for nodes in groups.values():
        nodes.sort(key=seed_of)
    return sorted(groups.values(), key=lambda nodes: nodes[0].kind != "store")  # so that no store parts two loops


def list_seeds(experiment: Experiment, nodes: Sequence[Node]) -> list[int]:
    """List the seeds by which some artifacts differ: their own, or else of what they were made from."""
    own = [seed_of(node) for node in nodes]
    if len(set(own)) == len(nodes):
        return own
    inherited = [inherit_seeds(experiment, node) for node in nodes]
    alone = [seeds.pop() for seeds in inherited if len(seeds) == 1]
    return alone if len(alone) == len(nodes) else []


def inherit_seeds(experiment: Experiment, node: Node) -> set[int]:
    """The seeds of the artifacts that one was made from; of several generations the nearest that have seeds."""
    found = [origin for origin in _origins(experiment, node) if origin is not None]
    seeds = {seed_of(origin) for origin in found if "seed" in origin.config}
    return seeds or {seed for origin in found for seed in inherit_seeds(experiment, origin)}


def is_ordered(experiment: Experiment, groups: Sequence[Sequence[Node]], steps: Sequence[Step]) -> bool:
    """Whether the script makes everything before it is used."""
    order: list[tuple[int, int, int]] = []  # of each artifact: its loop, its turn there, its place in the turn
    nodes: list[Node] = []
    loop, running = 0, list[int]()
    for place, (group, step) in enumerate(zip(groups, steps, strict=True)):
        seeds = list(step.seeds) if step.looped() else []
        loop += not seeds or seeds != running
        running = seeds
        nodes += group
        order += [(loop, turn if seeds else 0, place) for turn in range(len(group))]
    when = {node.path: moment for node, moment in zip(nodes, order, strict=True)}
    return all(
        when[origin.path] < when[node.path]
        for node in nodes
        for origin in _origins(experiment, node)
        if origin is not None and origin.path in when
    )


def list_facts(experiment: Experiment, node: Node) -> list[tuple[str, str]]:
    """List checksums, versions, and the environment, on which the bytes depend."""
    own = experiment.checksums[node.path]
    facts = [("fingerprint" if node.kind == "store" else "sha256", own)] if own else []
    facts += [(name_input(experiment, node, name), checksum) for name, checksum in sorted(node.inputs.items())]
    file = node.files[0] if node.files else None
    if file is not None:
        try:
            header, _ = artifacts.read_header(file)
        except AvptError:
            return facts
        facts.append(("avpt", header.avpt))
        facts += [(name, str(value)) for name, value in sorted(header.environment.items())]
    return facts


def name_input(experiment: Experiment, node: Node, name: str) -> str:
    """Name an input of an artifact, with the file that its checksum is of, or say that it is a fingerprint."""
    checksum, origin = node.inputs[name], experiment.origin(node, name)
    if name == "store" or (origin is not None and origin.kind == "store"):
        return f"made from {name}, fingerprint"
    file = experiment.files.get(node.path, {}).get(name)
    if origin is not None and origin.is_run:
        file = next((one for one in origin.files if sha256_if_there(one) == checksum), None)
    elif origin is not None:
        file = origin.path
    return f"made from {name}, sha256{f' of {os.path.relpath(file, experiment.base)}' if file is not None else ''}"


def draw_graph(experiment: Experiment) -> Graph:
    """Draw artifacts in a column per step, seeds together; inputs that were not found are included, dashed."""
    alike: dict[str, list[Node]] = {}
    for node in experiment.nodes:
        alike.setdefault(experiment.kin[node.path], []).append(node)
    lost = {missing.checksum: missing for missing in experiment.missing}
    first = 1 if lost else 0
    late = {
        kind: max([first + measure_depth(experiment, node) for node in experiment.of_kind(kind)] or [0])
        for kind in LATE
    }
    drawn = {missing.checksum: Vertex(0, 0, shorten(missing.name), "missing") for missing in lost.values()}
    for key, nodes in alike.items():
        node = nodes[0]
        label = find_common_name(experiment, nodes) if len(nodes) > 1 else experiment.name(node)
        label = label.removesuffix(".safetensors")
        count = f" × {len(nodes)}" if len(nodes) > 1 else ""
        column = late.get(node.kind, first + measure_depth(experiment, node))
        modality = str(node.config.get("modality", ""))
        drawn[key] = Vertex(column, 0, shorten(f"{label}{count}"), node.kind, modality)
    origins: dict[str, list[str]] = {}
    for node in experiment.nodes:
        found = [origin for origin in _origins(experiment, node) if origin is not None]
        origins.setdefault(experiment.kin[node.path], []).extend(experiment.kin[origin.path] for origin in found)
    for missing in experiment.missing:
        origins[experiment.kin[missing.owner]].append(missing.checksum)
    vertices = arrange_rows(drawn, origins)
    places = {key: place for place, key in enumerate(vertices)}
    edges = {(places[origin], places[key]) for key, several in origins.items() for origin in several}
    kinds = Counter(vertex.kind for vertex in vertices.values())
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    alt = f"graph of {counts}; edges lead from what was used to what was made"
    return Graph(list(vertices.values()), sorted(edges), alt)


def arrange_rows(vertices: Mapping[str, Vertex], origins: Mapping[str, Sequence[str]]) -> dict[str, Vertex]:
    """Give each vertex a row, column by column, as near as can be to what it was made from; stores come first."""
    rows: dict[str, int] = {}

    def wish(key: str) -> float:
        """The mean row of what a vertex was made from; a store is used by all, and draws nothing towards it."""
        near = [rows[origin] for origin in origins.get(key, ()) if origin in rows and vertices[origin].kind != "store"]
        return 0.0 if vertices[key].kind == "store" else sum(near) / len(near) if near else 1.0

    for column in sorted({vertex.column for vertex in vertices.values()}):
        below = 0
        for key in sorted((key for key in vertices if vertices[key].column == column), key=wish):
            rows[key] = max(below, round(wish(key)))
            below = rows[key] + 1
    return {key: replace(vertex, row=rows[key]) for key, vertex in vertices.items()}


def measure_depth(experiment: Experiment, node: Node) -> int:
    """Measure the longest path to a node that was made from nothing, in steps."""
    below = [measure_depth(experiment, origin) for origin in _origins(experiment, node) if origin is not None]
    return 1 + max(below) if below else 0


def _origins(experiment: Experiment, node: Node) -> list[Node | None]:
    return list(experiment.origins[node.path].values())


def shorten(name: str) -> str:
    """Shorten a name to its end, which says more than its beginning."""
    return name if len(name) <= LABEL else "…" + name[-LABEL + 1 :]
