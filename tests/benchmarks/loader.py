"""What a training clip costs the loader: against a script that starts from wav and JPEG files in every epoch.

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import wave
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import FRAMES, HELP, Recording, decoded, processor_seconds, read_recordings, write_store
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchaudio.compliance import kaldi
from torchvision import transforms

from avpt.loading.dataset import Augmentation, ClipDataset
from avpt.loading.loader import Loader
from avpt.media.clip import ClipSettings
from avpt.media.codecs import encode_frame
from avpt.store.store import Store
from avpt.training.runtime import start

METHOD = (
    "Clips are 10 s of sound at 16 kHz and 10 frames, of which 3 are drawn; training input as by default (random "
    "resized crop to 224, flip, normalised batches). `store` and `raw` are avpt's loader on its store with JPEG and "
    "raw frames; `script` is a torch Dataset over the same clips as wav and JPEG files (the same bytes): PIL, "
    "torchvision's transforms, torchaudio's filter bank for each clip. Each runs in a DataLoader with as many "
    "workers, one thread a process, files in the page cache; the first pass is not counted. Seconds are those of "
    "the processor, over all processes, so that copies between processes count; the order turns from round to round, "
    "and a ratio is the median over rounds of script / other."
)
TARGETS = {"jpeg_ratio": 3.0, "raw_ratio": 5.0}
SPECTROGRAM_FRAMES, MEL_BINS, IMAGE_SIZE, NUM_FRAMES = 1024, 128, 224, 3


class FileDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """The usual script: a folder a clip, `sound.wav` and `0.jpg`, `1.jpg`, ..."""

    def __init__(self, folders: list[Path], mean: float, std: float) -> None:
        self.folders, self.mean, self.std = folders, mean, std
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(IMAGE_SIZE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, int]:
        folder = self.folders[position]
        edges = [i * FRAMES // NUM_FRAMES for i in range(NUM_FRAMES + 1)]
        drawn = [int(torch.randint(edges[i], edges[i + 1], ())) for i in range(NUM_FRAMES)]
        pictures = [self.transform(Image.open(folder / f"{frame}.jpg").convert("RGB")) for frame in drawn]
        return self.sound(folder / "sound.wav"), torch.stack(pictures), position % 2

    def sound(self, path: Path) -> Tensor:
        with wave.open(str(path), "rb") as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
            rate = file.getframerate()
        waveform = torch.from_numpy(samples.astype(np.float32) / 32768)
        fbank = kaldi.fbank(
            (waveform - waveform.mean())[None],
            htk_compat=True,
            sample_frequency=rate,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=MEL_BINS,
            dither=0.0,
            frame_shift=10,
        )
        padded = torch.nn.functional.pad(fbank, (0, 0, 0, SPECTROGRAM_FRAMES - len(fbank)))
        normalised: Tensor = (padded - self.mean) / (2 * self.std)
        return normalised[None]


def write_files(folder: Path, recordings: list[Recording], num_clips: int) -> list[Path]:
    """The clips as the script wants them."""
    folders = []
    for number in range(num_clips):
        recording, clip = recordings[number % len(recordings)], folder / str(number)
        clip.mkdir(parents=True)
        with wave.open(str(clip / "sound.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes((recording.waveform.clip(-1, 1) * 32767).round().astype(np.int16).tobytes())
        for i, rgb in enumerate(recording.pictures):
            (clip / f"{i}.jpg").write_bytes(encode_frame(rgb, "jpeg"))
        folders.append(clip)
    return folders


def store_loader(path: Path, batch_size: int, workers: int) -> Loader:
    """avpt's own loader, as `fuse-train --mask none` makes it."""
    store = Store(path)
    spec = store.input_spec(image_size=IMAGE_SIZE, num_frames=NUM_FRAMES)
    augmentation = Augmentation((0.08, 1.0), True, (0, 0))
    codec = store.settings["frame_codec"]
    clips = ClipDataset(store.indices["train"], ("audio", "visual"), spec, codec, augmentation=augmentation)
    return Loader(clips, batch_size, device=torch.device("cpu"), workers=workers, shuffle_seed=0)


def file_loader(folders: list[Path], mean: float, std: float, batch_size: int, workers: int) -> DataLoader[Any]:
    """The script's loader."""
    return DataLoader(
        FileDataset(folders, mean, std),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=one_thread,
    )


def one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def one_pass(batches: Callable[[], Iterator[tuple[Tensor, ...]]], num_clips: int) -> tuple[float, float]:
    """(seconds of the processor, seconds on the clock) of one epoch."""
    used, began, seen, last = processor_seconds(), time.perf_counter(), 0, 0.0
    for sound, pictures in batches():
        last = processor_seconds()  # while the workers are there: avpt's end with the pass, and their seconds with them
        assert sound.shape[1:] == (1, SPECTROGRAM_FRAMES, MEL_BINS)
        assert pictures.shape[1:] == (NUM_FRAMES, 3, IMAGE_SIZE, IMAGE_SIZE)
        assert sound.dtype == pictures.dtype == torch.float32
        seen += len(sound)
    assert seen == num_clips
    return last - used, time.perf_counter() - began


def from_store(loader: Loader, epochs: Iterator[int]) -> Iterator[tuple[Tensor, ...]]:
    return (batch.inputs for batch in loader.epoch(next(epochs)))


def from_files(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, ...]]:
    return ((sound, pictures) for sound, pictures, _ in loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=256, help="in an epoch")
    parser.add_argument("--recordings", type=Path, help=HELP)
    parser.add_argument("--size", type=int, nargs=2, default=(340, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    start(0, "cpu")
    torch.set_num_threads(1)
    recordings = read_recordings(options.recordings, *options.size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for codec in ("jpeg", "raw"):
            settings = ClipSettings(frame_codec=codec)
            clips = [decoded(recording, settings) for recording in recordings]
            write_store(folder / codec, clips, settings, {"train": options.clips})
        folders = write_files(folder / "files", recordings, options.clips)
        store = Store(folder / "jpeg")
        ways: dict[str, Callable[[], Iterator[tuple[Tensor, ...]]]] = {
            codec: partial(
                from_store,
                store_loader(folder / codec, options.batch_size, options.workers),
                iter(range(options.rounds + 1)),
            )
            for codec in ("jpeg", "raw")
        }
        files = file_loader(folders, store.mean, store.std, options.batch_size, options.workers)
        ways["script"] = partial(from_files, files)
        used: dict[str, list[float]] = {way: [] for way in ways}
        took: dict[str, list[float]] = {way: [] for way in ways}
        for batches in ways.values():  # the workers are there, and the files in the page cache
            one_pass(batches, options.clips)
        for turn in range(options.rounds):
            for way in list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]:
                processor, clock = one_pass(ways[way], options.clips)
                used[way].append(processor)
                took[way].append(clock)

    def ratio(seconds: dict[str, list[float]], way: str) -> float:
        return round(statistics.median(s / o for s, o in zip(seconds["script"], seconds[way], strict=True)), 2)

    record = {
        "benchmark": "loader",
        "targets": TARGETS,
        "jpeg_ratio": ratio(used, "jpeg"),
        "raw_ratio": ratio(used, "raw"),
        "jpeg_clock_ratio": ratio(took, "jpeg"),
        "raw_clock_ratio": ratio(took, "raw"),
        "clips_per_core_second": {way: round(options.clips / statistics.median(s), 1) for way, s in used.items()},
        "recordings": len(recordings),
        "settings": {name: str(value) for name, value in vars(options).items()},
        "torch": torch.__version__,
        "method": METHOD,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
