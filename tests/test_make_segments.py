"""The recipe that cuts videos into labelled segments: what it writes, and what it leaves out."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avpt.store.manifest import read_manifest

SCRIPT = Path(__file__).parents[1] / "recipes" / "make_segments.py"
split_counts = runpy.run_path(str(SCRIPT))["split_counts"]


def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def write_wav(path: Path, seconds: float, rate: int = 8000) -> Path:
    samples = np.zeros((1, int(seconds * rate)), dtype=np.int16)
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_video(path: Path, seconds: int, fps: int = 10) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width = stream.height = 32
        for number in range(seconds * fps):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number % 256, dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_segments_follow_the_clock(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    write_wav(clips / "bell.wav", 5.4)
    write_video(clips / "train, fast.mp4", 10)
    out = tmp_path / "lists" / "segments.csv"
    done = run("--clips", clips, "--seconds", "1.0", "--out", out)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}\n", "")

    manifest = read_manifest(out)
    assert manifest.classes == ("bell", "train, fast")
    counts = Counter((clip.labels[0], clip.split) for clip in manifest.clips)
    assert counts == {
        ("bell", "train"): 3,
        ("bell", "val"): 1,
        ("bell", "test"): 1,
        ("train, fast", "train"): 6,
        ("train, fast", "val"): 2,
        ("train, fast", "test"): 2,
    }
    bell = [clip for clip in manifest.clips if clip.labels == ("bell",)]
    assert [(clip.start, clip.end) for clip in bell] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert [clip.split for clip in bell] == ["train", "train", "train", "val", "test"]
    assert bell[0].id == "bell_0.0_1.0"
    assert {clip.source for clip in bell} == {"../clips/bell.wav"}


def test_paths_hold_where_the_folder_is_a_link(tmp_path: Path) -> None:
    clip = write_wav(tmp_path / "a.wav", 5)
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "down")
    assert run("--clips", clip, "--out", tmp_path / "link" / "segments.csv").returncode == 0
    assert len(read_manifest(tmp_path / "link" / "segments.csv").clips) == 5


def test_shares_and_length(tmp_path: Path) -> None:
    clip = write_wav(tmp_path / "a.wav", 3)
    out = tmp_path / "segments.csv"
    done = run("--clips", clip, "--seconds", "0.3", "--train", "0.5", "--val", "0", "--out", out)
    assert done.returncode == 0
    clips = read_manifest(out).clips
    assert Counter(clip.split for clip in clips) == {"train": 5, "test": 5}
    assert [clip.end for clip in clips] == pytest.approx([0.3 * number for number in range(1, 11)])


def test_what_gives_no_segments_is_told(tmp_path: Path) -> None:
    good, short = write_wav(tmp_path / "good.wav", 5), write_wav(tmp_path / "short.wav", 2)
    (tmp_path / "notes.txt").write_text("no media")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile good.wav\n")
    (tmp_path / "cut.flv").write_bytes(b"FLV\x01\x05\0\0\0\x09\0\0\0\0")
    out = tmp_path / "out" / "segments.csv"
    done = run("--clips", tmp_path, "--out", out)
    assert done.returncode == 0
    said = done.stderr.splitlines()
    assert [line.split(": ")[0] for line in said] == [
        str(tmp_path / "cut.flv"),
        str(tmp_path / "list.mp4"),
        str(tmp_path / "notes.txt"),
        str(short),
    ]
    assert all("left out" in line for line in said)
    assert "it is a list of other files" in said[1]
    assert read_manifest(out).classes == (good.stem,)

    out.unlink()
    done = run("--clips", short, "--out", out)
    assert done.returncode == 1
    assert "no segments" in done.stderr
    assert not out.exists()


def test_the_second_of_two_clips_of_one_name_is_left_out(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 5)
    write_video(tmp_path / "a.mp4", 5)
    done = run("--clips", tmp_path, "--out", tmp_path / "segments.csv")
    assert done.returncode == 0
    assert done.stderr.startswith(f"{tmp_path / 'a.wav'}: left out: would be the same class as")
    assert {clip.source for clip in read_manifest(tmp_path / "segments.csv").clips} == {"a.mp4"}


@settings(deadline=None)
@given(segments=st.integers(0, 200), cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@example(segments=5, cuts=(0.0, 0.5))
@example(segments=5, cuts=(0.05, 0.95))
def test_every_split_with_a_share_gets_a_segment(segments: int, cuts: tuple[float, float]) -> None:
    train, val = min(cuts), max(cuts) - min(cuts)
    shares = (train, val, 1.0 - train - val)
    counts = split_counts(segments, train, val)
    if segments < sum(share > 1e-9 for share in shares):
        assert counts == [0, 0, 0]
    else:
        assert sum(counts) == segments
        for count, share in zip(counts, shares, strict=True):
            assert (count > 0) == (share > 1e-9)
            assert abs(count - share * segments) <= 2


@pytest.mark.parametrize(
    ("seconds", "splits", "end"),
    [
        (2.98, ["train", "val", "test"], 2.98),
        (3.0, ["train", "val", "test"], 3.0),
        (3.85, ["train", "val", "test"], 3.0),
        (3.95, ["train", "train", "val", "test"], 3.95),
    ],
)
def test_a_short_clip_has_a_segment_in_every_split(
    tmp_path: Path, seconds: float, splits: list[str], end: float
) -> None:
    clip = write_wav(tmp_path / "a.wav", seconds)
    assert run("--clips", clip, "--out", tmp_path / "segments.csv").returncode == 0
    clips = read_manifest(tmp_path / "segments.csv").clips
    assert [clip.split for clip in clips] == splits
    assert clips[-1].end == end


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--seconds", "0"], 2),
        (["--seconds", "nan"], 2),
        (["--train", "0.9", "--val", "0.2"], 2),
        (["--train", "-0.1"], 2),
        (["--clips", "nowhere"], 1),
    ],
)
def test_bad_options(tmp_path: Path, options: list[str], code: int) -> None:
    clip = write_wav(tmp_path / "a.wav", 1)
    done = run("--clips", clip, "--out", tmp_path / "segments.csv", *options)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "segments.csv").exists()
