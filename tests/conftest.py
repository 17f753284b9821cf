"""One small real experiment, made once through the command line; tests read it and copy it before they change it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from helpers import (
    ARCH,
    DIGITS,
    PATCHES,
    STORE_OPTIONS,
    THREADS,
    WIDE,
    Experiment,
    digit_rows,
    done,
    finetune,
    fuse,
    write_manifest,
)
from media import Clips
from toy import Stop

from avpt.errors import MediaError
from avpt.media import streams
from avpt.media.demuxing import ShortCutError

hypothesis.settings.register_profile("avpt", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("avpt")


def pytest_sessionfinish() -> None:
    """Remove the digits: processes of pytest-xdist end without the clean-up of Python."""
    DIGITS.cleanup()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)
    logging.getLogger("avpt").setLevel(logging.NOTSET)  # a command of the test before may have been quiet


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # tiny tensors: more threads only wait for one another, and do not live on in the copies that some tests fork
    torch.set_num_threads(int(THREADS["OMP_NUM_THREADS"]))
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
    """The clips of tests/media.py by name."""
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Calls something that reads a clip, and again with the quick way barred; MediaError is returned as its text."""

    def result_or_error(call: Callable[[], Any]) -> Any:
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
        quick = result_or_error(call)
        with monkeypatch.context() as patch:
            patch.setattr("avpt.media.video.read_best", plain)
            patch.setattr("avpt.media.audio.read_best", plain)
            return quick, result_or_error(call)

    return both


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """All five commands on a few digits, audio started from the visual encoder with ABRi."""
    return run_experiment(tmp_path_factory.mktemp("experiment"), ARCH)


@pytest.fixture(scope="session")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The same with ResNet-18, whose files are thirty times as large, for tests that know its layers."""
    return run_experiment(tmp_path_factory.mktemp("resnet18"), "resnet18")


def run_experiment(folder: Path, arch: str) -> Experiment:
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
    done("init", "--modality", "visual", "--arch", arch, "--weights", "random", "--out", paths.visual_init)
    done(*finetune(paths, "visual", paths.visual_init), "--out", paths.visual)
    done(
        *("init", "--modality", "audio", "--arch", arch, "--weights", paths.visual, "--bn", "abri"),
        *("--out", paths.audio_init),
    )
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


@pytest.fixture
def _signals_raise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Stop(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
