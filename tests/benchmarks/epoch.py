"""What loading adds to a training epoch: against the same steps on one batch held in memory.

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from clips import CLASSES, HELP, decoded, processor_seconds, read_recordings, write_store
from torch import nn

from avpt.loading.dataset import Augmentation, ClipDataset
from avpt.loading.loader import Loader
from avpt.loading.masking import plan_masking
from avpt.machine.workers import num_cores
from avpt.media.clip import ClipSettings
from avpt.models.encoder import Classifier, EncoderSpec, Norm, build_encoder
from avpt.models.fusion import FusedModel
from avpt.store.store import Store
from avpt.training import metrics
from avpt.training.loop import Clips, Plan, fit
from avpt.training.optim import build_optimizer
from avpt.training.passes import Stepping
from avpt.training.runtime import start
from avpt.training.state import Clock, EpochState
from avpt.training.watch import Watcher
from avpt.training.world import World
from avpt.types import MODALITIES, Batch, Modality

METHOD = (
    "One run of avpt's training loop (ResNet-18, ABRi in the audio encoder; for `joint` concat and masking), whose "
    "epochs take turns: batches from the loader, in training as by default, with its own worker processes, or the "
    "first batch again and again. Seconds are those from the beginning of an epoch, so the wait for its first batch "
    "counts, to the end of its last step; validation and checkpoints come after. The order turns from pair to pair, "
    "the first pair is not counted, and the ratio is the median over pairs of loaded / held. `waiting` is the share "
    "of a loaded epoch in which no batch was there. `processor_ratio` is the same ratio of the processor's seconds, of "
    "the workers too: what loading takes from the cores that train."
)
TARGET = 1.05
PATCH: dict[Modality, tuple[int, int]] = {"audio": (32, 8), "visual": (10, 10)}


class Turns:
    """Epochs of a loader and of its first batch, in turn."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.held = next(loader.epoch(0))
        self.began = 0.0  # by the processor's clock

    def __len__(self) -> int:
        return len(self.loader)

    def is_loaded(self, number: int) -> bool:
        """Pairs of (loaded, held), (held, loaded), ..."""
        return number % 4 in (0, 3)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """One epoch, of either kind."""
        self.began = processor_seconds()
        if self.is_loaded(number):
            return self.loader.epoch(number, start)
        return (self.held for _ in range(start, len(self)))


class Held:
    """A few clips to validate on; what is measured is over by then."""

    def __init__(self, batch: Batch) -> None:
        self.batch = Batch(tuple(values[:2] for values in batch.inputs), batch.labels[:2], torch.arange(2))

    def __len__(self) -> int:
        return 1

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The one batch."""
        return iter([self.batch])


def make_loader(path: Path, modalities: tuple[Modality, ...], options: argparse.Namespace) -> Loader:
    """As the training commands make it."""
    store = Store(path)
    spec = store.input_spec(image_size=options.image_size, num_frames=options.num_frames)
    clips = store.indices["train"]
    ratios: dict[Modality, torch.Tensor] = {m: torch.full((len(clips),), 0.2) for m in MODALITIES}
    dataset = ClipDataset(
        clips,
        modalities,
        spec,
        store.settings["frame_codec"],
        augmentation=Augmentation((0.08, 1.0), True, (0, 0)),
        masking=plan_masking(ratios, spec, PATCH) if len(modalities) == 2 else None,
    )
    return Loader(dataset, options.batch_size, device=torch.device("cpu"), workers=options.workers, shuffle_seed=0)


def make_model(modalities: tuple[Modality, ...]) -> nn.Module:
    """One encoder with its head, or two."""
    norms: dict[Modality, Norm] = {"audio": "abri-channel", "visual": "batchnorm"}
    encoders = {m: build_encoder(EncoderSpec("resnet18", m, norms[m])) for m in modalities}
    if len(modalities) == 1:
        return Classifier(encoders[modalities[0]], len(CLASSES))
    return FusedModel(encoders["audio"], encoders["visual"], "concat", len(CLASSES))


def ratio(seconds: dict[bool, list[float]]) -> float:
    """The median over pairs of loaded / held."""
    return round(statistics.median(a / b for a, b in zip(seconds[True], seconds[False], strict=True)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modality", choices=["audio", "visual", "joint"], default="joint")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=max(0, num_cores() - 1), help="as the commands choose")
    parser.add_argument("--frame-codec", choices=["jpeg", "raw"], default="jpeg")
    parser.add_argument("--spectrogram-frames", type=int, default=1024)
    parser.add_argument("--size", type=int, nargs=2, default=(340, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--num-frames", type=int, default=3)
    parser.add_argument("--recordings", type=Path, help=HELP)
    options = parser.parse_args()

    start(0, "cpu")
    modalities: tuple[Modality, ...] = MODALITIES if options.modality == "joint" else (options.modality,)
    settings = ClipSettings(frame_codec=options.frame_codec, spectrogram_frames=options.spectrogram_frames)
    num_clips = options.steps * options.batch_size
    seconds: dict[bool, list[float]] = {True: [], False: []}
    processor: dict[bool, list[float]] = {True: [], False: []}
    waiting = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = [decoded(recording, settings) for recording in read_recordings(options.recordings, *options.size)]
        loader = make_loader(write_store(folder / "store", clips, settings, {"train": num_clips}), modalities, options)
        turns, model = Turns(loader), make_model(modalities)

        class Timer(Watcher):
            """Notes what an epoch took when its last step is done."""

            def step_done(self, epoch: int, state: EpochState, clock: Clock, positions: torch.Tensor) -> None:
                if state.step == len(turns) and epoch >= 2:
                    seconds[turns.is_loaded(epoch)].append(clock.seconds)
                    processor[turns.is_loaded(epoch)].append(processor_seconds() - turns.began)
                    if turns.is_loaded(epoch):
                        waiting.append(clock.waiting / clock.seconds)

        fit(
            model,
            Clips(
                train=turns,
                val=Held(turns.held),
                clean_train=None,
                ids=[str(i) for i in range(num_clips)],
                num_val=2,
            ),
            Plan(
                epochs=2 * (options.pairs + 1),
                rate=lambda epoch, step, steps: 1e-3,
                stepping=Stepping(),
                measure=lambda outputs: metrics.measure(outputs["logits"], outputs["labels"]),
                watched={},
            ),
            optimizer=build_optimizer(
                model, set(), set(), name="sgd", lr=1e-3, momentum=0.9, weight_decay=1e-4, encoder_lr_scale=1.0
            ),
            checkpoint=folder / "last.pt",
            watcher=Timer(),
            world=World(),
        )
    record: dict[str, Any] = {
        "benchmark": "epoch",
        "target": TARGET,
        "ratio": ratio(seconds),
        "processor_ratio": ratio(processor),
        "waiting": round(statistics.median(waiting), 4),
        "seconds_per_step": {
            kind: round(statistics.median(seconds[loaded]) / options.steps, 3)
            for kind, loaded in (("loaded", True), ("held", False))
        },
        "settings": {name: str(value) for name, value in vars(options).items()},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "method": METHOD,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
