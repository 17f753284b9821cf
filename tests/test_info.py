"""`avpt info` and what `avpt init` says: an encoder on one screen, one line where nothing is abnormal, other files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import avpt, done, touch

from avpt.files import artifacts
from avpt.models.abnormal_channels import norm_layers

SCREEN = 24  # lines of the smallest terminal in use


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder of random weights, one of these with ABRi, and one of weights of which some are abnormal."""
    folder = tmp_path_factory.mktemp("encoders")
    paths = {name: folder / f"{name}.safetensors" for name in ("plain", "abri", "worn")}
    done("init", "--modality", "audio", "--weights", "random", "--out", paths["plain"])
    done("init", "--modality", "audio", "--weights", paths["plain"], "--bn", "abri", "--out", paths["abri"])
    state = artifacts.load(paths["plain"], "encoder").tensors
    for layer in norm_layers(state)[:2]:
        state[f"{layer}.weight"][:4] = 0
    torch.save(state, folder / "worn.pt")
    done("init", "--modality", "audio", "--weights", folder / "worn.pt", "--out", paths["worn"])
    return paths


@pytest.mark.parametrize("name", ["plain", "abri", "worn"])
def test_an_encoder_fits_one_screen(encoders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(encoders[name].parent)
    monkeypatch.setenv("COLUMNS", "80")
    shown = done("info", encoders[name].name).stdout
    assert len(shown.splitlines()) < SCREEN
    abnormal = "8 of 4800 (0.2%) as loaded, in 2 of 20 layers" if name == "worn" else "none of 4800 as loaded"
    assert f"abnormal channels           {abnormal}" in shown
    assert ("120 loaded, 0 adapted, 0 dropped, 0 new" in shown) == (name != "plain")
    assert "conv1.weight" not in shown
    whole = done("info", encoders[name].name, "--tensors").stdout
    assert "--tensors" in shown
    assert "--tensors" not in whole
    rows = [line.split() for line in whole.splitlines()]
    for tensor, (dtype, shape) in artifacts.read_header(encoders[name])[1].items():
        assert [tensor, dtype, "x".join(map(str, shape)) or "scalar"] in rows
    assert ["layer1.0.bn1", "64", "4" if name == "worn" else "0"] in rows
    record = done("info", encoders[name].name, "--json").stdout
    assert json.loads(record)["metrics"]["layers"][0]["channels"] == 64
    assert record == done("info", encoders[name].name, "--json", "--tensors").stdout


def test_init_shows_layers_only_where_some_are_abnormal(encoders: dict[str, Path], tmp_path: Path) -> None:
    command = ("init", "--modality", "audio", "--out")
    none = done(*command, tmp_path / "r.safetensors", "--weights", "random").stderr
    says = "none of 4800 BatchNorm channels is abnormal as loaded, max(|gamma|, |beta|) < 1e-06"
    assert none.split() == says.split()
    some = done(*command, tmp_path / "w.safetensors", "--weights", encoders["worn"].with_suffix(".pt")).stderr
    rows = [line.split() for line in some.splitlines()]
    assert ["bn1", "64", "4", "6.2%"] in rows
    assert ["all", "4800", "8", "0.2%"] in rows


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("m.csv", "id,label,split,video\n", "is a manifest of clips; `avpt preprocess` makes a store of it"),
        ("m.csv", '\ufeff"label","split"\n', "is a manifest of clips; `avpt preprocess` makes a store of it"),
        ("runs.csv", "group,run\n", "is a table for spreadsheets (CSV); info takes the store, run folder or artifact"),
        ("report.HTML", "<html>", "is a page, such as `avpt report` writes; look at it in a browser"),
        ("metrics.jsonl", "{}", "info takes the run folder"),
        ("train-00000.h5", "", "is a shard of a store; info takes the folder"),
        ("clip.mp4", "", "is a media file; `avpt predict` labels it"),
    ],
)
def test_a_file_of_another_sort_is_told_with_what_takes_it(tmp_path: Path, name: str, text: str, says: str) -> None:
    touch(tmp_path, name)
    (tmp_path / name).write_text(text, encoding="utf-8")
    result = avpt("info", tmp_path / name)
    assert (result.code, result.stdout) == (1, "")
    assert says in result.error
    assert "safetensors" not in result.stderr
