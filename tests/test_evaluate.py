"""`avpt evaluate` against the runs' own numbers, scikit-learn, and metrics worked out by hand."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    STORE_OPTIONS,
    TRAIN_OPTIONS,
    Experiment,
    Result,
    avpt,
    digit_rows,
    done,
    near,
    refused,
    write_manifest,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from avpt.files import artifacts
from avpt.loading.evaluation_clips import add_noise_to_audio, add_noise_to_frames, fit_frames, match_classes
from avpt.media.spectrograms import log_mel
from avpt.store.shard_files import ShardFiles
from avpt.store.store import SplitIndex
from avpt.training import metrics

State = dict[str, Tensor]
HERE = ("--workers", "0", "--device", "cpu")


def evaluate(model: Path, store: Path, *options: str | Path) -> dict[str, Any]:
    return done("evaluate", model, store, "--json", *HERE, *options).json()


def summary(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return record


def changed(source: Path, target: Path, change: Callable[[dict[str, Any], State], None]) -> Path:
    """A copy of a model artifact with other words in its header, or other tensors."""
    header, tensors = artifacts.load(source, "classifier", "fused", "encoder").header, load_file(source)
    values = json.loads(artifacts.format_header(header))
    change(values, tensors)
    artifacts.save(target, replace(header, **values), tensors)
    return target


def stored(experiment: Experiment, folder: Path, rows: list[dict[str, str]], *options: str) -> Path:
    manifest = write_manifest(folder / "other.csv", rows)
    done("preprocess", manifest, "--out", folder / "other", *STORE_OPTIONS, *options)
    return folder / "other"


# --- on the store of the training --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["audio", "visual", "fused"])
def test_the_very_numbers_and_logits_of_the_run(experiment: Experiment, tmp_path: Path, name: str) -> None:
    run = getattr(experiment, name)
    record = evaluate(run, experiment.store, "--predictions", tmp_path / "p.safetensors")
    assert {split: record[split] for split in ("val", "test")} == {
        split: summary(run)[split] for split in ("val", "test")
    }
    assert record["clips"] == {"val": 9, "test": 9}
    assert record["left_out"] == {"val": 0, "test": 0}
    found, expected = load_file(tmp_path / "p.safetensors"), load_file(run / "predictions.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_artifact_is_as_good_as_its_run(experiment: Experiment) -> None:
    record = evaluate(experiment.fused / "model.safetensors", experiment.store, "--split", "test")
    assert record["test"] == summary(experiment.fused)["test"]
    assert record["val"] is None


def test_a_val_split_carved_from_train_is_the_same_one(experiment: Experiment, tmp_path: Path) -> None:
    store = stored(experiment, tmp_path, [row for row in digit_rows() if row["split"] != "val"])
    command = ("finetune-unimodal", store, "--modality", "visual", "--init", experiment.visual_init, *TRAIN_OPTIONS)
    done(*command, "--epochs", "1", "--val-fraction", "0.3", "--out", tmp_path / "run")
    record = evaluate(tmp_path / "run", store, "--split", "all", "--predictions", tmp_path / "p.safetensors")
    assert record["val"] == summary(tmp_path / "run")["val"]
    assert record["test"] == summary(tmp_path / "run")["test"]
    assert record["clips"] == {"train": 13, "val": 5, "test": 9}
    ran, found = load_file(tmp_path / "run" / "predictions.safetensors"), load_file(tmp_path / "p.safetensors")
    assert artifacts.unpack_ids(found, "val_") == artifacts.unpack_ids(ran, "val_")
    dynamics = load_file(tmp_path / "run" / "dynamics.safetensors")
    assert artifacts.unpack_ids(found, "train_") == artifacts.unpack_ids(dynamics)
    # for a model of another store it has no val
    refused("evaluate", experiment.visual, store, "--split", "val", says="has no val clips; it has train, test")


def test_each_class_and_the_confusion_matrix(experiment: Experiment, tmp_path: Path) -> None:
    options = ("--per-class", "--split", "all", "--predictions", tmp_path / "p.safetensors")
    record = evaluate(experiment.visual, experiment.store, *options)
    tensors = load_file(tmp_path / "p.safetensors")
    assert record["classes"] == ["0", "1", "2"]
    for split in ("train", "val", "test"):
        labels, found = tensors[f"{split}_labels"].tolist(), record["per_class"][split]
        guesses = tensors[f"{split}_logits"].argmax(1).tolist()
        for true in range(3):
            row = [sum(pair == (true, guess) for pair in zip(labels, guesses, strict=True)) for guess in range(3)]
            assert found["confusion"][true] == row
            assert found["count"][true] == sum(row)
            assert found["accuracy"][true] == pytest.approx(row[true] / sum(row))
    table = done("evaluate", experiment.visual, experiment.store, "--per-class", *HERE).stdout
    assert "classes, val" in table
    assert "macro f1" in table


def test_a_class_without_clips_has_no_accuracy() -> None:
    found = metrics.per_class(torch.eye(4)[[0, 0, 2]], torch.tensor([0, 1, 2]))
    assert found["accuracy"] == [1.0, 0.0, 1.0, None]
    assert found["confusion"] == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_several_labels(experiment: Experiment, tmp_path: Path) -> None:
    rows = [row | {"label": f"{row['label']};{'low' if row['label'] < '2' else 'high'}"} for row in digit_rows()]
    store = stored(experiment, tmp_path, rows, "--multi-label")
    command = ("finetune-unimodal", store, "--modality", "visual", "--init", experiment.visual_init, *TRAIN_OPTIONS)
    done(*command, "--epochs", "1", "--out", tmp_path / "run")
    record = evaluate(tmp_path / "run", store, "--per-class")
    assert record["test"] == summary(tmp_path / "run")["test"]
    assert "map" in record["test"]
    tensors, found = load_file(tmp_path / "run" / "predictions.safetensors"), record["per_class"]["test"]
    labels, logits = tensors["test_labels"].numpy(), tensors["test_logits"].numpy()
    expected = [sklearn_metrics.average_precision_score(labels[:, i], logits[:, i]) for i in range(5)]
    assert found == {"count": [3, 3, 3, 3, 6], "average_precision": pytest.approx(expected)}
    refused("evaluate", tmp_path / "run", experiment.store, says="have one label each")
    refused("evaluate", experiment.visual, store, says="have several labels each")


# --- on another store --------------------------------------------------------------------------------------------


def test_classes_are_matched_by_name(experiment: Experiment, tmp_path: Path) -> None:
    """In the other store "1" is renamed, so that "0" and "2" have other numbers, and a class is new."""
    rows = [row | {"label": {"1": " another"}.get(row["label"], row["label"])} for row in digit_rows()]
    store = stored(experiment, tmp_path, rows)
    assert done("info", store, "--json").json()["classes"] == ["0", "2", "another"]
    result = done("evaluate", experiment.fused, store, *HERE, "--json", "--predictions", tmp_path / "p.safetensors")
    assert "3 of 9 clips of test are left out: the model does not know their classes (another)" in result.stderr
    record = result.json()
    assert record["clips"] == {"val": 6, "test": 6}
    assert record["left_out"] == {"val": 3, "test": 3}
    found, ran = load_file(tmp_path / "p.safetensors"), load_file(experiment.fused / "predictions.safetensors")
    place = {clip: i for i, clip in enumerate(artifacts.unpack_ids(ran, "test_"))}
    rows_of = [place[clip] for clip in artifacts.unpack_ids(found, "test_")]
    near(found["test_logits"], ran["test_logits"][rows_of])
    assert torch.equal(found["test_labels"], ran["test_labels"][rows_of])
    guesses = found["test_logits"].argmax(1)
    assert record["test"]["accuracy"] == sklearn_metrics.accuracy_score(found["test_labels"], guesses)


def test_no_class_in_common(experiment: Experiment, tmp_path: Path) -> None:
    store = stored(experiment, tmp_path, [row | {"label": "x"} for row in digit_rows()])
    refused("evaluate", experiment.audio, store, *HERE, says="no clip of val has a class that")


@given(st.data())
def test_matching_keeps_every_known_name(data: st.DataObject) -> None:
    names = st.lists(st.sampled_from("abcdef"), unique=True, min_size=1)
    there, known = data.draw(names), data.draw(names)
    clips = data.draw(st.lists(st.sampled_from(there), min_size=1))
    labels = np.array([there.index(name) for name in clips])
    nothing = np.zeros(len(clips), np.int64)
    index = SplitIndex(
        [f"{i}" for i in range(len(clips))],
        labels,
        nothing,
        nothing,
        nothing,
        nothing,
        ShardFiles([], "float16", (1, 1)),
    )
    kept = [(str(i), name) for i, name in enumerate(clips) if name in known]
    matched = match_classes(index, there, known)
    assert [(i, known[n]) for i, n in zip(matched.index.ids, matched.index.labels, strict=True)] == kept
    assert matched.left_out == len(clips) - len(kept)
    assert matched.unknown == [name for name in there if name in set(clips) - set(known)]
    several = np.zeros((len(clips), len(there)), np.uint8)
    several[np.arange(len(clips)), labels] = 1
    several[:, data.draw(st.integers(0, len(there) - 1))] = 1
    matched = match_classes(replace(index, labels=several), there, known)
    for clip, row in zip(matched.index.ids, matched.index.labels, strict=True):
        expected = {name for i, name in enumerate(there) if several[int(clip), i]} & set(known)
        assert {known[i] for i in np.flatnonzero(row)} == expected != set()
    rows = several[[int(clip) for clip in matched.index.ids]]
    unknown = [i for i, name in enumerate(there) if name not in known]
    assert matched.labels_left_out == rows[:, unknown].sum()
    assert matched.unknown_labels == [there[i] for i in unknown if rows[:, i].any()]


def test_longer_spectrograms_are_cut(experiment: Experiment, tmp_path: Path) -> None:
    store = stored(experiment, tmp_path, digit_rows(), "--spectrogram-frames", "70")
    options = ("--split", "test", "--predictions", tmp_path / "p.safetensors")
    evaluate(experiment.audio, store, *options)
    found, ran = load_file(tmp_path / "p.safetensors"), load_file(experiment.audio / "predictions.safetensors")
    near(found["test_logits"], ran["test_logits"], 0.02)  # float16 rounds


def test_shorter_ones_are_padded_where_nothing_was_cut_off(experiment: Experiment, tmp_path: Path) -> None:
    def widen(header: dict[str, Any], tensors: State) -> None:
        header["spec"]["input"]["spectrogram_frames"] = 130

    model = changed(experiment.audio / "model.safetensors", tmp_path / "wide.safetensors", widen)
    for frames in ("110", "130"):
        (tmp_path / frames).mkdir()
        store = stored(experiment, tmp_path / frames, digit_rows(), "--spectrogram-frames", frames)
        evaluate(model, store, "--split", "test", "--predictions", tmp_path / f"{frames}.safetensors")
    short, whole = (load_file(tmp_path / f"{frames}.safetensors") for frames in ("110", "130"))
    assert torch.equal(short["test_logits"], whole["test_logits"])
    says = "spectrogram_frames 48 against 130); preprocess its clips with --spectrogram-frames 130"
    refused("evaluate", model, experiment.store, *HERE, says=says)


@given(have=st.integers(1, 9), want=st.integers(1, 9))
def test_fitting_frames(have: int, want: int) -> None:
    fbank = torch.arange(1.0, have * 2 + 1).view(1, have, 2)
    found = fit_frames(fbank, want)
    assert found.shape == (1, want, 2)
    both = min(have, want)
    assert torch.equal(found[:, :both], fbank[:, :both])
    assert not found[:, both:].any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--mel-bins", "16"), "(mel_bins 16 against 32); preprocess its clips with --mel-bins 32"),
        (("--sample-rate", "8000", "--pad", "repeat"), "sample_rate 8000 against 16000, pad repeat against zero"),
    ],
)
def test_other_spectrograms_are_refused(
    experiment: Experiment, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    store = stored(experiment, tmp_path, digit_rows(), *options, "--limit", "36")
    refused("evaluate", experiment.fused, store, *HERE, says=says)
    done("evaluate", experiment.visual, store, *HERE)  # which does not hear them


def test_other_frames_are_told(experiment: Experiment, tmp_path: Path) -> None:
    store = stored(experiment, tmp_path, digit_rows(), "--frame-codec", "raw", "--fps", "2")
    result = done("evaluate", experiment.visual, store, *HERE)
    assert "other frames than the model was trained on (fps 2.0 against 1.0, frame_codec raw against jpeg)" in (
        result.stderr
    )


# --- absent and noised -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("absent", "present"), [("audio", "visual"), ("visual", "audio")])
def test_a_dropped_modality_has_zero_features(
    experiment: Experiment, tmp_path: Path, absent: str, present: str
) -> None:
    record = evaluate(experiment.fused, experiment.store, "--drop", absent, "--predictions", tmp_path / "p.safetensors")
    assert set(record["test"]) == {"accuracy", "top5", "macro_f1", "loss", f"{present}_accuracy"}
    found, ran = load_file(tmp_path / "p.safetensors"), load_file(experiment.fused / "predictions.safetensors")
    bias = load_file(experiment.fused / "model.safetensors")["fusion.linear.bias"]
    expected = ran[f"test_{present}_logits"] + bias / 2  # the share of concat is W_m m + b / 2
    near(found["test_logits"], expected, 1e-4)
    assert f"test_{absent}_logits" not in found


def test_what_is_dropped_need_not_be_there(experiment: Experiment, tmp_path: Path) -> None:
    store = stored(experiment, tmp_path, [row | {"frames": ""} for row in digit_rows()])
    dropped = evaluate(experiment.fused, store, "--drop", "visual")
    assert dropped["test"] == evaluate(experiment.fused, experiment.store, "--drop", "visual")["test"]
    refused("evaluate", experiment.fused, store, *HERE, says="no clip of val has pictures")
    refused("evaluate", experiment.visual, store, *HERE, says="no clip of val has pictures")


@given(
    snr=st.floats(-60, 60),
    frames=st.integers(1, 30),
    real=st.integers(1, 40),
    seed=st.integers(0, 99),
    level=st.floats(-15, 9),
)
@settings(max_examples=40)
def test_sound_gets_noise_of_that_power(snr: float, frames: int, real: int, seed: int, level: float) -> None:
    torch.manual_seed(seed)
    clean = (torch.randn(1, frames, 16) + level).half()
    noisy = add_noise_to_audio(clean, real, 16000, snr, torch.Generator().manual_seed(seed))
    real = min(real, frames)
    assert torch.equal(noisy[:, real:], clean[:, real:].float())  # padding is no sound
    before, after = clean[:, :real].double().exp(), noisy[:, :real].double().exp()
    ratio = float(before.sum() / (after - before).sum())
    if abs(snr) < 40:  # where float32 can tell
        assert 10 * math.log10(ratio) == pytest.approx(snr, abs=0.05)
    assert (noisy >= clean.float() - 1e-3).all()
    # the noise has the spectrum that white noise has
    waveform = torch.randn(400 + (real - 1) * 160, generator=torch.Generator().manual_seed(seed)).numpy()
    white = log_mel(waveform, sample_rate=16000, mel_bins=16).double()
    loud = add_noise_to_audio(clean, real, 16000, -60, torch.Generator().manual_seed(seed))[0, :real].double()
    assert float((loud - white).std(correction=0)) < 0.1


@given(snr=st.floats(-20, 60), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_pictures_get_noise_of_that_power(snr: float, seed: int) -> None:
    torch.manual_seed(seed)
    frames = torch.randint(100, 156, (2, 3, 64, 64), dtype=torch.uint8)
    frames[1] = torch.randint(60, 200, (3, 64, 64), dtype=torch.uint8)  # each has noise to its own measure
    noisy = add_noise_to_frames(frames, snr, torch.Generator().manual_seed(seed))
    assert noisy.dtype == torch.uint8
    for clean, found in zip(frames.double(), noisy.double(), strict=True):
        added = (found - clean).square().mean() - 1 / 12  # of rounding
        power = (clean - clean.mean()).square().mean()
        if 10 < snr < 20:  # little is clipped, and rounding is small
            assert 10 * math.log10(float(power / added)) == pytest.approx(snr, abs=0.6)
    grey = torch.full((1, 3, 8, 8), 90, dtype=torch.uint8)
    assert torch.equal(add_noise_to_frames(grey, snr, torch.Generator()), grey)  # nothing to be noisy about


def test_noise_hangs_on_clip_and_seed_alone(experiment: Experiment, tmp_path: Path) -> None:
    def logits(*options: str) -> Tensor:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        done("evaluate", experiment.fused, experiment.store, "--device", "cpu", *options, "--predictions", path)
        return load_file(path)["test_logits"]

    noise = ("--noise", "audio", "--snr", "0")
    first = logits(*noise, "--workers", "0")
    assert torch.equal(first, logits(*noise, "--workers", "2", "--split", "test"))
    assert not torch.equal(first, logits(*noise, "--workers", "0", "--seed", "1"))
    assert not torch.equal(first, logits("--noise", "visual", "--snr", "0", "--workers", "0"))
    quiet = logits("--noise", "audio", "--snr", "100", "--workers", "0")
    near(quiet, logits("--workers", "0"), 1e-3)


def test_noise_of_a_classifier_is_on_its_own_modality(experiment: Experiment) -> None:
    once, twice = (
        evaluate(experiment.audio, experiment.store, "--snr", "-10", *more) for more in ((), ("--noise", "audio"))
    )
    assert once == twice
    assert once["test"] != summary(experiment.audio)["test"]


# --- what it writes ----------------------------------------------------------------------------------------------


def test_the_table_is_the_result(experiment: Experiment) -> None:
    result = done("evaluate", experiment.fused, experiment.store, "--drop", "audio", *HERE)
    assert f"{experiment.fused} on {experiment.store}, without audio" in result.stdout.replace(" \n", " ")
    assert result.stderr.splitlines()[0] == f"loading {experiment.fused}"
    assert re.search(r"^evaluate test: 9 of 9(, [\d.]+/s)?$", result.stderr, re.MULTILINE)
    assert [line.split()[0] for line in result.stdout.splitlines() if line.strip().startswith(("val", "test"))]


def test_a_record_is_written_once(experiment: Experiment, tmp_path: Path) -> None:
    out, predictions = tmp_path / "record.json", tmp_path / "p.safetensors"
    command = ("evaluate", experiment.audio, experiment.store, *HERE, "--out", out)
    assert done(*command).stdout == f"{out}\n"
    content, stamp = out.read_bytes(), out.stat().st_mtime_ns
    record = json.loads(content)
    assert record["test"] == summary(experiment.audio)["test"]
    assert set(record["inputs"]) == {"model", "store"}
    assert str(experiment.folder).encode() not in content
    again = done(*command, "--json")
    assert out.stat().st_mtime_ns == stamp
    assert again.stdout == done(*command, "--json", "--overwrite").stdout
    assert out.read_bytes() == content
    refused(*command, "--split", "test", says="split: nothing there, test now")
    refused(*command, "--snr", "3", says="snr: nothing there, 3.0 now")
    done(*command, "--seed", "4")  # without noise nothing depends on it
    assert done(*command, "--predictions", predictions).stdout == f"{out}\n{predictions}\n"
    assert out.read_bytes() == content
    assert json.loads(done("info", out, "--json").stdout)["test"] == record["test"]
    assert f"{record['test']['accuracy']:.6g}" in done("info", out).stdout
    stamp = predictions.stat().st_mtime_ns
    alone = done("evaluate", experiment.audio, experiment.store, *HERE, "--predictions", predictions, "--json")
    assert alone.json() == again.json()
    assert predictions.stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.safetensors", "record.json"]


def test_the_same_run_and_store_elsewhere_are_the_same(experiment: Experiment, tmp_path: Path) -> None:
    shutil.copyfile(experiment.audio / "model.safetensors", tmp_path / "m.safetensors")
    shutil.copytree(experiment.store, tmp_path / "store")
    out = ("--out", tmp_path / "record.json")
    done("evaluate", experiment.audio, experiment.store, *HERE, *out)
    stamp = (tmp_path / "record.json").stat().st_mtime_ns
    done("evaluate", tmp_path / "m.safetensors", tmp_path / "store", "--workers", "1", *out)
    assert (tmp_path / "record.json").stat().st_mtime_ns == stamp


# --- what can be wrong -------------------------------------------------------------------------------------------


def test_what_does_not_go_together(experiment: Experiment, tmp_path: Path) -> None:
    fused, audio = (("evaluate", model, experiment.store, *HERE) for model in (experiment.fused, experiment.audio))
    refused(*audio, "--drop", "audio", says="--drop is for fused models")
    refused(*audio, "--noise", "visual", "--snr", "1", says="--noise visual does not go with")
    refused(*fused, "--snr", "1", says="--snr needs --noise audio or --noise visual")
    refused(*fused, "--noise", "audio", says="--noise audio needs --snr")
    refused(*fused, "--noise", "audio", "--snr", "1", "--drop", "audio", says="does nothing beside --drop audio")
    refused(*fused, "--snr", "nan", "--noise", "audio", says="--snr is nan")
    refused(*fused, "--batch-size", "0", says="--batch-size is 0")
    refused(*fused, "--device", "tpu9", says="--device tpu9 can't be used here")
    assert avpt(*fused, "--split", "dev").code == 2
    for name, content in (("letter.txt", b"hello"), ("other.json", b'{"kind": "evaluation"}'), ("x.json", b"[1]")):
        (tmp_path / name).write_bytes(content)
        refused(*fused, "--out", tmp_path / name, "--overwrite", says="was not written by this command")
        assert (tmp_path / name).read_bytes() == content
    refused(*fused, "--out", tmp_path, says="is a folder; --out must name a file")


def test_what_is_no_model(experiment: Experiment, tmp_path: Path) -> None:
    def with_store(model: Path, says: str) -> None:
        refused("evaluate", model, experiment.store, *HERE, says=says)

    with_store(tmp_path / "nowhere", "nowhere does not exist")
    with_store(tmp_path, "is not a run folder written by avpt")
    with_store(experiment.audio_init, "is an encoder without a classifier; train one with `avpt finetune-unimodal`")
    with_store(experiment.confidence, "is of kind confidence; classifier or fused is needed here")
    with_store(experiment.manifest, "is a manifest (CSV); an artifact is a safetensors file")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(experiment.audio, unfinished)
    (unfinished / "summary.json").unlink()
    with_store(unfinished, "is unfinished")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((experiment.audio / "model.safetensors").read_bytes()[:-1000])
    with_store(cut, "cut short")
    refused("evaluate", experiment.audio, tmp_path / "nowhere", says="nowhere does not exist; a store is a folder")


def set_in(*path: str) -> Callable[[Any], Callable[[dict[str, Any], State], None]]:
    def to(value: Any) -> Callable[[dict[str, Any], State], None]:
        def change(header: dict[str, Any], tensors: State) -> None:
            place = header
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = value

        return change

    return to


def drop_tensor(header: dict[str, Any], tensors: State) -> None:
    del tensors["audio.layer1.0.bn1.alpha"]


def add_tensor(header: dict[str, Any], tensors: State) -> None:
    tensors["audio.extra"] = torch.zeros(3)


def break_number(header: dict[str, Any], tensors: State) -> None:
    tensors["visual.conv1.0.weight"][0, 0, 0, 0] = math.nan


DAMAGE = {
    "no input": (set_in("spec", "input")(None), "has no input pipeline"),
    "words for a size": (set_in("spec", "input", "image_size")("large"), "damaged input pipeline (image_size: "),
    "negative": (set_in("spec", "input", "mel_bins")(-3), "damaged input pipeline (mel_bins: "),
    "huge": (set_in("spec", "input", "image_size")(10**9), "damaged input pipeline (image_size: "),
    "large": (
        set_in("spec", "input", "spectrogram_frames")(360_000),
        "damaged input pipeline (a clip would be 34560000 values",
    ),
    "std 0": (set_in("spec", "input", "std")(0), "damaged input pipeline (std: "),
    "mean nan": (set_in("spec", "input", "mean")(math.nan), "damaged input pipeline (mean: "),
    "pad": (set_in("spec", "input", "pad")(["zero"]), "damaged input pipeline (pad: "),
    "missing": (
        set_in("spec", "input")({"pad": "zero"}),
        "damaged input pipeline (object missing required field sample_rate",
    ),
    "twice": (set_in("classes")(["0", "0", "1"]), "not all different"),
    "no names": (set_in("classes")([0, 1, 2]), "damaged avpt header (classes[0]: expected str, got int)"),
    "classes": (set_in("spec", "num_classes")(10**12), "the number of classes is not that of their names"),
    "more classes": (set_in("classes")(["0", "1"]), "the number of classes"),
    "multi": (set_in("spec", "multi_label")("no"), "does not fit its own spec"),
    "fusion": (set_in("spec", "fusion")("blend"), "unknown fusion blend"),
    "no list": (set_in("spec", "fusion")([]), "does not fit its own spec"),
    "arch": (set_in("spec", "audio", "arch")("resnet9"), "unknown encoder"),
    "other arch": (set_in("spec", "audio", "arch")("resnet50"), "is missing"),
    "swapped": (set_in("spec", "audio", "modality")("visual"), "unknown fusion concat of visual and visual"),
    "tensor missing": (drop_tensor, "audio.layer1.0.bn1.alpha is missing"),
    "tensor unknown": (add_tensor, "audio.extra is unknown"),
    "not a number": (break_number, "holds values that are not numbers"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_one_line(experiment: Experiment, tmp_path: Path, name: str) -> None:
    change, says = DAMAGE[name]
    model = changed(experiment.fused / "model.safetensors", tmp_path / "bad.safetensors", change)
    for command in (
        ("evaluate", model, experiment.store),
        ("predict", model, experiment.manifest),
        ("export", model, "--format", "torch-export", "--modality", "audio", "--out", tmp_path / "e.pt2"),
    ):
        refused(*command, says=says)
    assert not (tmp_path / "e.pt2").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@given(st.data())
@settings(max_examples=8)  # each an evaluation
def test_any_spec_is_taken_or_refused_in_one_line(
    experiment: Experiment, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("spec", numbered=True)
    source = experiment.audio / "model.safetensors"
    spec = artifacts.read_header(source)[0].spec
    place = data.draw(
        st.sampled_from([("spec", name) for name in spec] + [("spec", "input", n) for n in spec["input"]])
    )
    path = folder / "model.safetensors"
    change = set_in(*place)(data.draw(JSON))
    header, tensors = artifacts.load(source, "classifier").header, load_file(source)
    values = json.loads(artifacts.format_header(header))
    change(values, tensors)
    artifacts.save(path, replace(header, **values), tensors)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("avpt.files.records.LARGEST_INPUT", 2**17)  # what is taken must not take hours
        result: Result = avpt("evaluate", path, experiment.store, *HERE, "--split", "test", "--quiet")
    path.unlink()
    assert result.code in (0, 1)
    if result.code:
        (line,) = result.stderr.splitlines()
        assert line.startswith("avpt: ")


def test_options_of_the_training_that_make_no_sense_are_not_believed(experiment: Experiment, tmp_path: Path) -> None:
    model = changed(
        experiment.audio / "model.safetensors",
        tmp_path / "m.safetensors",
        set_in("config")({"batch_size": "many", "val_fraction": -1, "channels_last": 3}),
    )
    assert evaluate(model, experiment.store)["clips"] == {"val": 9, "test": 9}


def test_the_spec_says_all_that_a_clip_file_needs_to_become_the_same_input(experiment: Experiment) -> None:
    spec = artifacts.read_header(experiment.audio / "model.safetensors")[0].spec["input"]
    assert {name: spec[name] for name in ("audio_dtype", "frame_codec", "frame_accuracy")} == {
        "audio_dtype": "float16",
        "frame_codec": "jpeg",
        "frame_accuracy": "exact",
    }
