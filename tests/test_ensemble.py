"""`avpt evaluate --ensemble`: two classifiers as one, against their own predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import STORE_OPTIONS, TRAIN_OPTIONS, Experiment, digit_rows, done, refused, write_manifest
from safetensors.torch import load_file
from torch import Tensor

from avpt.files import artifacts
from avpt.training import metrics

HERE = ("--workers", "0", "--device", "cpu")


def predictions(run: Path, split: str) -> Tensor:
    return load_file(run / "predictions.safetensors")[f"{split}_logits"]


def test_it_is_the_mean_of_both_models_log_probabilities(experiment: Experiment, tmp_path: Path) -> None:
    models = (experiment.audio, experiment.store, "--ensemble", experiment.visual)
    outputs = ("--out", tmp_path / "record.json", "--predictions", tmp_path / "p.safetensors")
    done("evaluate", *models, *outputs, *HERE)
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    tensors = load_file(tmp_path / "p.safetensors")
    for split in ("val", "test"):
        audio, visual = (predictions(run, split).log_softmax(dim=1) for run in (experiment.audio, experiment.visual))
        torch.testing.assert_close(tensors[f"{split}_logits"], (audio + visual) / 2)
        labels = tensors[f"{split}_labels"]
        expected = metrics.measure((audio + visual) / 2, labels)
        expected |= {"audio_accuracy": metrics.accuracy(audio, labels)}
        expected |= {"visual_accuracy": metrics.accuracy(visual, labels)}
        assert record[split] == pytest.approx(expected)
    assert record["inputs"]["ensemble"] == artifacts.model_hash(experiment.visual)

    turned = done(
        "evaluate", experiment.visual, experiment.store, "--ensemble", experiment.audio, "--json", *HERE
    ).json()
    assert turned["ensemble"] == str(experiment.audio)
    assert turned["test"] == pytest.approx(record["test"])
    assert "was there already" in done("evaluate", *models, *outputs, *HERE).stderr
    alone = ("evaluate", experiment.audio, experiment.store, "--out", tmp_path / "record.json", *HERE)
    refused(*alone, says="ensemble")


def test_two_models_that_are_no_ensemble(experiment: Experiment, tmp_path: Path) -> None:
    def refuse(second: Path, says: str, *options: str) -> None:
        refused("evaluate", experiment.audio, experiment.store, "--ensemble", second, *options, *HERE, says=says)

    refuse(experiment.audio, "are both of audio input")
    refuse(experiment.fused, f"{experiment.fused} is a fused model")
    refuse(experiment.visual, "--drop does not go with --ensemble", "--drop", "audio")
    refuse(experiment.visual_init, "visual-init")
    refuse(tmp_path / "nothing", "does not exist")
    header, tensors = (
        artifacts.load(artifacts.model_file(experiment.visual), "classifier").header,
        load_file(artifacts.model_file(experiment.visual)),
    )
    header.classes[:] = ["0", "1", "x"]
    artifacts.save(tmp_path / "other.safetensors", header, tensors)
    refuse(tmp_path / "other.safetensors", "know different classes (2 in")


def test_several_labels(experiment: Experiment, tmp_path: Path) -> None:
    rows = [row | {"label": f"{row['label']};{'low' if row['label'] < '2' else 'high'}"} for row in digit_rows()]
    manifest, store = write_manifest(tmp_path / "rows.csv", rows), tmp_path / "store"
    done("preprocess", manifest, "--out", store, *STORE_OPTIONS, "--multi-label")
    for modality, init in (("audio", experiment.audio_init), ("visual", experiment.visual_init)):
        command = ("finetune-unimodal", store, "--modality", modality, "--init", init, *TRAIN_OPTIONS)
        done(*command, "--epochs", "1", "--out", tmp_path / modality)
    done(
        *("evaluate", tmp_path / "audio", store, "--ensemble", tmp_path / "visual", *HERE),
        *("--predictions", tmp_path / "p.safetensors"),
    )
    mean = (predictions(tmp_path / "audio", "test") + predictions(tmp_path / "visual", "test")) / 2
    torch.testing.assert_close(load_file(tmp_path / "p.safetensors")["test_logits"], mean)
