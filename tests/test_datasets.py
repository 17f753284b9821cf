"""Known data sets in their real layouts become manifests that `preprocess` takes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers import STORE_OPTIONS, Result, avpt, digit_rows, done, files_of, touch
from hypothesis import given
from hypothesis import strategies as st
from media import Clips

from avpt import options
from avpt.datasets import DATASETS
from avpt.datasets.dividing import hash_split
from avpt.datasets.kinetics_sounds import CLASSES
from avpt.datasets.rows import MAX_LISTED
from avpt.store.manifest import Manifest, read_manifest
from avpt.store.store import Store

KINETICS_HEADER = "label,youtube_id,time_start,time_end,split,is_cc"
ESC50_HEADER = "filename,fold,target,category,esc10,src_file,take"
SEGMENTS_HEADER = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2\n# YTID, start_seconds, ..."
LABELS = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/m/x,"a;b"'


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def make(name: str, folder: Path, *options: str | Path) -> list[dict[str, str]]:
    """Rows of the manifest that the command writes into the folder's parent."""
    out = folder.parent / "manifest.csv"
    assert done("manifest", name, folder, "--out", out, *options).stdout == f"{out}\n"
    return rows_of(out, multi_label=name == "audioset")


def rows_of(path: Path, *, multi_label: bool = False) -> list[dict[str, str]]:
    manifest: Manifest = read_manifest(path, multi_label=multi_label)  # it takes every manifest written
    rows = read_csv(path)
    assert [clip.id for clip in manifest.clips] == [row["id"] for row in rows]
    assert not any(Path(row.get(kind, "")).is_absolute() for row in rows for kind in ("video", "audio", "frames"))
    return rows


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refusal(*arguments: str | Path) -> str:
    """All that is said of rows or files that no manifest can be made of."""
    result = avpt("manifest", *arguments)
    assert (result.code, result.stdout) == (1, ""), result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.partition("avpt: ")[2].strip()


def column(rows: Sequence[dict[str, str]], name: str) -> list[str]:
    return [row[name] for row in rows]


def test_every_data_set_has_a_reader() -> None:
    (name, *_) = get_args(options.type_hints(options.ManifestConfig)["name"])
    assert set(get_args(name)) == set(DATASETS)


# --- Kinetics-Sounds ---------------------------------------------------------------------------------------------


def test_kinetics_csv_in_class_folders(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "k400",
        "train/playing bass guitar/-0AbC_dEfG-_000005_000015.mp4",
        "train/playing_drums/abcdefghij0_7.mkv",
        "val/abcdefghij1_000009_000019.mp4",
        "test/abcdefghij2.webm",
        "train/abseiling/abcdefghij3_000001_000011.mp4",
        "notes.md",
    )
    write(
        folder / "annotations" / "train.csv",
        KINETICS_HEADER,
        "playing bass guitar,-0AbC_dEfG-,5,15,train,0",
        '"playing drums",abcdefghij0,7,17,train,0',
        "abseiling,abcdefghij3,1,11,train,0",
    )
    write(folder / "annotations" / "validate.csv", KINETICS_HEADER, "tickling,abcdefghij1,9,19,validate,0")
    write(
        folder / "annotations" / "test.csv",
        KINETICS_HEADER,
        "singing,abcdefghij2,30,40,test,0",
        "singing,abcdefghij4,0,10,test,0",
    )
    rows = {row["id"]: row for row in make("kinetics-sounds", folder)}
    assert list(rows) == ["abcdefghij2_000030", "-0AbC_dEfG-_000005", "abcdefghij0_000007", "abcdefghij1_000009"]
    assert [row["split"] for row in rows.values()] == ["test", "train", "train", "val"]
    assert rows["-0AbC_dEfG-_000005"]["label"] == "playing_bass_guitar"
    assert rows["-0AbC_dEfG-_000005"]["video"] == "k400/train/playing bass guitar/-0AbC_dEfG-_000005_000015.mp4"
    assert {row["start"] + row["end"] for name, row in rows.items() if name != "abcdefghij2_000030"} == {""}
    whole = rows["abcdefghij2_000030"]
    assert (whole["video"], whole["start"], whole["end"]) == ("k400/test/abcdefghij2.webm", "30", "40")
    (missing,) = read_csv(tmp_path / "manifest.missing.csv")
    assert missing == {
        **{"id": "abcdefghij4_000000", "split": "test", "label": "singing"},
        **{"list": "test.csv", "line": "3"},
    }


def test_kinetics_lists_of_clips(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "ks",
        "-3Mwkq-7TV4_000002_000012.mp4",
        "0HQsAGUnQ_0_6.mp4",
        "-942XqJakUQ_000000_000010.mp4",
    )
    write(folder / "my_train.txt", "-3Mwkq-7TV4_2,10,23", "0HQsAGUnQ_0_6,10,4")
    write(folder / "my_test.txt", "-942XqJakUQ_0,10,0")
    rows = make("kinetics-sounds", folder)
    assert column(rows, "id") == ["-942XqJakUQ_000000", "-3Mwkq-7TV4_000002", "0HQsAGUnQ_0_000006"]
    assert column(rows, "label") == [CLASSES[0], CLASSES[23], CLASSES[4]]
    assert column(rows, "split") == ["test", "train", "train"]
    assert len(CLASSES) == 31
    assert sorted(CLASSES) == CLASSES


def test_kinetics_lists_of_paths_with_extracted_frames(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "ks",
        "ks_audio/train/-3Mwkq-7TV4_2.wav",
        "ks_visual/train/-3Mwkq-7TV4_2/frame_00001.jpg",
        "ks_visual/train/-3Mwkq-7TV4_2/frame_00002.jpg",
        "ks_audio/val/any.name.wav",
        "ks_visual/val/any.name/frame_00001.jpg",
    )
    lists = [
        write(tmp_path / "train_1fps_path.txt", "/data/my ks/train/-3Mwkq-7TV4_2 23"),
        write(tmp_path / "val_1fps_path.txt", "any.name 30"),
    ]
    first, second = make("kinetics-sounds", folder, "--list", lists[0], "--list", lists[1])
    assert first == {
        **{"id": "-3Mwkq-7TV4_000002", "label": CLASSES[23], "split": "train"},
        **{"audio": "ks/ks_audio/train/-3Mwkq-7TV4_2.wav", "frames": "ks/ks_visual/train/-3Mwkq-7TV4_2"},
    }
    assert (second["id"], second["split"], second["label"]) == ("any.name", "val", "tickling")


def test_kinetics_frames_without_a_known_rate_leave_a_video_alone(tmp_path: Path) -> None:
    folder = touch(tmp_path / "ks", "v/abcdefghij0_7.mp4", "a/abcdefghij0_7.wav", "f/abcdefghij0_7/img_00001.jpg")
    write(folder / "train.csv", KINETICS_HEADER, "singing,abcdefghij0,7,17,train,0")
    (row,) = make("kinetics-sounds", folder)
    assert (row["video"], row["audio"]) == ("ks/v/abcdefghij0_7.mp4", "ks/a/abcdefghij0_7.wav")
    assert "frames" not in row


# --- VGGSound and AudioSet ---------------------------------------------------------------------------------------

NAMES = ("{}_000030", "{}_30", "{}_30_40", "{}_30000_40000", "{}_000030_000040")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["mp4", "MKV", "flac"])
def test_vggsound_names(tmp_path: Path, name: str, suffix: str) -> None:
    folder = touch(tmp_path / "vgg", f"some/where/{name.format('-_aB-12_30x')}.{suffix}")
    write(folder / "vggsound.csv", '-_aB-12_30x,30,"people, crowd",test')
    (row,) = make("vggsound", folder)
    column = "audio" if suffix == "flac" else "video"
    assert row[column] == f"vgg/some/where/{name.format('-_aB-12_30x')}.{suffix}"
    assert {key: row[key] for key in row if key != column} == {
        **{"id": "-_aB-12_30x_000030", "label": "people, crowd", "split": "test"},
    }


def test_vggsound_whole_videos(tmp_path: Path) -> None:
    folder = touch(tmp_path / "vgg", "-_aB-12_30x.mp4", "bbbbbbbbbbb.mp4", "bbbbbbbbbbb.wav")
    write(folder / "vggsound.csv", "-_aB-12_30x,30,dog,test", "bbbbbbbbbbb,0,cat,train", "bbbbbbbbbbb,20,cat,train")
    rows = make("vggsound", folder)
    assert column(rows, "video") == ["vgg/-_aB-12_30x.mp4", "vgg/bbbbbbbbbbb.mp4", "vgg/bbbbbbbbbbb.mp4"]
    assert column(rows, "audio") == ["", "vgg/bbbbbbbbbbb.wav", "vgg/bbbbbbbbbbb.wav"]
    assert [(row["start"], row["end"]) for row in rows] == [("30", "40"), ("0", "10"), ("20", "30")]
    assert "start" not in make("vggsound", folder, "--trimmed", "--overwrite")[0]


def audioset(folder: Path) -> Path:
    write(folder / "csv" / "class_labels_indices.csv", LABELS)
    write(
        folder / "csv" / "balanced_train_segments.csv",
        SEGMENTS_HEADER,
        '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/05zppz"',
        'aaaaaaaaaaa, 0.000, 10.000, "/m/09x0r"',
    )
    write(
        folder / "csv" / "unbalanced_train_segments.csv",
        SEGMENTS_HEADER,
        'bbbbbbbbbbb, 1.500, 9.250, "/m/09x0r"',
        'aaaaaaaaaaa, 0.000, 10.000, "/m/09x0r"',
    )
    write(folder / "csv" / "eval_segments.csv", SEGMENTS_HEADER, 'ccccccccccc, 0.000, 9.000, "/m/05zppz"')
    return folder


def test_audioset(tmp_path: Path) -> None:
    names = ("train/Y--PJHxphWEs.wav", "train/aaaaaaaaaaa_0_10.flac", "bbbbbbbbbbb.mp4", "eval/Yccccccccccc_0_9.wav")
    folder = touch(audioset(tmp_path / "audioset"), *names)
    rows = make("audioset", folder)
    assert column(rows, "id") == [
        *("--PJHxphWEs_000030", "aaaaaaaaaaa_000000", "ccccccccccc_000000", "bbbbbbbbbbb_000001.500"),
    ]
    assert column(rows, "label")[:2] == ["Speech;Male speech, man speaking", "Speech"]
    assert column(rows, "split") == ["train", "train", "test", "train"]
    assert [(row["start"], row["end"]) for row in rows] == [("", "")] * 3 + [("1.500", "9.250")]
    result = done("manifest", "audioset", folder, "--out", tmp_path / "manifest.csv")
    assert "--multi-label" in result.stderr
    result = done("manifest", "audioset", folder, "--out", tmp_path / "manifest.csv", "--json")
    assert result.json() == {
        **{
            "manifest": str(tmp_path / "manifest.csv"),
            "clips": 4,
            "missing": 0,
            "unlisted": 0,
            "unfit": 0,
            "classes": 2,
        },
        "multi_label": True,
        "splits": {
            "train": {"listed": 3, "found": 3, "missing": 0},
            "test": {"listed": 1, "found": 1, "missing": 0},
        },
    }


def test_audioset_classes_lie_beside_a_list_or_anywhere(tmp_path: Path) -> None:
    lists = audioset(tmp_path / "lists") / "csv"
    folder = touch(tmp_path / "media", "ccccccccccc_0_9.wav")
    assert len(make("audioset", folder, "--list", lists / "eval_segments.csv")) == 1
    (lists / "class_labels_indices.csv").rename(tmp_path / "labels.csv")
    command = ("audioset", folder, "--list", lists / "eval_segments.csv", "--out", tmp_path / "manifest.csv")
    assert "name it with --classes" in refusal(*command)
    assert done("manifest", *command, "--classes", tmp_path / "labels.csv").stdout  # the same names: the same manifest
    assert "no such file" in refusal(*command, "--classes", tmp_path / "none.csv")


def test_audioset_labels_that_a_manifest_can_not_hold(tmp_path: Path) -> None:
    folder = touch(audioset(tmp_path / "audioset"), "ccccccccccc_0_9.wav")
    write(folder / "csv" / "eval_segments.csv", 'ccccccccccc, 0.000, 9.000, "/m/x"', 'd, 0.0, 1.0, "/m/none"')
    says = refusal("audioset", folder, "--out", tmp_path / "manifest.csv")
    assert "line 1: label 'a;b' holds ';'" in says
    assert "line 2: label code '/m/none' is not one of /m/09x0r, /m/05zppz, /m/x" in says


# --- CREMA-D -----------------------------------------------------------------------------------------------------


def crema_d(folder: Path, count: int = 40) -> Path:
    names = [f"{1001 + i}_DFA_{('ANG', 'DIS', 'FEA', 'HAP', 'NEU', 'SAD')[i % 6]}_XX" for i in range(count)]
    return touch(folder, *(f"VideoFlash/{n}.flv" for n in names), *(f"AudioWAV/{n}.wav" for n in names), "a/other.wav")


def test_crema_d_without_lists(tmp_path: Path) -> None:
    folder = crema_d(tmp_path / "CREMA-D", 200)
    touch(folder, "VideoMP4/1001_DFA_ANG_XX.mp4", "AudioMP3/1001_DFA_ANG_XX.mp3")
    rows = make("crema-d", folder)
    assert rows[0] == {
        **{"id": "1001_DFA_ANG_XX", "label": "anger", "split": rows[0]["split"]},
        **{"video": "CREMA-D/VideoMP4/1001_DFA_ANG_XX.mp4", "audio": "CREMA-D/AudioWAV/1001_DFA_ANG_XX.wav"},
    }
    assert {*column(rows, "label")} == {"anger", "disgust", "fear", "happy", "neutral", "sad"}
    splits = column(rows, "split")
    assert 5 < splits.count("test") < 40
    assert splits.count("test") + splits.count("train") == len(splits) == 200
    record = done("manifest", "crema-d", folder, "--out", tmp_path / "manifest.csv", "--json").json()
    assert (record["unlisted"], record["classes"]) == (1, 6)
    rows = make("crema-d", folder, "--test-fraction", "0", "--val-fraction", "0.5", "--overwrite")
    assert {*column(rows, "split")} == {"train", "val"}


def test_crema_d_lists(tmp_path: Path) -> None:
    folder = crema_d(tmp_path / "CREMA-D")
    train = write(tmp_path / "train.csv", "1001_DFA_ANG_XX,ANG", "1003_DFA_FEA_XX,FEA")
    test = write(tmp_path / "test.csv", "1002_DFA_DIS_XX,DIS")
    rows = make("crema-d", folder, "--list", train, "--list", test)
    assert [(row["split"], row["label"]) for row in rows] == [
        ("train", "anger"),
        ("train", "fear"),
        ("test", "disgust"),
    ]


# --- ESC-50, on real sound ---------------------------------------------------------------------------------------


def esc50(folder: Path) -> Path:
    lines = []
    for number, sound in enumerate(Path(row["audio"]) for row in digit_rows()[:20]):
        fold, label = number % 5 + 1, ("dog", "rain")[number // 10]
        name = f"{fold}-{1000 + number // 2}-A-{number}.wav"
        copy(sound, folder / "audio" / name)
        lines.append(f"{name},{fold},{number // 10},{label},True,{1000 + number // 2},A")
    write(folder / "meta" / "esc50.csv", ESC50_HEADER, *lines)
    return folder


def test_esc50(tmp_path: Path) -> None:
    folder = esc50(tmp_path / "ESC-50-master")
    rows = make("esc50", folder)
    assert rows[0] == {
        **{"id": "1-1000-A-0", "label": "dog", "split": "train"},
        "audio": "ESC-50-master/audio/1-1000-A-0.wav",
        "recording": "1000",
    }
    assert all((row["split"] == "test") == row["id"].startswith("5-") for row in rows)
    done("preprocess", tmp_path / "manifest.csv", "--out", tmp_path / "store", *STORE_OPTIONS, "--workers", "1")
    train = Store(tmp_path / "store").indices["train"]  # a val split carved from it would keep them together
    assert list(train.sources) == [clip_id.split("-")[1] for clip_id in train.ids]
    rows = make("esc50", folder, "--test-fold", "1", "--val-fraction", "0.5", "--overwrite")
    assert all((row["split"] == "test") == row["id"].startswith("1-") for row in rows)
    recordings: dict[str, set[str]] = {}
    for row in rows:
        if row["split"] != "test":
            recordings.setdefault(row["id"].split("-")[1], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in recordings.values())
    assert set().union(*recordings.values()) == {"train", "val"}


# --- folders, of media that can be read --------------------------------------------------------------------------


def test_folder_of_clips(clips: Clips, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    copy(clips["-one-pixel-.mp4"], folder / "big dog" / "-dash-.mp4")
    copy(clips["cut.mkv"], folder / "big dog" / "b.x.MKV")
    digits = digit_rows()[:2]
    copy(Path(digits[0]["audio"]), folder / "big dog" / "b.x.wav")
    copy(Path(digits[1]["audio"]), folder / "cat" / "deep" / "c.wav")
    for digit in digits:
        copy(Path(digit["frames"]), folder / "cat" / "frames" / Path(digit["frames"]).name)
    touch(folder, "stray.wav", "cat/.hidden.wav", "cat/thumbnail.jpg", "cat/notes.txt")
    (folder / "cat" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (folder / "cat" / "round").symlink_to(folder)
    rows = make("folder", folder)
    expected = [
        ("big dog/-dash-", "clips/big dog/-dash-.mp4", "", ""),
        ("big dog/b.x", "clips/big dog/b.x.MKV", "clips/big dog/b.x.wav", ""),
        ("cat/deep/c", "", "clips/cat/deep/c.wav", ""),
        ("cat/frames", "", "", "clips/cat/frames"),
    ]
    assert [(row["id"], row["video"], row["audio"], row["frames"]) for row in rows] == expected
    assert column(rows, "label") == ["big dog", "big dog", "cat", "cat"]
    assert {*column(rows, "split")} == {"train"}
    done("preprocess", tmp_path / "manifest.csv", "--out", tmp_path / "store", *STORE_OPTIONS, "--workers", "1")
    record = done("manifest", "folder", folder, "--out", tmp_path / "manifest.csv", "--json").json()
    assert (record["clips"], record["unlisted"], record["missing"]) == (4, 2, 0)


def test_image_folder_with_splits(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for number, image in enumerate(Path(row["frames"]) for row in digit_rows()[:6]):
        split, label = ("train", "validation", "test")[number // 2], ("ant", "bee")[number % 2]
        copy(image, folder / split / label / f"{number}.PNG")
    touch(folder / "train" / "ant", "0.jpg.wav")
    rows = make("image-folder", folder)
    assert column(rows, "split") == ["test"] * 2 + ["train"] * 2 + ["val"] * 2
    assert rows[0] == {
        **{"id": "test/ant/4.PNG", "label": "ant", "split": "test", "frames": "images/test/ant/4.PNG"},
    }
    done("preprocess", tmp_path / "manifest.csv", "--out", tmp_path / "store", *STORE_OPTIONS, "--workers", "1")
    says = refusal("image-folder", folder, "--out", tmp_path / "other.csv", "--val-fraction", "0.5")
    assert "--val-fraction does not go with a val split" in says
    shutil.rmtree(folder / "validation")
    says = refusal("image-folder", folder, "--out", tmp_path / "other.csv", "--test-fraction", "0.5")
    assert "--test-fraction does not go with folders that are splits" in says
    done("manifest", "image-folder", folder, "--out", tmp_path / "other.csv", "--val-fraction", "0.9")
    rows = rows_of(tmp_path / "other.csv")
    assert {row["split"] for row in rows if row["id"].startswith("test/")} == {"test"}
    assert {row["split"] for row in rows if row["id"].startswith("train/")} <= {"train", "val"}


def test_a_class_may_be_called_train_but_splits_stand_alone(tmp_path: Path) -> None:
    folder = touch(tmp_path / "vehicles", "train/a.wav", "bus/b.wav")
    assert column(make("folder", folder), "label") == ["bus", "train"]
    touch(folder, "test/c/d.wav")
    says = refusal("folder", folder, "--out", tmp_path / "other.csv")
    assert "test, train look like splits, but bus lies beside them" in says


# --- splits by hash ----------------------------------------------------------------------------------------------


@given(groups=st.sets(st.text()), more=st.sets(st.text()), shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.4)))
def test_a_clip_stays_in_its_split_when_others_come(
    groups: set[str], more: set[str], shares: tuple[float, float]
) -> None:
    before = {group: hash_split(group, *shares) for group in groups}
    after = {group: hash_split(group, *shares) for group in groups | more}
    assert before.items() <= after.items()
    if shares == (0.0, 0.0):
        assert set(after.values()) <= {"train"}


@given(test=st.floats(0, 0.4), val=st.floats(0, 0.4), more=st.floats(0, 0.1), group=st.text())
def test_a_larger_share_takes_no_clip_back(test: float, val: float, more: float, group: str) -> None:
    if hash_split(group, test, val) == "test":
        assert hash_split(group, test + more, val) == "test"
    if hash_split(group, test, val) != "train":
        assert hash_split(group, test, val + more) != "train"


def test_shares_are_about_what_was_asked_for() -> None:
    splits = [hash_split(f"clip {number}", 0.2, 0.1) for number in range(5000)]
    assert splits.count("test") / 5000 == pytest.approx(0.2, abs=0.02)
    assert splits.count("val") / 5000 == pytest.approx(0.1, abs=0.02)


def test_parts_of_one_video_stay_together(tmp_path: Path) -> None:
    ids = [f"{number:011}" for number in range(30)]
    folder = touch(tmp_path / "vgg", *(f"{video}.mp4" for video in ids))
    write(folder / "vggsound.csv", *(f"{video},{start},x,train" for video in ids for start in (0, 10, 20)))
    rows = make("vggsound", folder, "--val-fraction", "0.5")
    assert len({(row["id"][:11], row["split"]) for row in rows}) == 30
    assert {*column(rows, "split")} == {"train", "val"}


# --- what is missing or wrong ------------------------------------------------------------------------------------


def test_missing_clips_are_told_and_listed(tmp_path: Path) -> None:
    folder = touch(tmp_path / "vgg", "aaaaaaaaaaa_000001.mp4", "zzzzzzzzzzz_000001.mp4")
    listed = write(folder / "vggsound.csv", "aaaaaaaaaaa,1,x,train", *(f"bbbbbbbbbb{n},1,=1+1,test" for n in range(5)))
    result = done("manifest", "vggsound", folder, "--out", tmp_path / "m.csv")
    assert f"warning: 5 of 6 clips are not below {folder} (bbbbbbbbbb0_000001, " in result.stderr
    assert "and 2 more); see " in result.stderr
    missing = read_csv(tmp_path / "m.missing.csv")
    assert column(missing, "line") == ["2", "3", "4", "5", "6"]
    assert {*column(missing, "list")} == {"vggsound.csv"}
    assert {*column(missing, "label")} == {"'=1+1"}  # as a spreadsheet shows it
    record = done("manifest", "vggsound", folder, "--out", tmp_path / "m.csv", "--json").json()
    assert (record["clips"], record["missing"], record["unlisted"], record["classes"]) == (1, 5, 1, 1)
    beside = tmp_path / "m.csv.json"
    actual = json.loads(beside.read_text(encoding="utf-8"))
    for counts in (5, {"x": 5}, {"x": {"train": -1}}):
        beside.write_text(json.dumps(actual | {"summary": actual["summary"] | {"by_class": counts}}), encoding="utf-8")
        assert "m.csv.json was not written by avpt manifest (summary" in refusal(
            "vggsound", folder, "--out", tmp_path / "m.csv"
        )
    beside.write_text(json.dumps(actual), encoding="utf-8")
    write(listed, "aaaaaaaaaaa,1,x,train")
    done("manifest", "vggsound", folder, "--out", tmp_path / "m.csv", "--overwrite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "m.csv.json", "vgg"]


def test_nothing_there_says_what_was_looked_for(tmp_path: Path) -> None:
    folder = touch(tmp_path / "vgg", "readme.md")
    assert "hold no list of vggsound; name one with --list" in refusal("vggsound", folder, "--out", tmp_path / "m.csv")
    write(folder / "vggsound.csv", "aaaaaaaaaaa,1,x,train")
    says = refusal("vggsound", folder, "--out", tmp_path / "m.csv")
    assert "none of 1 clips; the first would be aaaaaaaaaaa_000001_000011, aaaaaaaaaaa_000001, " in says
    assert "video .mp4, .mkv" in says
    for name, nothing in {
        "folder": "no folder for each class with clips in it",
        "image-folder": "no folder for each class with clips in it",
        "crema-d": "no media that are named like those of crema-d",
    }.items():
        assert f"hold {nothing}" in refusal(name, folder, "--out", tmp_path / "m.csv")
    assert "is not a folder" in refusal("folder", tmp_path / "none", "--out", tmp_path / "m.csv")
    assert "no such file" in refusal("vggsound", folder, "--list", tmp_path / "no.csv", "--out", tmp_path / "m.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vgg"]


BAD_LINES = [
    ("vggsound", "vggsound.csv", "aaaaaaaaaaa,1,x", "has 3 cells, not 4"),
    ("vggsound", "vggsound.csv", "aaaaaaaaaaa,one,x,train", "'one' is not a number of seconds"),
    ("vggsound", "vggsound.csv", "aaaaaaaaaaa,-1,x,train", "'-1' is not a number of seconds"),
    ("vggsound", "vggsound.csv", "aaaaaaaaaaa,1e300,x,train", "'1e300' is not a number of seconds"),
    ("vggsound", "vggsound.csv", "aaaaaaaaaaa,1,x,dev", "split 'dev' is not one of train, val, valid"),
    ("vggsound", "vggsound.csv", "aaaaaaaaaaa,1,,train", "label is empty"),
    ("vggsound", "vggsound.csv", "#NAME?,1,x,train", "'#NAME?' is not a YouTube id"),
    ("vggsound", "vggsound.csv", 'aaaaaaaaaaa,1,"x"y,train', "not CSV"),
    ("kinetics-sounds", "train.txt", "aaaaaaaaaaa_1,10,31", "class index '31' is not one of 0, 1, 2, 3, 4, 5, and 25"),
    ("kinetics-sounds", "train.txt", "aaaaaaaaaaa_1,10", "is neither YOUTUBEID_START,SECONDS,CLASSINDEX nor PATH"),
    ("crema-d", "train.csv", "1041_TIE_NEU_XX,JOY", "emotion 'JOY' is not one of ANG, DIS, FEA, HAP, NEU, SAD"),
]


@pytest.mark.parametrize(("name", "file", "line", "says"), BAD_LINES)
def test_bad_lines(tmp_path: Path, name: str, file: str, line: str, says: str) -> None:
    path = write(tmp_path / file, "", line)
    message = refusal(name, touch(tmp_path / "media", "x.mp4"), "--list", path, "--out", tmp_path / "m.csv")
    assert message.startswith(f"{path}: line 2: ")
    assert says in message
    assert "\n" not in message


def test_bad_lines_are_told_all_at_once(tmp_path: Path) -> None:
    first = write(tmp_path / "one.csv", *(["aaaaaaaaaaa,1,x,train", "bad"] * 15))
    second = write(tmp_path / "two.csv", *(["bad"] * 15))
    message = refusal("vggsound", tmp_path, "--list", first, "--list", second, "--out", tmp_path / "m.csv")
    head, *lines = message.splitlines()
    assert head == "the lists have 30 bad lines"
    assert len(lines) == MAX_LISTED + 1
    assert (lines[0].strip(), lines[-1].strip()) == (
        f"{first}: line 2: {BAD_LINES[0][3][:4]}1 cells, not 4; put quotes around a cell with a comma",
        "and 10 more",
    )


def test_bad_lists(tmp_path: Path) -> None:
    options = ("--out", tmp_path / "m.csv", "--list")
    (tmp_path / "latin.csv").write_bytes("aaaaaaaaaaa,1,x,train\nbbbbbbbbbbb,1,Hündchen,train\n".encode("latin-1"))
    assert "line 2: not UTF-8" in refusal("vggsound", tmp_path, *options, tmp_path / "latin.csv")
    path = write(tmp_path / "clips.csv", "1041_TIE_NEU_XX,NEU")
    assert "the name does not say which split" in refusal("crema-d", tmp_path, *options, path)
    path = write(tmp_path / "esc50.csv", "filename,fold", "a.wav,1")
    assert "line 1 does not name columns filename, fold, category, src_file" in refusal(
        "esc50", tmp_path, *options, path
    )
    path = write(tmp_path / "vggsound.csv", "aaaaaaaaaaa,1,x,train", "aaaaaaaaaaa,1,x,train", "aaaaaaaaaaa,1,x,test")
    says = refusal("vggsound", tmp_path, *options, path)
    assert f"{path}: line 3: aaaaaaaaaaa_000001 is in test here, but in train in line 1 of {path}; take one" in says


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file's name can't be of any bytes")
def test_names_that_a_manifest_can_not_hold(tmp_path: Path) -> None:
    folder = touch(tmp_path / "clips", "a/b\nc.wav", "a/ok.wav", "d /x.wav", "e/\u202ef.wav")
    with open(os.fsencode(folder / "a") + b"/\xff.wav", "wb") as file:  # noqa: PTH123
        file.write(b"x")
    result = done("manifest", "folder", folder, "--out", tmp_path / "m.csv", "--json")
    assert column(rows_of(tmp_path / "m.csv"), "id") == ["a/ok"]
    assert (result.json()["clips"], result.json()["unfit"]) == (1, 4)
    says = "4 of 5 clips are left out for their names"
    assert says in result.stderr
    assert r"'a/b\nc', 'a/\udcff'" in result.stderr
    (folder / "a" / "ok.wav").unlink()
    assert r"only names that can't be in a manifest" in refusal("folder", folder, "--out", tmp_path / "n.csv")


def test_links_that_go_round_end(tmp_path: Path) -> None:
    folder = touch(tmp_path / "clips", "a/1.wav", "b/2.wav", "c/deep/3.wav")
    (folder / "loop").symlink_to("loop")
    (folder / "a" / "loop.wav").symlink_to("loop.wav")
    (folder / "a" / "gone.wav").symlink_to("nowhere")
    (folder / "c" / "deep" / "up").symlink_to("../..")
    (folder / "a" / "other").symlink_to("../b")
    (folder / "b" / "other").symlink_to("../a")
    rows = make("folder", folder)
    assert column(rows, "id") == ["a/1", "a/other/2", "b/2", "b/other/1", "c/deep/3"]


def test_class_folders_that_look_alike_are_told(tmp_path: Path) -> None:
    folder = touch(tmp_path / "clips", "Dog/1.wav", "dog/2.wav", "cafe\u0301/3.wav", "caf\u00e9/4.wav")
    result = done("manifest", "folder", folder, "--out", tmp_path / "m.csv")
    assert r"'Dog' and 'dog', 'cafe\u0301' and 'caf\xe9' look alike and are classes of their own" in result.stderr


def test_media_are_found_under_the_other_spelling_of_accents(tmp_path: Path) -> None:
    folder = touch(tmp_path / "clips", "cafe\u0301.wav", "plain.wav")
    listed = write(tmp_path / "esc50.csv", ESC50_HEADER, "caf\u00e9.wav,1,0,dog,True,1,A", "plain.wav,1,0,cat,True,2,A")
    rows = make("esc50", folder, "--list", listed)
    assert column(rows, "audio") == ["clips/cafe\u0301.wav", "clips/plain.wav"]


@pytest.mark.parametrize(
    ("name", "option", "why"),
    [
        ("vggsound", ("--test-fold", "1"), "--test-fold does not go with vggsound: only ESC-50 has folds"),
        ("vggsound", ("--test-fraction", "0"), "its lists say which clips are test"),
        ("esc50", ("--test-fraction", "0.1"), "its lists say which clips are test"),
        ("esc50", ("--trimmed",), "its files are not named by YouTube ids"),
        ("esc50", ("--classes", "x.csv"), "only AudioSet's lists need one"),
        ("folder", ("--list", "x.csv"), "its folders say which clips there are"),
        ("crema-d", ("--list", "train.csv", "--test-fraction", "0.1"), "its lists say which clips are test"),
        ("folder", ("--test-fraction", "0.5", "--val-fraction", "0.5"), "leave nothing for train"),
        ("esc50", ("--test-fold", "6"), "--test-fold is 6; it must be 1 to 5"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, name: str, option: Sequence[str], why: str) -> None:
    assert why in refusal(name, tmp_path, "--out", tmp_path / "m.csv", *option)


# --- again -------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> tuple[str | Path, ...]:
    """A command that has written m.csv and m.missing.csv."""
    folder = touch(tmp_path / "vgg", "aaaaaaaaaaa_000001.mp4")
    write(folder / "vggsound.csv", "aaaaaaaaaaa,1,x,train", "bbbbbbbbbbb,1,x,train")
    command = ("manifest", "vggsound", folder, "--out", tmp_path / "m.csv")
    done(*command)
    return command


def test_again_does_nothing(tmp_path: Path, made: tuple[str | Path, ...]) -> None:

    def written() -> dict[Path, tuple[int, int]]:  # it may be read
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}

    before = written()
    result = done(*made, "--list", tmp_path / "vgg" / "vggsound.csv")
    assert result.stdout == f"{tmp_path / 'm.csv'}\n"
    assert f"{tmp_path / 'm.csv'} was there already, made with the same options and inputs\n" in result.stderr
    assert written() == before
    shutil.move(tmp_path / "vgg", tmp_path / "moved")
    shutil.copytree(tmp_path, tmp_path / "vgg" / "elsewhere")  # beside its media it is the same anywhere
    elsewhere = tmp_path / "vgg" / "elsewhere"
    (elsewhere / "moved").rename(elsewhere / "vgg")
    done("manifest", "vggsound", elsewhere / "vgg", "--out", elsewhere / "m.csv")


def test_another_is_refused(tmp_path: Path, made: tuple[str | Path, ...]) -> None:
    before = files_of(tmp_path)
    says = avpt(*made, "--val-fraction", "0.25")
    assert (says.code, says.error.count("val_fraction: 0.0 there, 0.25 now")) == (1, 1)
    touch(tmp_path / "vgg", "bbbbbbbbbbb_000001.mp4")
    says = avpt(*made)
    assert says.code == 1
    assert "(media: " in says.error
    assert "--overwrite" in says.error
    assert {name: data for name, data in files_of(tmp_path).items() if "vgg" not in name} == {
        name: data for name, data in before.items() if "vgg" not in name
    }
    done(*made, "--overwrite")
    assert len(rows_of(tmp_path / "m.csv")) == 2
    assert not (tmp_path / "m.missing.csv").exists()


@pytest.mark.parametrize("name", ["m.csv", "m.missing.csv"])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_changed_file_is_kept(
    tmp_path: Path, made: tuple[str | Path, ...], name: str, overwrite: tuple[str, ...]
) -> None:
    (tmp_path / name).write_text("mine")
    result: Result = avpt(*made, *overwrite)
    assert result.code == 1
    assert f"{name} was not written by avpt, or changed since" in result.error
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["m.csv", "m.missing.csv", "m.csv.json"])
def test_a_foreign_file_is_kept(tmp_path: Path, made: tuple[str | Path, ...], name: str) -> None:
    for path in ("m.csv", "m.missing.csv", "m.csv.json"):
        (tmp_path / path).unlink()
    (tmp_path / name).write_text("{}")
    for overwrite in ((), ("--overwrite",)):
        result = avpt(*made, *overwrite)
        assert (result.code, "was not written by avpt" in result.error) == (1, True)
        assert (tmp_path / name).read_text() == "{}"
    (tmp_path / name).unlink()
    (tmp_path / "m.csv").mkdir()
    assert "is a folder; --out must name a file" in avpt(*made).error


@pytest.mark.parametrize("lost", [("m.csv.json",), ("m.csv.json", "m.csv"), ("m.missing.csv",)])
def test_a_killed_run_is_finished_with_equal_bytes(
    tmp_path: Path, made: tuple[str | Path, ...], lost: tuple[str, ...]
) -> None:
    before = files_of(tmp_path)
    for name in lost:
        (tmp_path / name).unlink()
    done(*made)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("lost", [("m.csv",), ("m.csv", "m.missing.csv")])
def test_one_that_was_removed_is_made_again_with_other_options(
    tmp_path: Path, made: tuple[str | Path, ...], lost: tuple[str, ...]
) -> None:
    for name in lost:
        (tmp_path / name).unlink()
    assert "was there already" not in done(*made, "--trimmed").stderr
    assert (tmp_path / "m.csv").exists()
    assert json.loads((tmp_path / "m.csv.json").read_text())["config"]["trimmed"] is True
    assert "trimmed: True there, False now" in avpt(*made).error


def test_the_record_says_how_it_came_about(tmp_path: Path, made: tuple[str | Path, ...]) -> None:
    record: dict[str, Any] = json.loads((tmp_path / "m.csv.json").read_text())
    assert record["inputs"].keys() == {"list 1 vggsound.csv", "folder", "media"}
    assert record["config"]["name"] == "vggsound"
    assert str(tmp_path) not in json.dumps({name: record[name] for name in ("config", "inputs", "summary")})
    assert record["paths"] == {"folder": {"path": str(tmp_path / "vgg")}}


def test_paths_lead_through_links(tmp_path: Path) -> None:
    """`..` behind a link leads elsewhere than the words say."""
    folder = touch(tmp_path / "data" / "clips", "a/x.wav")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    done("manifest", "folder", folder, "--out", tmp_path / "link" / "m.csv")
    assert column(rows_of(tmp_path / "link" / "m.csv"), "audio") == ["../../data/clips/a/x.wav"]


def test_a_manifest_among_its_media_is_no_list(tmp_path: Path) -> None:
    touch(tmp_path, "aaaaaaaaaaa_000001.mp4")
    write(tmp_path / "vggsound.csv", "aaaaaaaaaaa,1,x,train", "bbbbbbbbbbb,1,x,train")
    for name in ("vggsound-mine.csv", "vggsound-mine.csv", "vggsound-other.csv"):
        done("manifest", "vggsound", tmp_path, "--out", tmp_path / name)
        assert column(rows_of(tmp_path / name), "video") == ["aaaaaaaaaaa_000001.mp4"]
        (tmp_path / f"{name}.json").unlink()  # as if killed just before the end
        done("manifest", "vggsound", tmp_path, "--out", tmp_path / name)


def test_a_clip_that_lies_there_twice_is_told(tmp_path: Path) -> None:
    folder = touch(tmp_path / "vgg", "b/aaaaaaaaaaa_000001.mp4", "a/aaaaaaaaaaa_000001.mp4", "a/z.mp4", "b/z.mp4")
    write(folder / "vggsound.csv", "aaaaaaaaaaa,1,x,train")
    result = done("manifest", "vggsound", folder, "--out", tmp_path / "m.csv")
    assert "warning: more than once there: 1 clip; of a/aaaaaaaaaaa_000001.mp4 and b/" in result.stderr
    assert column(rows_of(tmp_path / "m.csv"), "video") == ["vgg/a/aaaaaaaaaaa_000001.mp4"]


def test_of_two_formats_of_a_clip_of_ones_own_one_is_taken_and_it_is_said(tmp_path: Path) -> None:
    folder = touch(tmp_path / "own", "toy/rabbit.webm", "toy/rabbit.mp4", "toy/pig.mp4", "cat/a.mp4", "cat/b.mp4")
    result = done("manifest", "folder", folder, "--out", tmp_path / "m.csv")
    (taken,) = (path for path in column(rows_of(tmp_path / "m.csv"), "video") if "rabbit" in path)
    (other,) = {"own/toy/rabbit.mp4", "own/toy/rabbit.webm"} - {taken}
    says = f"more than once there: 1 clip; of {taken.removeprefix('own/')} and {other.removeprefix('own/')} the first"
    assert says in " ".join(result.stderr.split())
    touch(folder, "cat/a.avi", "toy/pig.mkv")
    told = " ".join(done("manifest", "folder", folder, "--out", tmp_path / "n.csv").stderr.split())
    named = {"cat/a.avi", "cat/a.mp4", "toy/pig.mkv", "toy/pig.mp4"} & set(re.findall(r"[\w/]+\.\w+", told))
    assert "more than once there: 3 clips" in told
    assert len(named) >= 2  # each that is left out is named
