"""One small real experiment, made once through the command line; tests read it and copy it before they change it."""

from __future__ import annotations

import csv
import json
import os
import signal
import tempfile
import traceback
import wave
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import hypothesis
import make_digits
import numpy as np
import pytest
import torch
from media import Clips
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from avpt.cli import app
from avpt.errors import MediaError
from avpt.media import streams
from avpt.media.demuxing import ShortCutError

hypothesis.settings.register_profile("avpt", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("avpt")

ROOT = Path(__file__).parent.parent

DIGITS = tempfile.TemporaryDirectory(prefix="avpt-digits-")

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


def pytest_sessionfinish() -> None:
    """Remove the digits: processes of pytest-xdist end without the clean-up of Python."""
    DIGITS.cleanup()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)


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


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # tiny tensors: more threads only wait for one another, and do not live on in the copies that some tests fork
    torch.set_num_threads(int(os.environ.get("AVPT_TEST_THREADS", "1")))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it in the background; some tests send it
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_check_before_a_run() -> Iterator[None]:
    """It takes as long as the tiny runs of tests do; tests/test_repeatable.py has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avpt.runs.training_run.check_repeatable", lambda *_: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A power cut is what it is for; whoever is killed loses nothing that was written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    """The clips of tests/streams.py by name."""
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Calls something that reads a clip, and again with the quick way barred; MediaError is returned as its text."""

    def told(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except MediaError as error:
            return f"{error.stage}: {error}"

    def plain(path: Path, kind: Any, read: Callable[[streams.Track], Any], *rest: Any) -> Any:
        def barred(track: streams.Track) -> Any:
            if track.quick:
                raise ShortCutError
            return read(track)

        return streams.read_best(path, kind, barred, *rest)

    def both(call: Callable[[], Any]) -> Any:
        quick = told(call)
        with monkeypatch.context() as patch:
            patch.setattr("avpt.media.video.read_best", plain)
            patch.setattr("avpt.media.audio.read_best", plain)
            return quick, told(call)

    return both


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


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """All five commands on a few digits, audio started from the visual encoder with ABRi."""
    folder = tmp_path_factory.mktemp("experiment")
    manifest = write_manifest(folder / "manifest.csv", digit_rows())
    paths = Experiment(
        folder=folder,
        manifest=manifest,
        store=folder / "store",
        visual_init=folder / "visual-init.safetensors",
        audio_init=folder / "audio-init.safetensors",
        visual=folder / "visual",
        audio=folder / "audio",
        confidence=folder / "confidence.safetensors",
        fused=folder / "fused",
    )
    done("preprocess", manifest, "--out", paths.store, *STORE_OPTIONS)
    done("init", "--modality", "visual", "--weights", "random", "--out", paths.visual_init)
    done(*finetune(paths, "visual", paths.visual_init), "--out", paths.visual)
    done("init", "--modality", "audio", "--weights", paths.visual, "--bn", "abri", "--out", paths.audio_init)
    done(*finetune(paths, "audio", paths.audio_init), "--out", paths.audio)
    done("score-confidence", "--audio", paths.audio, "--visual", paths.visual, *PATCHES, "--out", paths.confidence)
    done(*fuse(paths), "--confidence", paths.confidence, "--mask-threshold", "0.1", "--out", paths.fused)
    return paths


@pytest.fixture(scope="session")
def wide(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The experiment over a store of half its clips whose spectrograms are 64 x 64, for bfloat16.

    On smaller ones some processors have no one answer in it: see `avpt.training.repeatable`.
    """
    folder = tmp_path_factory.mktemp("wide")
    manifest = write_manifest(folder / "manifest.csv", digit_rows()[::2])
    done("preprocess", manifest, "--out", folder / "store", *STORE_OPTIONS, *WIDE)
    return replace(experiment, store=folder / "store")


def finetune(paths: Experiment, modality: str, init: Path) -> tuple[str | Path, ...]:
    """The fine-tuning command of the experiment, without --out."""
    return ("finetune-unimodal", paths.store, "--modality", modality, "--init", init, *TRAIN_OPTIONS)


def fuse(paths: Experiment) -> tuple[str | Path, ...]:
    """The fusion command of the experiment, without --confidence and --out."""
    return ("fuse-train", paths.store, "--audio", paths.audio, "--visual", paths.visual, *TRAIN_OPTIONS, *PATCHES)


def files_of(folder: Path, *, without: Callable[[str], bool] = lambda name: False) -> dict[str, bytes]:
    """Contents of every file below a folder by relative name, but for clocks, checkpoints, curves and locks."""
    names = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    unlike = ("timing", "checkpoint/last", "tensorboard/", ".")
    return {
        name: path.read_bytes() for name, path in names.items() if not name.startswith(unlike) and not without(name)
    }
