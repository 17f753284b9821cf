"""The recipe's AV-MNIST: what it makes of the digits and the recordings that others ship."""

from __future__ import annotations

import csv
import gzip
import io
import re
import struct
import subprocess
import sys
import tarfile
import wave
from collections import Counter
from pathlib import Path

import pytest
from helpers import ROOT
from PIL import Image

from avpt.store.manifest import Manifest, read_manifest

SCRIPT = ROOT / "recipes" / "make_av_mnist.py"
DATA = ROOT.parent / "shared" / "data"  # FSDD and MNIST, where they are
COUNTS = {"train": 400, "val": 100, "test": 200}
DIGITS = [str(digit) for digit in range(10)]


def archives() -> list[str]:
    """The options that name the real archives."""
    names = {
        "--fsdd": "fsdd/fsdd_recordings.tar.gz",
        "--mnist-images": "mnist/t10k-images-idx3-ubyte.gz",
        "--mnist-labels": "mnist/t10k-labels-idx1-ubyte.gz",
    }
    for name in names.values():
        if not (DATA / name).is_file():
            pytest.skip(f"no {name} here: FSDD and MNIST are not carried by the project")
    return [part for option, name in names.items() for part in (option, str(DATA / name))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AV-MNIST, made from the real archives."""
    folder = tmp_path_factory.mktemp("av-mnist")
    done = make(archives(), folder)
    assert (done.returncode, done.stdout) == (0, f"{folder / 'manifest.csv'}\n"), done.stderr
    return folder


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder / "manifest.csv")


def take(name: str) -> int:
    match = re.fullmatch(r"\d_[a-z]+_(\d+)", name)
    assert match
    return int(match[1])


def test_counts_per_split_and_class(manifest: Manifest) -> None:
    assert len(manifest.clips) == 700
    assert manifest.classes == tuple(DIGITS)
    counts = Counter((clip.split, clip.labels[0]) for clip in manifest.clips)
    assert counts == {(split, digit): count // 10 for split, count in COUNTS.items() for digit in DIGITS}
    first = [clip.labels[0] for clip in manifest.clips[:20]]
    assert first == DIGITS * 2  # any --limit leaves the classes balanced


def test_recordings_follow_their_names_and_fsdd_own_split(manifest: Manifest) -> None:
    for clip in manifest.clips:
        assert clip.audio
        assert clip.audio.stem == clip.id
        assert clip.id[0] == clip.labels[0]
        assert (take(clip.id) < 5) == (clip.split == "test")
    speakers = Counter((clip.split, clip.id.split("_")[1]) for clip in manifest.clips)
    assert len(speakers) == 3 * 6
    assert all(abs(count - COUNTS[split] / 6) < 1 for (split, _), count in speakers.items())


def test_a_speaker_is_held_out(tmp_path: Path) -> None:
    assert make([*archives(), "--held-out", "theo"], tmp_path / "theo").returncode == 0
    clips = read_manifest(tmp_path / "theo" / "manifest.csv").clips
    assert Counter(clip.split for clip in clips) == {"train": 400, "val": 100, "test": 500}
    assert all((clip.id.split("_")[1] == "theo") == (clip.split == "test") for clip in clips)
    assert len({clip.frames for clip in clips}) == len({clip.id for clip in clips}) == 1000
    nobody = make([*archives(), "--held-out", "nobody"], tmp_path / "nobody")
    assert (nobody.returncode, "no recording of 'nobody'" in nobody.stderr) == (1, True)


def test_every_file_is_used_exactly_once(manifest: Manifest, folder: Path) -> None:
    used = [path for clip in manifest.clips for path in (clip.audio, clip.frames) if path]
    assert len(used) == len(set(used)) == 1400
    present = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(present) == sorted([*used, folder / "manifest.csv", folder / "ATTRIBUTION.md"])
    assert len({path.read_bytes() for path in used}) == 1400  # nor the same content under two names
    assert sum(path.stat().st_size for path in present) < 5.5e6


def test_recordings_are_8_khz_mono_16_bit(manifest: Manifest) -> None:
    for clip in manifest.clips:
        with wave.open(str(clip.audio)) as sound:
            assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (8000, 1, 2)
            assert 0.1 < sound.getnframes() / 8000 < 2.5


def test_images_are_28_x_28_grey(manifest: Manifest) -> None:
    for clip in manifest.clips:
        assert clip.frames
        with Image.open(clip.frames) as image:
            image.load()
            assert (image.format, image.size, image.mode) == ("PNG", (28, 28), "L")
            low, high = image.getextrema()
            assert low == 0
            assert isinstance(high, int)
            assert high > 200


def test_attribution(folder: Path) -> None:
    text = (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for words in (
        "**not** under the MIT licence",
        "Jakobovski/free-spoken-digit-dataset",
        "CC BY-SA 4.0",
        "Yann LeCun, Corinna Cortes and Christopher J. C. Burges",
        "CC BY-SA 3.0",
        "agrees in its digit and in nothing else",
    ):
        assert words in text


# The script, on a stand-in for the archives, which are not in the project


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(folder / "fsdd.tar.gz", "w:gz", compresslevel=1) as archive:
        for digit in range(10):
            for speaker in ("ann", "bob", "cyd", "dan", "eve", "fay"):
                for number in range(50):
                    data = f"{digit} {speaker} {number}".encode()
                    member = tarfile.TarInfo(f"recordings/{digit}_{speaker}_{number}.wav")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    labels = bytes(index % 10 for index in range(1000))
    pixels = b"".join(struct.pack(">I", index) + bytes(28 * 28 - 4) for index in range(1000))
    images = struct.pack(">IIII", 0x0803, 1000, 28, 28) + pixels
    (folder / "images.gz").write_bytes(gzip.compress(images))
    (folder / "labels.gz").write_bytes(gzip.compress(struct.pack(">II", 0x0801, 1000) + labels))
    names = {"--fsdd": "fsdd.tar.gz", "--mnist-images": "images.gz", "--mnist-labels": "labels.gz"}
    return [part for option, name in names.items() for part in (option, str(folder / name))]


def make(sources: list[str], out: Path, seed: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *sources, "--out", str(out), "--seed", str(seed)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_seed_gives_the_same_bytes(sources: list[str], tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        done = make(sources, tmp_path / name, seed)
        assert (done.returncode, done.stdout) == (0, f"{tmp_path / name / 'manifest.csv'}\n"), done.stderr
    one, again, other = (contents(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert one["manifest.csv"] != other["manifest.csv"]
    assert len(one) == len(other) == 1402


def test_image_and_recording_are_of_the_same_digit(sources: list[str], tmp_path: Path) -> None:
    assert make(sources, tmp_path / "out").returncode == 0
    with (tmp_path / "out" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 700
    for row in rows:
        digit, speaker, number = row["id"].split("_")
        assert (tmp_path / "out" / row["audio"]).read_text() == f"{digit} {speaker} {number}"
        with Image.open(tmp_path / "out" / row["frames"]) as image:
            (index,) = struct.unpack(">I", image.tobytes()[:4])
        assert row["frames"] == f"images/{index:04d}.png"
        assert row["label"] == digit == str(index % 10)


def test_a_folder_in_use_is_left_alone(sources: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    done = make(sources, tmp_path)
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
