"""All that belongs to some runs: what they were made from, what was made from them, and what is missing."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from avpt.errors import AvptError
from avpt.files.outputs import sha256_if_there, sha256_json
from avpt.files.typed_paths import read_paths
from avpt.report.page.blocks import Block, Text
from avpt.runs.folder import Run, read_run
from avpt.runs.groups import count_pooled, group_made, seed_of
from avpt.runs.lineage import Lineage, Node, read_node
from avpt.text import near
from avpt.types import MODALITIES, Modality

log = logging.getLogger(__name__)

MADE_OF = (
    "init",
    "weights",
    "audio",
    "visual",
    "confidence",
    "teacher_audio",
    "teacher_visual",
    "store",
    "model",
    "ensemble",
)
READ = ("predictions.safetensors", "mask.safetensors", "metrics.jsonl", "summary.json")


@dataclass(frozen=True)
class Missing:
    """An input that a file records but that was not found."""

    owner: Path
    name: str  # store, audio, visual, init, weights, confidence, model, ensemble
    checksum: str


@dataclass
class Experiment:
    """Runs and what they depend on, in the order in which they were made."""

    nodes: list[Node] = field(default_factory=list)
    origins: dict[Path, dict[str, Node | None]] = field(default_factory=dict)  # of each node, by the name of the input
    files: dict[Path, dict[str, Path]] = field(default_factory=dict)  # inputs that avpt did not write, likewise
    missing: list[Missing] = field(default_factory=list)
    runs: dict[Path, Run] = field(default_factory=dict)  # by the path of the node
    kin: dict[Path, str] = field(default_factory=dict)  # a key that nodes share if they differ in the seed alone
    groups: dict[str, list[Node]] = field(default_factory=dict)  # runs that are kin, by the name of their group
    pooled: int = 0  # grouped runs of which an input was not found
    checksums: dict[Path, str] = field(default_factory=dict)  # of each node, as others record it
    order: dict[Path, int] = field(default_factory=dict)  # of what was requested, from 1; all other nodes come before
    unused: list[Path] = field(default_factory=list)  # confidence files that no run was made with, and nobody named

    def of_kind(self, *kinds: str) -> list[Node]:
        """Its nodes of some kinds (store, encoder, ...), runs in the order in which they were requested."""
        return sorted(
            (node for node in self.nodes if node.kind in kinds), key=lambda node: self.order.get(node.path, 0)
        )

    def origin(self, node: Node, name: str) -> Node | None:
        """What a node was made from, by the name of the input; None where it was not found."""
        return self.origins[node.path].get(name)

    def alone(self, run: Node, modality: Modality) -> Node | None:
        """A joint run's encoder trained alone: what went in, or its stage 1 where that was fresh from `init`."""
        origin = self.origin(run, modality)
        if origin is None or origin.kind == "classifier":
            return origin
        trained = [node for node in self.stage1(modality) if node.inputs.get("init") == run.inputs[modality]]
        of_seed = [node for node in trained if seed_of(node) == seed_of(run)]
        return of_seed[0] if len(of_seed) == 1 else None  # of several none is preferred, as by `avpt probe`

    def is_straight(self, run: Node) -> bool:
        """Whether a joint run started from encoders as `init` had made them, without stage 1."""
        origins = [self.origin(run, modality) for modality in MODALITIES]
        return all(origin is not None and origin.kind == "encoder" for origin in origins)

    @cached_property
    def base(self) -> str:
        """The folder that names are relative to: the innermost one that holds all runs."""
        return os.path.commonpath([node.path.parent for node in self.nodes if node.is_run])

    def name(self, node: Node) -> str:
        """The name of a node on the page."""
        return os.path.relpath(node.path, self.base)

    def unfinished(self) -> list[Node]:
        """Runs whose training has not ended."""
        return [node for node in self.nodes if node.is_run and self.runs[node.path].summary is None]

    def stage1(self, modality: Modality) -> list[Node]:
        """Fine-tuned encoders of one modality."""
        return [node for node in self.of_kind("classifier") if node.config.get("modality") == modality]

    def group_of(self, node: Node) -> str:
        """The name of a run's group."""
        return next(name for name, nodes in self.groups.items() if node in nodes)

    def contents(self) -> dict[str, str]:
        """A checksum of all that the page reads of each node, by name; missing inputs are listed too."""
        files = {
            f"{name} of {self.name(node)}": node.inputs[name]
            for node in self.nodes
            for name in self.files.get(node.path, {})
        }
        lost = {f"{lost.name} of {os.path.relpath(lost.owner, self.base)}": "not found" for lost in self.missing}
        return {self.name(node): self._content(node) for node in self.nodes} | files | lost

    def _content(self, node: Node) -> str:
        if node.is_run:
            files = {name: node.path / name for name in READ}
            read = {name: checksum for name, file in files.items() if (checksum := sha256_if_there(file))}
            return sha256_json([self.checksums[node.path], read])
        return self.checksums[node.path] or sha256_if_there(node.path)

    def neighbours(self) -> dict[Path, list[Path]]:
        """All that it has besides the requested runs, by the folders that these lie in."""
        paths = [node.path for node in self.nodes if node.path not in self.order]
        paths += [file for files in self.files.values() for file in files.values()]
        by_folder: dict[Path, list[Path]] = {}
        for path in dict.fromkeys(paths):
            by_folder.setdefault(path.parent, []).append(path)
        return by_folder


def gather(paths: Sequence[Path], folders: Sequence[Path] | None) -> Experiment:
    """Find everything that belongs to some runs, and to confidence files that are named with them.

    Raises:
        AvptError: a path is no run folder, or a damaged one.
    """
    requested = list(dict.fromkeys(Path(os.path.normpath(path.absolute())) for path in paths))
    named = [path for path in paths if is_confidence(path)]
    for path in paths if len(named) == len(paths) else [path for path in paths if path not in named]:
        read_run(path)  # raises for a requested run that can't be read; the search below would skip it silently
    lineage = Lineage(requested, folders)
    there = {node.path: node for node in lineage.nodes()}
    wanted = [there[path] for path in requested if path in there]
    experiment = Experiment(order={path: place for place, path in enumerate(requested, 1)})
    depth: dict[Path, int] = {}
    for node in wanted:
        _climb(lineage, node, experiment, depth)
    contents = {lineage.checksum(node.path) for node in experiment.nodes if node.path.is_file()}

    def add(node: Node) -> None:
        """Add a file that was made from the runs, unless it is a copy of one that is there."""
        if (checksum := lineage.checksum(node.path)) not in contents:
            contents.add(checksum)
            _climb(lineage, node, experiment, depth)

    for node in [node for node in lineage.nodes() if node.kind == "confidence" and node.path not in depth]:
        if all(origin is not None and origin.path in depth for origin in lineage.origins(node).values()):
            checksum = lineage.checksum(node.path)
            if checksum not in contents:  # nor a copy of one that is there
                experiment.unused.append(node.path)
                contents.add(checksum)
    for node in list(experiment.nodes):
        if node.is_run:
            for other in lineage.made_from(node, "probe", "evaluation"):
                if other.inputs.get("model") in lineage.checksums(node):  # not for a fused model made from this run
                    add(other)
    experiment.nodes.sort(key=lambda node: (depth[node.path], os.fspath(node.path)))
    for node in experiment.nodes:
        own = lineage.checksum(node.files[0]) if node.files else next(iter(lineage.checksums(node)), "")
        experiment.checksums[node.path] = own
        if node.is_run:
            experiment.runs[node.path] = read_run(node.path)
    for kind in dict.fromkeys(node.kind for node in experiment.nodes):
        nodes = [node for node in experiment.nodes if node.kind == kind]
        groups = group_made(nodes, lineage)
        experiment.kin |= {nodes[i].path: f"{kind} {n}" for n, group in enumerate(groups) for i in group.members}
        experiment.pooled += count_pooled(groups) if nodes[0].is_run else 0
    experiment.groups = _group_runs(experiment)
    for lost in {lost.checksum: lost for lost in reversed(experiment.missing)}.values():
        log.warning("%s of %s was not found; --search FOLDER looks elsewhere", lost.name, near(lost.owner))
    return experiment


def is_confidence(path: Path) -> bool:
    """Whether a path is a file that `score-confidence` wrote."""
    node = read_node(path) if path.is_file() else None
    return node is not None and node.kind == "confidence"


def _climb(lineage: Lineage, node: Node, experiment: Experiment, depth: dict[Path, int]) -> int:
    """Add a node and all that it was made from; returns the longest distance to a node made from nothing."""
    if node.path in depth:
        return depth[node.path]
    depth[node.path] = 0  # a damaged store could name itself: do not recurse for ever
    experiment.origins[node.path] = origins = lineage.origins(node)
    below = [0]
    for name, origin in origins.items():
        if origin is not None:
            below.append(1 + _climb(lineage, origin, experiment, depth))
        elif (file := lineage.find_file(name, node.inputs[name])) is not None:
            experiment.files.setdefault(node.path, {})[name] = file
        elif name in MADE_OF:
            experiment.missing.append(Missing(node.path, name, node.inputs[name]))
    depth[node.path] = max(below)
    experiment.nodes.append(node)
    return depth[node.path]


def _group_runs(experiment: Experiment) -> dict[str, list[Node]]:
    """Group runs that are kin, and name the groups after their folders where these names are unique."""
    alike: dict[str, list[Node]] = defaultdict(list)
    for node in experiment.nodes:
        if node.is_run:
            alike[experiment.kin[node.path]].append(node)
    labels = {key: find_common_name(experiment, nodes) for key, nodes in alike.items()}
    groups: dict[str, list[Node]] = {}
    for key, nodes in alike.items():
        shared = list(labels.values()).count(labels[key]) > 1
        name = experiment.name(nodes[0]) if shared else labels[key]
        groups[name if name not in groups else f"{name} ({len(groups)})"] = nodes
    return groups


def find_common_name(experiment: Experiment, nodes: Sequence[Node]) -> str:
    """Find the name that the paths of some nodes share."""
    last = {node.path.name for node in nodes}
    if len(last) == 1 and not next(iter(last)).isdecimal():
        return next(iter(last))
    above = {node.path.parent.name for node in nodes}  # audio-abri/0, audio-abri/1, ...
    return next(iter(above)) if len(above) == 1 and len(nodes) > 1 else experiment.name(nodes[0])


def explain_missing(experiment: Experiment, node: Node, name: str) -> str:
    """Say why an input of a node can't be shown, and what to do."""
    checksum = node.inputs.get(name)
    if checksum is None:
        return f"{experiment.name(node)} records no {name}."
    typed = read_paths(node.path).get(name)
    then = f", `{typed.typed}` when it was used" if typed is not None else ""
    return (
        f"The {name} that {experiment.name(node)} was made from (checksum {checksum[:12]}…{then}) was not found around "
        "the runs: moved, removed or changed. If it is elsewhere, name that folder with --search."
    )


def list_missing(experiment: Experiment, *names: str) -> list[Block]:
    """Explain all inputs of these names that were not found."""
    lost = {missing.checksum: missing for missing in reversed(experiment.missing) if missing.name in names}
    owners = {node.path: node for node in experiment.nodes}
    reasons = [explain_missing(experiment, owners[missing.owner], missing.name) for missing in lost.values()]
    return [Text(reason, missing=True) for reason in reasons]


def explain_error(error: AvptError | OSError | KeyError | ValueError) -> str:
    """Say on the page what went wrong with a file."""
    return f"This can't be shown: {error}."


def mean_of(rows: Sequence[Mapping[str, float]], name: str) -> float | None:
    """The mean of a value over the rows that have it."""
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else None
