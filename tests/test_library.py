"""`import avpt`: light, and what a notebook needs; the page of the manual is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Experiment, near
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

import avpt
from avpt.confidence.formulas import mask_ratios
from avpt.errors import ArtifactError, ConfigError, StoreError

PAGE = Path(__file__).parent.parent / "avpt" / "guide" / "library.md"


def test_the_page_runs_as_it_stands(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "store").symlink_to(experiment.store)
    (tmp_path / "runs" / "fused").symlink_to(experiment.fused)
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in code:
        exec(block, names)
    loop = code[0].partition("import avpt\n")[2]
    assert len([line for line in loop.splitlines() if line]) < 15


@pytest.mark.slow
def test_the_page_in_the_wheel_runs_with_what_the_wheel_has(experiment: Experiment, tmp_path: Path) -> None:
    root, wheels, installed = PAGE.parent.parent.parent, tmp_path / "wheels", tmp_path / "installed"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(root)]
    result = subprocess.run(build, capture_output=True, text=True, check=False)
    if result.returncode and "No matching distribution found for hatchling" in result.stderr:
        pytest.skip("hatchling, which builds the wheel, can't be had from PyPI here")
    assert result.returncode == 0, result.stderr
    (wheel,) = wheels.glob("avpt-*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    page = (installed / "avpt" / "guide" / "library.md").read_text(encoding="utf-8")
    (tmp_path / "runs").mkdir()
    (tmp_path / "store").symlink_to(experiment.store)
    (tmp_path / "runs" / "fused").symlink_to(experiment.fused)
    code = "\n".join([*re.findall(r"```python\n(.*?)```", page, re.DOTALL), "print(avpt.__file__)"])
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"{installed / 'avpt' / '__init__.py'}\n")


def test_importing_loads_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import avpt; print(sorted(set(sys.modules) - before))"
    environment = os.environ | {"PYTHONPATH": str(PAGE.parent.parent.parent)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout == "['avpt']\n"  # so that it takes the time of an empty package
    assert set(avpt.__all__) <= set(dir(avpt))
    code = "import avpt; print(avpt.errors.AvptError.__name__)"  # as the page names it, before anything else is loaded
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.stdout == "AvptError\n", result.stderr
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        getattr(avpt, "train")  # noqa: B009 - which a type checker would refuse


@pytest.mark.parametrize("run", ["fused", "audio", "visual"])
def test_a_model_fed_from_a_store_has_the_logits_on_record(experiment: Experiment, run: str) -> None:
    folder = getattr(experiment, run)
    model = avpt.load_model(folder)
    clips = avpt.open_store(experiment.store, "test", modalities=model.modalities, pipeline=model.pipeline)
    recorded = load_file(folder / "predictions.safetensors")["test_logits"]
    inputs = next(iter(DataLoader(clips, batch_size=len(clips))))
    with torch.no_grad():
        near(model(**{modality: inputs[modality] for modality in model.modalities}), recorded, 1e-4)


def test_a_model_fed_arrays_has_what_a_store_gives(experiment: Experiment) -> None:
    model = avpt.load_model(experiment.fused)
    clips = avpt.open_store(experiment.store, "val", pipeline=model.pipeline)
    stored = clips.arrays(1)
    assert torch.equal(model.visual_input(stored["frames"])[0], clips[1]["visual"])
    samples = np.random.default_rng(0).normal(0, 0.1, model.pipeline.sample_rate).astype(np.float32)
    inputs = model.audio_input(samples, model.pipeline.sample_rate)
    assert inputs.shape == (1, 1, model.pipeline.spectrogram_frames, model.pipeline.mel_bins)
    assert clips.classes == model.classes
    real = clips[1]["audio"][0, : len(stored["fbank"])]
    near(real, (torch.from_numpy(stored["fbank"]).float() - model.pipeline.mean) / (2 * model.pipeline.std))


def test_what_does_not_fit_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    model = avpt.load_model(experiment.fused)
    rate, other = model.pipeline.sample_rate, replace(model.pipeline, mel_bins=40)
    for call, says in (
        (lambda: model(), "the model takes audio and visual"),
        (lambda: model.audio_input(np.zeros((2, rate), np.float32), rate), "take the mean of its channels"),
        (lambda: model.audio_input(np.zeros(rate, np.float32), rate + 1), "resample it with"),
        (lambda: model.visual_input([]), "one or more"),
        (lambda: model.visual_input([np.zeros((2, 2, 3))]), "uint8"),
        (lambda: avpt.abri(nn.BatchNorm2d(2), alpha=2), "alpha is 2"),
        (lambda: avpt.abri("x"), "not for a str"),  # type: ignore[arg-type]
        (lambda: avpt.fold("x"), "not for a str"),  # type: ignore[arg-type]
        (lambda: avpt.abri(avpt.abri(nn.Sequential(nn.BatchNorm2d(2)))), "Sequential has ABRi layers already"),
        (lambda: avpt.inspect(5), "not a int"),  # type: ignore[arg-type]
        (lambda: avpt.inspect({"state_dict": 5}), "no tensors to inspect"),
        (lambda: avpt.open_store(5), "a store is opened by its path, not by a int"),  # type: ignore[arg-type]
        (lambda: avpt.load_model(None), "a trained model is opened by its path, not by a NoneType"),  # type: ignore[arg-type]
        (lambda: avpt.open_store(experiment.store, pipeline=model), "pipeline is a Model; it must be the pipeline of"),  # type: ignore[arg-type]
        (lambda: avpt.open_store(experiment.store, num_frames=0), "num_frames 0"),
        (lambda: avpt.open_store(experiment.store, modalities=["smell"]), "no modality 'smell'"),  # type: ignore[list-item]
        (lambda: avpt.inspect({}, [torch.zeros(1)]), "can't be fed"),
        (lambda: avpt.masking.ratios(torch.zeros(2), torch.zeros(3)), "of the same clips"),
        (lambda: avpt.masking.mask(torch.zeros(2, 1, 8, 8), torch.zeros(3), (2, 2)), "one for each clip"),
        (lambda: avpt.masking.mask(torch.zeros(2, 1, 8, 8), torch.zeros(2), (9, 9)), "larger than the 8x8 input"),
    ):
        with pytest.raises(ConfigError, match=says):
            call()
    with pytest.raises(ArtifactError, match="does not exist"):
        avpt.load_model(tmp_path / "nothing")
    with pytest.raises(StoreError, match="has mel_bins 32, the pipeline 40"):
        avpt.open_store(experiment.store, pipeline=other)
    with pytest.raises(StoreError, match="a store is a folder"):
        avpt.open_store(tmp_path / "nothing")
    with pytest.raises(IndexError):
        avpt.open_store(experiment.store, "val")[1000]


def test_masking_is_that_of_the_program() -> None:
    audio, visual = torch.rand(50), torch.rand(50)
    expected = mask_ratios(
        {"audio": audio, "visual": visual},
        mask="adaptive",
        rule="dominant",
        ratio={"audio": 0.5, "visual": 0.5},
        eta=1.0,
        threshold=0.5,
    )
    found = avpt.masking.ratios(audio, visual)
    assert torch.equal(found[0], expected["audio"])
    assert torch.equal(found[1], expected["visual"])

    inputs = torch.rand(4, 3, 3, 32, 32) + 1
    masked = avpt.masking.mask(inputs, torch.tensor([0.0, 0.25, 0.5, 1.0]), (8, 8))
    shares = (masked == 0).float().mean(dim=(2, 3, 4))
    assert torch.equal(shares, torch.tensor([0.0, 0.25, 0.5, 1.0])[:, None].expand(4, 3))
    assert torch.equal(masked[masked != 0], inputs[masked != 0])
    assert not torch.equal(masked[1, 0] == 0, masked[1, 1] == 0)  # each frame is masked separately


def test_inspect_counts_what_is_there() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    with torch.no_grad():
        network.get_parameter("1.weight").copy_(torch.tensor([1.0, 1e-8, 0.0, 1.0]))
        network.get_parameter("1.bias").copy_(torch.tensor([0.0, 1e-8, -1.0, 0.0]))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    (layer,) = avpt.inspect(network, [torch.randn(2, 1, 8, 8)])["layers"]
    assert layer == {"name": "1", "channels": 4, "abnormal": 1, "dead": 1}  # the second is small, the third is dead
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert avpt.inspect(network.state_dict())["dead_share"] is None
    half = {name: value.half() for name, value in network.state_dict().items()}
    half["1.bias"][2] = 0
    (layer,) = avpt.inspect(half, threshold=1e-10)["layers"]  # the threshold is 0 in half precision, and 1e-8 too
    assert layer["abnormal"] == 2


def test_what_is_asked_is_understood(experiment: Experiment) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    batch, optimizer = torch.randn(2, 1, 8, 8), torch.optim.SGD(network.parameters())
    checkpoint = {"state_dict": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    assert avpt.inspect(checkpoint) == avpt.inspect(network)
    assert avpt.inspect(network, batch) == avpt.inspect(network, [batch])
    assert avpt.fold(network) is network  # has no ABRi layers
    half = avpt.abri(nn.Sequential(avpt.abri(nn.BatchNorm1d(2)), nn.BatchNorm1d(2)))  # what is plain is converted
    assert len(half.state_dict()) == 2 * len(avpt.abri(nn.BatchNorm1d(2)).state_dict())
    sound = avpt.open_store(str(experiment.store), "val", modalities="audio")  # type: ignore[arg-type]
    assert set(sound[0]) == {"audio", "label"}
