"""Clips without sound or without pictures: counted and listed by preprocess, and left out where that is asked for."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from helpers import STORE_OPTIONS, TRAIN_OPTIONS, Experiment, avpt, digit_rows, done, refused, untimed, write_manifest
from media import X264, Pictures, Sound, numbers, ordinary, tones, write

SECONDS = 0.6


def mute(path: Path) -> Path:
    return write(path, Pictures(drawn=numbers(15, 48, 64), rate=25, options=X264))


def blind(path: Path) -> Path:
    return write(path, None, Sound(samples=tones(SECONDS, 44100)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of two classes of films, of which two are without sound and one without pictures."""
    folder = tmp_path_factory.mktemp("mixed")
    for name in ("cat", "dog"):
        (folder / "clips" / name).mkdir(parents=True)
        for number in range(4):
            ordinary(folder / "clips" / name / f"{number}.mp4", SECONDS, (48, 64))
    mute(folder / "clips" / "cat" / "mute-1.mp4")
    mute(folder / "clips" / "dog" / "mute-2.mp4")
    blind(folder / "clips" / "dog" / "blind.mp4")
    done("manifest", "folder", folder / "clips", "--out", folder / "m.csv")
    return folder / "m.csv"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_they_are_counted_and_listed(mixed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = ("preprocess", mixed, "--out", store, "--workers", "1", *STORE_OPTIONS)
    result = done(*command, "--json")
    record = result.json()
    assert (record["clips"], record["failures"], record["left_out"]) == (11, 0, 0)
    assert (record["without_sound"], record["without_pictures"]) == (2, 1)
    said = " ".join(result.stderr.split())
    assert "of 11 clips 2 have no sound (cat/mute-1, dog/mute-2), 1 have no pictures (dog/blind); all are in " in said
    assert "lacking.csv, and training needs what they lack: --require both --overwrite leaves them out" in said
    listed = [("cat/mute-1", "train", "sound"), ("dog/mute-2", "train", "sound"), ("dog/blind", "train", "pictures")]
    rows = rows_of(store / "lacking.csv")
    assert sorted((row["id"], row["split"], row["lacks"]) for row in rows) == sorted(listed)
    again = done(*command)
    assert "11 clips, 0 failed, 2 without sound, 1 without pictures, 0 noted" in " ".join(again.stderr.split())
    assert "training needs" not in again.stderr  # which was said
    (store / "lacking.csv").unlink()  # as if killed just before the end
    assert "training needs" in done(*command).stderr
    assert rows_of(store / "lacking.csv") == rows
    done("verify", store, "--workers", "1")


@pytest.mark.parametrize(
    ("required", "left_out"),
    [("audio", {"mute-1", "mute-2"}), ("visual", {"blind"}), ("both", {"mute-1", "mute-2", "blind"})],
)
def test_they_are_left_out_where_that_is_asked(mixed: Path, tmp_path: Path, required: str, left_out: set[str]) -> None:
    store = tmp_path / "store"
    command = ("preprocess", mixed, "--out", store, "--workers", "1", *STORE_OPTIONS)
    result = done(*command, "--require", required, "--json")
    record = result.json()
    assert (record["clips"], record["left_out"]) == (11 - len(left_out), len(left_out))
    assert f"{len(left_out)} of 11 clips left out, as --require asks (" in result.stderr
    rows = rows_of(store / "failures.csv")
    assert {row["id"].partition("/")[2] for row in rows} == left_out
    assert {row["stage"] for row in rows} == ({"audio", "visual"} if required == "both" else {required})
    assert all(row["error"].startswith("left out: it has no ") for row in rows)
    assert (store / "lacking.csv").exists() == (required != "both")
    done("verify", store, "--workers", "1")
    before = untimed(store)
    shown = done(*command, "--require", required, "--retry-failures").stderr  # there is nothing to try again
    assert f"{11 - len(left_out)} clips, 0 failed, {len(left_out)} left out" in " ".join(shown.split())
    assert untimed(store) == before
    assert f"require: {required} there, none now" in avpt(*command).error
    assert json.loads((store / "settings.json").read_text())["config"]["require"] == required


def test_a_store_of_one_modality_lacks_nothing(mixed: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        mute(tmp_path / "clips" / name / "1.mp4")
    manifest = done("manifest", "folder", tmp_path / "clips", "--out", tmp_path / "m.csv").stdout.strip()
    result = done("preprocess", manifest, "--out", tmp_path / "store", "--workers", "1", *STORE_OPTIONS)
    assert "2 clips, 0 failed, 2 without sound, 0 noted" in " ".join(result.stderr.split())
    assert "--require" not in result.stderr
    assert not (tmp_path / "store" / "lacking.csv").exists()
    settings = json.loads((tmp_path / "store" / "settings.json").read_text())
    assert "require" not in settings["config"]  # so that stores stay what they were


def test_training_says_how_and_then_goes(experiment: Experiment, mixed: Path, tmp_path: Path) -> None:
    store = ("preprocess", mixed, "--workers", "1", *STORE_OPTIONS)
    done(*store, "--out", tmp_path / "all")
    done(*store, "--out", tmp_path / "whole", "--require", "both")
    alone = ("--modality", "audio", "--init", experiment.audio_init, *TRAIN_OPTIONS, "--epochs", "1")
    both = ("--audio", experiment.audio_init, "--visual", experiment.visual_init, "--mask", "none", *TRAIN_OPTIONS)
    out = ("--out", tmp_path / "run")
    says = "have no sound (cat/mute-1, dog/mute-2); make the store again with `avpt preprocess --require"
    refused("finetune-unimodal", tmp_path / "all", *alone, *out, says=f"{says} audio`", unchanged=tmp_path)
    refused("fuse-train", tmp_path / "all", *both, *out, says=f"{says} both`", unchanged=tmp_path)
    done("finetune-unimodal", tmp_path / "whole", *alone, *out)


def test_a_split_of_which_nothing_is_left_is_told(tmp_path: Path) -> None:
    rows = [row | {"audio": ""} if row["split"] == "val" else row for row in digit_rows()]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    left_out = ("--require", "both", "--out", tmp_path / "store")
    result = done("preprocess", manifest, *left_out, *STORE_OPTIONS)
    assert f"no clip of val is left, see {tmp_path / 'store' / 'failures.csv'}" in result.stderr
    assert "is left, see" not in done("preprocess", manifest, "--out", tmp_path / "all", *STORE_OPTIONS).stderr
