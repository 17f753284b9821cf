"""Imports point one way: words, files, parts, options, runs, chapters, stories, edge."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "avpt"

# name of a layer -> modules (by prefix) and the layers they may import
WORDS, FILES, OPTIONS, RUNS, CHAPTERS, STORIES, EDGE = (
    "words",
    "files",
    "options",
    "runs",
    "chapters",
    "stories",
    "edge",
)
PARTS = ("data", "datasets", "models", "training", "engines", "confidence", "diagnosis", "figures", "pages")
LAYERS = {
    "avpt": WORDS,
    "avpt.errors": WORDS,
    "avpt.types": WORDS,
    "avpt.seeds": WORDS,
    "avpt.strata": WORDS,
    "avpt.processes": WORDS,
    "avpt.progress": WORDS,
    "avpt.terminal": WORDS,
    "avpt.text": WORDS,
    "avpt.outputs": FILES,
    "avpt.checking": FILES,
    "avpt.records": FILES,
    "avpt.tensors": FILES,
    "avpt.unpickled": FILES,
    "avpt.artifacts": FILES,
    "avpt.exported": FILES,
    "avpt.run_folder": FILES,
    "avpt.lineage": FILES,
    **{f"avpt.{part}": part for part in PARTS},
    "avpt.config": OPTIONS,
    "avpt.runs": RUNS,
    "avpt.compared": RUNS,
    "avpt.trained": RUNS,
    "avpt.shards": RUNS,
    "avpt.story": CHAPTERS,
    "avpt.stages": STORIES,
    "avpt.cli": EDGE,
    "avpt.__main__": EDGE,
}
ALLOWED = {
    WORDS: {WORDS},
    FILES: {WORDS, FILES},
    **{part: {WORDS, FILES, part} for part in PARTS},
    OPTIONS: {WORDS, OPTIONS},
    RUNS: {WORDS, FILES, OPTIONS, *PARTS},
    CHAPTERS: {WORDS, FILES, OPTIONS, RUNS, CHAPTERS, *PARTS},  # of a story too long for one file
    STORIES: {WORDS, FILES, OPTIONS, RUNS, CHAPTERS, *PARTS},
    EDGE: {WORDS, OPTIONS, EDGE, STORIES},
}
HEAVY = {"torch", "torchvision", "torchaudio", "h5py", "av", "numpy", "sklearn", "safetensors", "matplotlib"}


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(file) for file in PACKAGE.rglob("*.py")}


def layer_of(module: str) -> str:
    best = max((name for name in LAYERS if module == name or module.startswith(f"{name}.")), key=len)
    assert best != "avpt" or module == "avpt", f"{module} is in no layer"
    return LAYERS[best]


def imports_of(path: Path, *, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES else node.module for name in submodules]
    return found


def test_imports_point_one_way() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 30
    wrong = []
    for path in files:
        layer = layer_of(module_of(path))
        for name in imports_of(path):
            if name.startswith("avpt") and layer_of(name) not in ALLOWED[layer]:
                wrong.append(f"{module_of(path)} ({layer}) imports {name} ({layer_of(name)})")
    assert not wrong, "\n".join(wrong)


def test_stories_do_not_import_one_another() -> None:
    stories = sorted((PACKAGE / "stages").glob("*.py"))
    assert len(stories) >= 7
    wrong = [f"{path.name}: {name}" for path in stories for name in imports_of(path) if name.startswith("avpt.stages")]
    assert not wrong


def test_words_files_options_and_edge_load_nothing_heavy() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    light = [path for path in files if layer_of(module_of(path)) in {WORDS, FILES, OPTIONS, EDGE}]
    assert len(light) >= 9
    wrong = [
        f"{path.name}: {name}"
        for path in light
        for name in imports_of(path, top_level_only=True)
        if name.partition(".")[0] in HEAVY
    ]
    assert not wrong
