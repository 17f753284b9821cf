"""Folders are the layers, and imports point one way: each layer knows those below it, and none above."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "avpt"

# a layer -> its folders, and the modules that lie at the top; avpt/README.md has the same table
LAYERS = {
    "edge": ("cli", "__main__"),
    "library": ("library", "balancing", "masking"),
    "commands": ("commands",),
    "report": ("report",),
    "runs": ("runs",),
    "parts": (
        *("training", "models", "loading", "store", "media"),
        *("confidence", "diagnosis", "datasets", "engines", "figures"),
    ),
    "options": ("options",),
    "files": ("files",),
    "machine": ("machine",),
    "words": ("errors", "types", "text"),
}
FLOW = ("media", "store", "loading", "models", "training")  # each of these parts may import those before it
BELOW = {
    "edge": {"commands", "options", "machine"},
    "library": {"runs", "parts", "files"},
    "commands": {"report", "runs", "parts", "options", "files", "machine"},
    "report": {"runs", "parts", "options", "files", "machine"},
    "runs": {"parts", "options", "files", "machine"},
    "parts": {"files", "machine"},
    "options": set(),
    "files": set(),
    "machine": set(),
    "words": set(),
}
HEAVY = {"torch", "torchvision", "torchaudio", "h5py", "av", "numpy", "sklearn", "safetensors", "matplotlib"}
LIGHT = ("edge", "options", "files", "machine", "words")  # what a command line that only starts up loads


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_of(file) for file in FILES}


def room_of(module: str) -> str:
    """The folder below avpt/ that a module lies in, or the module itself; empty for the package."""
    return module.removeprefix("avpt").removeprefix(".").partition(".")[0]


def layer_of(module: str) -> str:
    room = room_of(module)
    return next((layer for layer, rooms in LAYERS.items() if room in rooms), "words" if not room else f"{room}?")


def imports_of(path: Path, *, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    actual = []
    for node in nodes:
        if isinstance(node, ast.Import):
            actual += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            actual += [name if name in MODULES else node.module for name in submodules]
    return actual


def may_import(importer: str, imported: str) -> bool:
    rooms = room_of(importer), room_of(imported)
    layers = layer_of(importer), layer_of(imported)
    if layers[0] == "commands" == layers[1]:  # no command another, but any what they share
        return imported.rpartition(".")[2].startswith("_")
    if layers[0] == layers[1] == "parts" and rooms[0] != rooms[1]:
        return set(rooms) <= set(FLOW) and FLOW.index(rooms[1]) < FLOW.index(rooms[0])
    return layers[0] == layers[1] or layers[1] == "words" or layers[1] in BELOW[layers[0]]


def test_every_room_has_a_layer_and_every_layer_its_rooms() -> None:
    rooms = [room for layer in LAYERS.values() for room in layer]
    assert sorted(rooms) == sorted({room_of(name) for name in MODULES} - {""})
    assert len(FILES) > 100


def test_imports_point_one_way() -> None:
    pairs = [(module_of(path), name) for path in FILES for name in imports_of(path) if name.startswith("avpt")]
    assert len(pairs) > 500
    wrong = [f"{importer} imports {imported}" for importer, imported in pairs if not may_import(importer, imported)]
    assert not wrong, "\n".join(wrong)


def test_the_light_layers_load_nothing_heavy() -> None:
    light = [path for path in FILES if layer_of(module_of(path)) in LIGHT]
    assert len(light) >= 20
    wrong = [
        f"{path.name}: {name}"
        for path in light
        for name in imports_of(path, top_level_only=True)
        if name.partition(".")[0] in HEAVY
    ]
    assert not wrong


def test_no_name_stands_in_three_rooms() -> None:
    rooms: dict[str, set[str]] = {}
    for name in MODULES:
        rooms.setdefault(name.rpartition(".")[2], set()).add(room_of(name))
    assert {name: actual for name, actual in rooms.items() if len(actual) > 2} == {}


def test_the_map_has_the_layers_that_imports_are_held_to() -> None:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (`.*`) \| (.*?) ?\|$", text, flags=re.MULTILINE)
    rooms = {layer: tuple(re.findall(r"`(\w+)`", folders)) for layer, folders, _ in rows}
    assert list(rooms) == list(LAYERS)
    assert {layer: sorted(names) for layer, names in rooms.items()} == {
        layer: sorted(names) for layer, names in LAYERS.items()
    }
    assert {layer: set(below.split(", ")) - {""} for layer, _, below in rows} == BELOW


def test_the_map_says_where_the_tests_of_each_folder_are() -> None:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)/` \| .* \| (`.*`) \|$", text, flags=re.MULTILINE))
    assert rows.keys() == {room for rooms in LAYERS.values() for room in rooms if (PACKAGE / room).is_dir()} | {"guide"}
    named = {name for tests in rows.values() for name in re.findall(r"`(\w+)`", tests)}
    assert len(named) > 30
    assert [name for name in sorted(named) if not (Path(__file__).parent / f"test_{name}.py").is_file()] == []
