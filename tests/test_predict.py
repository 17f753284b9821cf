"""`avpt predict`: the same answers as through a store, and every file has its line."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import STORE_OPTIONS, TRAIN_OPTIONS, Experiment, avpt, digit_rows, done, write_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from media import FILMS, Clips
from safetensors.torch import load_file
from torch import Tensor

from avpt.commands._answers import Answer, table_of
from avpt.files import artifacts
from avpt.machine.terminal import show
from avpt.types import Report

HERE = ("--workers", "2", "--device", "cpu")


@pytest.fixture
def films(clips: Clips) -> tuple[Path, ...]:
    return tuple(clips[name] for name in FILMS)


def predict(model: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    lines = done("predict", model, *arguments, *HERE, "--format", "jsonl").stdout.splitlines()
    return [json.loads(line) for line in lines]


def probabilities(ranking: list[dict[str, Any]]) -> list[float]:
    """By class."""
    return [entry["probability"] for entry in sorted(ranking, key=lambda entry: str(entry["label"]))]


def close(answer: list[float], expected: Tensor) -> None:
    # in batches of other sizes logits of about 40 are off by a few in a hundred thousand
    torch.testing.assert_close(torch.tensor(answer).double(), expected.double(), rtol=1e-3, atol=1e-4)


def through_a_store(model: Path, rows: list[dict[str, str]], folder: Path, *options: str) -> dict[str, Tensor]:
    """The test logits of a model on a store made from these rows."""
    manifest = write_manifest(folder / "clips.csv", rows)
    done("preprocess", manifest, "--out", folder / "clips", *STORE_OPTIONS, *options)
    here = ("--split", "test", "--workers", "0", "--device", "cpu", "--predictions", folder / "p.safetensors")
    done("evaluate", model, folder / "clips", *here)
    return load_file(folder / "p.safetensors")


# --- the same answer as through a store --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["audio", "visual", "fused"])
def test_films(experiment: Experiment, films: tuple[Path, ...], tmp_path: Path, name: str) -> None:
    rows = [{"label": "0", "split": "test", "video": str(film)} for film in films]
    rows += [row for row in digit_rows() if row["split"] == "train"]
    tensors = through_a_store(getattr(experiment, name), rows, tmp_path)
    answers = predict(getattr(experiment, name), *films)
    assert [answer["clip"] for answer in answers] == [str(film) for film in films]
    assert artifacts.unpack_ids(tensors, "test_") == [film.stem for film in films]
    both = ["audio", "visual"] if name == "fused" else []
    for i, answer in enumerate(answers):
        assert answer["error"] is None
        assert answer["modalities"] == (both or [name])
        close(probabilities(answer["top"]), tensors["test_logits"][i].double().softmax(0))
        assert [entry["probability"] for entry in answer["top"]] == sorted(probabilities(answer["top"]), reverse=True)
        for modality in both:
            close(probabilities(answer[modality]), tensors[f"test_{modality}_logits"][i].double().softmax(0))
        assert ("audio" in answer) == bool(both)


def test_rows_of_a_manifest(experiment: Experiment) -> None:
    """Sound and pictures in files of their own, against what the run recorded."""
    answers = {answer["clip"]: answer for answer in predict(experiment.fused, "--manifest", experiment.manifest)}
    tensors = load_file(experiment.fused / "predictions.safetensors")
    assert len(answers) == 36
    for split in ("val", "test"):
        for i, clip in enumerate(artifacts.unpack_ids(tensors, f"{split}_")):
            close(probabilities(answers[clip]["top"]), tensors[f"{split}_logits"][i].double().softmax(0))


def test_segments_of_a_manifest_without_labels(experiment: Experiment, films: tuple[Path, ...], tmp_path: Path) -> None:
    cuts = [("0.5", "1.5"), ("2", "3"), ("3", "")]
    rows = [{"video": str(films[0]), "start": start, "end": end} for start, end in cuts]
    manifest = write_manifest(tmp_path / "cuts.csv", rows)
    labelled = [row | {"label": "1", "split": "test"} for row in rows]
    tensors = through_a_store(experiment.fused, labelled, tmp_path)
    answers = predict(experiment.fused, "--manifest", manifest)
    assert [answer["clip"] for answer in answers] == artifacts.unpack_ids(tensors, "test_")
    for i, answer in enumerate(answers):
        close(probabilities(answer["top"]), tensors["test_logits"][i].double().softmax(0))


def test_a_model_of_another_kind_of_store(experiment: Experiment, films: tuple[Path, ...], tmp_path: Path) -> None:
    """Raw frames, float32 sound, key frames: the artifact says so, and the file is decoded in that way."""
    other = ("--frame-codec", "raw", "--audio-dtype", "float32", "--frame-accuracy", "keyframe", "--pad", "repeat")
    rows = [{"label": "0", "split": "test", "video": str(film)} for film in films]
    manifest = write_manifest(tmp_path / "m.csv", [*rows, *(r for r in digit_rows() if r["split"] == "train")])
    store = tmp_path / "store"
    done("preprocess", manifest, "--out", store, *STORE_OPTIONS, *other, "--fps", "4", "--max-frames", "3")
    for modality, init in (("audio", experiment.audio_init), ("visual", experiment.visual_init)):
        options = ("--modality", modality, "--init", init, *TRAIN_OPTIONS, "--epochs", "1", "--num-frames", "2")
        done("finetune-unimodal", store, *options, "--out", tmp_path / modality)
        tensors = load_file(tmp_path / modality / "predictions.safetensors")
        for i, answer in enumerate(predict(tmp_path / modality, *films)):
            close(probabilities(answer["top"]), tensors["test_logits"][i].double().softmax(0))


def test_several_labels(experiment: Experiment, tmp_path: Path) -> None:
    rows = [row | {"label": f"{row['label']};{'low' if row['label'] < '2' else 'high'}"} for row in digit_rows()]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    done("preprocess", manifest, "--out", tmp_path / "store", "--multi-label", *STORE_OPTIONS)
    command = ("finetune-unimodal", tmp_path / "store", "--modality", "visual", "--init", experiment.visual_init)
    done(*command, *TRAIN_OPTIONS, "--epochs", "1", "--out", tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "predictions.safetensors")
    answers = {answer["clip"]: answer for answer in predict(tmp_path / "run", "--manifest", manifest)}
    for i, clip in enumerate(artifacts.unpack_ids(tensors, "test_")):
        close(probabilities(answers[clip]["top"]), tensors["test_logits"][i].double().sigmoid())


def test_what_a_clip_lacks_counts_as_zero_features(experiment: Experiment, clips: Clips, tmp_path: Path) -> None:
    sound = clips["mono.wav"]
    picture = next(Path(row["frames"]) for row in digit_rows())
    heard, seen = predict(experiment.fused, sound, picture)
    assert (heard["modalities"], seen["modalities"]) == (["audio"], ["visual"])
    assert "visual" not in heard
    assert "audio" not in seen
    for column, path, answer in (("audio", sound, heard), ("frames", picture, seen)):
        (tmp_path / column).mkdir()
        rows = [{"label": "0", "split": "test", column: str(path)}]
        manifest = write_manifest(tmp_path / column / "m.csv", rows)
        done("preprocess", manifest, "--out", tmp_path / column / "store", *STORE_OPTIONS)
        drop = ("--drop", "visual" if column == "audio" else "audio", "--predictions", tmp_path / column / "p.st")
        done("evaluate", experiment.fused, tmp_path / column / "store", *drop, "--workers", "0")
        logits = load_file(tmp_path / column / "p.st")["test_logits"][0]
        close(probabilities(answer["top"]), logits.double().softmax(0))


# --- what it writes ----------------------------------------------------------------------------------------------


def test_a_bad_file_is_named_and_the_rest_is_done(
    experiment: Experiment, films: tuple[Path, ...], tmp_path: Path
) -> None:
    (tmp_path / "letter.mp4").write_text("this is no film\n" * 50)
    (tmp_path / "empty.wav").touch()
    files = (films[0], tmp_path / "letter.mp4", tmp_path / "gone.mp4", films[1], tmp_path / "empty.wav")
    result = avpt("predict", experiment.fused, *files, *HERE, "--format", "jsonl")
    assert result.code == 1
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["clip"] for answer in answers] == [str(path) for path in files]
    assert [answer["error"] is None for answer in answers] == [True, False, False, True, False]
    assert "can't be read as media" in answers[1]["error"]
    assert f"warning: {tmp_path / 'gone.mp4'}: the file can't be read: no such file" in result.stderr
    assert result.error.startswith(f"avpt: 3 of 5 clips have no answer, first {tmp_path / 'letter.mp4'}: ")
    for form in ("csv", "table"):
        again = avpt("predict", experiment.fused, *files, *HERE, "--format", form, "--quiet")
        assert again.code == 1
        assert ("no answer" if form == "table" else "the file is empty (zero bytes)") in again.stdout
        assert len(again.stderr.splitlines()) == 1
    record = avpt("predict", experiment.fused, *files, *HERE, "--json").json()
    assert (record["clips"], record["failed"], record["predictions"]) == (5, 3, answers)
    out = tmp_path / "answers.csv"
    written = avpt("predict", experiment.fused, *files, *HERE, "--out", out)
    assert (written.code, written.stdout) == (1, f"{out}\n")
    assert len(list(csv.DictReader(out.open(newline="")))) == 5


def test_which_part_was_looked_at(experiment: Experiment, films: tuple[Path, ...], tmp_path: Path) -> None:
    """The model's clips had 0.48 s of sound and 10 pictures, one a second."""
    rows = [{"id": "whole", "video": str(films[0])}, {"id": "part", "video": str(films[0]), "start": "2", "end": "2.4"}]
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    result = done("predict", experiment.fused, "--manifest", manifest, *HERE, "--format", "jsonl")
    whole, part = map(json.loads, result.stdout.splitlines())
    assert whole["looked_at"] == {"audio": [0.0, 0.48], "visual": [0.0, pytest.approx(8.0, abs=0.05)]}
    assert whole["seconds"] == pytest.approx(8.0, abs=0.05)
    assert part["looked_at"] == {"audio": [2.0, 2.4], "visual": [2.0, 2.4]}
    assert "warning: of 1 of 2 clips only the beginning was looked at" in result.stderr
    assert "first whole: audio 0 to 0.48 s, visual 0 to 8." in result.stderr
    shown = done("predict", experiment.audio, films[0], *HERE, "--quiet").stdout
    assert "on 1 clip, of 1 only a part: 0 to 0.48 s of 8." in " ".join(shown.split())
    text = done("predict", experiment.fused, "--manifest", manifest, *HERE, "--format", "csv").stdout
    assert [row["looked_at"] for row in csv.DictReader(io.StringIO(text))][1] == "2 to 2.40 s"


def test_a_list_of_other_files_has_no_answer(
    experiment: Experiment, films: tuple[Path, ...], tmp_path: Path, clips: Clips
) -> None:
    listed = "#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{0}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {0}\n"
    for name, text in zip(("a.m3u8", "a.png"), listed, strict=True):
        (tmp_path / name).write_text(text.format(clips["mono.wav"]))
    result = avpt("predict", experiment.fused, tmp_path / "a.m3u8", tmp_path / "a.png", *HERE, "--format", "jsonl")
    assert result.code == 1
    assert all("a list of other files" in json.loads(line)["error"] for line in result.stdout.splitlines())


def test_a_model_of_one_modality_needs_that_one(experiment: Experiment, clips: Clips) -> None:
    sound = clips["mono.wav"]
    result = avpt("predict", experiment.visual, sound, *HERE, "--format", "jsonl")
    assert json.loads(result.stdout)["error"] == "has no pictures"
    result = avpt("predict", experiment.audio, next(iter(digit_rows()))["frames"], *HERE, "--format", "jsonl")
    assert json.loads(result.stdout)["error"] == "has no sound"


def test_csv_has_a_row_a_clip(experiment: Experiment, clips: Clips, films: tuple[Path, ...]) -> None:
    sound = clips["mono.wav"]
    text = done("predict", experiment.fused, films[0], sound, *HERE, "--format", "csv", "--top", "2").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    answers = predict(experiment.fused, films[0], sound, "--top", "2")
    assert [row["modalities"] for row in rows] == ["audio visual", "audio"]
    for row, answer in zip(rows, answers, strict=True):
        for name, prefix in (("top", ""), ("audio", "audio_"), ("visual", "visual_")):
            for i in range(2):
                cell = row[f"{prefix}label_{i + 1}"], row[f"{prefix}probability_{i + 1}"]
                if name not in answer:
                    assert cell == ("", "")
                    continue
                assert cell[0] == answer[name][i]["label"]
                assert float(cell[1]) == pytest.approx(answer[name][i]["probability"], rel=1e-5)
    assert "label_3" not in rows[0]


def test_the_table(experiment: Experiment, films: tuple[Path, ...]) -> None:
    result = done("predict", experiment.fused, *films, *HERE, "--top", "1", "--quiet")
    assert result.stderr == ""
    for head in ("clip", "joint", "audio", "visual"):
        assert head in result.stdout
    flat = "".join(result.stdout.split())
    for answer in predict(experiment.fused, *films, "--top", "1"):
        assert f"{answer['top'][0]['probability']:.3f}{answer['top'][0]['label']}" in flat
    assert "label" in done("predict", experiment.audio, films[0], *HERE).stdout


LABELS = ("playing violin", "a dog barking at night", "crystallography")


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("names", [("joint",), ("joint", "audio", "visual")])
def test_a_label_and_its_share_stay_together(
    names: tuple[str, ...], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    rankings = {name: [(label, (i + 5) / 10) for i, label in enumerate(LABELS)] for name in names}
    answers = [Answer(f"/srv/{'deep/' * 20}holiday-{i}.mp4", rankings=rankings) for i in range(2)]
    show(Report({}, tables=[table_of(Path("run"), [*answers, Answer("b.mp4", error="gone")])]), json=False, quiet=False)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    for i, label in enumerate(LABELS):
        share = f"0.{i + 5}00 {label}"
        if 3 + 16 + len(share) + 2 > width:  # beside the end of a path; then words alone are whole
            share = label.split()[-1]
        assert len(re.findall(rf"(?<!\S){share}(?!\S)", shown)) == 2 * len(names), shown
    assert shown.count("no answer") == len(names)


def test_more_classes_than_there_are(experiment: Experiment, films: tuple[Path, ...]) -> None:
    (answer,) = predict(experiment.audio, films[0], "--top", "400")
    assert len(answer["top"]) == 3
    assert sum(probabilities(answer["top"])) == pytest.approx(1)


def test_folders_stand_for_the_media_in_them(
    experiment: Experiment, clips: Clips, films: tuple[Path, ...], tmp_path: Path
) -> None:
    (tmp_path / "inner").mkdir()
    shutil.copyfile(films[0], tmp_path / "inner" / "-b 'ü.webm")
    shutil.copyfile(clips["mono.wav"], tmp_path / "a.WAV")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "lost.ts").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".hidden.wav").touch()
    result = avpt("predict", experiment.fused, tmp_path, *HERE, "--format", "jsonl")
    assert (
        result.code,
        f"1 file left out of {tmp_path}: no media by the name ({tmp_path / 'notes.txt'})" in result.stderr,
    ) == (1, True)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    paths = [str(tmp_path / name) for name in ("a.WAV", "inner/-b 'ü.webm", "lost.ts")]
    assert [answer["clip"] for answer in answers] == paths
    assert [answer["modalities"] for answer in answers] == [["audio"], ["audio", "visual"], []]
    (tmp_path / "bare").mkdir()
    result = avpt("predict", experiment.fused, tmp_path / "bare")
    assert (result.code, "bare holds no media file" in result.error) == (1, True)


def test_damage_that_was_read_over_is_told(experiment: Experiment, clips: Clips) -> None:
    broken = clips["damaged_picture.mp4"]
    result = done("predict", experiment.visual, broken, *HERE, "--format", "jsonl")
    (answer,) = map(json.loads, result.stdout.splitlines())
    assert answer["partial"]
    assert f"warning: {broken}: {answer['partial'][0]}" in result.stderr


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_is_written_is_written_once(
    experiment: Experiment, films: tuple[Path, ...], tmp_path: Path, form: str
) -> None:
    out = tmp_path / f"answers.{form}"
    command: tuple[str | Path, ...] = ("predict", experiment.fused, *films, "--device", "cpu", "--out", out)
    assert done(*command, "--workers", "2").stdout == f"{out}\n"
    content, stamp = out.read_bytes(), out.stat().st_mtime_ns
    shown = done("predict", experiment.fused, *films, *HERE, "--format", form).stdout
    assert content.decode().splitlines() == shown.splitlines()
    done(*command, "--workers", "1")
    assert out.stat().st_mtime_ns == stamp
    result = avpt(*command, "--top", "1")
    assert (result.code, "holds other answers" in result.error) == (1, True)
    assert out.read_bytes() == content
    done(*command, "--top", "1", "--overwrite")
    assert out.read_bytes() != content
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


# --- what can be wrong -------------------------------------------------------------------------------------------


def test_a_missing_file_of_a_manifest_is_named_and_the_rest_is_done(
    experiment: Experiment, films: tuple[Path, ...], tmp_path: Path
) -> None:
    rows = [{"id": "gone", "video": str(tmp_path / "gone.mp4")}, {"id": "here", "video": str(films[0])}]
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    result = avpt("predict", experiment.fused, "--manifest", manifest, *HERE, "--format", "jsonl")
    gone, here = map(json.loads, result.stdout.splitlines())
    assert (result.code, here["error"]) == (1, None)
    assert "no such file" in gone["error"]
    for form in ("table", "csv"):
        only = avpt("predict", experiment.fused, tmp_path / "gone.mp4", *HERE, "--format", form)
        assert ("no answer" if form == "table" else "no such file") in only.stdout


def test_what_does_not_go_together(experiment: Experiment, films: tuple[Path, ...], tmp_path: Path) -> None:
    (tmp_path / "letter.csv").write_text("dear all")
    (tmp_path / "bad.csv").write_text("id,start,video\na,-1,gone.mp4\n")
    film = films[0]
    for options, says in (
        ((), "there is nothing to label; give media files, or --manifest"),
        ((film, "--manifest", experiment.manifest), "--manifest does not go with files beside it"),
        ((film, "--root", tmp_path), "--root does nothing without --manifest"),
        ((film, "--out", tmp_path / "answers"), "--out takes --format csv or jsonl"),
        ((film, "--out", tmp_path / "a.csv", "--format", "table"), "--out takes --format csv or jsonl"),
        ((film, "--out", tmp_path / "letter.csv", "--overwrite"), "letter.csv was not written by this command"),
        ((film, "--out", tmp_path, "--format", "csv"), "is a folder; --out must name a file"),
        (("--manifest", tmp_path / "bad.csv"), "line 2: start '-1' is negative"),
        (("--manifest", tmp_path / "none.csv"), "none.csv: no such file"),
        ((film, "--top", "0"), "--top is 0"),
    ):
        result = avpt("predict", experiment.fused, *options, "--quiet")
        assert result.code == 1
        assert result.stdout == ""
        assert says in result.error
    for model, says in (
        (tmp_path / "nowhere", "does not exist"),
        (experiment.audio_init, "is an encoder without a classifier"),
    ):
        result = avpt("predict", model, film, "--quiet")
        assert (result.code, says in result.error) == (1, True)
    assert (tmp_path / "letter.csv").read_text() == "dear all"


@given(content=st.binary(max_size=300), suffix=st.sampled_from([".mp4", ".wav", ".png", ".txt", ""]))
@settings(max_examples=8)
def test_any_bytes_are_an_answer_or_an_error(
    experiment: Experiment, tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("bytes", numbered=True) / f"clip{suffix}"
    path.write_bytes(content)
    result = avpt("predict", experiment.fused, path, *HERE, "--format", "jsonl", "--quiet")
    (answer,) = map(json.loads, result.stdout.splitlines())
    assert result.code == (0 if answer["error"] is None else 1)
    assert all(math.isfinite(entry["probability"]) for entry in answer.get("top", []))
