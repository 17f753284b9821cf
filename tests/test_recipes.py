"""Every recipe parses, has the header that readers look for, and names only commands and options that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from avpt import config
from avpt.cli import CONFIGS

RECIPES = sorted(path for path in (Path(__file__).parent.parent / "recipes").glob("*.sh") if path.name != "venv.sh")


def commands(script: str) -> list[list[str]]:
    """Every `avpt ...` of a shell script as words, substitutions left as they are."""
    text = script.replace("\\\n", " ")
    found = re.findall(r"(?:^|\$\()avpt ([^)\n]*)", text, flags=re.MULTILINE)
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
    for heading in ("# Data ", "# Hardware ", "# Minutes ", "# Expect "):
        assert heading in script
    called = commands(script)
    assert len(called) >= 5
    known: set[str] = set()
    for name, *words in called:
        flags = {config.flag(field) for field in CONFIGS[name].__dataclass_fields__} | {"--no-flip"}
        known |= flags
        assert {word for word in words if word.startswith("--")} <= flags
    assert {word for word in arrays(script) if word.startswith("--")} <= known
