"""Long files cut into pieces of one length: by `avpt manifest folder --segment`, and by `avpt predict --segment`."""

from __future__ import annotations

import csv
import json
import shutil
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import STORE_OPTIONS, Experiment, avpt, done
from hypothesis import given
from hypothesis import strategies as st
from media import Clips
from safetensors.torch import load_file

from avpt.commands._segments import SHORTEST, WHOLE, cut


def record(path: Path, seconds: float) -> Path:
    """Noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(list(path.name.encode()))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(draw.normal(0, 3000, round(16000 * seconds)).astype("<i2").tobytes())
    return path


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@given(st.floats(0.1, 1000), st.floats(0.5, 60), st.floats(0.2, 1), st.sampled_from(["drop", "keep"]))
def test_pieces_follow_one_another_and_none_is_beyond_the_end(
    seconds: float, segment: float, share: float, last: str
) -> None:
    hop = segment * share
    pieces = cut(seconds, segment, hop, last)  # type: ignore[arg-type]
    assert bool(pieces) == (round(seconds, 6) > segment)
    least = min(segment, segment * WHOLE if last == "drop" else SHORTEST)
    for number, (start, end) in enumerate(pieces):
        assert start == pytest.approx(number * hop, abs=1e-5)
        assert end <= seconds + 1e-5
        assert least - 1e-5 <= end - start <= segment + 1e-5
        assert end - start == pytest.approx(segment, abs=1e-5) or number == len(pieces) - 1
    if pieces:  # what is left behind the last is too short for another
        behind = min(segment, seconds - len(pieces) * hop)
        assert pieces[-1][1] == pytest.approx(seconds, abs=1e-5) or behind < least + 1e-5


def test_files_of_a_folder_become_segments_that_stay_together(tmp_path: Path) -> None:
    lengths = {"cat/a.wav": 5.0, "cat/b.wav": 2.95, "cat/c.wav": 0.6, "dog/a.wav": 3.4, "dog/b.wav": 4.0}
    for name, seconds in lengths.items():
        record(tmp_path / "clips" / name, seconds)
    out = tmp_path / "lists" / "manifest.csv"
    command = ("manifest", "folder", tmp_path / "clips", "--segment", "1", "--test-fraction", "0.4", "--out", out)
    assert done(*command, "--json").json()["clips"] == 5 + 3 + 1 + 3 + 4
    rows = rows_of(out)
    assert Counter(row["audio"].removeprefix("../clips/") for row in rows) == {
        "cat/a.wav": 5,
        "cat/b.wav": 3,
        "cat/c.wav": 1,
        "dog/a.wav": 3,
        "dog/b.wav": 4,
    }
    (short,) = [row for row in rows if row["audio"].endswith("c.wav")]
    assert (short["id"], short["start"], short["end"]) == ("cat/c", "", "")
    of_b = [(row["id"], row["start"], row["end"]) for row in rows if row["audio"].endswith("cat/b.wav")]
    assert of_b == [("cat/b_0_1", "0", "1"), ("cat/b_1_2", "1", "2"), ("cat/b_2_2.95", "2", "2.95")]
    splits = {row["audio"]: {other["split"] for other in rows if other["audio"] == row["audio"]} for row in rows}
    assert all(len(actual) == 1 for actual in splits.values())
    assert {row["split"] for row in rows} == {"train", "test"}
    store = done("preprocess", out, "--out", tmp_path / "store", "--spectrogram-frames", "100", "--json").json()
    assert (store["clips"], store["failures"]) == (16, 0)
    before = out.read_bytes()
    assert done(*command).stdout == f"{out}\n"
    assert out.read_bytes() == before

    kept = done(*command, "--hop", "0.5", "--last-piece", "keep", "--overwrite", "--json").json()
    assert kept["clips"] == 9 + 5 + 1 + 6 + 7  # 3.4 s: 0 to 3 by halves, and one from 2.5 to 3.4 that is whole enough


def test_groups_stay_together(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for speaker in "abcd":
            for take in "123":
                record(tmp_path / "clips" / label / f"{speaker}_{take}.wav", 0.2)
    command = ("manifest", "folder", tmp_path / "clips", "--val-fraction", "0.3", "--out", tmp_path / "m.csv")
    done(*command, "--group-by", "([a-d])_")
    rows = rows_of(tmp_path / "m.csv")
    splits = {
        speaker: {row["split"] for row in rows if f"/{speaker}_" in row["audio"]} for speaker in "abcd"
    }  # of both classes
    assert all(len(actual) == 1 for actual in splits.values())
    assert {row["split"] for row in rows} == {"train", "val"}
    assert Counter(row["recording"] for row in rows) == dict.fromkeys("abcd", 6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--hop", "1"), "do nothing without --segment"),
        (("--segment", "1", "--hop", "2"), "what lies between would be lost"),
        (("--group-by", "("), "is no regular expression"),
        (("--group-by", "zebra"), "matches no clip's path, such as cat/a"),
    ],
)
def test_options_that_make_no_sense_are_one_line(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    record(tmp_path / "clips" / "cat" / "a.wav", 0.2)
    result = avpt("manifest", "folder", tmp_path / "clips", *options, "--out", tmp_path / "m.csv")
    assert result.code == 1
    (line,) = result.stderr.splitlines()
    assert says in line


def test_a_file_that_does_not_open_is_told_and_left_to_preprocess(tmp_path: Path) -> None:
    record(tmp_path / "clips" / "cat" / "a.wav", 2)
    (tmp_path / "clips" / "cat" / "broken.mp4").write_bytes(b"\0" * 100)
    result = done("manifest", "folder", tmp_path / "clips", "--segment", "1", "--out", tmp_path / "m.csv")
    assert "1 of 2 clips stay whole" in result.stderr
    assert [row["id"] for row in rows_of(tmp_path / "m.csv")] == ["cat/a_0_1", "cat/a_1_2", "cat/broken"]


# --- predict -----------------------------------------------------------------------------------------------------


def test_answers_for_each_piece_and_their_mean(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, short = record(tmp_path / "long.wav", 1.3), record(tmp_path / "short.wav", 0.4)
    model = experiment.audio / "model.safetensors"
    command = ("predict", model, long, short, "--segment", "0.5", "--workers", "1", "--device", "cpu")
    lines = [json.loads(line) for line in done(*command, "--format", "jsonl").stdout.splitlines()]
    assert [(line["clip"], line.get("piece"), line.get("pieces")) for line in lines] == [
        (str(long), [0.0, 0.5], None),
        (str(long), [0.5, 1.0], None),
        (str(long), [1.0, 1.3], None),
        (str(long), None, 3),
        (str(short), None, None),
    ]
    manifest = tmp_path / "pieces.csv"
    manifest.write_text("audio,start,end\nlong.wav,0,0.5\nlong.wav,0.5,1\nlong.wav,1,1.3\nshort.wav,,\n")
    separate = done("predict", model, "--manifest", manifest, "--workers", "1", "--device", "cpu", "--json").json()
    one_by_one = [line["top"] for line in separate["predictions"]]
    assert [line["top"] for line in lines[:3]] + [lines[4]["top"]] == one_by_one
    probabilities = [{entry["label"]: entry["probability"] for entry in top} for top in one_by_one[:3]]
    expected = {label: np.mean([one[label] for one in probabilities]) for label in probabilities[0]}
    mean = {entry["label"]: entry["probability"] for entry in lines[3]["top"]}
    assert mean == pytest.approx(expected)
    assert list(mean.values()) == sorted(mean.values(), reverse=True)
    assert lines[3]["looked_at"] == {"audio": [0.0, 1.3]}

    best = done(*command, "--top", "1", "--json").json()
    assert best["clips"] == 4
    assert [line["top"][0]["label"] for line in best["predictions"]] == [line["top"][0]["label"] for line in lines]
    monkeypatch.chdir(tmp_path)  # names that a table has room for
    table = done(*command[:2], long.name, short.name, *command[4:], "--top", "1").stdout
    rows = [line.strip() for line in table.splitlines() if ".wav" in line]
    names = ("long.wav 0-0.5 s", "long.wav 0.5-1 s", "long.wav 1-1.3 s", "long.wav mean of 3", "short.wav")
    assert [row.startswith(name) for row, name in zip(rows, names, strict=True)] == [True] * 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--hop", "1"), "--hop does nothing without --segment"),
        (("--segment", "1", "--manifest", "m.csv"), "one or the"),
    ],
)
def test_options_of_predict_that_make_no_sense(experiment: Experiment, options: tuple[str, ...], says: str) -> None:
    result = avpt("predict", experiment.audio, "x.wav", *options)
    assert result.code == 1
    assert says in result.error


def test_what_is_not_looked_at_is_told_with_the_length_that_is(experiment: Experiment, tmp_path: Path) -> None:
    long = record(tmp_path / "long.wav", 1.3)
    command = ("predict", experiment.audio, long, "--workers", "1", "--device", "cpu")
    said = done(*command).stderr
    assert "only the beginning was looked at" in said
    assert "(first long.wav: 0 to 0.48 s of 1.30 s); --segment 0.48 looks at all of it\n" in said  # as the store keeps
    (line,) = (line for line in said.splitlines() if "looked at" in line)
    assert len(line) < 140
    assert "--segment 0.48 looks at all of it" in done(*command, "--segment", "0.7").stderr
    assert "only the beginning" not in done(*command, "--segment", "0.48").stderr


def test_a_piece_is_what_preprocess_stores_of_it(experiment: Experiment, clips: Clips, tmp_path: Path) -> None:
    """Also where sound is cut earlier than pictures: the store keeps 0.48 s of sound and 10 pictures, one a second."""
    (tmp_path / "clips" / "0").mkdir(parents=True)
    film = shutil.copy(clips["red.webm"], tmp_path / "clips" / "0" / "film.webm")
    manifest, store, logits = (tmp_path / name for name in ("m.csv", "store", "logits.safetensors"))
    pieces = ("--segment", "3", "--last-piece", "keep")
    done("manifest", "folder", tmp_path / "clips", *pieces, "--out", manifest)
    rows = rows_of(manifest)
    assert [(row["start"], row["end"]) for row in rows[:2]] == [("0", "3"), ("3", "6")]
    done("preprocess", manifest, "--out", store, *STORE_OPTIONS)
    done("evaluate", experiment.fused, store, "--split", "train", "--workers", "0", "--predictions", logits)
    stored = load_file(logits)["train_logits"].double().softmax(1)

    result = done("predict", experiment.fused, film, "--segment", "3", "--workers", "1", "--format", "jsonl")
    answers = [json.loads(line) for line in result.stdout.splitlines()][:-1]
    assert len(answers) == len(rows)
    for answer, expected in zip(answers, stored.tolist(), strict=True):
        ranked = sorted(answer["top"], key=lambda entry: str(entry["label"]))
        assert [entry["probability"] for entry in ranked] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert answers[0]["looked_at"] == {"audio": [0.0, 0.48], "visual": [0.0, 3.0]}
    assert "of 3 of 3 clips only the beginning was looked at (first " in result.stderr
    assert "--segment 0.48 looks at all of it" in result.stderr
