"""Make spoken and handwritten digits as short films, a folder that `avpt` reads: the data of the small recipes.

    pip install espeakng-loader
    python recipes/make_digits.py --out digits

data      handwriting is real: the 1,797 digits by 13 people that scikit-learn ships. Speech is synthesised by
          espeak-ng, which the package espeakng-loader carries, in 104 voices. A film says a digit and shows one; who
          wrote it and which voice says it have nothing to do with each other.
hardware  any; half a minute; writes about 12 MB
expected  1,500 films: 400 train, 100 val, 1,000 test, balanced over digits; the same each time

Voices and pictures of one split are never heard or seen in another, whatever `--seed` is.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import random
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LANGUAGES = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
VARIANT_SHARES = {"train": 0.5, "val": 0.1, "test": 0.4}  # of the voices
TEST_CLIPS = 100  # of each digit, each with a picture of its own
VAL_PICTURES = 20  # of each digit
WORDS_PER_MINUTE, PITCH = (120, 240), (20, 80)  # ranges that a recording's speed and pitch are drawn from

SIDE = 64  # pixels of a film, which enlarges the 8 x 8 of a picture
AAC_FRAME = 1024  # samples; a picture lasts as long, so that sound and pictures end together
QUIETEST = 0.01  # of full scale; silence before and after a word is cut off


@dataclass(frozen=True)
class Clip:
    """What a film says and shows."""

    digit: int
    split: str
    language: str
    variant: str  # of the voice
    words_per_minute: int
    pitch: int
    picture: int  # index into scikit-learn's digits

    @property
    def id(self) -> str:
        return f"{self.digit}_{self.language}_{self.variant.replace(' ', '-')}_{self.picture:04d}"


def split_variants(variants: Sequence[str]) -> dict[str, list[str]]:
    """Divide the voices among the splits; those that differ in a number alone (klatt2, klatt3) stay together."""
    families: dict[str, list[str]] = {}
    for variant in sorted(variants):
        families.setdefault(re.sub(r"\d+$", "", variant), []).append(variant)
    order = random.Random(0).sample(sorted(families), len(families))
    splits: dict[str, list[str]] = {split: [] for split in VARIANT_SHARES}
    for family in order:  # to the split that is shortest of its share
        split = min(splits, key=lambda name: len(splits[name]) / VARIANT_SHARES[name])
        splits[split] += families[family]
    return splits


def split_pictures(labels: Sequence[int]) -> dict[tuple[str, int], list[int]]:
    """Divide the pictures of each digit among the splits: indices by split and digit."""
    pools: dict[tuple[str, int], list[int]] = {}
    for digit in range(10):
        indices = [index for index, label in enumerate(labels) if label == digit]
        random.Random(digit).shuffle(indices)
        pools["test", digit] = indices[:TEST_CLIPS]
        pools["val", digit] = indices[TEST_CLIPS : TEST_CLIPS + VAL_PICTURES]
        pools["train", digit] = indices[TEST_CLIPS + VAL_PICTURES :]
    return pools


def draw_clips(variants: Sequence[str], labels: Sequence[int], per_class: int, seed: int) -> list[Clip]:
    """Draw each split's clips in the order 0 to 9, 0 to 9, ..., so that the first few of any number are balanced.

    Where more are asked for than there are pictures, a picture is shown again, and another voice says the digit.
    """
    rng = random.Random(seed)
    voices, pools = split_variants(variants), split_pictures(labels)
    clips: dict[str, Clip] = {}
    for split, count in (("train", per_class), ("val", max(1, per_class // 4)), ("test", TEST_CLIPS)):
        pools_of_split = {digit: rng.sample(pools[split, digit], len(pools[split, digit])) for digit in range(10)}
        for turn in range(count):
            for digit, pool in pools_of_split.items():
                while True:
                    clip = Clip(
                        digit=digit,
                        split=split,
                        language=rng.choice(LANGUAGES),
                        variant=rng.choice(voices[split]),
                        words_per_minute=rng.randint(*WORDS_PER_MINUTE),
                        pitch=rng.randint(*PITCH),
                        picture=pool[turn % len(pool)],
                    )
                    if clip.id not in clips:
                        break
                clips[clip.id] = clip
    return list(clips.values())


class Synthesizer:
    """espeak-ng, called as a library.

    Attributes:
        sample_rate: of what it says, in Hz.
        variants: names of its voices, which any of its languages can be spoken with.
    """

    SYNCHRONOUS, UTF8, RATE, PITCH = 2, 1, 1, 3  # numbers from espeak-ng's speak_lib.h

    def __init__(self) -> None:
        import espeakng_loader

        data = Path(espeakng_loader.get_data_path())
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate: int = self._library.espeak_Initialize(self.SYNCHRONOUS, 0, str(data).encode(), 0)
        if self.sample_rate < 0:
            raise RuntimeError(f"espeak-ng can't be started with its data in {data}")
        self.variants = sorted(path.name for path in (data / "voices" / "!v").iterdir())
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._take)
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._chunks: list[NDArray[np.int16]] = []

    def _take(self, samples: Any, count: int, events: int | None) -> int:
        if samples and count:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, clip: Clip) -> NDArray[np.float32]:
        """(samples,) of a clip's digit in -1..1, without the silence around it.

        A voice's flutter goes on from one word to the next: the same words in the same order sound the same.
        """
        self._chunks.clear()
        self._library.espeak_SetSynthCallback(self._callback)  # the library has one for all its callers
        self._library.espeak_ng_SetRandSeed(clip.picture)  # breath is noise, seeded by the clock
        voice, text = f"{clip.language}+{clip.variant}".encode(), WORDS[clip.digit].encode()
        failed = self._library.espeak_SetVoiceByName(voice)
        failed |= self._library.espeak_SetParameter(self.RATE, clip.words_per_minute, 0)
        failed |= self._library.espeak_SetParameter(self.PITCH, clip.pitch, 0)
        failed |= self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, self.UTF8, None, None)
        if failed or not self._chunks:
            raise RuntimeError(f"espeak-ng can't say {WORDS[clip.digit]} as {voice.decode()}")
        samples = (np.concatenate(self._chunks) / 32768).astype(np.float32)
        (loud,) = np.nonzero(np.abs(samples) > QUIETEST)
        return samples[loud[0] : loud[-1] + 1]


def add_noise(samples: NDArray[np.float32], snr: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Add white noise at a signal-to-noise ratio in dB, and leave room for it below full scale."""
    noise = rng.standard_normal(len(samples), dtype=np.float32)
    noisy = samples + noise * float(np.sqrt(np.square(samples).mean()) * 10 ** (-snr / 20))
    return (noisy / max(1.0, float(np.abs(noisy).max()))).astype(np.float32)


def draw_picture(ink: NDArray[np.float64], noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(SIDE, SIDE) grey, white on black, from (8, 8) in 0..1 with Gaussian noise of that standard deviation."""
    noisy = np.clip(ink + noise * rng.standard_normal(ink.shape), 0, 1)
    places = np.clip((np.arange(SIDE) + 0.5) * 8 / SIDE - 0.5, 0, 7)  # of the pixels, between centres of the 8
    rows = np.stack([np.interp(places, np.arange(8), row) for row in noisy])
    grey = np.stack([np.interp(places, np.arange(8), column) for column in rows.T], axis=1)
    return np.round(255 * grey).astype(np.uint8)


def write_film(path: Path, samples: NDArray[np.float32], sample_rate: int, picture: NDArray[np.uint8]) -> None:
    """Write an MP4 of H.264 and AAC: (samples,) in -1..1, beside a grey picture that stands still."""
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as film:
        tick = Fraction(1, sample_rate)
        video = film.add_stream("libx264", rate=Fraction(sample_rate, AAC_FRAME), options={"qp": "12", "threads": "1"})
        video.width, video.height, video.pix_fmt, video.time_base = *picture.shape[::-1], "yuv420p", tick
        audio = film.add_stream("aac", rate=sample_rate, layout="mono")
        audio.bit_rate = 64_000
        for start in range(0, len(samples), AAC_FRAME):
            frame = av.VideoFrame.from_ndarray(picture, format="gray")
            frame.pts, frame.time_base, frame.duration = start, tick, AAC_FRAME
            film.mux(video.encode(frame))
        film.mux(video.encode(None))
        whole = np.pad(samples, (0, -len(samples) % AAC_FRAME))
        sound = av.AudioFrame.from_ndarray(whole[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = sample_rate, 0, tick
        film.mux(audio.encode(sound))
        film.mux(audio.encode(None))


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name once it is complete."""
    beside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    yield beside
    beside.rename(out)


def make(out: Path, *, per_class: int, snr: float, picture_noise: float, seed: int) -> Path:
    """Write the folder and return the path of its manifest; what is there already and made alike is left as it is."""
    settings = {"per_class": per_class, "snr": snr, "picture_noise": picture_noise, "seed": seed}
    manifest = out / "manifest.csv"
    if out.exists():
        try:
            found = json.loads((out / "settings.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if found != settings:
            sys.exit(f"{out}: is there already, and not with these options; remove it, or give another --out")
        return manifest

    synthesizer, digits = Synthesizer(), load_digits()
    with made_whole(out) as folder:
        (folder / "films").mkdir()
        with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("id", "label", "split", "video"))
            for clip in draw_clips(synthesizer.variants, digits.target.tolist(), per_class, seed):
                rng = np.random.default_rng([seed, *clip.id.encode()])
                samples = add_noise(synthesizer.say(clip), snr, rng)
                picture = draw_picture(digits.images[clip.picture] / 16, picture_noise, rng)
                film = f"films/{clip.id}.mp4"
                write_film(folder / film, samples, synthesizer.sample_rate, picture)
                writer.writerow((clip.id, clip.digit, clip.split, film))
        (folder / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return manifest


def main() -> None:
    """Read the command line and make the folder."""
    parser = argparse.ArgumentParser(description="Films of spoken and handwritten digits.")
    parser.add_argument("--out", type=Path, required=True, help="A folder that does not exist yet.")
    parser.add_argument("--per-class", type=int, default=40, help="training clips of each digit; val has a quarter")
    parser.add_argument("--snr", type=float, default=10.0, help="of the sound in dB; inf adds no noise")
    parser.add_argument("--picture-noise", type=float, default=0.2, help="standard deviation, white being 1")
    parser.add_argument("--seed", type=int, default=0, help="of everything but which split a voice or picture is in")
    options = parser.parse_args()
    if options.per_class < 1 or options.picture_noise < 0:
        parser.error("--per-class must be at least 1, and --picture-noise not negative")
    try:
        print(make(**vars(options)))
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is missing; install it with: pip install espeakng-loader")


if __name__ == "__main__":
    main()
