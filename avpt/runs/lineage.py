"""What artifacts were made from: they record their inputs by checksum, and here those files are found again.

Where the paths that were typed are on record they are looked at first; they decide between copies of equal bytes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from avpt.errors import AvptError
from avpt.files.artifacts import read_header
from avpt.files.checking import RecordError, read
from avpt.files.outputs import sha256_if_there
from avpt.files.records import Fingerprinted, NamedProvenance, Provenance
from avpt.files.typed_paths import RecordedPath, read_paths
from avpt.options import recorded_option
from avpt.runs.folder import is_run, read_run
from avpt.text import near

log = logging.getLogger(__name__)

LEVELS_UP, LEVELS_DOWN = 2, 3  # from a run folder: where recipes put what it was made from
MOST_ENTRIES = 20_000  # of folders, that are looked through before the search ends
MOST_BYTES = 2**31  # of a file that may be an input by its name alone, as its size is not on record
# inputs that avpt did not write, and how their names usually end
FILES = {"manifest": (".csv",), "weights": (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pth.tar")}
SUFFIXES = tuple({".safetensors", ".json"}.union(*FILES.values()))


@dataclass(frozen=True)
class Node:
    """A store, an artifact or a run folder, and how it was made."""

    path: Path
    kind: str  # store, encoder, classifier, fused, confidence, predictions, probe, ...
    config: dict[str, Any]
    inputs: dict[str, str]  # name -> checksum or fingerprint
    files: tuple[Path, ...] = field(repr=False)  # those that other nodes may record as inputs; a store has none

    @property
    def is_run(self) -> bool:
        """Whether it is a run folder."""
        return self.path.is_dir() and self.kind != "store"

    def option(self, name: str) -> Any:
        """An option that it was made with, or its default where its record does not have it."""
        return recorded_option(self.kind, self.config, name)


class Lineage:
    """The artifacts in some folders, found by the checksums under which others record them.

    They are walked, and files hashed, when first needed: `paths`, then `folders`, then the folders around `paths`.
    """

    def __init__(self, paths: Sequence[Path], folders: Sequence[Path] | None = None) -> None:
        """Look at `paths`, in `folders` and around `paths`.

        Raises:
            AvptError: one of `folders` is not a folder.
        """
        for folder in folders or ():
            if not folder.is_dir():
                raise AvptError(f"{folder} is not a folder; --search takes folders to find inputs in")
        named = [folder.absolute() for folder in folders or ()]
        self._unread = _unique(chain((path.absolute() for path in paths), named, _walk(named), _walk(_around(paths))))
        self._nodes: dict[Path, Node | None] = {}
        self._names: dict[str, Path] = {}  # of everything in `_nodes`, by its real path
        self._files: list[Path] = []  # that avpt did not write
        self._records: dict[Path, dict[str, RecordedPath]] = {}  # of what was followed, by its path
        self._recorded: list[Node] = []  # nodes that lie where a record says
        self._checksums: dict[Path, str] = {}

    def find(self, checksum: str) -> Node | None:
        """The store, artifact or run that was recorded by this checksum; None where it can't be found.

        Of several with equal bytes it is the one whose path was typed, if that is on record.
        """
        for place in self._places(checksum):
            node = self._read(place.place)
            if node is not None and checksum in self.checksums(node):
                self._recorded += [node] * (node not in self._recorded)
                return node
        for node in chain(self._recorded, self.nodes()):
            if checksum in self.checksums(node):
                return node
        return None

    def find_file(self, name: str, checksum: str) -> Path | None:
        """The file that avpt did not write and that was recorded by this checksum, as an input of this name."""
        if name not in FILES:
            return None
        places = self._places(checksum)
        sizes = {place.size for place in places}
        for place in places:
            if place.place.is_file() and self.checksum(place.place) == checksum:
                return place.place
        list(self.nodes())  # which fills `_files`
        for file in self._files:
            size = _size_of(file)
            is_likely = size in sizes if sizes else size <= MOST_BYTES
            if is_likely and file.name.lower().endswith(FILES[name]) and self.checksum(file) == checksum:
                return file
        return None

    def follow(self, path: Path) -> dict[str, RecordedPath]:
        """Take into account the paths that something was made from, where they were recorded."""
        if path not in self._records:
            self._records[path] = read_paths(path)
        return self._records[path]

    def origins(self, node: Node) -> dict[str, Node | None]:
        """What a node was made from, by the names of its inputs."""
        self.follow(node.path)
        return {name: self.find(checksum) for name, checksum in node.inputs.items()}

    def _places(self, checksum: str) -> list[RecordedPath]:
        return [place for record in self._records.values() for place in record.values() if place.checksum == checksum]

    def made_from(self, node: Node, *kinds: str) -> list[Node]:
        """The nodes of these kinds that were made from a node."""
        own = self.checksums(node)
        return [other for other in self.nodes() if other.kind in kinds and own & set(other.inputs.values())]

    def checksums(self, node: Node) -> set[str]:
        """The checksums, or the fingerprint, by which others may record a node."""
        if node.kind == "store":
            return {node.config["fingerprint"]}
        return {checksum for file in node.files if (checksum := self.checksum(file))}

    def checksum(self, file: Path) -> str:
        """The checksum of one of a node's files; empty where it has been removed since it was seen."""
        if file not in self._checksums:
            self._checksums[file] = sha256_if_there(file)
        return self._checksums[file]

    def nodes(self) -> Iterator[Node]:
        """All nodes, each of them read when it is first needed."""
        yield from [node for node in self._nodes.values() if node is not None]
        for path in self._unread:
            if os.path.realpath(path) in self._names:
                continue
            if (node := self._read(path)) is not None:
                yield node
            elif path.is_file():
                self._files.append(path)

    def _read(self, path: Path) -> Node | None:
        """The node at a path, under the name by which it is known already."""
        real = os.path.realpath(path)
        if real not in self._names:
            self._names[real] = path
            self._nodes[path] = read_node(path)
        return self._nodes[self._names[real]]

    def whole_config(
        self,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        complete: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = lambda kind, config: config,
    ) -> dict[str, Any]:
        """The options of a run and, under dotted names, of all that it was made from; checksums of what is missing.

        Seeds are left out, and so is what depends on nothing but a seed: two runs of one experiment have equal records.
        An input that several things share is described once, under its shortest name, and elsewhere by that name.

        Args:
            config: of the run.
            inputs: of the run.
            complete: fills in, by kind, the options of an input that are younger than its record.
        """
        whole: dict[str, Any] = {}
        first_names: dict[str | Path, str] = {}
        waiting: list[tuple[str, Mapping[str, Any], Mapping[str, str]]] = [("", config, inputs)]
        for prefix, options, made_from in waiting:  # a list that grows meanwhile
            whole |= {f"{prefix}{option}": value for option, value in options.items() if option != "seed"}
            for name, checksum in sorted(made_from.items()):
                node = self.find(checksum)
                is_known = node is not None and node.kind != "store"
                thing = node.path if node is not None and is_known else checksum
                if thing in first_names:
                    whole[f"{prefix}{name}"] = f"as {first_names[thing]}"
                    continue
                first_names[thing] = f"{prefix}{name}"
                if node is not None and is_known:
                    self.follow(node.path)
                    waiting.append((f"{prefix}{name}.", complete(node.kind, node.config), node.inputs))
                elif (file := self.find_file(name, checksum)) is not None:
                    whole[f"{prefix}{name}"] = f"{file.name} ({checksum[:12]})"
                else:
                    whole[f"{prefix}{name}"] = checksum
        return whole


def _size_of(file: Path) -> int:
    """A file's size in bytes; -1 where it is gone by now."""
    try:
        return file.stat().st_size
    except OSError:
        return -1


def read_node(path: Path) -> Node | None:
    """The node at a path; None where avpt did not write it, or it can't be read."""
    try:
        if path.is_dir() and (path / "store.json").is_file():
            settings = read(path / "settings.json", Provenance)
            fingerprint = read(path / "store.json", Fingerprinted)["fingerprint"]
            return Node(path, "store", {**settings["config"], "fingerprint": fingerprint}, settings["inputs"], ())
        if path.is_dir():
            run = read_run(path)
            files = [path / name for name in ("model.safetensors", "dynamics.safetensors")]
            return Node(path, run.kind, run.config, run.inputs, tuple(file for file in files if file.is_file()))
        if path.suffix == ".json":
            record = read(path, NamedProvenance)
            return Node(path, record["kind"], {**record["config"]}, record["inputs"], ())
        header, _ = read_header(path)
        return Node(path, header.kind, header.config, header.inputs, (path,))
    except (AvptError, OSError, RecordError):
        return None  # a search meets all sorts of files


def _around(paths: Sequence[Path]) -> Iterator[Path]:
    """The folders above each path, the nearest first; neither a home nor the root of a file system is walked."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path's own fails where nobody knows it
    for path in paths:
        for folder in path.absolute().parents[:LEVELS_UP]:
            if folder != home and not folder.is_mount():
                yield folder


def _walk(roots: Iterable[Path]) -> Iterator[Path]:
    """Stores, run folders and files that may be inputs in some folders, breadth first, and nothing inside of these."""
    level, seen, num_entries = list(dict.fromkeys(roots)), set[str](), 0
    for _ in range(LEVELS_DOWN):
        below: list[Path] = []
        for folder in level:
            if (real := os.path.realpath(folder)) in seen:
                continue
            seen.add(real)
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                continue
            num_entries += len(entries)
            if num_entries > MOST_ENTRIES:
                message = "too many files are around %s to look through; name nearer folders with --search"
                log.warning(message, near(folder))
                return
            for entry in entries:
                path = Path(entry.path)
                if entry.name.startswith("."):
                    continue
                try:
                    is_folder, is_file = path.is_dir(), path.is_file()
                    is_ours = is_folder and (is_run(path) or (path / "store.json").exists())
                except OSError:  # what may not be looked into, or is gone by now
                    continue
                if is_ours or (is_file and entry.name.lower().endswith(SUFFIXES)):
                    yield path
                elif is_folder:
                    below.append(path)
        level = below


def _unique(paths: Iterable[Path]) -> Iterator[Path]:
    """Each file or folder once, under the first of its names: a link may lead to one that was seen already."""
    seen = set[str]()
    for path in paths:
        if (real := os.path.realpath(path)) not in seen:  # not `resolve`, which fails on a ring of links
            seen.add(real)
            yield path
