"""Make AV-MNIST: FSDD's spoken digits paired with MNIST's handwritten ones, as a folder that `avpt` reads.

    python recipes/make_av_mnist.py --fsdd fsdd_recordings.tar.gz --mnist-images t10k-images-idx3-ubyte.gz \
        --mnist-labels t10k-labels-idx1-ubyte.gz --out av-mnist
    MANIFEST=av-mnist/manifest.csv recipes/quickstart.sh

data      FSDD's recordings in one .tar.gz, files named DIGIT_SPEAKER_TAKE.wav; MNIST's test half, two files
hardware  any; seconds; writes about 5 MB
expected  700 clips: 400 train, 100 val, 200 test, balanced over digits and speakers; the same each time. With
          `--held-out theo` the test split is what that speaker says, 500 clips, and the others are train and val
"""

from __future__ import annotations

import argparse
import csv
import gzip
import random
import re
import struct
import sys
import tarfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

CLIPS_PER_DIGIT = {"train": 40, "val": 10, "test": 20}
CLIPS_OF_SPEAKER = 50  # of each digit, where one speaker is held out to test with: all there are
DIGITS = 10
TEST_TAKES = 5  # FSDD's own split: takes 0-4 are for testing, 5-49 for training

ATTRIBUTION = """\
# Where these files come from

The recordings and images in this folder are **not** under the MIT licence of this project. They are under
the licences named below, which ask for attribution, and for the same licence on what is made from them.

`audio/*.wav`: recordings from the Free Spoken Digit Dataset (FSDD)

- by Zohar Jackson and the contributors of FSDD; speakers {speakers}
- from <https://github.com/Jakobovski/free-spoken-digit-dataset>
- licence: Creative Commons Attribution-ShareAlike 4.0 International (CC BY-SA 4.0),
  <https://creativecommons.org/licenses/by-sa/4.0/>
- changes: none. Each is copied byte for byte under its own name, `DIGIT_SPEAKER_TAKE.wav`.

`images/*.png`: images from the test half of MNIST

- by Yann LeCun, Corinna Cortes and Christopher J. C. Burges
- from <http://yann.lecun.com/exdb/mnist/>, file `t10k-images-idx3-ubyte`
- licence: commonly given as Creative Commons Attribution-ShareAlike 3.0 (CC BY-SA 3.0),
  <https://creativecommons.org/licenses/by-sa/3.0/>
- changes: written as grey PNG files, the pixels unchanged. `0042.png` is the image at index 42, from 0.

## How the pairs were drawn

`recipes/make_av_mnist.py {options}` drew {total} recordings and, for each, an image of the same digit:
{counts} clips, the same number of each digit, and of each speaker as nearly as that goes. {splits}
Each recording and each image is used once, so no two splits share any.

**Sound and image were not recorded together.** A pair agrees in its digit and in nothing else: who speaks
says nothing about who wrote.
"""

SPLITS = """The test
recordings are from FSDD's own test takes, 0 to 4; train and val are from takes 5 to 49; all the speakers are
in every split."""
SPLITS_BY_SPEAKER = """The test
recordings are all by {held_out}, who is in no other split."""


@dataclass(frozen=True)
class Recording:
    """One spoken digit."""

    name: str  # DIGIT_SPEAKER_TAKE
    digit: int
    speaker: str
    take: int
    data: bytes  # the whole wav file


def read_recordings(path: Path) -> list[Recording]:
    """Read every DIGIT_SPEAKER_TAKE.wav of a tar archive, sorted by digit, speaker and take."""
    recordings: list[Recording] = []
    with tarfile.open(path) as archive:
        for member in archive:
            match = re.fullmatch(r"(?:.*/)?((\d)_([a-z]+)_(\d+))\.wav", member.name)
            file = archive.extractfile(member) if match else None
            if match and file:
                name, digit, speaker, take = match.groups()
                recordings.append(Recording(name, int(digit), speaker, int(take), file.read()))
    return sorted(recordings, key=lambda recording: (recording.digit, recording.speaker, recording.take))


def read_idx(path: Path, dimensions: int) -> tuple[tuple[int, ...], bytes]:
    """Read a gzip-compressed IDX file of unsigned bytes: its shape and its values."""
    data = gzip.decompress(path.read_bytes())
    magic, *shape = struct.unpack_from(f">{dimensions + 1}I", data)
    if magic != 0x0800 + dimensions:  # 08: unsigned bytes
        raise ValueError(f"{path}: not an IDX file of {dimensions} dimensions")
    return tuple(shape), data[4 * (dimensions + 1) :]


def png(pixels: bytes, width: int, height: int) -> bytes:
    """Return grey pixels as a PNG file: a header, the rows, each after its filter byte, an end."""
    rows = b"".join(b"\0" + pixels[row * width : (row + 1) * width] for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, grey
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def draw_recordings(
    recordings: list[Recording], rng: random.Random, held_out: str | None = None
) -> dict[str, list[Recording]]:
    """Draw each split's recordings, in the order 0 to 9, 0 to 9, ..., the speakers dealt out evenly.

    Those that are tested are FSDD's test takes of all speakers, or all takes of the one that is held out.
    """
    everyone = sorted({recording.speaker for recording in recordings})
    piles: defaultdict[tuple[int, str, bool], list[Recording]] = defaultdict(list)
    for recording in sorted(recordings, key=lambda _: rng.random()):
        tested = recording.take < TEST_TAKES if held_out is None else recording.speaker == held_out
        piles[recording.digit, recording.speaker, tested].append(recording)
    drawn: dict[str, list[Recording]] = {}
    for split, count in CLIPS_PER_DIGIT.items():
        speakers = everyone
        if held_out is not None:
            speakers = [held_out] if split == "test" else [name for name in everyone if name != held_out]
            count = CLIPS_OF_SPEAKER if split == "test" else count
        dealt: list[Recording] = []  # digit after digit; each goes on with the speaker after the last one
        for turn in range(DIGITS * count):
            dealt.append(piles[turn // count, speakers[turn % len(speakers)], split == "test"].pop())
        drawn[split] = [recording for first in range(count) for recording in dealt[first::count]]
    return drawn


def make(fsdd: Path, mnist_images: Path, mnist_labels: Path, out: Path, seed: int, held_out: str | None = None) -> Path:
    """Write the folder and return the path of its manifest."""
    rng = random.Random(seed)
    recordings = read_recordings(fsdd)
    (count, height, width), pixels = read_idx(mnist_images, 3)
    _, labels = read_idx(mnist_labels, 1)
    if held_out is not None and held_out not in {recording.speaker for recording in recordings}:
        sys.exit(f"{fsdd}: no recording of {held_out!r}")
    drawn = draw_recordings(recordings, rng, held_out)
    images: defaultdict[int, list[int]] = defaultdict(list)  # digit -> indices of its images
    for index in sorted(range(count), key=lambda _: rng.random()):
        images[labels[index]].append(index)

    (out / "audio").mkdir(parents=True)
    (out / "images").mkdir()
    size = height * width  # pixels of an image, a byte each
    rows: list[tuple[str, ...]] = []
    for split, chosen in drawn.items():
        for recording in chosen:
            index = images[recording.digit].pop()
            audio, image = f"audio/{recording.name}.wav", f"images/{index:04d}.png"
            (out / audio).write_bytes(recording.data)
            (out / image).write_bytes(png(pixels[index * size : (index + 1) * size], width, height))
            rows.append((recording.name, str(recording.digit), split, audio, image))

    counts = ", ".join(f"{len(chosen)} {split}" for split, chosen in drawn.items())
    options = f"--seed {seed}" + ("" if held_out is None else f" --held-out {held_out}")
    splits = SPLITS if held_out is None else SPLITS_BY_SPEAKER.format(held_out=held_out)
    speakers = ", ".join(sorted({recording.speaker for recording in recordings}))
    text = ATTRIBUTION.format(speakers=speakers, options=options, total=len(rows), counts=counts, splits=splits)
    (out / "ATTRIBUTION.md").write_text(text, encoding="utf-8", newline="\n")
    manifest = out / "manifest.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "label", "split", "audio", "frames"))
        writer.writerows(rows)
    return manifest


def main() -> None:
    """Read the command line and make the folder."""
    parser = argparse.ArgumentParser(description="Pair FSDD's spoken digits with MNIST's written ones.")
    parser.add_argument("--fsdd", type=Path, required=True, help="fsdd_recordings.tar.gz")
    parser.add_argument("--mnist-images", type=Path, required=True, help="t10k-images-idx3-ubyte.gz")
    parser.add_argument("--mnist-labels", type=Path, required=True, help="t10k-labels-idx1-ubyte.gz")
    parser.add_argument("--out", type=Path, required=True, help="A folder that does not exist yet, or is empty.")
    parser.add_argument("--held-out", metavar="SPEAKER", help="Test with this speaker alone, who is in no other split.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        sys.exit(f"{options.out}: is there already; remove it, or give another --out")
    print(make(**vars(options)))


if __name__ == "__main__":
    main()
