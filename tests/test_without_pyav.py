"""Where nothing is decoded PyAV is not needed: a machine that trains need not have it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from helpers import ARCH, PATCHES, ROOT, TRAIN_OPTIONS, Experiment, digit_rows, fuse

# runs commands, one after the other, in an interpreter that refuses to import PyAV
WITHOUT = """
import json, sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "av":
            raise ModuleNotFoundError("PyAV is not here", name=name)

sys.meta_path.insert(0, Refusal())
from typer.testing import CliRunner
from avpt.cli import app

for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, command)
    why = "" if result.exit_code == 0 else " ".join(result.stderr[-300:].split()) + repr(result.exception)
    print(command[0], result.exit_code, why)
print("PyAV", int("av" in sys.modules))
"""


def without_pyav(*commands: tuple[str | Path, ...]) -> list[str]:
    """What became of each command: its name and exit code, and its error where there is one."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    result = subprocess.run([sys.executable, "-c", WITHOUT, words], capture_output=True, text=True, cwd=ROOT)
    return result.stdout.splitlines() or result.stderr.splitlines()


def test_training_and_all_that_follows_it_need_no_pyav(experiment: Experiment, tmp_path: Path) -> None:
    init, audio, fused = (tmp_path / name for name in ("init.safetensors", "audio", "fused"))
    confidence, report, exported = (tmp_path / name for name in ("c.safetensors", "report.html", "audio.safetensors"))
    store, device = experiment.store, ("--device", "cpu")
    commands: list[tuple[str | Path, ...]] = [
        ("init", "--modality", "audio", "--arch", ARCH, "--weights", experiment.visual, "--bn", "abri", "--out", init),
        ("finetune-unimodal", store, "--modality", "audio", "--init", init, *TRAIN_OPTIONS, "--out", audio),
        ("score-confidence", "--audio", audio, "--visual", experiment.visual, *PATCHES, "--out", confidence),
        (*fuse(experiment), "--mask", "none", "--out", fused),
        ("evaluate", fused, store, "--workers", "0", *device),
        ("inspect", experiment.audio_init, "--store", store, "--workers", "0", *device),
        ("probe", fused, store, "--modality", "audio", "--workers", "0", *device),
        ("compare", fused, experiment.fused),
        ("report", fused, "--out", report),
        ("export", fused, "--modality", "audio", "--format", "timm", "--out", exported),
        ("verify", store),
        ("info", fused),
    ]
    lines = without_pyav(*commands)
    assert lines == [*(f"{command[0]} 0 " for command in commands), "PyAV 0"]


def test_where_something_is_decoded_it_is_missed(experiment: Experiment) -> None:
    lines = without_pyav(("predict", experiment.fused, digit_rows()[0]["audio"]))
    assert "PyAV is not here" in "".join(lines)
