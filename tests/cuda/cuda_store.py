"""The clips of the checks on a CUDA device: films made where PyAV is, and their store made larger where it is not."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from avpt.media.clip import ClipSettings, DecodedClip
from avpt.store.store import Store, read_shard_record, shard_name, store_record, write_shard

SECONDS = 16  # of a film
SHARD_SIZE = 128
SPLITS = ("train", "train", "train", "train", "val", "test")  # of the pieces of a film


def make_films(folder: Path) -> None:
    """Films and a manifest of ten-second pieces of them; every other one is of the other class."""
    sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
    from clips import make_films

    (folder / "films").mkdir(parents=True)
    make_films(folder / "films", SECONDS)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "split", "video", "start", "end"])
        for film in sorted((folder / "films").iterdir()):
            for start, split in enumerate(SPLITS):
                label = "ab"[start % 2]
                writer.writerow([f"{film.stem}-{start}", label, split, film.resolve(), start, start + 10])


def read_clips(path: Path) -> list[DecodedClip]:
    """All clips of a store's training split."""
    clips = []
    for shard in sorted(path.glob("train-*.h5")):
        with h5py.File(shard) as file:
            fbank, frames = file["audio/fbank"][:], file["audio/num_frames"][:]
            first, offsets = file["visual/clip_offset"][:], file["visual/byte_offset"][:]
            times, sizes, pictures = file["visual/time"][:], file["visual/size"][:], file["visual/bytes"][:]
        for row in range(len(frames)):
            own = range(first[row], first[row + 1])
            stored = [pictures[offsets[i] : offsets[i + 1]].tobytes() for i in own]
            part = slice(own.start, own.stop)
            clips.append(DecodedClip(fbank[row], int(frames[row]), times[part], sizes[part], stored))
    return clips


def enlarge(source: Path, path: Path, counts: dict[str, int]) -> Path:
    """A store of so many clips a split, in which the training clips of another come round and round."""
    store, clips = Store(source), read_clips(source)
    names = ClipSettings.__dataclass_fields__.keys() & store.settings.keys()
    settings: dict[str, Any] = asdict(ClipSettings(**{name: store.settings[name] for name in names}))
    settings |= {"multi_label": False}
    path.mkdir(parents=True)
    shards: dict[str, list[tuple[str, Any]]] = {}
    for split, count in counts.items():
        for number, first in enumerate(range(0, count, SHARD_SIZE)):
            rows = range(first, min(first + SHARD_SIZE, count))
            name = shard_name(split, number)
            write_shard(
                path / name,
                ids=[f"{split}-{row:07d}" for row in rows],
                labels=np.array([row % 2 for row in rows], dtype=np.int64),
                clips=[clips[row % len(clips)] for row in rows],
                failures=(),
                partial=(),
                settings=settings,
            )
            shards.setdefault(split, []).append((name, read_shard_record(path / name)))
    written = {"schema": 1, "config": settings | {"shard_size": SHARD_SIZE}, "inputs": {"manifest": "0" * 64}}
    (path / "settings.json").write_text(json.dumps(written), encoding="utf-8")
    (path / "store.json").write_text(json.dumps(store_record(written, ("a", "b"), shards)), encoding="utf-8")
    return path


if __name__ == "__main__":
    make_films(Path(sys.argv[1]))
