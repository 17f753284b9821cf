"""The data of the small recipes: what it says and shows, and that no split knows another's voices and pictures."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from itertools import chain
from pathlib import Path

import av
import make_digits
import numpy as np
import pytest
from helpers import ROOT, Result
from hypothesis import given
from hypothesis import strategies as st
from make_digits import Synthesizer, add_noise, draw_clips, draw_picture, split_pictures, split_variants
from numpy.typing import NDArray
from sklearn.datasets import load_digits

SCRIPT = ROOT / "recipes" / "make_digits.py"
LABELS: list[int] = load_digits().target.tolist()


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    return Synthesizer()


def make(out: Path, *options: str) -> Result:
    """Run the script in this process."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(stdout), redirect_stderr(stderr), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), "--out", str(out), *options])
        try:
            make_digits.main()
        except SystemExit as end:  # with a code, or with words as Python would print them
            code = end.code if isinstance(end.code, int) else 1
            stderr.write(f"{end.code}\n" if isinstance(end.code, str) else "")
    return Result(code, stdout.getvalue(), stderr.getvalue())


def make_few(out: Path, seed: int = 0) -> Path:
    """A clip of each digit to train, one to choose and one to test, without noise, in a process of its own."""
    code = "import make_digits as m, pathlib, sys; m.TEST_CLIPS = 1; "
    code += "m.make(pathlib.Path(sys.argv[1]), per_class=1, snr=float('inf'), picture_noise=0, seed=int(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", code, out, str(seed)], cwd=SCRIPT.parent, check=True, timeout=300)
    return out


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_few(tmp_path_factory.mktemp("digits") / "few")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def decoded(path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The sound (samples,) and the first picture (height, width) of a film."""
    with av.open(str(path)) as film:
        assert [stream.codec_context.name for stream in film.streams] == ["h264", "aac"]
        frame = next(film.decode(video=0))
        film.seek(0)
        sound = np.concatenate([part.to_ndarray()[0] for part in film.decode(audio=0)])
        return sound.astype(np.float32), frame.to_ndarray(format="gray").astype(np.uint8)


def test_the_quickstarts_clips(synthesizer: Synthesizer) -> None:
    clips = draw_clips(synthesizer.variants, LABELS, per_class=40, seed=0)
    assert Counter(clip.split for clip in clips) == {"train": 400, "val": 100, "test": 1000}
    assert set(Counter((clip.split, clip.digit) for clip in clips).values()) == {40, 10, 100}
    assert [clip.digit for clip in clips[:20]] == [*range(10)] * 2  # any --limit leaves the classes balanced
    assert len({clip.id for clip in clips}) == 1500
    assert all(LABELS[clip.picture] == clip.digit for clip in clips)
    assert len({clip.picture for clip in clips}) == 1500  # none is shown twice


@given(sizes=st.tuples(st.integers(1, 120), st.integers(1, 120)), seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_no_seed_and_no_size_lets_a_split_know_another(sizes: tuple[int, int], seeds: tuple[int, int]) -> None:
    variants = [f"{name}{number}" for name in ("klatt", "Andy", "f", "anna", "bert", "cora") for number in range(4)]
    drawn = [draw_clips(variants, LABELS, size, seed) for size, seed in zip(sizes, seeds, strict=True)]
    for size, clips in zip(sizes, drawn, strict=True):
        assert Counter(clip.split for clip in clips)["train"] == 10 * size
        assert len({clip.id for clip in clips}) == len(clips)
    for what in ("variant", "picture"):
        splits = {
            name: {getattr(c, what) for clips in drawn for c in clips if c.split == name}
            for name in ("train", "val", "test")
        }
        assert not splits["train"] & splits["val"]
        assert not (splits["train"] | splits["val"]) & splits["test"]


def test_voices_and_pictures_are_divided_whole(synthesizer: Synthesizer) -> None:
    variants = split_variants(synthesizer.variants)
    assert sorted(chain.from_iterable(variants.values())) == synthesizer.variants
    assert len(synthesizer.variants) > 100
    assert min(len(voices) for voices in variants.values()) > 5
    (split,) = {split for split, voices in variants.items() for voice in voices if voice.startswith("klatt")}
    assert split in variants  # those that sound nearly alike stay together
    assert sorted(chain.from_iterable(split_pictures(LABELS).values())) == [*range(1797)]


def test_a_film_says_and_shows_what_the_manifest_says(few: Path, synthesizer: Synthesizer) -> None:
    rows, images = rows_of(few), load_digits().images
    assert len(rows) == 30
    for row in rows:
        digit, language, variant, picture = row["id"].split("_")
        assert row["label"] == digit == str(LABELS[int(picture)])
        sound, shown = decoded(few / row["video"])
        cells = shown.reshape(8, 8, 8, 8).mean(axis=(1, 3)) / 255 * 16  # a cell of the original is 8 x 8 pixels
        assert np.corrcoef(cells.ravel(), images[int(picture)].ravel())[0, 1] > 0.95
        assert 0.05 < np.abs(sound).max() <= 1.01
        assert language in make_digits.LANGUAGES
        assert variant.replace("-", " ") in synthesizer.variants or variant in synthesizer.variants


def test_the_sound_of_a_film_is_what_was_said(synthesizer: Synthesizer, tmp_path: Path) -> None:
    for clip in draw_clips(synthesizer.variants, LABELS, per_class=1, seed=0)[:10]:
        said = synthesizer.say(clip)
        make_digits.write_film(tmp_path / "film.mp4", said, synthesizer.sample_rate, np.zeros((64, 64), np.uint8))
        heard, _ = decoded(tmp_path / "film.mp4")
        assert 0 <= len(heard) - len(said) < 1024  # a frame of AAC
        assert np.corrcoef(said, heard[: len(said)])[0, 1] > 0.9


@given(snr=st.floats(-10, 40))
def test_noise_has_the_ratio_that_was_asked_for(snr: float) -> None:
    samples = (0.01 * np.sin(np.arange(20000) / 7)).astype(np.float32)
    noisy = add_noise(samples, snr, np.random.default_rng(0))
    power = np.square(samples, dtype=np.float64).mean() / np.square(noisy - samples, dtype=np.float64).mean()
    assert 10 * np.log10(power) == pytest.approx(snr, abs=0.2)


def test_sound_stays_within_full_scale_and_no_noise_is_none() -> None:
    samples = np.sin(np.arange(1000) / 7).astype(np.float32)
    assert np.abs(add_noise(samples, 0, np.random.default_rng(0))).max() == pytest.approx(1)
    assert np.array_equal(add_noise(samples, float("inf"), np.random.default_rng(0)), samples)


def test_pictures_and_their_noise() -> None:
    ink = np.zeros((8, 8))
    ink[2, 5] = 1.0
    clean = draw_picture(ink, 0.0, np.random.default_rng(0))
    assert clean.shape == (64, 64)
    assert clean.dtype == np.dtype(np.uint8)
    assert np.unravel_index(clean.argmax(), clean.shape)[0] // 8 == 2
    assert np.unravel_index(clean.argmax(), clean.shape)[1] // 8 == 5
    assert clean.max() > 220
    assert not clean[32:].any()
    grey = np.full((8, 8), 0.5)
    noisy = [draw_picture(grey, 0.1, np.random.default_rng(seed))[3::8, 3::8] / 255 for seed in range(40)]
    assert np.std(noisy) == pytest.approx(0.1 * (0.9375**2 + 0.0625**2), rel=0.1)  # weights of the two nearest cells


def test_the_same_again_and_nothing_else(few: Path, tmp_path: Path) -> None:
    before = contents(few)
    make_few(few)
    assert contents(few) == before
    assert contents(make_few(tmp_path / "again")) == before  # also the voices with breath in them, which is noise
    assert contents(make_few(tmp_path / "other", seed=1))["manifest.csv"] != before["manifest.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]


@pytest.mark.parametrize("options", [("--seed", "1"), ("--snr", "3"), ("--per-class", "2")])
def test_a_folder_that_is_something_else_is_left_alone(few: Path, options: tuple[str, ...]) -> None:
    before = contents(few)
    result = make(few, *options)
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr == f"{few}: is there already, and not with these options; remove it, or give another --out\n"
    assert contents(few) == before


@pytest.mark.parametrize("options", [("--per-class", "0"), ("--picture-noise", "-1"), ("--snr", "loud")])
def test_wrong_options(options: tuple[str, ...], tmp_path: Path) -> None:
    result = make(tmp_path / "out", *options)
    assert result.code == 2
    assert options[0] in result.stderr
    assert not list(tmp_path.iterdir())


def test_it_is_a_program(few: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(few), "--seed", "1"]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    result = make(few, "--seed", "1")
    assert (process.returncode, process.stdout, process.stderr) == (result.code, result.stdout, result.stderr)
