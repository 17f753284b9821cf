"""What a command can read from its inputs is not asked again, and what is given by mistake is met with the way on."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torchvision
from helpers import PATCHES, Experiment, avpt, done, refused, state_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from avpt.errors import AvptError
from avpt.loading.dataset import Masking
from avpt.models.encoder import EncoderSpec, build_encoder
from avpt.models.weights import init_command, init_step
from avpt.runs.folder import expand_folders, read_run
from avpt.runs.groups import options_of
from avpt.runs.lineage import Lineage

Words = tuple[str | Path, ...]
TRAINING = (
    *("--epochs", "2", "--batch-size", "8", "--lr", "0.02", "--schedule", "constant", "--workers", "0"),
    *("--crop-scale", "1", "1", "--no-flip", "--device", "cpu"),
)


def fusing(experiment: Experiment, *options: str | Path) -> Words:
    """The fusion command of the experiment without what its inputs were made with."""
    encoders = ("--audio", experiment.audio, "--visual", experiment.visual)
    confidence = ("--confidence", experiment.confidence, "--mask-threshold", "0.1")
    return ("fuse-train", experiment.store, *encoders, *confidence, *TRAINING, *options)


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Masking | None]:
    """What runs would mask, which end before they train."""
    seen: list[Masking | None] = []

    def train(*arguments: Any) -> dict[str, Any]:
        *_, begin, _, masking = arguments
        begin()
        seen.append(masking)
        return {"val": {"accuracy": 0.0}, "test": None, "best_epoch": 1, "epochs": 1}

    monkeypatch.setattr("avpt.runs.training_run.train", train)
    return seen


def config_of(run: Path) -> dict[str, Any]:
    return read_run(run).config


def test_a_run_that_was_told_everything_is_the_one_that_reads_it(
    experiment: Experiment, tmp_path: Path, masks: list[Masking | None]
) -> None:
    before = state_of(experiment.fused)
    assert done(*fusing(experiment), "--out", experiment.fused).stdout == f"{experiment.fused}\n"
    assert state_of(experiment.fused) == before
    result = done(*fusing(experiment), "--out", tmp_path / "run")
    assert config_of(tmp_path / "run") == config_of(experiment.fused)
    assert f"taken from {experiment.visual}: --image-size 32 --num-frames 1\n" in result.stderr
    assert f"taken from {experiment.confidence}: --audio-patch 6x4 --visual-patch 4\n" in result.stderr
    again = avpt(*fusing(experiment), "--image-size", "40", "--out", experiment.fused)
    assert "image_size: 32 there, 40 now" in again.error


def test_what_is_typed_wins(experiment: Experiment, tmp_path: Path, masks: list[Masking | None]) -> None:
    typed = ("--image-size", "40", "--num-frames", "2", "--audio-patch", "8", "--visual-patch", "5x4")
    result = done(*fusing(experiment, *typed), "--out", tmp_path / "run")
    assert "taken from" not in result.stderr
    assert f"{experiment.visual} was trained at --image-size 32, this run is at 40" in result.stderr
    config = config_of(tmp_path / "run")
    assert [config[name] for name in ("image_size", "num_frames", "audio_patch", "visual_patch")] == [
        40,
        2,
        "8x8",
        "5x4",
    ]
    (masking,) = masks
    assert masking is not None
    assert masking.patch == {"audio": (8, 8), "visual": (5, 4)}
    refused(
        *fusing(experiment, "--image-size", "8", "--visual-patch", "9"),
        *("--out", tmp_path / "x"),
        says="--visual-patch 9x9 is larger than the 8x8 input",
    )


def test_patches_of_the_confidence_that_do_not_fit_are_one_line(
    experiment: Experiment, tmp_path: Path, masks: list[Masking | None]
) -> None:
    runs, out = ("--audio", experiment.audio, "--visual", experiment.visual), tmp_path / "large.safetensors"
    done("score-confidence", *runs, "--audio-patch", "6x4", "--visual-patch", "30", "--out", out)
    large = ("--confidence", out, "--image-size", "16", "--out", tmp_path / "run")
    refused(*fusing(experiment), *large, says="--visual-patch 30x30 is larger than the 16x16 input")
    assert not (tmp_path / "run").exists()
    done("score-confidence", *runs, "--audio-patch", "6x4", "--visual-patch", "30x30", "--out", out)
    refused("score-confidence", *runs, *PATCHES, "--out", out, says="visual_patch: 30 there, 4 now")


def test_encoders_fresh_from_init_are_fed_as_the_paper_has_it(
    experiment: Experiment, tmp_path: Path, masks: list[Masking | None]
) -> None:
    encoders = ("--audio", experiment.audio_init, "--visual", experiment.visual_init)
    result = done("fuse-train", experiment.store, *encoders, *TRAINING, "--mask", "none", "--out", tmp_path / "run")
    assert "taken from" not in result.stderr
    config = config_of(tmp_path / "run")
    assert (config["image_size"], config["num_frames"], "audio_patch" in config) == (224, 3, False)


def without_patches(path: Path, copy: Path) -> Path:
    """A confidence as avpt wrote it before patches were kept there."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["avpt"])
    del header["config"]["audio_patch"], header["config"]["visual_patch"]
    save_file(load_file(path), copy, {"avpt": json.dumps(header)})
    return copy


def test_a_confidence_without_patches_is_still_good(
    experiment: Experiment, tmp_path: Path, masks: list[Masking | None]
) -> None:
    older = without_patches(experiment.confidence, tmp_path / "older.safetensors")
    before = state_of(older)
    runs = ("--audio", experiment.audio, "--visual", experiment.visual)
    assert done("score-confidence", *runs, *PATCHES, "--out", older).stdout == f"{older}\n"
    assert state_of(older) == before
    done(*fusing(experiment, "--confidence", older), "--out", tmp_path / "run")
    config = config_of(tmp_path / "run")
    assert (config["audio_patch"], config["visual_patch"]) == ("32x8", 10)


def test_patches_that_a_confidence_suggests_make_no_group(experiment: Experiment) -> None:
    class Known:
        def follow(self, *_: Any) -> None:
            """Look for nothing."""

        def whole_config(self, *_: Any) -> dict[str, Any]:
            suggested = {"confidence.audio_patch": "8x8", "model.confidence.visual_patch": 4}
            return {"audio_patch": "6x4", "confidence.missing": "error", **suggested}

    made = SimpleNamespace(kind="fused", config={}, inputs={}, path=Path())
    options = options_of(cast(Any, made), cast(Lineage, Known()))
    assert options == {"model": "joint", "audio_patch": "6x4", "confidence.missing": "error"}


# --- other people's weights --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other people's") / "resnet.pt"
    torch.save({"state_dict": torchvision.models.resnet18(weights=None).state_dict()}, path)
    return path


def test_a_checkpoint_is_met_with_the_command_that_makes_an_encoder_of_it(
    experiment: Experiment, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ("finetune-unimodal", experiment.store, *TRAINING, "--out", tmp_path / "run")
    met = {
        "audio": refused(*train, "--modality", "audio", "--init", checkpoint, says="is a PyTorch checkpoint"),
        "visual": refused("info", checkpoint, says="is a PyTorch checkpoint; make an encoder of it with"),
    }
    for modality in ("audio", "visual"):
        given = fusing(experiment, f"--{modality}", checkpoint, "--out", tmp_path / "run")
        (command,) = re.findall("`(.*)`", refused(*given, says="is a PyTorch checkpoint").error)
        assert f"`{command}`" in met[modality].error
        program, *words = shlex.split(command)
        assert (program, words[:5]) == ("avpt", ["init", "--modality", modality, "--weights", str(checkpoint)])
        assert done(*words).stdout == f"{modality}-init.safetensors\n"
    refused("evaluate", checkpoint, experiment.store, says=f"`avpt info {checkpoint}` names the command")
    assert not (tmp_path / "run").exists()


def test_the_command_names_the_architecture_and_the_modality_of_the_weights(tmp_path: Path) -> None:
    plain = build_encoder(EncoderSpec("resnet50", "audio", "batchnorm")).state_dict()
    torch.save({f"module.{name}": value for name, value in plain.items()}, tmp_path / "a b.pt")
    options = f"--arch resnet50 --weights '{tmp_path / 'a b.pt'}'"
    assert init_command(tmp_path / "a b.pt") == f"avpt init --modality audio {options} --out audio-init.safetensors"
    torch.save({"features.weight": torch.zeros(2, 3, 1, 1)}, tmp_path / "unlike.pt")
    step = init_step(tmp_path / "unlike.pt")
    assert "`avpt init --modality visual --arch NAME --weights " in step
    assert step.endswith("` (NAME: one that `avpt encoders` lists; none of them was recognised)")
    torch.save(torch.nn.Linear(2, 3), tmp_path / "network.pt")
    step = init_step(tmp_path / "network.pt", then=", then")
    assert re.search("`avpt init` can't take it: .*network.pt .*state_dict", step)
    assert ", then" not in step
    assert "NAME" not in init_step(tmp_path / "a b.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    assert "--modality audio --weights" in init_command(tmp_path / "list.pt", "audio")


# --- folders of runs ---------------------------------------------------------------------------------------------


def test_a_folder_stands_for_the_runs_in_it(experiment: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "one" / "two" / "runs"
    for name in ("seed-0/audio", "seed-1/audio", "fused"):
        shutil.copytree(getattr(experiment, name.split("/")[-1]), folder / name, ignore=shutil.ignore_patterns("*.pt"))
    shutil.copy(experiment.confidence, folder / "seed-0")
    shutil.copytree(experiment.store, folder / "store")
    (folder / ".hidden").mkdir()
    runs = [folder / name for name in ("fused", "seed-0/audio", "seed-1/audio")]
    assert expand_folders([folder]) == runs
    assert expand_folders([runs[1], folder / "store"]) == [runs[1], folder / "store"]
    result = done("compare", folder, "--json")
    assert result.json()["groups"] == done("compare", *runs, "--json").json()["groups"]
    assert f"3 run(s) in {folder}; passed over, being none: seed-0/confidence.safetensors, store\n" in result.stderr
    refused("compare", folder / "store", says="is not a run folder")


def test_report_takes_a_folder_of_runs(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(experiment.fused, tmp_path / "runs" / "fused", ignore=shutil.ignore_patterns("*.pt"))
    (tmp_path / "runs" / "notes.txt").touch()

    def gather(paths: list[Path], search: object) -> None:
        raise AvptError(f"gathered {[path.name for path in paths]}")

    monkeypatch.setattr("avpt.report.experiment.gather", gather)
    result = avpt("report", tmp_path / "runs", "--out", tmp_path / "page.html")
    assert result.error == "avpt: gathered ['fused']"
    assert "passed over, being none: notes.txt" in result.stderr
