"""What tests share: commands run in this process or in copies of it, their answers, clips and an experiment's paths."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import socket
import tempfile
import traceback
import wave
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import make_digits
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from typer.testing import CliRunner

from avpt.cli import app
from avpt.cli.declaring import config_of
from avpt.cli.program import BODIES
from avpt.files.records import InputSpec
from avpt.store.store import Store
from avpt.training.world import World, join_world

ROOT = Path(__file__).parent.parent
CONFIGS = {name: config_of(body) for name, body in BODIES.items()}  # what each command takes, by its name
THREADS = {"OMP_NUM_THREADS": os.environ.get("AVPT_TEST_THREADS", "1")}  # of every process: sums depend on it
DIGITS = tempfile.TemporaryDirectory(prefix="avpt-digits-")
ARCH, WIDTH = "test_resnet", 96  # of the experiment's encoders, and of their features: a thirtieth of ResNet-18
GREY = (0.5, 0.5, 0.5)  # the mean and standard deviation of its pictures
CLASSES = ("0", "1", "2")
CLIPS_PER_CLASS = {"train": 6, "val": 3, "test": 3}
STORE_OPTIONS = ("--mel-bins", "32", "--spectrogram-frames", "48", "--frame-size", "28", "--shard-size", "8")
WIDE = ("--mel-bins", "64", "--spectrogram-frames", "64")
TRAIN_OPTIONS = (
    *("--epochs", "2", "--batch-size", "8", "--lr", "0.02", "--schedule", "constant", "--workers", "0"),
    *("--image-size", "32", "--num-frames", "1", "--crop-scale", "1", "1", "--no-flip", "--device", "cpu"),
)
# decay that makes each weight a thousand million times larger at each step
RUNAWAY = ("--lr", "1000", "--weight-decay", "1000", "--encoder-lr-scale", "1000", "--batch-size", "2")
PATCHES = ("--audio-patch", "6x4", "--visual-patch", "4")


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The last line of stderr."""
        return self.stderr.strip().splitlines()[-1] if self.stderr.strip() else ""

    def json(self) -> dict[str, Any]:
        """The one line that --json prints."""
        (line,) = self.stdout.splitlines()
        record: dict[str, Any] = json.loads(line)
        return record


def avpt(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def done(*arguments: str | Path) -> Result:
    """Run a command that must succeed."""
    result = avpt(*arguments)
    assert result.code == 0, result.stderr
    return result


def one_line(result: Result, *says: str) -> None:
    """It failed, and all that it said is one line with these words."""
    assert (result.code, result.stdout) == (1, ""), result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("avpt: "), line
    for words in says:
        assert words in line, line


def refused(*arguments: str | Path, says: str, unchanged: Path | None = None, silent: bool = True) -> Result:
    """Run a command that must fail in one line with these words, and must change nothing below a folder.

    One that is not `silent` may have shown something before it failed.
    """
    before = stamps_of(unchanged) if unchanged else {}
    result = avpt(*arguments, "--quiet")
    one_line(result if silent else replace(result, stdout=""), says)
    after = stamps_of(unchanged) if unchanged else {}
    assert after.items() ^ before.items() == set(), "it changed what is there"
    return result


def stamps_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything below a folder, hidden files too."""
    stats = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def fork(body: Callable[[], int]) -> int:
    """Call something in a copy of this process, which ends with the exit status that it returns (70: it raised).

    The copy is made by a thread that has never computed: one that has leaves its copy waiting for OpenMP's other
    threads, which are not copied. That thread lives as long as the copy does: to the kernel it is the copy's parent.
    Returns its process id; wait for it.
    """
    pids: Queue[int] = Queue()

    def copy() -> None:
        pid = os.fork()
        if pid:
            pids.put(pid)
            with suppress(ChildProcessError):  # it was waited for elsewhere
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            return
        code = 70
        try:
            code = body()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # pytest must not go on in two processes

    Thread(target=copy, daemon=True).start()
    return pids.get()


def forked(log: Path, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> int:
    """Start a command in a copy of this process, which has loaded everything; what it says goes to a file.

    It leads a session of its own. Returns its process id; wait for it.
    """

    def run() -> int:
        os.setsid()
        os.environ.update(environment or {})
        try:
            result = avpt(*arguments)
        except BaseException:
            result = Result(70, "", traceback.format_exc())
        log.write_text(json.dumps({"stdout": result.stdout, "stderr": result.stderr}), encoding="utf-8")
        return result.code

    return fork(run)


def said(log: Path, code: int) -> Result:
    """What a command said that was started by `forked`."""
    record = json.loads(log.read_text(encoding="utf-8"))
    return Result(code, record["stdout"], record["stderr"])


def write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows as a manifest with the columns that they have."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def digit_rows() -> list[dict[str, str]]:
    """A few spoken and handwritten digits per class and split, in files of their own, with absolute paths."""
    return [dict(row) for row in _digits()]


@cache
def _digits() -> tuple[dict[str, str], ...]:
    folder = Path(DIGITS.name)
    synthesizer, handwriting = make_digits.Synthesizer(), load_digits()
    clips = make_digits.draw_clips(synthesizer.variants, handwriting.target.tolist(), per_class=40, seed=0)
    rows = []
    for split, count in CLIPS_PER_CLASS.items():
        for name in CLASSES:
            for clip in [clip for clip in clips if (clip.split, str(clip.digit)) == (split, name)][:count]:
                audio, frames = folder / f"{clip.id}.wav", folder / f"{clip.id}.png"
                with wave.open(str(audio), "wb") as file:
                    file.setparams((1, 2, synthesizer.sample_rate, 0, "NONE", ""))
                    file.writeframes((synthesizer.say(clip) * 32767).astype("<i2").tobytes())
                ink = handwriting.images[clip.picture] / 16
                picture = make_digits.draw_picture(ink, 0.0, np.random.default_rng(0))
                Image.fromarray(picture).resize((28, 28)).save(frames)
                rows.append({"id": clip.id, "label": name, "split": split, "audio": str(audio), "frames": str(frames)})
    return tuple(rows)


@dataclass(frozen=True)
class Experiment:
    """Paths of a finished experiment."""

    folder: Path
    manifest: Path
    store: Path
    visual_init: Path
    audio_init: Path
    visual: Path
    audio: Path
    confidence: Path
    fused: Path


def finetune(paths: Experiment, modality: str, init: Path) -> tuple[str | Path, ...]:
    """The fine-tuning command of the experiment, without --out."""
    return ("finetune-unimodal", paths.store, "--modality", modality, "--init", init, *TRAIN_OPTIONS)


def fuse(paths: Experiment) -> tuple[str | Path, ...]:
    """The fusion command of the experiment, without --confidence and --out."""
    return ("fuse-train", paths.store, "--audio", paths.audio, "--visual", paths.visual, *TRAIN_OPTIONS, *PATCHES)


def input_of(store: Store) -> InputSpec:
    """What the experiment's encoders are fed."""
    return replace(store.input_spec(image_size=32, num_frames=1), picture_mean=GREY, picture_std=GREY)


def network_of(state: Mapping[str, Tensor], channels: int, num_classes: int = 0, norm_layer: Any = None) -> nn.Module:
    """timm's own network of the experiment's architecture with an artifact's tensors."""
    norm = {} if norm_layer is None else {"norm_layer": norm_layer}
    network: nn.Module = timm.create_model(ARCH, in_chans=channels, num_classes=num_classes, **norm)
    network.load_state_dict(state)
    return network


def files_of(folder: Path, *, without: Callable[[str], bool] = lambda name: False) -> dict[str, bytes]:
    """Contents of every file below a folder by relative name, but for clocks, paths, checkpoints, curves and locks."""
    names = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    unlike = ("timing", "paths.json", "checkpoint/last", "tensorboard/", ".")
    return {
        name: path.read_bytes() for name, path in names.items() if not name.startswith(unlike) and not without(name)
    }


def near(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    """Each is as good as the largest: what was added up to a small one may have been large.

    What a network gives depends on the processor, and on how many clips are in a batch; and how large that is,
    after the few steps of these tests, on the processor too.
    """
    torch.testing.assert_close(found, expected, rtol=share, atol=share * float(expected.abs().max()))


def places(size: int) -> list[dict[str, str]]:
    """The environment that torchrun would give to each of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def job(folder: Path, *command: str | Path, size: int = 2) -> list[Result]:
    """Run a command in several processes; what each said."""
    folder.mkdir(exist_ok=True)
    logs = [folder / f"process-{rank}.json" for rank in range(size)]
    pids = [forked(log, *command, environment=place) for log, place in zip(logs, places(size), strict=True)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return [said(log, code) for log, code in zip(logs, codes, strict=True)]


def in_processes(size: int, folder: Path, body: Callable[[World], Any], without: Sequence[str] = ()) -> list[Any]:
    """What a function gives in each of several copies of this process, some of torchrun's variables left out."""

    def run(rank: int, place: dict[str, str]) -> int:
        os.environ.update({name: value for name, value in place.items() if name not in without})
        with join_world() as world:
            torch.save(body(world), folder / f"{rank}.pt")
        return 0

    pids = [fork(partial(run, rank, place)) for rank, place in enumerate(places(size))]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def touch(folder: Path, *names: str) -> Path:
    """Put files of one byte below a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def untimed(store: Path) -> dict[str, bytes]:
    """Every file of a store but its clock and paths; what a killed writer left beside counts too."""
    unlike = ("timing.json", "paths.json")
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name not in unlike}


def failures_of(store: Path) -> list[dict[str, str]]:
    """The rows of failures.csv."""
    with (store / "failures.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def state_of(path: Path) -> dict[str, tuple[int, int, str]]:
    """Inode, time and checksum of a file, or of every file and folder below one."""
    found = {}
    for item in (path, *path.rglob("*")):
        stat = item.stat()
        content = hashlib.sha256(item.read_bytes()).hexdigest() if item.is_file() else ""
        found[str(item)] = (stat.st_ino, stat.st_mtime_ns, content)
    return found


def mixed_rows(folder: Path) -> list[dict[str, str]]:
    """Copies of six clips with several labels; one without picture, one without sound, two broken."""
    folder.mkdir()
    chosen = [row for row in digit_rows() if row["split"] == "train"][::3]
    labels = ("cat;dog", "dog", "élan;cat", "cat", "dog;élan;cat", "élan")
    rows = []
    for number, (row, label) in enumerate(zip(chosen, labels, strict=True)):
        media = {key: shutil.copy(row[key], folder) for key in ("audio", "frames")}
        split = "val" if number == 3 else "train"
        rows.append(
            {"id": f"clip {number}", "label": label, "split": split} | {k: Path(v).name for k, v in media.items()}
        )
    del rows[1]["frames"]
    del rows[2]["audio"]
    return rows


def summary(run: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    record: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return record


def assert_consistent(run: Path) -> None:
    """Shares add up, and the summary's accuracies are those of the predictions."""
    tensors, record = load_file(run / "predictions.safetensors"), summary(run)
    for split in ("val", "test"):
        labels = tensors[f"{split}_labels"].tolist()
        total = tensors[f"{split}_audio_logits"] + tensors[f"{split}_visual_logits"]
        near(total, tensors[f"{split}_logits"], 1e-4)
        for name, key in (("", "accuracy"), ("audio_", "audio_accuracy"), ("visual_", "visual_accuracy")):
            rows = tensors[f"{split}_{name}logits"].tolist()
            hits = sum(row.index(max(row)) == label for row, label in zip(rows, labels, strict=True))
            assert record[split][key] == pytest.approx(hits / len(labels))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The records of a file with one JSON a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lines(run: Path) -> list[dict[str, Any]]:
    """What a run recorded of each of its epochs."""
    return rows_of(run / "metrics.jsonl")
