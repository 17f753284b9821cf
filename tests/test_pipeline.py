"""All five commands on videos with sound, as a user would run them: three films cut into segments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import avpt, done, write_manifest
from media import FILMS, Clips
from safetensors import safe_open
from safetensors.torch import load_file

TRAIN = (
    *("--epochs", "2", "--batch-size", "8", "--lr", "0.01", "--image-size", "48", "--crop-scale", "0.5", "1"),
    *("--spec-augment", "8", "10", "--schedule", "cosine", "--workers", "1", "--device", "cpu"),
)
PATCHES = ("--audio-patch", "10x8", "--visual-patch", "6")


@pytest.fixture(scope="module")
def run(clips: Clips, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment on three films, split by time."""
    folder = tmp_path_factory.mktemp("films")
    rows = []
    for name, seconds in FILMS.items():  # each is a class, of which the first part is train, the last test
        for start in range(seconds):
            split = ("train", "val", "test")[(start >= 0.6 * seconds) + (start >= 0.8 * seconds)]
            file = {"label": Path(name).stem, "split": split, "video": str(clips[name])}
            rows.append(file | {"start": str(start), "end": str(start + 1)})
    write_manifest(folder / "manifest.csv", rows)
    store, out = folder / "store", {name: folder / name for name in ("visual", "audio", "fused")}
    done("preprocess", folder / "manifest.csv", "--out", store, "--spectrogram-frames", "100", "--fps", "3")
    done("init", "--modality", "visual", "--weights", "random", "--out", folder / "v.safetensors")
    done(
        "init",
        "--modality",
        "audio",
        "--weights",
        folder / "v.safetensors",
        "--bn",
        "abri",
        "--out",
        folder / "a.safetensors",
    )
    for modality, init in (("visual", "v"), ("audio", "a")):
        chosen = ("--modality", modality, "--init", folder / f"{init}.safetensors", "--out", out[modality])
        done("finetune-unimodal", store, *chosen, *TRAIN)
    runs = ("--audio", out["audio"], "--visual", out["visual"])
    done("score-confidence", *runs, *PATCHES, "--out", folder / "c.safetensors")
    done("fuse-train", store, *runs, "--confidence", folder / "c.safetensors", *PATCHES, *TRAIN, "--out", out["fused"])
    return folder


def test_segments_are_what_was_cut(run: Path) -> None:
    info = done("info", run / "store", "--json").json()
    assert info["kind"] == "store"
    assert info["classes"] == ["blue", "green", "red"]
    rows = (run / "manifest.csv").read_text().splitlines()[1:]
    assert sum(split["clips"] for split in info["splits"].values()) == len(rows) == sum(FILMS.values())
    for split, values in info["splits"].items():
        assert values["with_audio"] == values["with_visual"] == values["clips"]
        assert values["frames"] == 3 * values["clips"]  # 1 s at 3 frames a second
        assert sum(values["classes"].values()) == values["clips"] == sum(f",{split}," in row for row in rows)


def test_run_folders_hold_what_the_design_lists(run: Path) -> None:
    both = {"model.safetensors", "last.safetensors", "dynamics.safetensors", "predictions.safetensors"}
    both |= {"metrics.jsonl", "timing.jsonl", "summary.json", "paths.json", "checkpoint"}
    assert {path.name for path in (run / "audio").iterdir()} == both
    assert {path.name for path in (run / "fused").iterdir()} == both | {"mask.safetensors"}
    kinds = {}
    for path in [*run.glob("*.safetensors"), *run.glob("*/*.safetensors")]:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        assert list(metadata) == ["avpt"]
        kinds[str(path.relative_to(run))] = json.loads(metadata["avpt"])["kind"]
    assert kinds["a.safetensors"] == "encoder"
    assert kinds["audio/model.safetensors"] == kinds["visual/last.safetensors"] == "classifier"
    assert kinds["audio/dynamics.safetensors"] == "dynamics"
    assert kinds["c.safetensors"] == "confidence"
    assert kinds["fused/model.safetensors"] == "fused"


def test_abri_and_all_three_parts_are_in_the_fused_model(run: Path) -> None:
    tensors = load_file(run / "fused" / "model.safetensors")
    assert {name.partition(".")[0] for name in tensors} == {"audio", "visual", "fusion"}
    alphas = [name for name in tensors if name.endswith(".alpha")]
    assert len(alphas) == 20
    assert all(name.startswith("audio.") for name in alphas)
    assert "audio.layer2.0.downsample.1.alpha" in alphas


def test_info_on_everything(run: Path) -> None:
    for path in ("v.safetensors", "c.safetensors", "audio", "fused", "store", "fused/mask.safetensors"):
        table = done("info", run / path)
        assert str(run / path) in "".join(table.stdout.split())  # however it is folded
        record = done("info", run / path, "--json").json()
        assert record["path"] == str(run / path)
        assert record["kind"]
    record = done("info", run / "fused", "--json").json()
    assert record["finished"]
    assert [row["epoch"] for row in record["epochs"]] == [1, 2]
    assert record["spec"]["audio"] == {"arch": "resnet18", "modality": "audio", "norm": "abri-channel"}
    assert set(record["inputs"]) == {"store", "audio", "visual", "confidence"}
    found = load_file(run / "fused" / "predictions.safetensors")
    right = (found["test_audio_logits"].argmax(1) == found["test_labels"]).double().mean()
    assert record["metrics"]["test"]["audio_accuracy"] == pytest.approx(float(right))
    shapes = done("info", run / "v.safetensors", "--json").json()["tensors"]
    assert shapes["conv1.weight"] == {"dtype": "F32", "shape": [64, 3, 7, 7]}


def test_info_on_what_is_nothing_of_ours(run: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path, run / "manifest.csv"):
        result = avpt("info", path)
        assert result.code == 1
        assert result.error.startswith(f"avpt: {path}")
        assert len(result.stderr.splitlines()) == 1
