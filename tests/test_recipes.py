"""Every recipe parses, has the header that readers look for, and names only commands and options that exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from avpt import config
from avpt.cli import CONFIGS

RECIPES = sorted(path for path in (Path(__file__).parent.parent / "recipes").glob("*.sh") if path.name != "venv.sh")


def commands(script: str) -> list[list[str]]:
    """Every `avpt ...` of a shell script as words, substitutions left as they are."""
    text = script.replace("\\\n", " ")
    found = re.findall(r"(?:^ *|\$\()avpt ([^)\n]*)", text, flags=re.MULTILINE)
    return [shlex.split(command) for command in found]


def arrays(script: str) -> list[str]:
    """Words inside bash arrays, where recipes keep the options that several commands share."""
    return [word for body in re.findall(r"^\w+=\(([^)]*)\)", script, flags=re.MULTILINE) for word in shlex.split(body)]


def test_there_are_recipes() -> None:
    assert "quickstart.sh" in {path.name for path in RECIPES}
    assert len(CONFIGS) > 5


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe(path: Path) -> None:
    script = path.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(path)], check=True)
    for heading in ("# Data ", "# Hardware ", "# (Minutes|Hours) ", "# (Expect|Published) "):
        assert re.search(f"^{heading}", script, flags=re.MULTILINE)
    called = commands(script)
    assert len(called) >= 3
    known: set[str] = set()
    for name, *words in called:
        flags = {config.flag(field) for field in CONFIGS[name].__dataclass_fields__} | {"--no-flip"}
        known |= flags
        assert {word for word in words if word.startswith("--")} <= flags
    assert {word for word in arrays(script) if word.startswith("--")} <= known


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross-modal", "masking"])
def test_small_recipes_run(name: str, tmp_path: Path) -> None:
    """One epoch of one seed; the table at the end has a row for each way."""
    environment = os.environ | {
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "OUT": str(tmp_path),
        "SEEDS": "0",
        "EPOCHS": "1",
        "FUSED_EPOCHS": "1",
    }
    script = Path(__file__).parent.parent / "recipes" / f"{name}.sh"
    result = subprocess.run([script], env=environment, check=True, capture_output=True, text=True)
    ways = {
        "cross-modal": [f"{m}, {how}" for m in ("audio", "visual") for how in ("random", "keep", "reset", "abri")],
        "masking": ["audio", "visual", "none", "uniform", "adaptive", "released", "ogm-ge"],
    }[name]
    for way in ways:
        assert re.search(rf"^{way} +0\.\d{{3}}", result.stdout, flags=re.MULTILINE), way
