"""`avpt probe`: features against the runs' own logits, the fit against scikit-learn, the test against binomials."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    STORE_OPTIONS,
    TRAIN_OPTIONS,
    WIDTH,
    Experiment,
    avpt,
    digit_rows,
    done,
    near,
    refused,
    write_manifest,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor

from avpt.commands.probe import in_words
from avpt.diagnosis.linear_probes import STRENGTHS, fit_probe, mcnemar
from avpt.files import artifacts
from avpt.files.outputs import sha256

HERE = ("--workers", "0", "--device", "cpu")


def probe(*arguments: str | Path) -> dict[str, Any]:
    return done("probe", *arguments, "--json", *HERE).json()


def expected(tensors: dict[str, Tensor], prefix: str = "") -> tuple[float, float, float]:
    """Strength, accuracy on val and accuracy on test, worked out from the kept features."""
    parts = {split: tensors[f"{prefix}{split}_features"].double().numpy() for split in ("train", "val", "test")}
    labels = {split: tensors[f"{split}_labels"].numpy() for split in parts}
    mean, std = parts["train"].mean(axis=0), parts["train"].std(axis=0)
    scaled = {split: (values - mean) / np.where(std < 1e-12, 1, std) for split, values in parts.items()}
    best = (-1.0, 0.0, 0.0)
    for power in range(-4, 3):
        fitted = LogisticRegression(C=10.0**power, max_iter=10_000, tol=1e-8).fit(scaled["train"], labels["train"])
        val, test = (float((fitted.predict(scaled[name]) == labels[name]).mean()) for name in ("val", "test"))
        best = max(best, (val, -(10.0**power), test))  # of equals the smallest
    return -best[1], best[0], best[2]


# --- features and fit ------------------------------------------------------------------------------------------------


def test_features_are_those_that_the_classifier_saw(experiment: Experiment, tmp_path: Path) -> None:
    record = probe(experiment.audio, experiment.store, "--out", tmp_path / "p.safetensors")
    actual, ran = load_file(tmp_path / "p.safetensors"), load_file(experiment.audio / "predictions.safetensors")
    head = load_file(experiment.audio / "model.safetensors")
    for split in ("val", "test"):
        assert artifacts.unpack_ids(actual, f"{split}_") == artifacts.unpack_ids(ran, f"{split}_")
        assert torch.equal(actual[f"{split}_labels"], ran[f"{split}_labels"])
        logits = actual[f"{split}_features"] @ head["head.weight"].T + head["head.bias"]
        near(logits, ran[f"{split}_logits"])
    dynamics = load_file(experiment.audio / "dynamics.safetensors")
    assert artifacts.unpack_ids(actual, "train_") == artifacts.unpack_ids(dynamics)
    assert actual["train_features"].shape == (18, WIDTH)
    assert (record["modality"], record["clips"]) == ("audio", {"train": 18, "val": 9, "test": 9})
    assert "stage1" not in record
    strength, val, test = expected(actual)
    assert (record["strength"], record["accuracy"]) == (strength, {"val": val, "test": test})


@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_a_fused_run_beside_what_went_in(experiment: Experiment, tmp_path: Path, modality: str) -> None:
    out = tmp_path / "p.safetensors"
    record = probe(experiment.fused, experiment.store, "--modality", modality, "--out", out)
    actual = load_file(out)
    # of a concat fusion the share of one modality is its part of the linear layer and half of the bias
    fusion = load_file(experiment.fused / "model.safetensors")
    half = slice(None, WIDTH) if modality == "audio" else slice(WIDTH, None)
    weight = fusion["fusion.linear.weight"][:, half]
    shares = load_file(experiment.fused / "predictions.safetensors")
    logits = actual["test_features"] @ weight.T + fusion["fusion.linear.bias"] / 2
    near(logits, shares[f"test_{modality}_logits"])
    # what went in is found by its checksum, and probed as it would be alone
    alone = tmp_path / "alone.safetensors"
    before = probe(getattr(experiment, modality), experiment.store, "--out", alone)
    assert torch.equal(load_file(alone)["test_features"], actual["stage1_test_features"])
    assert record["stage1"] == {name: before[name] for name in ("accuracy", "strength", "converged")}
    for said, prefix in ((record, ""), (record["stage1"], "stage1_")):
        strength, val, test = expected(actual, prefix)
        assert (said["strength"], said["accuracy"]) == (strength, {"val": val, "test": test})
    for split in ("val", "test"):
        gained = record["accuracy"][split] - record["stage1"]["accuracy"][split]
        assert record["difference"][split] == pytest.approx(gained)
    right = [
        (actual["test_features"].double() @ actual["weight"].T + actual["bias"]).argmax(1),
        (actual["stage1_test_features"].double() @ actual["stage1_weight"].T + actual["stage1_bias"]).argmax(1),
    ]
    joint, stage1 = (guess == actual["test_labels"] for guess in right)
    assert joint.double().mean() == pytest.approx(record["accuracy"]["test"])
    assert record["mcnemar"]["joint_only"] == int((joint & ~stage1).sum())
    assert record["mcnemar"]["stage1_only"] == int((~joint & stage1).sum())
    header, _ = artifacts.read_header(out)
    assert (header.kind, header.classes) == ("probe", ["0", "1", "2"])
    assert header.inputs["stage1"] == sha256(getattr(experiment, modality) / "model.safetensors")
    assert header.inputs["model"] == sha256(experiment.fused / "model.safetensors")


def test_the_table_says_what_it_means(experiment: Experiment) -> None:
    result = done("probe", experiment.fused, experiment.store, "--modality", "audio", *HERE)
    assert "of 9 test clips are right with the joint encoder alone" in result.stdout
    assert "McNemar" in result.stdout
    assert "no difference that these clips can show" in " ".join(result.stdout.split())  # which so few never can
    assert [word in result.stdout for word in ("joint", "stage 1", "difference")] == [True] * 3
    assert [line for line in result.stdout.splitlines() if len(line) > 80] == []
    steps = (
        "looking for what ",
        "loading ",
        "features of val by ",
        "features of val by ",
        "fitting a linear classifier",
    )
    said = iter(result.stderr.splitlines())
    assert all(any(line.startswith(step) for line in said) for step in steps), result.stderr  # in this order


def test_an_encoder_that_was_never_trained(experiment: Experiment, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    size = ("--image-size", "32", "--num-frames", "1")
    record = probe(experiment.visual_init, experiment.store, *size, "--out", out)
    assert record["accuracy"]["test"] == expected(load_file(out))[2]


# --- the artifact --------------------------------------------------------------------------------------------------


def test_again_is_nothing_and_other_options_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    command = (experiment.visual, experiment.store, "--out", out)
    record = probe(*command)
    first = out.read_bytes()
    out.touch()
    when = out.stat().st_mtime_ns
    assert probe(*command) == record
    assert out.stat().st_mtime_ns == when
    refused("probe", *command, "--batch-size", "4", *HERE, says="batch_size: nothing there, 4 now")
    refused(
        "probe", experiment.audio, experiment.store, "--out", out, *HERE, says="was made with other options or inputs"
    )
    done("probe", *command, "--overwrite", *HERE)
    assert out.read_bytes() == first
    assert done("probe", *command, *HERE).stdout == f"{out}\n"


def test_others_see_what_it_is(experiment: Experiment, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    probe(experiment.visual, experiment.store, "--out", out)
    info = done("info", out, "--json").json()
    assert info["kind"] == "probe"
    assert info["tensors"]["train_features"]["shape"] == [18, WIDTH]
    for command in (
        ("evaluate", out, experiment.store),
        ("init", "--modality", "visual", "--weights", out, "--out", tmp_path / "i.safetensors"),
        ("export", out, "--format", "torchvision", "--out", tmp_path / "e.safetensors"),
        ("probe", out, experiment.store),
    ):
        result = avpt(*command, "--quiet")
        assert result.code == 1
        assert str(out) in result.stderr


# --- other stores --------------------------------------------------------------------------------------------------


def stored(folder: Path, rows: list[dict[str, str]], *options: str) -> Path:
    manifest = write_manifest(folder / "other.csv", rows)
    done("preprocess", manifest, "--out", folder / "other", *STORE_OPTIONS, *options)
    return folder / "other"


def test_several_labels(experiment: Experiment, tmp_path: Path) -> None:
    rows = [row | {"label": f"{row['label']};{'low' if row['label'] < '2' else 'high'}"} for row in digit_rows()]
    store, out = stored(tmp_path, rows, "--multi-label"), tmp_path / "p.safetensors"
    command = ("fuse-train", store, "--audio", experiment.audio, "--visual", experiment.visual, *TRAIN_OPTIONS)
    done(*command, "--epochs", "1", "--mask", "none", "--out", tmp_path / "fused")
    record = probe(
        tmp_path / "fused", store, "--modality", "visual", "--stage1", experiment.visual, "--out", out
    )  # whose own clips have one label each
    actual = load_file(out)
    labels = actual["test_labels"].numpy()
    logits = (actual["test_features"].double() @ actual["weight"].T + actual["bias"]).numpy()
    assert record["map"]["test"] == pytest.approx(average_precision_score(labels, logits, average="macro"))
    assert "accuracy" not in record
    assert "mcnemar" not in record
    assert record["difference"]["test"] == pytest.approx(record["map"]["test"] - record["stage1"]["map"]["test"])


def test_a_store_without_val_and_test(experiment: Experiment, tmp_path: Path) -> None:
    store = stored(tmp_path, [row for row in digit_rows() if row["split"] == "train"])
    result = done("probe", experiment.fused, store, "--modality", "visual", "--json", *HERE)
    record = result.json()
    assert record["clips"] == {"train": 16, "val": 2}
    assert "2 of 18 training clips are set aside to choose the probe's strength" in result.stderr
    assert record["accuracy"]["test"] is None
    assert record["difference"]["test"] is None
    said = done("probe", experiment.fused, store, "--modality", "visual", *HERE).stdout
    assert [line.split()[0] for line in said.splitlines() if line.startswith((" val", " test"))] == ["val"]
    (tmp_path / "held").mkdir()
    held_out = stored(tmp_path / "held", [row for row in digit_rows() if row["split"] != "train"])
    refused("probe", experiment.visual, held_out, *HERE, says="has no training clips")


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_the_stage_1_encoder_is_not_to_be_found(experiment: Experiment, tmp_path: Path) -> None:
    away = tmp_path / "one" / "two" / "fused.safetensors"
    away.parent.mkdir(parents=True)
    shutil.copy(experiment.fused / "model.safetensors", away)
    command = ("probe", away, experiment.store, "--modality", "visual", "--json", *HERE)
    result = done(*command)
    assert "--stage1" in result.stderr
    assert "--search" in result.stderr
    assert result.json().keys() >= {"accuracy", "strength"}
    assert "stage1" not in result.json()
    for actual in (("--stage1", experiment.visual), ("--search", experiment.folder)):
        result = done(*command, *actual)
        assert "warning" not in result.stderr
        assert "stage1" in result.json()
    recorded, other = sha256(experiment.visual / "model.safetensors"), sha256(experiment.visual_init)
    refused("probe", *command[1:4], "visual", "--stage1", experiment.visual_init, *HERE, says=other[:12])
    refused("probe", *command[1:4], "visual", "--stage1", experiment.visual_init, *HERE, says=recorded[:12])


def test_joint_training_straight_from_init(experiment: Experiment, tmp_path: Path) -> None:
    """It is compared with the encoder trained alone from the same start; fresh ABRi can't be probed itself."""
    near = tmp_path / "far" / "from" / "others"
    near.mkdir(parents=True)
    init, fused = shutil.copy(experiment.audio_init, near / "init.safetensors"), near / "fused"
    command = ("fuse-train", experiment.store, "--audio", init, "--visual", experiment.visual)
    done(*command, *TRAIN_OPTIONS, "--epochs", "1", "--mask", "none", "--out", fused)
    again = ("probe", fused, experiment.store, "--modality", "audio", *HERE)
    result = done(*again, "--json")
    assert "no run was found that was trained alone from it" in result.stderr
    assert "there is no stage-1 encoder to compare with" in result.stderr
    assert "stage1" not in result.json()
    alone = done("probe", experiment.audio, experiment.store, *HERE, "--json").json()
    shutil.copytree(experiment.audio, near / "alone")
    for where in ((), ("--stage1", experiment.audio)):
        record = done(*again, *where, "--json").json()
        assert record["stage1"] == {name: alone[name] for name in ("accuracy", "strength", "converged")}
    shutil.copytree(experiment.audio, near / "copy")
    result = done(*again, "--json")
    assert "of 2 runs that were trained alone from it none is preferred" in result.stderr
    assert "stage1" not in result.json()
    refused(*again, "--stage1", experiment.audio_init, says="has no statistics yet")
    refused(*again, "--stage1", experiment.visual, says="nor trained alone from it")
    refused("probe", experiment.audio_init, experiment.store, *HERE, says="has no statistics yet")


def test_bad_input(experiment: Experiment, tmp_path: Path) -> None:
    store = experiment.store
    refused(
        "probe", experiment.fused, store, *HERE, says="holds two encoders; add --modality audio or --modality visual"
    )
    refused("probe", experiment.audio, store, "--modality", "visual", *HERE, says="which takes audio input")
    refused("probe", experiment.audio, store, "--stage1", experiment.audio, *HERE, says="--stage1 is for fused models")
    refused("probe", experiment.confidence, store, *HERE, says="is of kind confidence")
    refused("probe", tmp_path / "nothing", store, *HERE, says="does not exist")
    refused("probe", experiment.audio, tmp_path / "nothing", *HERE, says="does not exist")
    (tmp_path / "begun" / "checkpoint").mkdir(parents=True)
    refused("probe", tmp_path / "begun", store, *HERE, says="is unfinished")
    (tmp_path / "mine.safetensors").write_text("mine")
    refused(
        "probe", experiment.audio, store, "--out", tmp_path / "mine.safetensors", *HERE, says="was not written by avpt"
    )
    silent = [{name: row[name] for name in ("id", "label", "split", "frames")} for row in digit_rows()]
    quiet = tmp_path / "silent"
    quiet.mkdir()
    refused("probe", experiment.audio, stored(quiet, silent), *HERE, says="no clip of train has sound")


# --- the parts -------------------------------------------------------------------------------------------------------


def right(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def test_two_classes_and_a_feature_that_is_constant() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    features = random.normal(size=(60, 3)) + np.stack([3.0 * labels, 0 * labels, 0 * labels], axis=1)
    features[:, 1] = 7.0
    fitted = fit_probe((features, labels), (features, labels), right)
    assert fitted.weight.shape == (2, 3)
    assert fitted.strength in STRENGTHS
    scaled = (features - features.mean(0)) / np.where(features.std(0) < 1e-9, 1, features.std(0))
    reference = LogisticRegression(C=fitted.strength, max_iter=10_000, tol=1e-8).fit(scaled, labels)
    lead = fitted.logits(features) @ [-1, 1]
    assert np.allclose(lead, reference.decision_function(scaled), atol=1e-3)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("classes", [2, 7])
def test_a_fit_is_at_the_optimum_where_it_says_so(classes: int, strength: float) -> None:
    """With more features than clips: the loss pulls at the weights as hard as the penalty holds them back."""
    random = np.random.default_rng(0)
    labels = np.arange(84) % classes
    features = random.normal(size=(84, 200)) * random.uniform(0.01, 10, 200) + 5 + 0.3 * labels[:, None]
    scores = iter([float(other == strength) for other in STRENGTHS])
    fitted = fit_probe((features, labels), (features, labels), lambda logits, labels: next(scores))
    assert (fitted.strength, fitted.converged) == (strength, True)
    logits = fitted.logits(features)
    errors = np.exp(logits - logsumexp(logits, axis=1, keepdims=True)) - np.eye(classes)[labels]
    pull = errors.T @ ((features - features.mean(0)) / features.std(0))
    # of two classes scikit-learn holds back the lead of the second, which is twice the weight here
    hold = fitted.weight * features.std(0) / strength * (2 if classes == 2 else 1)
    assert np.linalg.norm(pull + hold) < 1.5e-3 * np.linalg.norm(hold)
    assert np.linalg.norm(errors.mean(0)) < 1e-3


def test_of_equal_strengths_the_smallest() -> None:
    features = np.array([[-1.0], [1.0]] * 5)
    labels = np.array([0, 1] * 5)
    assert fit_probe((features, labels), (features, labels), right).strength == STRENGTHS[0]
    values = iter([0.1, 0.7, 0.7, 0.2, 0.7, 0.7, 0.1])
    assert fit_probe((features, labels), (features, labels), lambda logits, labels: next(values)).strength == 1e-3


def test_a_label_that_every_clip_has() -> None:
    random = np.random.default_rng(0)
    labels = np.stack([np.ones(20), np.arange(20) % 2, np.arange(20) % 2], axis=1)
    features = random.normal(size=(20, 4)) + labels[:, 1:2]
    fitted = fit_probe((features, labels), (features, labels), lambda logits, labels: 0.0)
    assert not fitted.weight[0].any()
    assert fitted.weight[1].any()
    assert np.array_equal(fitted.weight[1], fitted.weight[2])


def test_a_fit_that_does_not_end_says_so_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avpt.diagnosis.linear_probes.MOST_STEPS", 1)
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(90, 5)), np.arange(90) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fit_probe((features, labels), (features, labels), right).converged


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_mcnemar_by_its_definition(clips: list[tuple[bool, bool]]) -> None:
    first, second = (np.array([clip[i] for clip in clips], dtype=bool) for i in (0, 1))
    actual = mcnemar(first, second)
    a, b = sum(x and not y for x, y in clips), sum(y and not x for x, y in clips)
    assert (actual["joint_only"], actual["stage1_only"]) == (a, b)
    tail = sum(math.comb(a + b, i) for i in range(min(a, b) + 1)) / 2 ** (a + b)
    assert actual["p"] == pytest.approx(min(1.0, 2 * tail))
    json.dumps(actual)


@pytest.mark.parametrize(("joint", "before", "says"), [(1, 20, "lost"), (20, 1, "gained"), (4, 6, "no difference")])
def test_words_go_by_the_test(joint: int, before: int, says: str) -> None:
    first = np.array([True] * joint + [False] * before + [True] * 50)
    second = np.array([False] * joint + [True] * before + [True] * 50)
    said = in_words({"clips": {"test": len(first)}, "mcnemar": mcnemar(first, second)})
    assert sum(word in said for word in ("lost", "gained", "no difference")) == 1
    assert says in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 80
