"""What an epoch holds in memory, with few clips and with many.

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import write_store

from avpt.loading.dataset import Augmentation, ClipDataset
from avpt.loading.loader import Loader
from avpt.media.clip import ClipSettings, DecodedClip
from avpt.store.store import Store

METHOD = (
    "For each number of clips a process of its own reads whole epochs of a store through avpt's loader, as training "
    "does but for the model. After every batch it asks the kernel what it and its workers have in memory of their own "
    "(private pages, and their share of shared memory), without files: the `smaps_rollup` of proc(5), Pss_Anon and "
    "Pss_Shmem. Told is the most, in MB, of the process and of the largest worker, in the last epoch. The clips "
    "are small (64 x 64 log-mel, one 32 x 32 frame): what is asked is whether anything grows with their number."
)
SETTINGS = ClipSettings(mel_bins=64, spectrogram_frames=64, max_frames=1, frame_size=32, frame_codec="raw")


def small_clips() -> list[DecodedClip]:
    """A few, of noise."""
    random = np.random.default_rng(0)
    return [
        DecodedClip(
            fbank=random.normal(-4, 4, (64, 64)).astype(np.float16),
            num_audio_frames=64,
            times=np.zeros(1, np.float32),
            sizes=np.array([[32, 40]], np.int32),
            frames=[random.integers(0, 256, 32 * 40 * 3, dtype=np.uint8).tobytes()],
        )
        for _ in range(7)
    ]


def held(pid: int) -> float:
    """MB of a process, without files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"]) / 1024


def measure(path: Path, batch_size: int, workers: int, epochs: int) -> dict[str, float]:
    """The most that this process and a worker hold in the last epoch, and at the end of each epoch."""
    torch.set_num_threads(1)
    store = Store(path)
    spec = store.input_spec(image_size=32, num_frames=1)
    augmentation = Augmentation((0.08, 1.0), True, (8, 8))
    clips = ClipDataset(store.indices["train"], ("audio", "visual"), spec, "raw", augmentation=augmentation)
    loader = Loader(clips, batch_size, device=torch.device("cpu"), workers=workers, shuffle_seed=0)
    most: dict[str, float] = {}
    for epoch in range(epochs):
        most = {"parent": 0.0, "worker": 0.0}
        for _ in loader.epoch(epoch):
            most["parent"] = max(most["parent"], held(os.getpid()))
            children = [held(child.pid) for child in multiprocessing.active_children() if child.pid]
            most["worker"] = max(most["worker"], *children)
    return {name: round(value, 1) for name, value in most.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=(2000, 20000))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--store", type=Path, help="of an existing store, measured in this process")
    options = parser.parse_args()

    if options.store is not None:
        print(json.dumps(measure(options.store, options.batch_size, options.workers, options.epochs)))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for count in options.clips:
            store = write_store(Path(name) / str(count), small_clips(), SETTINGS, {"train": count})
            sizes = {"batch-size": options.batch_size, "workers": options.workers, "epochs": options.epochs}
            command = [sys.executable, __file__, "--store", str(store)]
            command += [text for option, value in sizes.items() for text in (f"--{option}", str(value))]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[str(count)] = json.loads(result.stdout)
    fewest, most = (found[str(pick(options.clips))] for pick in (min, max))
    record = {
        "benchmark": "memory",
        "target": "flat",
        "megabytes": found,
        "growth": {name: round(most[name] - fewest[name], 1) for name in ("parent", "worker")},
        "settings": {name: str(value) for name, value in vars(options).items()},
        "torch": torch.__version__,
        "method": METHOD,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
