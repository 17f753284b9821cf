"""What every command has in common: where output goes, exit codes, running again, locks, help and completion."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import typer.main
from helpers import (
    ARCH,
    CONFIGS,
    PATCHES,
    ROOT,
    STORE_OPTIONS,
    THREADS,
    TRAIN_OPTIONS,
    Experiment,
    avpt,
    digit_rows,
    done,
    files_of,
    finetune,
    fuse,
    state_of,
    write_manifest,
)
from torch import nn

from avpt import __version__, options
from avpt.cli import app
from avpt.options import BALANCING

COMMANDS = tuple(CONFIGS)
HEAVY = ("torch", "torchvision", "torchaudio", "h5py", "av", "numpy", "sklearn", "safetensors", "matplotlib")
STEPS = ("store", "visual_init", "audio_init", "visual", "audio", "confidence", "fused")


def step(experiment: Experiment, name: str) -> tuple[str | Path, ...]:
    """The command that made a part of the experiment, with its --out."""
    runs = ("--audio", experiment.audio, "--visual", experiment.visual)
    confidence = ("--confidence", experiment.confidence, "--mask-threshold", "0.1")
    init = ("init", "--arch", ARCH, "--modality")
    commands: dict[str, tuple[str | Path, ...]] = {
        "store": ("preprocess", experiment.manifest, *STORE_OPTIONS),
        "visual_init": (*init, "visual", "--weights", "random"),
        "audio_init": (*init, "audio", "--weights", experiment.visual, "--bn", "abri"),
        "visual": finetune(experiment, "visual", experiment.visual_init),
        "audio": finetune(experiment, "audio", experiment.audio_init),
        "confidence": ("score-confidence", *runs, *PATCHES),
        "fused": (*fuse(experiment), *confidence),
    }
    return (*commands[name], "--out", getattr(experiment, name))


# --- light start -------------------------------------------------------------------------------------------------

REPORT_LOADED = f"print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | THREADS | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    process = python(f"import sys, avpt.cli; {REPORT_LOADED}")
    assert process.stdout == "loaded:\n", process.stderr


def test_the_list_of_commands_is_shown_without_their_options() -> None:
    process = python(
        "import sys\nfrom avpt.cli import app\ntry:\n    app(['--help'], prog_name='avpt')\n"
        "except SystemExit:\n    print('loaded:', 'avpt.options' in sys.modules)"
    )
    *shown, loaded = process.stdout.splitlines()
    assert loaded == "loaded: False", process.stderr
    assert [line.split()[1] for line in shown if line.startswith("│ ") and line[2] not in " -"] == list(COMMANDS)


def test_help_of_every_command_loads_nothing_heavy() -> None:
    code = f"""
import sys
from avpt.cli import app
from avpt.options import BALANCING
for arguments in {[[], *([name] for name in COMMANDS)]!r}:
    try:
        app([*arguments, "--help"], prog_name="avpt")
    except SystemExit as error:
        print("code:", error.code)
try:
    app(["--version"], prog_name="avpt")
except SystemExit as error:
    print("code:", error.code)
{REPORT_LOADED}
"""
    process = python(code)
    lines = process.stdout.splitlines()
    assert lines[-1] == "loaded:", process.stderr
    assert [line for line in lines if line.startswith("code:")] == ["code: 0"] * (len(COMMANDS) + 2)
    assert process.stderr == ""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("avpt fin", "finetune-unimodal"),
        ("avpt preprocess --mel", "--mel-bins"),
        ("avpt init --bn ab", "abri"),
        ("avpt fuse-train --fusion g", "gated"),
    ],
)
def test_completion_loads_nothing_heavy(words: str, completed: str) -> None:
    code = f"""
import sys
from avpt.cli import app
from avpt.options import BALANCING
try:
    app(prog_name="avpt")
except SystemExit:
    pass
{REPORT_LOADED}
"""
    last = str(len(words.split()) - 1)
    process = python(code, _AVPT_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=last)
    *found, loaded = process.stdout.splitlines()
    assert loaded == "loaded:", process.stderr
    assert completed in found


def avpt_program() -> Path:
    return Path(sysconfig.get_path("scripts")) / "avpt"


@pytest.mark.parametrize(
    ("shell", "file"),
    [("bash", "avpt.bash"), ("zsh", "_avpt"), ("fish", "avpt.fish"), ("powershell", "avpt.ps1")],
)
def test_completion_files_are_what_the_program_prints(shell: str, file: str) -> None:
    process = subprocess.run(
        [avpt_program()],
        env=os.environ | THREADS | {"_AVPT_COMPLETE": f"source_{shell}"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert len(process.stdout) > 100
    assert (ROOT / "completions" / file).read_bytes() == process.stdout


# --- help and options --------------------------------------------------------------------------------------------


def test_version() -> None:
    result = avpt("--version")
    assert (result.code, result.stdout, result.stderr) == (0, f"avpt {__version__}\n", "")


def test_the_program_and_the_module_say_the_same() -> None:
    for command in ([avpt_program()], [sys.executable, "-m", "avpt"]):
        process = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)
        assert process.stdout == f"avpt {__version__}\n"


def test_every_command_is_listed_and_has_help() -> None:
    everything = avpt("--help")
    assert everything.code == 0
    for name in COMMANDS:
        assert name in everything.stdout
        one = avpt(name, "--help")
        assert (one.code, one.stderr) == (0, "")
        assert "--debug" in one.stdout
    assert set(commands()) == set(COMMANDS)


REQUIRED = "required"
COMMON: dict[str, Any] = {"--overwrite": False, "--json": False, "--quiet": False, "--debug": False}
MASK: dict[str, Any] = {
    "--mask": "adaptive",
    "--mask-rule": "dominant",
    "--mask-ratio": 0.5,
    "--mask-ratio-audio": None,
    "--mask-ratio-visual": None,
    "--mask-eta": 1.0,
    "--mask-threshold": 0.5,
    "--audio-patch": None,
    "--visual-patch": None,
}
TRAIN: dict[str, Any] = {
    "--seed": 0,
    "store": REQUIRED,
    "--out": REQUIRED,
    "--epochs": 80,
    "--batch-size": 64,
    "--lr": 1e-3,
    "--optimizer": "sgd",
    "--momentum": 0.9,
    "--weight-decay": 1e-4,
    "--decay-norm": False,
    "--encoder-lr-scale": 1.0,
    "--freeze-encoders": False,
    "--ema": None,
    "--patience": None,
    "--label-smoothing": 0.0,
    "--balanced-sampling": False,
    "--schedule": "step",
    "--milestones": "60",
    "--lr-factor": 0.1,
    "--warmup-epochs": 0,
    "--image-size": 224,
    "--num-frames": 3,
    "--crop-scale": (0.08, 1.0),
    "--flip": True,
    "--spec-augment": (0, 0),
    "--dynamics": "train",
    "--val-fraction": 0.1,
    "--workers": None,
    "--checkpoint-every": None,
    "--precision": "fp32",
    "--accumulate": 1,
    "--clip-grad": None,
    "--channels-last": False,
    "--fast": False,
    "--compile": False,
    "--device": "auto",
    "--tensorboard": False,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "manifest": {
        "name": REQUIRED,
        "folder": REQUIRED,
        "--out": REQUIRED,
        "--list": None,
        "--classes": None,
        "--trimmed": False,
        "--test-fold": None,
        "--val-fraction": 0.0,
        "--test-fraction": None,
        "--segment": None,
        "--hop": None,
        "--last-piece": "drop",
        "--group-by": None,
        "--folds": None,
        **COMMON,
    },
    "preprocess": {
        "manifest": REQUIRED,
        "--out": REQUIRED,
        "--root": None,
        "--sample-rate": 16000,
        "--mel-bins": 128,
        "--spectrogram-frames": 1024,
        "--pad": "zero",
        "--audio-dtype": "float16",
        "--fps": 1.0,
        "--max-frames": 10,
        "--frame-size": 256,
        "--frame-codec": "jpeg",
        "--frame-accuracy": "exact",
        "--allow-missing": "none",
        "--require": "none",
        "--on-truncated": "keep",
        "--audio-stream": None,
        "--shard-size": 128,
        "--multi-label": False,
        "--limit": None,
        "--workers": None,
        "--clip-timeout": 60.0,
        "--worker-memory": 4.0,
        "--max-failures": 0.05,
        "--retry-failures": False,
        "--shard-range": None,
        "--engine": "local",
        "--ray-address": None,
        **COMMON,
    },
    "init": {
        "--modality": REQUIRED,
        "--out": REQUIRED,
        "--arch": None,
        "--weights": "imagenet",
        "--weights-key": None,
        "--input-size": None,
        "--bn": "keep",
        "--abri": "channel",
        "--alpha": 0.5,
        "--abnormal-threshold": 1e-6,
        "--conv1": "sum",
        "--seed": 0,
        **COMMON,
    },
    "finetune-unimodal": {"--modality": REQUIRED, "--init": REQUIRED, "--mixup": None, **TRAIN, **COMMON},
    "score-confidence": {
        "--audio": REQUIRED,
        "--visual": REQUIRED,
        "--out": None,
        "--skip-epochs": 0,
        "--missing": "error",
        "--csv": None,
        "--plot": None,
        "--select": None,
        "--select-by": "both",
        "--share": None,
        "--manifest": None,
        "--export": None,
        "--export-to": None,
        "--search": None,
        **MASK,
        **COMMON,
    },
    "fuse-train": {
        "--audio": REQUIRED,
        "--visual": REQUIRED,
        "--confidence": None,
        "--fusion": "concat",
        "--balance": "none",
        "--balance-set": None,
        "--teacher-audio": None,
        "--teacher-visual": None,
        "--balance-gamma": None,
        "--ogm-alpha": None,
        "--ogm-window": None,
        "--modality-dropout": 0.0,
        **MASK,
        **TRAIN,
        "--image-size": None,
        "--num-frames": None,
        **COMMON,
    },
    "evaluate": {
        "model": REQUIRED,
        "store": REQUIRED,
        "--split": None,
        "--ensemble": None,
        "--drop": None,
        "--noise": None,
        "--snr": None,
        "--per-class": False,
        "--batch-size": None,
        "--out": None,
        "--predictions": None,
        "--seed": 0,
        "--workers": None,
        "--device": "auto",
        **COMMON,
    },
    "predict": {
        "model": REQUIRED,
        "files": None,
        "--manifest": None,
        "--root": None,
        "--segment": None,
        "--hop": None,
        "--top": 5,
        "--format": None,
        "--out": None,
        "--workers": None,
        "--clip-timeout": 60.0,
        "--worker-memory": 4.0,
        "--device": "auto",
        **COMMON,
    },
    "export": {"model": REQUIRED, "--format": REQUIRED, "--out": REQUIRED, "--modality": None, **COMMON},
    "guide": {"topic": None, "--json": False, "--quiet": False, "--debug": False},
    "info": {"path": REQUIRED, "--tensors": False, "--json": False, "--quiet": False, "--debug": False},
    "verify": {
        "store": REQUIRED,
        "--deep": False,
        "--workers": None,
        "--json": False,
        "--quiet": False,
        "--debug": False,
    },
}
CHOICES = {
    ("preprocess", "--pad"): ["zero", "repeat"],
    ("preprocess", "--audio-dtype"): ["float16", "float32"],
    ("preprocess", "--frame-codec"): ["jpeg", "raw"],
    ("preprocess", "--frame-accuracy"): ["exact", "keyframe"],
    ("preprocess", "--allow-missing"): ["none", "audio", "visual", "either"],
    ("preprocess", "--on-truncated"): ["keep", "fail"],
    ("preprocess", "--engine"): ["local", "ray"],
    ("init", "--modality"): ["audio", "visual"],
    ("init", "--bn"): ["keep", "reset", "reset-abnormal", "blend", "abri"],
    ("init", "--abri"): ["channel", "layer"],
    ("init", "--conv1"): ["sum", "mean", "random"],
    ("finetune-unimodal", "--optimizer"): ["sgd", "adam", "adamw"],
    ("finetune-unimodal", "--schedule"): ["step", "cosine", "constant"],
    ("finetune-unimodal", "--dynamics"): ["train", "eval"],
    ("finetune-unimodal", "--precision"): ["fp32", "tf32", "bf16", "fp16"],
    ("score-confidence", "--missing"): ["error", "skip"],
    ("score-confidence", "--select-by"): ["both", "audio", "visual"],
    ("fuse-train", "--mask"): ["adaptive", "uniform", "none"],
    ("fuse-train", "--mask-rule"): ["dominant", "released"],
    ("fuse-train", "--fusion"): ["concat", "sum", "film", "gated"],
    ("fuse-train", "--balance"): ["none", *BALANCING],
    ("export", "--format"): ["torchvision", "timm", "onnx", "torch-export"],
}


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = group.commands
    return found


def parameters(command: str) -> dict[str, Any]:
    """By the name that a user types."""
    found = {(param.opts[0] if param.opts else param.name): param for param in commands()[command].params}
    return {name: param for name, param in found.items() if name != "--help"}


@pytest.mark.parametrize("command", OPTIONS)
def test_options_and_defaults(command: str) -> None:
    found = {name: REQUIRED if param.required else param.default for name, param in parameters(command).items()}
    assert found == OPTIONS[command]
    for name, param in parameters(command).items():
        assert param.help, f"{command} {name} has no help"


@pytest.mark.parametrize(("command", "option"), CHOICES)
def test_choices(command: str, option: str) -> None:
    assert option in parameters(command)
    name = option.removeprefix("--").replace("-", "_")
    assert list(options.choices(CONFIGS[command], name)) == CHOICES[command, option]


def test_flip_can_be_switched_off() -> None:
    assert parameters("finetune-unimodal")["--flip"].secondary_opts == ["--no-flip"]


# --- output ------------------------------------------------------------------------------------------------------

METRICS = {"accuracy", "top5", "macro_f1", "loss"}
FUSED_METRICS = METRICS | {"audio_accuracy", "visual_accuracy"}
STATISTICS = {
    f"{modality}_{name}"
    for modality in ("audio", "visual")
    for name in ("confidence", "variability", "correctness", "forgetting")
}


@pytest.mark.parametrize("name", STEPS)
def test_the_same_command_again_changes_nothing_and_prints_the_path(experiment: Experiment, name: str) -> None:
    path = getattr(experiment, name)
    before = state_of(path)
    result = done(*step(experiment, name))
    assert result.stdout == f"{path}\n"
    assert f"{path} was there already, made with the same options and inputs" in result.stderr.splitlines()
    assert state_of(path) == before


@pytest.mark.parametrize("name", STEPS)
def test_quiet_is_quiet(experiment: Experiment, name: str) -> None:
    result = done(*step(experiment, name), "--quiet")
    assert result.stdout == f"{getattr(experiment, name)}\n"
    assert result.stderr == ""


@pytest.mark.parametrize("name", STEPS)
def test_json_is_one_line_with_the_promised_fields(experiment: Experiment, name: str) -> None:
    record = done(*step(experiment, name), "--json").json()
    if name == "store":
        assert record.items() >= {"store": str(experiment.store), "clips": 36, "failures": 0, "partial": 0}.items()
    elif name.endswith("_init"):
        assert {"name", "channels", "abnormal"} <= set(record["layers"][0])
        plain = timm.create_model(ARCH)
        assert len(record["layers"]) == sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
        assert 0 <= record["abnormal_share"] <= 1
    elif name == "confidence":
        assert set(record) >= {"clips", "audio_dominates", "visual_dominates"} | STATISTICS
        assert record["clips"] == 18
        assert 0 <= record["audio_dominates"] + record["visual_dominates"] <= 1
    else:
        for split in ("val", "test"):
            assert set(record[split]) == (FUSED_METRICS if name == "fused" else METRICS)
        assert record["best_epoch"] in (1, 2)
        assert record["epochs"] == 2
        saved = json.loads((getattr(experiment, name) / "summary.json").read_text(encoding="utf-8"))
        assert {key: record[key] for key in saved} == saved


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("options", [("--json", "--quiet"), ("--json", "--debug")])
def test_json_is_the_same_line_each_time(experiment: Experiment, name: str, options: tuple[str, ...]) -> None:
    first, second = (done(*step(experiment, name), *extra) for extra in (("--json",), options))
    assert first.stdout == second.stdout
    assert first.stdout.count("\n") == 1


def test_json_of_the_run_that_makes_it_is_that_of_the_run_after(experiment: Experiment, tmp_path: Path) -> None:
    commands = {
        "init": ("init", "--modality", "visual", "--weights", "random", "--bn", "reset-abnormal"),
        "scores": ("score-confidence", "--audio", experiment.audio, "--visual", experiment.visual, *PATCHES),
        "store": ("preprocess", experiment.manifest, *STORE_OPTIONS, "--limit", "4"),
        "run": (*finetune(experiment, "visual", experiment.visual_init), "--epochs", "1"),
        "fused": (*fuse(experiment), "--mask", "none", "--epochs", "1"),
    }
    for name, command in commands.items():
        lines = [done(*command, "--json", "--out", tmp_path / name).stdout for _ in range(2)]
        assert lines[0] == lines[1]
        json.loads(lines[0])


def test_where_a_table_is_the_result_it_goes_to_stdout(experiment: Experiment) -> None:
    scores = done("score-confidence", "--audio", experiment.audio, "--visual", experiment.visual, *PATCHES)
    assert "confidence of 18 training clips" in scores.stdout
    assert scores.stderr == ""
    for path in (experiment.store, experiment.fused, experiment.confidence):
        told = done("info", path)
        assert path.name in told.stdout.replace("\n", "")
        assert told.stderr == ""
        assert done("info", path, "--json").json()["path"] == str(path)


def test_tables_of_a_command_that_writes_go_to_stderr(experiment: Experiment) -> None:
    result = done(*step(experiment, "visual"))
    assert "visual alone, best epoch" in result.stderr


# --- running again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["store", "visual", "fused"])
def test_workers_and_quiet_are_no_difference(experiment: Experiment, name: str) -> None:
    before = state_of(getattr(experiment, name))
    done(*step(experiment, name), "--workers", "3", "--quiet")
    assert state_of(getattr(experiment, name)) == before


def test_the_options_of_a_no_op_that_can_not_matter(experiment: Experiment) -> None:
    before = state_of(experiment.store) | state_of(experiment.confidence)
    done(*step(experiment, "store"), "--clip-timeout", "7", "--max-failures", "0.2")
    done(*step(experiment, "confidence"), "--mask-ratio", "0.9", "--mask-rule", "released")
    assert state_of(experiment.store) | state_of(experiment.confidence) == before


@pytest.mark.parametrize("name", ["visual_init", "visual", "fused"])
def test_another_seed_is_another_run(experiment: Experiment, name: str) -> None:
    before = state_of(getattr(experiment, name))
    result = avpt(*step(experiment, name), "--seed", "1")
    assert result.code == 1
    assert "seed: 0 there, 1 now" in result.error
    assert "--overwrite" in result.error
    assert state_of(getattr(experiment, name)) == before


def test_moved_inputs_are_the_same_inputs(experiment: Experiment, tmp_path: Path) -> None:
    shutil.copyfile(experiment.visual_init, tmp_path / "moved.safetensors")
    shutil.copytree(experiment.store, tmp_path / "moved-store")
    command = ("finetune-unimodal", tmp_path / "moved-store", "--modality", "visual", *TRAIN_OPTIONS)
    before = state_of(experiment.visual)
    done(*command, "--init", tmp_path / "moved.safetensors", "--out", experiment.visual)
    assert state_of(experiment.visual) == before


def test_overwrite_remakes_identical_bytes(experiment: Experiment, tmp_path: Path) -> None:
    store = shutil.copytree(experiment.store, tmp_path / "store")
    (store / "train-00000.h5").write_bytes(b"worn")
    done(*step(experiment, "store")[:-1], store, "--overwrite", "--workers", "1")
    assert files_of(store) == files_of(experiment.store)

    init = tmp_path / "init.safetensors"
    done("init", "--modality", "visual", "--arch", ARCH, "--weights", "random", "--seed", "5", "--out", init)
    assert init.read_bytes() != experiment.visual_init.read_bytes()
    done(*step(experiment, "visual_init")[:-1], init, "--overwrite")
    assert init.read_bytes() == experiment.visual_init.read_bytes()

    run = tmp_path / "visual"
    done(*step(experiment, "visual")[:-1], run, "--epochs", "1", "--seed", "5")
    done(*step(experiment, "visual")[:-1], run, "--overwrite", "--workers", "1")
    assert files_of(run) == files_of(experiment.visual)
    assert not list(tmp_path.glob(".*"))


# --- one writer --------------------------------------------------------------------------------------------------


@contextmanager
def claimed(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes the output, until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from avpt.files.locks import claim\n"
        "with claim(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("name", STEPS)
def test_the_second_writer_is_refused(experiment: Experiment, name: str) -> None:
    path = getattr(experiment, name)
    before = state_of(path)
    with claimed(path):
        result = avpt(*step(experiment, name))
        assert result.code == 1
        assert result.stdout == ""
        assert result.error == f"avpt: {path} is being written by another avpt; wait for it or choose another --out"
        assert avpt(*step(experiment, name), "--overwrite").code == 1
    assert state_of(path) == before


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "init.safetensors"
    command = ("init", "--modality", "audio", "--weights", "random", "--out", path)
    with claimed(path) as holder:
        assert avpt(*command).code == 1
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / ".init.safetensors.lock").exists()
        done(*command)
    assert [file.name for file in tmp_path.iterdir()] == ["init.safetensors"]


def test_a_clip_id_of_any_alphabet_goes_through(experiment: Experiment, tmp_path: Path) -> None:
    """Names with spaces, non-Latin letters and a leading dash, as paths and as ids."""
    folder = tmp_path / "-Ω dossier ü"
    folder.mkdir()
    shutil.copyfile(digit_rows()[0]["audio"], folder / "-песня 1.wav")
    rows = [{"label": "ключ", "split": "train", "audio": "-песня 1.wav"}]
    manifest = write_manifest(folder / "-manifest.csv", rows)
    store = folder / "store"
    result = done("preprocess", "--out", store, *STORE_OPTIONS, "--json", manifest)
    assert result.json().items() >= {"store": str(store), "clips": 1, "failures": 0, "partial": 0}.items()
    assert done("info", store, "--json").json()["classes"] == ["ключ"]


def test_quiet_is_quiet_while_working(experiment: Experiment, tmp_path: Path) -> None:
    many = ("--workers", "9", "--quiet", "--epochs", "1", "--out", tmp_path / "run")
    result = done(*finetune(experiment, "visual", experiment.visual_init), *many)
    assert result.stderr == ""


def test_idle_options_are_no_difference(experiment: Experiment, tmp_path: Path) -> None:
    init = ("init", "--modality", "visual", "--weights", "random", "--out", tmp_path / "v.safetensors")
    done(*init)
    before = (tmp_path / "v.safetensors").stat().st_mtime_ns
    done(*init, "--alpha", "0.3")
    assert (tmp_path / "v.safetensors").stat().st_mtime_ns == before
    assert avpt(*init, "--bn", "abri", "--alpha", "0.3").code == 1
    audio = (*finetune(experiment, "audio", experiment.audio_init), "--out", experiment.audio)
    done(*audio, "--image-size", "99", "--milestones", "3", "--device", "auto")
    assert "lr: 0.02 there, 0.03 now" in avpt(*audio, "--lr", "0.03").error


IGNORED = """
import signal, sys, time
from avpt.cli import running

class Loud:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)  # whose exception Python can only ignore here

running._start(quiet=True)
try:
    Loud()
    time.sleep(10)
except running.Terminated:
    sys.exit(143)
"""


def test_a_signal_that_comes_in_a_finaliser_ends_the_program() -> None:
    result = subprocess.run([sys.executable, "-c", IGNORED], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (143, "")
