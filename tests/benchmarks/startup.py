"""What `avpt --help` costs: against a Typer app with the same commands and options and empty bodies.

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo

from avpt import options
from avpt.cli import app  # noqa: F401 - which fills BODIES
from avpt.cli.declaring import config_of
from avpt.cli.program import BODIES

METHOD = (
    "The other app is a generated module of plain functions, one a command, with the same parameters, types, defaults "
    "and help. A pair is `python -m avpt ARGUMENTS` and the same of the other app, as whole processes back to back; "
    "which goes first alternates. The ratio is the median over pairs of avpt / other, after warm-up."
)
TARGET = 1.2


def empty_app() -> str:
    """Source of the app to compare with."""
    lines = [
        "from pathlib import Path",
        "from typing import Annotated, Literal, Optional",
        "import typer",
        "app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)",
    ]
    for name, body in BODIES.items():
        config_type = config_of(body)
        lines += ["@app.command()", f"def {name.replace('-', '_')}(", "    *,"]
        for field in dataclasses.fields(config_type):
            info = options.parameter(config_type, field.name)
            kind = annotation(options.type_hints(config_type)[field.name].__origin__)
            declared = "Argument" if isinstance(info, ArgumentInfo) else "Option"
            names = "".join(f"{text!r}, " for text in getattr(info, "param_decls", None) or ())
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            lines.append(f"    {field.name}: Annotated[{kind}, typer.{declared}({names}help={info.help!r})]{default},")
        lines += [") -> None:", f"    {config_type.__doc__!r}"]
    return "\n".join([*lines, "app()", ""])


def annotation(kind: Any) -> str:
    """A type as source."""
    return (
        kind.__name__
        if isinstance(kind, type) and not hasattr(kind, "__args__")
        else repr(kind).replace("typing.", "").replace("pathlib._local.", "").replace("pathlib.", "")
    )


def seconds(command: list[str]) -> float:
    """Run a whole process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--warmup", type=int, default=2)
    options = parser.parse_args()
    record: dict[str, Any] = {"benchmark": "startup", "target": TARGET, "method": METHOD, "settings": vars(options)}
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other.py"
        other.write_text(empty_app(), encoding="utf-8")
        for name, arguments in {"help": ["--help"], "command_help": ["fuse-train", "--help"]}.items():
            ours: list[float] = []
            theirs: list[float] = []
            for pair in range(-options.warmup, options.pairs):
                order = [("ours", ["-m", "avpt"]), ("theirs", [str(other)])]
                for which, module in order if pair % 2 else reversed(order):
                    took = seconds([sys.executable, *module, *arguments])
                    if pair >= 0:
                        (ours if which == "ours" else theirs).append(took)
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            record[f"{name}_ratio"] = round(statistics.median(ratios), 4)
            record[f"{name}_seconds"] = round(statistics.median(ours), 4)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
