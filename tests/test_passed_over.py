"""What lies in a folder of clips and becomes no row of its manifest is counted and named, once."""

from __future__ import annotations

import csv
from pathlib import Path

from helpers import avpt, done, touch


def told(*command: str | Path) -> str:
    return " ".join(done("manifest", *command).stderr.split())


def ids_of(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return [row["id"] for row in csv.DictReader(file)]


def test_folders_and_files_that_no_clip_is_made_of(tmp_path: Path) -> None:
    names = ("cat/1.mp4", "cat/2.wav", "dog/1.mp4", "dog/old/2.mp4", "alone.mp4", "README.md", "dog/1.jpg", "dog/n.pdf")
    folder = touch(tmp_path / "clips", *names, "cat/.DS_Store", "horse/n.txt")
    (folder / "cow").mkdir()
    (folder / "dog" / "gone.mp4").symlink_to("nowhere")
    (folder / "cat" / "3.mp4").write_bytes(b"")
    command = ("folder", folder, "--out", tmp_path / "m.csv")
    said = told(*command)
    assert f"warning: passed over in {folder}: 1 file of zero bytes (cat/3.mp4); " in said
    assert "; 2 folders without clips (cow, horse); " in said
    assert "; 4 files that no clip is made of (dog/gone.mp4, dog/n.pdf, dog/1.jpg, and 1 more)" in said
    assert "warning: in no class folder, and left out: 1 clip (alone)" in said
    assert ids_of(tmp_path / "m.csv") == ["cat/1", "cat/2", "dog/1", "dog/old/2"]
    assert "passed over" not in told(*command)  # which was said
    (folder / "cat" / "3.mp4").write_bytes(b"x")  # as of a copy that had just begun
    assert "(media: " in avpt("manifest", *command).error
    assert "zero bytes" not in told(*command, "--overwrite")
    assert "cat/3" in ids_of(tmp_path / "m.csv")


def test_nothing_is_said_where_nothing_is_passed_over(tmp_path: Path) -> None:
    folder = touch(tmp_path / "clips", "train/cat/1.mp4", "train/dog/2/0.jpg", "train/dog/2/1.jpg", "test/cat/2.mp4")
    touch(folder, "test/dog/2.mp4")
    said = told("folder", folder, "--out", tmp_path / "m.csv")
    assert "passed over" not in said
    assert "left out" not in said


def test_images_in_class_folders(tmp_path: Path) -> None:
    folder = touch(tmp_path / "clips", "cat/1.mp4", "dog/1.jpg", "dog/2.jpg")
    hint = "`avpt manifest image-folder` takes"
    assert f"as they hold images and no clips: dog; {hint} each image as a clip" in told(
        *("folder", folder, "--out", tmp_path / "m.csv")
    )
    said = told("image-folder", folder, "--out", tmp_path / "i.csv")
    assert "1 folder without clips (cat); 1 file that no clip is made of (cat/1.mp4)" in said
    (folder / "cat" / "1.mp4").unlink()
    refused = avpt("manifest", "folder", folder, "--out", tmp_path / "n.csv")
    assert (refused.code, f"{hint} images one by one" in refused.error) == (1, True)


def test_empty_files_of_a_known_data_set_are_missing(tmp_path: Path) -> None:
    folder = touch(tmp_path / "vgg", "aaaaaaaaaaa_000001.mp4", "notes/x.pdf")
    (folder / "bbbbbbbbbbb_000001.mp4").write_bytes(b"")
    (folder / "vggsound.csv").write_text("aaaaaaaaaaa,1,x,train\nbbbbbbbbbbb,1,x,train\n")
    said = told("vggsound", folder, "--out", tmp_path / "m.csv")
    assert f"passed over in {folder}: 1 file of zero bytes (bbbbbbbbbbb_000001.mp4)" in said
    assert "no clip is made of" not in said
    assert "1 of 2 clips are not below" in said


def test_of_three_formats_of_a_clip_the_one_that_is_taken_is_named(tmp_path: Path) -> None:
    folder = touch(tmp_path / "clips", "cat/1.avi", "cat/1.flv", "cat/1.mkv", "dog/1.mp4")
    said = told("folder", folder, "--out", tmp_path / "m.csv")
    assert "of cat/1.mkv and cat/1.flv the first is taken; left out likewise: cat/1.avi" in said
