"""The wrong kind of file or folder is told as what it is, in one line with the next step, whichever command gets it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TRAIN_OPTIONS, Experiment, avpt, one_line, refused, touch
from media import Clips
from PIL import Image
from safetensors.torch import save_file

from avpt.files.content_kinds import what_it_is


def picture(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "PNG")


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "hello")


def cut_archive(path: Path) -> None:
    archive(path)
    path.write_bytes(path.read_bytes()[:40])


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "picture": (picture, "a picture (PNG)"),
    "zip": (archive, "a zip archive"),
    "zip cut short": (cut_archive, ""),  # which may have been a checkpoint
    "array": (lambda path: np.save(path.open("wb"), np.zeros(3)), "a NumPy array"),
    "archive of arrays": (lambda path: np.savez(path.open("wb"), np.zeros(3)), "a zip archive"),
    "table": (lambda path: path.write_text("clip,top,loss\n1,2,3\n"), "a table (CSV)"),
    "manifest": (lambda path: path.write_text("\ufefflabel,split,audio\n"), "a manifest (CSV)"),
    "JSON": (lambda path: path.write_text(json.dumps({"a": [1] * 5000}, indent=1)), "a JSON file"),
    "lines of JSON": (lambda path: path.write_text('{"a": 1}\n{"a": 2}\n'), "a JSON file"),
    "page": (lambda path: path.write_text("\n<!DOCTYPE html>\n"), "a web page (HTML)"),
    "text": (lambda path: path.write_text("hello, you there\n" * 50), ""),
    "long text of other letters": (lambda path: path.write_text("ü" * 4095 + "x"), ""),
    "nothing": (lambda path: path.touch(), ""),
    "zeros": (lambda path: path.write_bytes(bytes(100)), ""),
    "pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "a Git LFS pointer in place of the file, which `git lfs pull` fetches",
    ),
    "checkpoint": (lambda path: torch.save({"a": torch.zeros(1)}, path), "a PyTorch checkpoint, or another pickle"),
    "safetensors": (
        lambda path: save_file({"a": torch.zeros(1)}, path),
        "a safetensors file, such as an artifact of avpt's",
    ),
    "missing": (lambda path: None, ""),
    "store": (lambda path: touch(path, "settings.json"), "a store"),
    "run": (lambda path: touch(path, "checkpoint/settings.json"), "a run folder"),
    "folder": (lambda path: path.mkdir(), ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_is(kind: str, tmp_path: Path) -> None:
    make, expected = KINDS[kind]
    make(tmp_path / "thing")
    assert what_it_is(tmp_path / "thing") == expected


def test_media_are_known_by_their_beginning(clips: Clips) -> None:
    assert what_it_is(clips["red.webm"]) == "a video or sound file (Matroska or WebM)"
    assert what_it_is(clips["mono.wav"]) == "a sound file (WAV)"


@pytest.mark.parametrize("name", ["thing.pt", "thing.safetensors", "thing.png"])
@pytest.mark.parametrize("kind", ["picture", "zip", "table", "manifest", "JSON", "array"])
def test_what_is_no_checkpoint_is_not_told_as_a_pickle(kind: str, name: str, tmp_path: Path) -> None:
    make, what = KINDS[kind]
    make(tmp_path / name)
    init = ("init", "--modality", "visual", "--weights", tmp_path / name, "--out", tmp_path / "out.safetensors")
    refused(*init, says=f"{name} is {what}; weights are a safetensors file, or what torch.save", unchanged=tmp_path)


def test_a_model_that_is_none(experiment: Experiment, tmp_path: Path) -> None:
    picture(tmp_path / "pic.png")
    tuned = ("finetune-unimodal", experiment.store, "--modality", "visual", *TRAIN_OPTIONS, "--out", tmp_path / "run")
    shard = experiment.store / "train-00000.h5"
    for thing, what in (
        (tmp_path / "pic.png", "is a picture (PNG); an artifact is a safetensors file"),
        (experiment.manifest, "is a manifest (CSV); an artifact is a safetensors file"),
        (shard, "is an HDF5 file, such as a shard of a store; an artifact is a safetensors file"),
        (experiment.store, "is not a run folder written by avpt, but a store; that is what a training command made"),
    ):
        for command in (
            (*tuned, "--init", thing),
            ("evaluate", thing, experiment.store),
            ("predict", thing, tmp_path / "pic.png"),
            ("export", thing, "--format", "torch-export", "--out", tmp_path / "out.pt2"),
        ):
            refused(*command, says=f"{thing.name} {what}", unchanged=tmp_path)
    one_line(avpt("compare", shard, experiment.visual), "run folder written by avpt, but an HDF5 file")
    one_line(avpt("predict", experiment.fused, experiment.store), "store is a store and holds no media file")


def test_a_store_that_is_none(experiment: Experiment, tmp_path: Path) -> None:
    for thing, what in (
        (experiment.visual, "visual is not a store, but a run folder; make one with `avpt preprocess"),
        (
            experiment.confidence,
            "safetensors is not a folder, but a safetensors file, such as an artifact of avpt's; a",
        ),
        (experiment.manifest, "manifest.csv is not a folder, but a manifest (CSV); a store is a folder, which `avpt"),
        (experiment.store / "train-00000.h5", "is not a folder, but an HDF5 file, such as a shard of a store; a store"),
    ):
        for command in (("evaluate", experiment.fused, thing), ("verify", thing), ("probe", experiment.visual, thing)):
            refused(*command, says=what)


@pytest.mark.parametrize("kind", ["picture", "zip", "JSON", "page", "store", "run", "safetensors"])
def test_a_manifest_that_is_none(kind: str, tmp_path: Path) -> None:
    make, what = KINDS[kind]
    make(tmp_path / "thing.csv")
    says = f"thing.csv: is {what}; a manifest is a CSV file with a row for each clip, which `avpt manifest` makes"
    refused("preprocess", tmp_path / "thing.csv", "--out", tmp_path / "store", says=says, unchanged=tmp_path)


def test_a_record_of_a_store_is_not_called_damaged(experiment: Experiment) -> None:
    one_line(avpt("info", experiment.store / "store.json"), "is not a record of an evaluation; info takes the folder")


# --- refused by the headers alone --------------------------------------------------------------------------------


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loads a network, or reads a tensor, ends the test: a header was enough."""

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("it was loaded")

    for name in (
        "models.checkpoint.load_network",
        "runs.trained_model.load_network",
        "models.any_encoder.load_network",
    ):
        monkeypatch.setattr(f"avpt.{name}", loaded)
    monkeypatch.setattr("avpt.files.artifacts.read_tensors", loaded)


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "export visual --format torchvision --out x.safetensors",
            "is timm's; export it with --format timm",
        ),
        ("export fused --format timm --out x.safetensors", "writes one encoder; add --modality"),
        ("export audio --modality visual --format torch-export --out x.pt2", "does not go with audio"),
        ("export visual-init.safetensors --format torch-export --out x.pt2", "has no input pipeline"),
        ("export confidence.safetensors --format torch-export --out x.pt2", "is of kind confidence"),
        ("predict visual-init.safetensors store", "is an encoder without a classifier"),
        ("evaluate audio-init.safetensors store", "is an encoder without a classifier"),
        ("evaluate audio store --drop audio", "--drop is for fused models"),
        ("evaluate fused store --snr 3", "--snr needs --noise audio or --noise visual"),
        ("evaluate audio store --noise visual --snr 3", "--noise visual does not go with audio"),
        ("evaluate audio store --ensemble audio", "audio and audio are both of audio input"),
        ("evaluate audio store --ensemble fused", "and fused is a fused model"),
        ("probe confidence.safetensors store", "is of kind confidence"),
        ("inspect confidence.safetensors", "is of kind confidence"),
        ("inspect audio --after confidence.safetensors", "is of kind confidence"),
        ("init --modality audio --weights audio/dynamics.safetensors --out x.safetensors", "is of kind dynamics"),
        ("score-confidence --audio visual --visual audio", "visual is a run on visual; --audio needs"),
        ("score-confidence --audio audio --visual visual --skip-epochs 2", "--skip-epochs is 2; audio has 2 epochs"),
    ],
)
def test_what_a_header_shows_is_refused_before_a_model_is_loaded(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, words: str, says: str
) -> None:
    monkeypatch.chdir(experiment.folder)
    refused(*words.split(), says=says)
