"""What a user can get wrong is told in one line that names the thing and the next step, and nothing is touched."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import (
    ARCH,
    PATCHES,
    RUNAWAY,
    STORE_OPTIONS,
    THREADS,
    TRAIN_OPTIONS,
    Experiment,
    Result,
    avpt,
    digit_rows,
    done,
    files_of,
    finetune,
    fork,
    fuse,
    one_line,
    refused,
    said,
    write_manifest,
)
from safetensors.torch import save_file

from avpt.errors import AvptError
from avpt.files import artifacts
from avpt.models.encoder import EncoderSpec, build_encoder

Arguments = tuple[str | Path, ...]
Case = tuple[Callable[[Experiment, Path], Arguments], str]


# --- manifests ---------------------------------------------------------------------------------------------------


def text_manifest(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "manifest.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return make


def duplicate_ids(folder: Path) -> Path:
    rows = digit_rows()
    return write_manifest(folder / "manifest.csv", [rows[0], rows[1] | {"id": rows[0]["id"]}])


def changed_row(**cells: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        return write_manifest(folder / "manifest.csv", [digit_rows()[0] | cells])

    return make


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        pytest.param(lambda folder: folder / "nowhere.csv", "nowhere.csv: no such file", id="missing"),
        pytest.param(lambda folder: folder, "is a folder; name the manifest in it", id="folder"),
        pytest.param(text_manifest(""), "is empty; the first line names the columns", id="empty"),
        pytest.param(text_manifest("id,label,split,audio\n"), "has no rows, only a header", id="header only"),
        pytest.param(text_manifest("id,lable,split,audio\n"), "unknown column 'lable'", id="unknown column"),
        pytest.param(duplicate_ids, "is taken by line 2", id="duplicate ids"),
        pytest.param(changed_row(audio="gone.wav"), "audio 'gone.wav' does not exist", id="missing media"),
        pytest.param(changed_row(split="dev"), "split 'dev' is not one of train, val, test", id="unknown split"),
        pytest.param(changed_row(label=""), "line 2: label is empty", id="empty label"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, manifest: Callable[[Path], Path], says: str) -> None:
    refused("preprocess", manifest(tmp_path), "--out", tmp_path / "store", says=says, unchanged=tmp_path)


def test_all_bad_rows_are_told_at_once_by_line(tmp_path: Path) -> None:
    rows = digit_rows()[:3]
    rows[0]["label"], rows[2]["split"] = "", "dev"
    manifest = write_manifest(tmp_path / "manifest.csv", rows)
    result = avpt("preprocess", manifest, "--out", tmp_path / "store")
    assert result.code == 1
    assert "2 bad rows" in result.stderr
    assert "line 2: label is empty" in result.stderr
    assert "line 4: split 'dev'" in result.stderr
    assert not (tmp_path / "store").exists()


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "manifest.csv", digit_rows())
    command = ("preprocess", manifest, "--root", tmp_path / "nowhere", "--out", tmp_path / "store")
    refused(*command, says="nowhere is not a folder", unchanged=tmp_path)


# --- media -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"this is a letter, not a film\n" * 40, "can't be read as media"), (b"", "the file is empty (zero bytes)")],
    ids=["text named mp4", "zero bytes"],
)
def test_a_clip_that_is_not_media_fails_the_command_and_the_rest_is_kept(
    tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "letter.mp4").write_bytes(content)
    good = digit_rows()[:3]
    bad = {"id": "=letter", "label": "0", "split": "train", "video": "letter.mp4"}
    manifest = write_manifest(tmp_path / "manifest.csv", [*good, bad])
    command = ("preprocess", manifest, "--out", tmp_path / "store", *STORE_OPTIONS)
    result = avpt(*command, "--quiet")
    one_line(result, says)
    assert "1 of 4 clips failed (1 open), first =letter (letter.mp4)" in result.stderr
    assert "--max-failures" in result.stderr
    assert not (tmp_path / "store" / "store.json").exists()
    one_line(avpt("info", tmp_path / "store"), "is unfinished; run its `avpt preprocess` again")

    record = done(*command, "--max-failures", "0.5", "--json").json()
    assert record["store"] == str(tmp_path / "store")
    assert (record["clips"], record["failures"], record["partial"]) == (3, 1, 0)
    header, row = (tmp_path / "store" / "failures.csv").read_text(encoding="utf-8").splitlines()
    assert header == "id,split,source,stage,error"
    assert row.startswith("'=letter,train,letter.mp4,open,")  # no formula to a spreadsheet
    done("verify", tmp_path / "store")
    as_it_was = (tmp_path / "store" / "failures.csv").read_text(encoding="utf-8").replace("'=", "=")
    (tmp_path / "store" / "failures.csv").write_text(as_it_was, encoding="utf-8")
    done("verify", tmp_path / "store")  # an older avpt's is as good


# --- stores ------------------------------------------------------------------------------------------------------


def make_store(folder: Path, rows: list[dict[str, str]], *options: str) -> Path:
    manifest = write_manifest(folder / "own.csv", rows)
    done("preprocess", manifest, "--out", folder / "own", "--workers", "1", *(options or STORE_OPTIONS))
    return folder / "own"


def without(column: str) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != column} for row in digit_rows()]


def one_clip_without_sound() -> list[dict[str, str]]:
    rows = digit_rows()
    rows[0]["audio"] = ""
    return rows


def two_classes_and_a_third_in_val() -> list[dict[str, str]]:
    return [row for row in digit_rows() if row["label"] != "2" or row["split"] == "val"]


def rows_with(column: str, value: str) -> list[dict[str, str]]:
    return [row for row in digit_rows() if row[column] == value]


AUDIO = ("--modality", "audio")
VISUAL = ("--modality", "visual")


@pytest.mark.parametrize(
    ("rows", "modality", "says"),
    [
        pytest.param(
            without("audio"), "audio", "no clip of train has sound; this command needs audio input", id="no sound"
        ),
        pytest.param(
            without("frames"), "visual", "no clip of train has pictures; this command needs visual", id="no pictures"
        ),
        pytest.param(
            one_clip_without_sound(), "audio", "1 of 18 clips of train have no sound", id="one clip without sound"
        ),
        pytest.param(
            two_classes_and_a_third_in_val(), "audio", "val has 2, of which train has no clip", id="unseen class"
        ),
        pytest.param(rows_with("label", "1"), "audio", "training clips of one class only", id="one class"),
        pytest.param(rows_with("split", "val"), "audio", "has no training clips", id="no training clips"),
    ],
)
def test_a_store_that_can_not_serve_is_refused(
    experiment: Experiment, tmp_path: Path, rows: list[dict[str, str]], modality: str, says: str
) -> None:
    store = make_store(tmp_path, rows)
    init = experiment.audio_init if modality == "audio" else experiment.visual_init
    command = ("finetune-unimodal", store, "--modality", modality, "--init", init, *TRAIN_OPTIONS)
    refused(*command, "--out", tmp_path / "run", says=says, unchanged=tmp_path)


@pytest.mark.parametrize(("column", "says"), [("audio", "has sound"), ("frames", "has pictures")])
def test_fusion_needs_both_modalities(experiment: Experiment, tmp_path: Path, column: str, says: str) -> None:
    store = make_store(tmp_path, without(column))
    encoders = ("--audio", experiment.audio_init, "--visual", experiment.visual_init)
    command = ("fuse-train", store, *encoders, "--mask", "none", *TRAIN_OPTIONS, "--out", tmp_path / "run")
    refused(*command, says=f"no clip of train {says}", unchanged=tmp_path)


def test_spectrograms_of_another_shape_than_the_encoder_saw_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    store = make_store(tmp_path, digit_rows(), *STORE_OPTIONS, "--mel-bins", "16")
    encoders = ("--audio", experiment.audio, "--visual", experiment.visual)
    command = ("fuse-train", store, *encoders, "--mask", "none", *TRAIN_OPTIONS, "--out", tmp_path / "run")
    refused(*command, says="mel_bins 32 against 16", unchanged=tmp_path)


def truncated(store: Path) -> None:
    shard = store / "train-00001.h5"
    os.truncate(shard, shard.stat().st_size // 2)


def zeroed(store: Path) -> None:
    shard = store / "train-00001.h5"
    shard.write_bytes(bytes(shard.stat().st_size))


def scribbled(store: Path) -> None:
    """The signature stays, what it leads to is gone."""
    shard = store / "train-00001.h5"
    shard.write_bytes(shard.read_bytes()[:96] + b"\xff" * (shard.stat().st_size - 96))


def shard_missing(store: Path) -> None:
    (store / "train-00001.h5").unlink()


def record_missing(store: Path) -> None:
    (store / "store.json").unlink()


def record_cut(store: Path) -> None:
    os.truncate(store / "store.json", 20)


def store_missing(store: Path) -> None:
    shutil.rmtree(store)


def emptied(store: Path) -> None:
    shutil.rmtree(store)
    store.mkdir()


def replaced_by_file(store: Path) -> None:
    shutil.rmtree(store)
    store.write_text("not a store", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, "train-00001.h5 is missing or truncated"),
        (zeroed, "train-00001.h5 is truncated or not a shard"),
        (scribbled, "train-00001.h5 is truncated or not a shard"),
        (shard_missing, "train-00001.h5 is missing or truncated"),
        (record_missing, "store is unfinished; run its `avpt preprocess` again"),
        (record_cut, "store.json is damaged (it is not JSON); remove it and run its `avpt preprocess` again"),
        (store_missing, "store does not exist; a store is a folder"),
        (emptied, "store is not a store; make one with `avpt preprocess"),
        (replaced_by_file, "store is not a folder; a store is a folder"),
    ],
)
def test_a_damaged_store_is_refused(
    experiment: Experiment, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    store = shutil.copytree(experiment.store, tmp_path / "store")
    damage(store)
    encoders = ("--audio", experiment.audio_init, "--visual", experiment.visual_init)
    out = ("--out", tmp_path / "run")
    refused(
        "finetune-unimodal",
        store,
        *AUDIO,
        "--init",
        experiment.audio_init,
        *TRAIN_OPTIONS,
        *out,
        says=says,
        unchanged=tmp_path,
    )
    refused("fuse-train", store, *encoders, "--mask", "none", *TRAIN_OPTIONS, *out, says=says, unchanged=tmp_path)
    if store.is_dir():
        one_line(avpt("info", store), says)


# --- artifacts and options ---------------------------------------------------------------------------------------


def cut(source: Path, folder: Path, keep: int) -> Path:
    """The first bytes of a file; negative: all but the last."""
    (folder / "cut.safetensors").write_bytes(source.read_bytes()[:keep])
    return folder / "cut.safetensors"


def of_other_origin(folder: Path) -> Path:
    save_file({"conv1.weight": torch.zeros(64, 1, 7, 7)}, folder / "other.safetensors")
    return folder / "other.safetensors"


def of_resnet18(folder: Path) -> Path:
    encoder = build_encoder(EncoderSpec("resnet18", "audio", "batchnorm"))
    save_file(encoder.state_dict(), folder / "resnet18.safetensors")
    return folder / "resnet18.safetensors"


def text_weights(folder: Path) -> Path:
    save_file({"words": torch.zeros(3)}, folder / "words.safetensors")
    return folder / "words.safetensors"


def text_file(folder: Path, name: str) -> Path:
    (folder / name).write_text("hello\n" * 50, encoding="utf-8")
    return folder / name


def unfinished_run(run: Path, folder: Path) -> Path:
    """As a kill after the first epoch leaves it."""
    (folder / "unfinished" / "checkpoint").mkdir(parents=True)
    for name in ("checkpoint/settings.json", "metrics.jsonl"):
        shutil.copyfile(run / name, folder / "unfinished" / name)
    return folder / "unfinished"


def of_other_clips(confidence: Path, folder: Path) -> Path:
    found = artifacts.load(confidence, "confidence")
    ids = [f"other-{i}" for i in range(len(artifacts.unpack_ids(found.tensors)))]
    artifacts.save(folder / "other.safetensors", found.header, found.tensors | artifacts.pack_ids(ids))
    return folder / "other.safetensors"


def bare(folder: Path, header: str) -> Path:
    """A file whose header is what someone else thinks avpt's is."""
    save_file({"a": torch.zeros(1)}, folder / "bare.safetensors", {"avpt": header})
    return folder / "bare.safetensors"


def tuned(experiment: Experiment, folder: Path, init: Path, *options: str | Path) -> Arguments:
    return (*finetune(experiment, "audio", init), *options, "--out", folder / "out")


def fused(experiment: Experiment, folder: Path, *options: str | Path) -> Arguments:
    return (*fuse(experiment), "--confidence", experiment.confidence, *options, "--out", folder / "out")


def started(folder: Path, *options: str | Path) -> Arguments:
    return ("init", *AUDIO, *options, "--out", folder / "out.safetensors")


def scored(experiment: Experiment, folder: Path, *options: str | Path) -> Arguments:
    runs = ("--audio", experiment.audio, "--visual", experiment.visual)
    return ("score-confidence", *runs, *options, "--out", folder / "out.safetensors")


WRONG_INPUTS: dict[str, Case] = {
    "init missing": (lambda e, t: tuned(e, t, t / "nowhere"), "nowhere does not exist; make it with the step before"),
    "init of wrong kind": (
        lambda e, t: tuned(e, t, e.confidence),
        "confidence.safetensors is of kind confidence; encoder or classifier is needed here",
    ),
    "init is a fused run": (lambda e, t: tuned(e, t, e.fused), "is of kind fused; encoder or classifier is needed"),
    "init is a store": (lambda e, t: tuned(e, t, e.store), "store is not a run folder written by avpt"),
    "init cut in its header": (lambda e, t: tuned(e, t, cut(e.audio_init, t, 100)), "cut.safetensors is cut short"),
    "init cut in its tensors": (lambda e, t: tuned(e, t, cut(e.audio_init, t, -10)), "cut.safetensors is cut short"),
    "init empty": (lambda e, t: tuned(e, t, cut(e.audio_init, t, 0)), "cut.safetensors is cut short"),
    "init of other origin": (
        lambda e, t: tuned(e, t, of_other_origin(t)),
        "other.safetensors is a safetensors file that avpt did not write; make an encoder of it with `avpt init",
    ),
    "init is text": (lambda e, t: tuned(e, t, text_file(t, "notes.txt")), "notes.txt is cut short, damaged, or not"),
    "init of the other modality": (
        lambda e, t: tuned(e, t, e.visual_init),
        "is a visual encoder, audio is needed here; carry it across with `avpt init --modality audio --weights",
    ),
    "init unfinished": (lambda e, t: tuned(e, t, unfinished_run(e.audio, t)), "unfinished is unfinished; run the"),
    "unknown device": (lambda e, t: tuned(e, t, e.audio_init, "--device", "abacus"), "--device abacus can't be used"),
    "device without data": (lambda e, t: tuned(e, t, e.audio_init, "--device", "meta"), "--device meta can't be used"),
    "seed too large": (lambda e, t: tuned(e, t, e.audio_init, "--seed", str(2**70)), "--seed is "),
    "seed of init too large": (lambda e, t: started(t, "--weights", "random", "--seed", str(2**70)), "--seed is "),
    "header not JSON": (lambda e, t: tuned(e, t, bare(t, "{")), "bare.safetensors has a damaged avpt header"),
    "header not a record": (lambda e, t: tuned(e, t, bare(t, "[]")), "bare.safetensors has a damaged avpt header"),
    "header of a newer avpt": (
        lambda e, t: tuned(e, t, bare(t, '{"kind": "encoder", "schema": 99, "avpt": "9.0"}')),
        "bare.safetensors was written by a newer avpt (9.0); update avpt",
    ),
    "spec not a record": (
        lambda e, t: tuned(e, t, bare(t, '{"kind": "encoder", "schema": 1, "spec": []}')),
        "bare.safetensors has a damaged avpt header",
    ),
    "spec empty": (
        lambda e, t: tuned(e, t, bare(t, '{"kind": "encoder", "schema": 1}')),
        "bare.safetensors does not fit its own spec",
    ),
    "spec of another network": (
        lambda e, t: tuned(
            e,
            t,
            bare(
                t,
                '{"kind": "encoder", "schema": 1, "spec": {"encoder": '
                '{"arch": "resnet152", "modality": "audio", "norm": "batchnorm"}}}',
            ),
        ),
        "bare.safetensors does not fit its own spec",
    ),
    "confidence without tensors": (
        lambda e, t: fused(
            e,
            t,
            "--confidence",
            bare(t, '{"kind": "confidence", "schema": 1, "config": {"missing": "error"}}'),
        ),
        "bare.safetensors is damaged",
    ),
    "lr not a number": (lambda e, t: tuned(e, t, e.audio_init, "--lr", "nan"), "--lr is nan; it must be 0 to 1000"),
    "no epochs": (lambda e, t: tuned(e, t, e.audio_init, "--epochs", "0"), "--epochs is 0; it must be 1 to 100000"),
    "milestones": (lambda e, t: tuned(e, t, e.audio_init, "--milestones", "a,b"), "--milestones is 'a,b'"),
    "crop scale": (
        lambda e, t: tuned(e, t, e.audio_init, "--crop-scale", "1", "0.5"),
        "--crop-scale is 1 0.5; the smaller comes first",
    ),
    "audio unfinished": (lambda e, t: fused(e, t, "--audio", unfinished_run(e.audio, t)), "unfinished is unfinished"),
    "audio missing": (lambda e, t: fused(e, t, "--audio", t / "nowhere"), "nowhere does not exist"),
    "visual given as audio": (lambda e, t: fused(e, t, "--audio", e.visual), "is a visual encoder, audio is needed"),
    "audio given as visual": (lambda e, t: fused(e, t, "--visual", e.audio), "is an audio encoder, visual is needed"),
    "confidence missing": (lambda e, t: fused(e, t, "--confidence", t / "nowhere"), "nowhere does not exist"),
    "confidence of wrong kind": (
        lambda e, t: fused(e, t, "--confidence", e.audio_init),
        "audio-init.safetensors is of kind encoder; confidence is needed here",
    ),
    "confidence of other clips": (
        lambda e, t: fused(e, t, "--confidence", of_other_clips(e.confidence, t)),
        "has no confidence for 18 of 18 training clips",
    ),
    "adaptive without confidence": (
        lambda e, t: (*fuse(e), "--mask", "adaptive", "--out", t / "out"),
        "--mask adaptive needs --confidence (write it with `avpt score-confidence`)",
    ),
    "uniform without confidence": (
        lambda e, t: (*fuse(e), "--mask", "uniform", "--out", t / "out"),
        "--mask uniform needs --confidence",
    ),
    "ratio above 1": (lambda e, t: fused(e, t, "--mask-ratio", "1.5"), "--mask-ratio is 1.5; it must be 0 to 1"),
    "ratio below 0": (
        lambda e, t: fused(e, t, "--mask-ratio-audio", "-0.1"),
        "--mask-ratio-audio is -0.1; it must be 0 to 1",
    ),
    "audio patch too large": (
        lambda e, t: fused(e, t, "--audio-patch", "49x4"),
        "--audio-patch 49x4 is larger than the 48x32 input",
    ),
    "visual patch too large": (
        lambda e, t: fused(e, t, "--visual-patch", "33"),
        "--visual-patch 33x33 is larger than the 32x32 input",
    ),
    "patch of no size": (lambda e, t: fused(e, t, "--audio-patch", "big"), "--audio-patch is 'big'; it must be FRAMES"),
    "runs swapped": (
        lambda e, t: scored(e, t, "--audio", e.visual, "--visual", e.audio),
        "is a run on visual; --audio needs a stage-1 run on audio",
    ),
    "scoring an encoder": (lambda e, t: scored(e, t, "--audio", e.audio_init), "is not a run folder written by avpt"),
    "scoring a missing run": (lambda e, t: scored(e, t, "--audio", t / "nowhere"), "nowhere does not exist"),
    "scoring an unfinished run": (
        lambda e, t: scored(e, t, "--visual", unfinished_run(e.visual, t)),
        "unfinished is unfinished; run the command that makes it again",
    ),
    "scoring a fused run": (lambda e, t: scored(e, t, "--audio", e.fused), "is a run on joint; --audio needs"),
    "too many epochs skipped": (
        lambda e, t: scored(e, t, "--skip-epochs", "2"),
        "audio has 2 epochs",
    ),
    "weights missing": (lambda e, t: started(t, "--weights", t / "nowhere.pt"), "nowhere.pt does not exist"),
    "weights cut": (lambda e, t: started(t, "--weights", cut(e.audio_init, t, 100)), "cut.safetensors is cut short"),
    "weights are text": (lambda e, t: started(t, "--weights", text_file(t, "notes.pt")), "notes.pt"),
    "weights are no ResNet": (
        lambda e, t: started(t, "--weights", text_weights(t)),
        "is not a ResNet in torchvision's layout: no conv1.weight",
    ),
    "weights are avpt's, and no encoder": (
        lambda e, t: started(t, "--weights", e.confidence),
        "confidence.safetensors is of kind confidence; encoder or classifier or fused is needed here",
    ),
    "weights of another architecture": (
        lambda e, t: started(t, "--weights", of_resnet18(t), "--arch", "resnet50"),
        "it looks like resnet18: try --arch resnet18",
    ),
    "weights unfinished": (
        lambda e, t: started(t, "--weights", unfinished_run(e.audio, t)),
        "unfinished is unfinished",
    ),
}


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_a_wrong_input_is_refused(experiment: Experiment, tmp_path: Path, name: str) -> None:
    make, says = WRONG_INPUTS[name]
    refused(*make(experiment, tmp_path), says=says, unchanged=tmp_path)


class Code:
    """A pickle that would make a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("error::UserWarning")  # it would be a second line on stderr
@pytest.mark.parametrize("name", ["code.pt", "code.pth", "code.safetensors"])
@pytest.mark.parametrize("option", ["--weights", "--init"])
def test_a_pickle_with_code_is_refused_and_not_run(
    experiment: Experiment, tmp_path: Path, name: str, option: str
) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"conv1.weight": Code(tmp_path / "ran")}))
    if option == "--init":
        refused(
            *tuned(experiment, tmp_path, tmp_path / name),
            says=f"{name} is a PyTorch checkpoint",
            unchanged=tmp_path,
        )
    else:
        refused(*started(tmp_path, "--weights", tmp_path / name), says=name, unchanged=tmp_path)
    torch.save({"conv1.weight": Code(tmp_path / "ran")}, tmp_path / name)
    refused(*started(tmp_path, "--weights", tmp_path / name), says=name, unchanged=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_imagenet_weights_without_network_say_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy"):  # offline wherever the test runs: no one listens on the discard port
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    result = avpt(*started(tmp_path, "--weights", "imagenet"), "--quiet")
    assert not (tmp_path / "out.safetensors").exists()
    assert "resnet18-f37072fd.pth" in result.error
    one_line(result, "ImageNet weights of resnet18 are neither in torchvision's cache nor to be downloaded")


def test_a_loss_that_is_no_number_is_told(experiment: Experiment, tmp_path: Path) -> None:
    command = tuned(experiment, tmp_path, experiment.audio_init, *RUNAWAY)
    one_line(avpt(*command, "--quiet"), "lower --lr")
    assert not (tmp_path / "out" / "summary.json").exists()


# --- outputs -----------------------------------------------------------------------------------------------------


def five_commands(experiment: Experiment) -> dict[str, Arguments]:
    """The commands that made the experiment, without --out."""
    runs = ("--audio", experiment.audio, "--visual", experiment.visual)
    return {
        "store": ("preprocess", experiment.manifest, *STORE_OPTIONS),
        "visual-init.safetensors": ("init", *VISUAL, "--arch", ARCH, "--weights", "random"),
        "visual": finetune(experiment, "visual", experiment.visual_init),
        "confidence.safetensors": ("score-confidence", *runs, *PATCHES),
        "fused": (*fuse(experiment), "--confidence", experiment.confidence, "--mask-threshold", "0.1"),
    }


OUTPUTS = ("store", "visual-init.safetensors", "visual", "confidence.safetensors", "fused")


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_can_not_be_written_is_told(experiment: Experiment, tmp_path: Path, name: str) -> None:
    file = text_file(tmp_path, "FILE")
    command = five_commands(experiment)[name]
    refused(*command, "--out", file / "x", says="can't be written", unchanged=tmp_path)
    refused(*command, "--out", file / "x" / name, says="can't be written", unchanged=tmp_path)


def test_the_folder_one_stands_in_is_a_folder_too(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused(*five_commands(experiment)["visual-init.safetensors"], "--out", ".", says="is a folder", unchanged=tmp_path)
    refused(*five_commands(experiment)["visual-init.safetensors"], "--out", "/", says="is a folder", unchanged=tmp_path)
    done(*five_commands(experiment)["store"], "--out", ".")
    assert files_of(tmp_path / "here") == files_of(experiment.store)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_of_the_other_sort_is_left_alone(experiment: Experiment, tmp_path: Path, name: str) -> None:
    """A file where a folder goes, a folder where a file goes."""
    if "." in name:
        (tmp_path / "out").mkdir()
        says = "out is a folder; --out must name a file"
    else:
        text_file(tmp_path, "out")
        says = "out is a file, not a folder; choose another --out"
    for overwrite in ((), ("--overwrite",)):
        refused(*five_commands(experiment)[name], "--out", tmp_path / "out", *overwrite, says=says, unchanged=tmp_path)


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["plain", "overwrite"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_foreign_output_is_left_alone(
    experiment: Experiment, tmp_path: Path, name: str, overwrite: tuple[str, ...]
) -> None:
    if "." in name:
        file, says = text_file(tmp_path, "out"), "out was not written by avpt"
    else:
        (tmp_path / "out").mkdir()
        file, says = text_file(tmp_path / "out", "mine.txt"), "holds files that avpt did not write (mine.txt)"
    refused(*five_commands(experiment)[name], "--out", tmp_path / "out", *overwrite, says=says, unchanged=tmp_path)
    assert file.read_text(encoding="utf-8").startswith("hello")


def test_a_foreign_file_in_a_store_survives_overwrite(experiment: Experiment, tmp_path: Path) -> None:
    store = shutil.copytree(experiment.store, tmp_path / "store")
    text_file(store, "mine.txt")
    command = (*five_commands(experiment)["store"], "--out", store)
    refused(*command, "--overwrite", says="holds files that avpt did not write (mine.txt)", unchanged=tmp_path)
    assert done(*command).stdout.strip() == str(store)  # it does not stand in the way of reading
    assert (store / "mine.txt").exists()


def test_a_table_that_can_not_be_written_is_told(experiment: Experiment, tmp_path: Path) -> None:
    file = text_file(tmp_path, "FILE")
    runs = ("--audio", experiment.audio, "--visual", experiment.visual)
    refused("score-confidence", *runs, "--csv", file / "x.csv", says="FILE", unchanged=tmp_path)
    (tmp_path / "folder").mkdir()
    refused("score-confidence", *runs, "--csv", tmp_path / "folder", says="folder", unchanged=tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "differs"),
    [
        ("store", ("--mel-bins", "16", "--fps", "2"), ["mel_bins: 32 there, 16 now", "fps: 1.0 there, 2.0 now"]),
        ("visual-init.safetensors", ("--bn", "reset"), ["bn: keep there, reset now"]),
        ("visual", ("--lr", "0.5", "--flip"), ["lr: 0.02 there, 0.5 now", "flip: False there, True now"]),
        ("visual", ("--epochs", "1"), ["epochs: 2 there, 1 now"]),
        ("confidence.safetensors", ("--skip-epochs", "1"), ["skip_epochs: 0 there, 1 now"]),
        ("fused", ("--mask-ratio", "0.9", "--fusion", "sum"), ["mask_ratio: 0.5 there, 0.9 now", "fusion: concat"]),
    ],
)
def test_an_output_made_with_other_options_is_refused(
    experiment: Experiment, name: str, options: tuple[str, ...], differs: list[str]
) -> None:
    command = (*five_commands(experiment)[name], *options, "--out", experiment.folder / name)
    for says in (*differs, "--overwrite"):
        refused(*command, says=says, unchanged=experiment.folder)


def test_an_output_made_of_other_inputs_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    shorter = write_manifest(tmp_path / "shorter.csv", digit_rows()[:-1])
    again: Arguments = ("preprocess", shorter, *STORE_OPTIONS, "--out", experiment.store)
    refused(*again, says="was made with other options or inputs (manifest: ", unchanged=experiment.folder)
    again = finetune(experiment, "audio", experiment.audio)
    other = shutil.copytree(experiment.audio, tmp_path / "other")
    refused(*again, "--out", other, says="other options or inputs (init: ", unchanged=experiment.folder)


def test_no_output_is_an_input(experiment: Experiment, tmp_path: Path) -> None:
    run = shutil.copytree(experiment.audio, tmp_path / "run")
    shutil.copy(experiment.audio_init, tmp_path / "encoder.safetensors")
    shutil.copy(experiment.confidence, tmp_path / "confidence.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    encoder, model = tmp_path / "encoder.safetensors", run / "model.safetensors"
    commands: list[Arguments] = [
        (*finetune(experiment, "audio", run), "--out", run),
        ("init", "--modality", "audio", "--weights", encoder, "--out", encoder),
        ("export", run, "--format", "timm", "--out", model),
        ("export", model, "--format", "onnx", "--out", model),
        ("export", encoder, "--format", "timm", "--out", encoder),
        ("evaluate", run, experiment.store, "--predictions", model),
        ("evaluate", run, experiment.store, "--predictions", tmp_path / "confidence.safetensors"),
        ("probe", run, experiment.store, "--out", model),
    ]
    for command in commands:
        result = avpt(*command, "--overwrite", "--quiet")
        assert (result.code, result.stdout) == (1, ""), command
        assert ("--format onnx writes" if "onnx" in command else "choose another --out") in result.error
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_artifact_of_another_kind_is_not_replaced_unasked(experiment: Experiment) -> None:
    command = (*five_commands(experiment)["visual-init.safetensors"], "--out", experiment.confidence)
    refused(*command, says="holds a confidence; remove it or choose another --out", unchanged=experiment.folder)


def test_damaged_settings_are_told(experiment: Experiment, tmp_path: Path) -> None:
    store = shutil.copytree(experiment.store, tmp_path / "store")
    (store / "settings.json").write_text("{", encoding="utf-8")
    command = (*five_commands(experiment)["store"], "--out", store)
    refused(*command, says="settings.json is damaged (it is not JSON); --overwrite starts over", unchanged=tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"config": 3}'])
def test_settings_of_another_shape_are_told(experiment: Experiment, tmp_path: Path, content: str) -> None:
    store = shutil.copytree(experiment.store, tmp_path / "store")
    (store / "settings.json").write_text(content, encoding="utf-8")
    one_line(avpt("info", store), "settings.json")
    command = (*five_commands(experiment)["store"], "--out", store)
    refused(*command, says="settings.json is damaged (", unchanged=tmp_path)


@pytest.mark.parametrize("name", ["checkpoint/settings.json", "metrics.jsonl", "summary.json"])
def test_a_damaged_run_folder_is_told(experiment: Experiment, tmp_path: Path, name: str) -> None:
    run = unfinished_run(experiment.visual, tmp_path)
    for whole in ("summary.json", "model.safetensors"):
        shutil.copyfile(experiment.visual / whole, run / whole)
    (run / name).write_text("{", encoding="utf-8")
    if name != "metrics.jsonl":  # which nothing but `info` reads
        refused(
            *five_commands(experiment)["visual"], "--out", run, says=f"{Path(name).name} is damaged", unchanged=tmp_path
        )
    if name != "summary.json":
        one_line(avpt("info", run), f"{Path(name).name} is damaged")


def test_a_finished_run_needs_no_checkpoint(experiment: Experiment, tmp_path: Path) -> None:
    run = shutil.copytree(experiment.visual, tmp_path / "run")
    shutil.rmtree(run / "checkpoint")
    before = files_of(run)
    command = (*five_commands(experiment)["visual"], "--out", run)
    assert done(*command).stdout == f"{run}\n"
    done("info", run)
    done("score-confidence", "--audio", experiment.audio, "--visual", run)
    refused(
        *command, "--seed", "9", says="made with other options or inputs (seed: 0 there, 9 now)", unchanged=tmp_path
    )
    refused(*command, "--epochs", "99", says="its checkpoint is gone; --overwrite starts over", unchanged=tmp_path)
    assert files_of(run) == before


def test_epochs_without_their_checkpoint_are_not_begun_anew(experiment: Experiment, tmp_path: Path) -> None:
    run = unfinished_run(experiment.visual, tmp_path)
    command = (*five_commands(experiment)["visual"], "--out", run)
    refused(
        *command, says="has epochs behind it, but its checkpoint is gone; --overwrite starts over", unchanged=tmp_path
    )


@pytest.mark.parametrize(("step", "name"), [("visual", "model.safetensors"), ("store", "store.json")])
def test_files_with_our_names_are_not_taken_for_ours(
    experiment: Experiment, tmp_path: Path, step: str, name: str
) -> None:
    (tmp_path / "out").mkdir()
    file = text_file(tmp_path / "out", name)
    before = file.read_bytes()
    refused(*five_commands(experiment)[step], "--out", tmp_path / "out", says=name, unchanged=tmp_path)
    assert file.read_bytes() == before


def test_a_damaged_checkpoint_is_told(experiment: Experiment, tmp_path: Path) -> None:
    run = unfinished_run(experiment.visual, tmp_path)
    (run / "checkpoint" / "last.pt").write_bytes((experiment.visual / "checkpoint" / "last.pt").read_bytes()[:5000])
    command = (*five_commands(experiment)["visual"], "--out", run)
    one_line(avpt(*command, "--quiet"), "last.pt is damaged")


# A file system with room for so many bytes a file and no more stands for a full disk.
FULL_DISK = """
import resource, sys
size = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
from avpt.cli import app
app()
"""


def on_full_disk(script: Path, size: int, *command: str | Path) -> Result:
    """Run a command in a process of its own."""
    script.write_text(f"if __name__ == '__main__':\n{FULL_DISK}".replace("\n", "\n    "), encoding="utf-8")
    process = subprocess.run(
        [sys.executable, script, str(size), *map(str, command)],
        env=os.environ | THREADS,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Result(process.returncode, process.stdout, process.stderr)


def on_full_disk_here(log: Path, size: int, *command: str | Path) -> Result:
    """Run a command in a copy of this process."""

    def run() -> int:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        result = avpt(*command)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        log.write_text(json.dumps({"stdout": result.stdout, "stderr": result.stderr}), encoding="utf-8")
        return result.code

    _, status = os.waitpid(fork(run), 0)
    return said(log, os.waitstatus_to_exitcode(status))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("store", 5_000),  # a shard
        ("visual-init.safetensors", 1_000_000),
        ("visual", 2_000_000),  # the checkpoint
    ],
)
def test_a_full_disk_is_one_line(experiment: Experiment, tmp_path: Path, name: str, size: int) -> None:
    command = (*five_commands(experiment)[name], "--quiet", "--out", tmp_path / "out")
    if name == "store":  # whose workers come from a server that a copy of this process would take for its own
        result = on_full_disk(tmp_path / "full.py", size, *command)
    else:
        result = on_full_disk_here(tmp_path / "log", size, *command)
    left = [path.name for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".lock", ".pt", ".h5"))]
    assert not left
    assert not (tmp_path / "out").is_file()
    one_line(result, str(tmp_path / "out"))


# --- command lines that do not parse -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("preprocess",),
        ("preprocess", "manifest.csv"),
        ("preprocess", "manifest.csv", "--out", "store", "--fancy"),
        ("preprocess", "manifest.csv", "--out", "store", "--fps", "often"),
        ("init", "--modality", "smell", "--out", "x"),
        ("init", "--modality", "audio", "--bn", "melt", "--out", "x"),
        ("finetune-unimodal", "store", "--modality", "audio", "--init", "x", "--out", "y", "--epochs", "abc"),
        ("finetune-unimodal", "store", "--modality", "audio", "--init", "x", "--out", "y", "--crop-scale", "1"),
        ("finetune-unimodal", "store", "other", "--modality", "audio", "--init", "x", "--out", "y"),
        ("fuse-train", "store", "--audio", "x", "--visual", "y", "--mask", "gone", "--out", "z"),
        ("unheard-of",),
        ("--unheard-of",),
    ],
    ids=" ".join,
)
def test_a_command_line_that_does_not_parse_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    result = avpt(*arguments)
    assert result.code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = avpt("info", tmp_path / "nowhere", "--debug")
    assert result.code == 1
    assert "Traceback" in result.stderr
    assert result.error.startswith("avpt: ")


def test_library_callers_get_the_same_words(tmp_path: Path) -> None:
    from avpt.commands import info
    from avpt.options import InfoConfig

    with pytest.raises(AvptError, match="does not exist"):
        info.run(InfoConfig(path=tmp_path / "nowhere"))


def test_an_output_of_another_command_is_named(experiment: Experiment, tmp_path: Path) -> None:
    store, run = five_commands(experiment)["store"], five_commands(experiment)["visual"]
    for overwrite in ((), ("--overwrite",)):
        refused(
            *store, "--out", experiment.visual, *overwrite, says="visual is a run folder", unchanged=experiment.folder
        )
        refused(*run, "--out", experiment.store, *overwrite, says="store is a store", unchanged=experiment.folder)
    done(*store, "--out", experiment.store)
    done(*run, "--out", experiment.visual)


def test_a_store_with_values_that_are_not_numbers_is_told_as_such(experiment: Experiment, tmp_path: Path) -> None:
    store = Path(shutil.copytree(experiment.store, tmp_path / "store"))
    with h5py.File(store / "train-00000.h5", "r+") as file:
        file["audio/fbank"][2, 3, 4] = np.nan
        clip_id = file["id"].asstr()[2]
    result = avpt(
        *finetune(replace(experiment, store=store), "audio", experiment.audio_init), "--out", tmp_path / "run"
    )
    assert result.code == 1
    assert f" of epoch 1, on clips {clip_id}, whose values in the store are not numbers" in result.error
    assert "`avpt verify` says what is damaged" in result.error
    assert clip_id in avpt("verify", store, "--deep").stdout


def test_a_class_that_train_lacks_is_told_before_anything_is_decoded(tmp_path: Path) -> None:
    rows = [row | ({"label": "tyop"} if row["split"] == "val" else {}) for row in digit_rows()]
    manifest = write_manifest(tmp_path / "own.csv", rows)
    result = done("preprocess", manifest, "--out", tmp_path / "own", "--workers", "1", *STORE_OPTIONS)
    says = "val has clips of classes that train lacks (tyop); training will refuse them"
    assert says in result.stderr
    first = next(number for number, row in enumerate(rows) if row["split"] == "val")  # clips that are not stored
    some = done(
        "preprocess", manifest, "--out", tmp_path / "some", "--limit", str(first), "--workers", "1", *STORE_OPTIONS
    )
    assert says not in some.stderr
