"""What follows a training run: its files, curves in a browser, the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from avpt.loading.loader import Loader
from avpt.loading.masking import most_masked
from avpt.loading.pictures import picture
from avpt.options import TrainConfig
from avpt.training import metrics, run_writer
from avpt.training.curves import draw_curves
from avpt.training.display import display
from avpt.training.watch import Watcher, Watchers
from avpt.training.world import World

NUM_PICTURES = 4  # clips whose inputs TensorBoard shows


@contextmanager
def follow(
    config: TrainConfig, train: Loader, multi_label: bool, encoders: Sequence[str], world: World
) -> Iterator[Watcher]:
    """Follow the training in the first process: with files, curves where asked for, and the terminal."""
    if not world.is_first:
        yield Watcher()
        return
    shown = ["loss", metrics.key_name(multi_label)]
    shown += [f"{name}_accuracy" for name in encoders if len(encoders) > 1]
    timings = run_writer.read_timings(config.out)
    watchers: list[Watcher] = [run_writer.RunFiles(config.out)]
    with ExitStack() as held:
        if config.tensorboard:
            positions = _clips_to_show(train)
            watchers.append(
                held.enter_context(
                    draw_curves(
                        config.out / "tensorboard", timings, lambda epoch: pictures(train, epoch - 1, positions)
                    )
                )
            )
        watchers.append(held.enter_context(display(config.epochs, len(train), timings, shown, encoders)))
        yield Watchers(watchers)


def _clips_to_show(train: Loader) -> list[int]:
    """Positions of a few clips, the same in every epoch: those of which most is masked, else the first."""
    if train.dataset.masking is not None:
        return most_masked(train.dataset.masking, NUM_PICTURES)
    return list(range(min(NUM_PICTURES, len(train.dataset))))


def pictures(train: Loader, epoch: int, positions: Sequence[int]) -> dict[str, Tensor]:
    """Some clips' inputs as the network sees them in an epoch (from 0): (3, height, width) uint8 by a name for each."""
    dataset = train.dataset
    batch = train.clips(epoch, positions)
    return {
        f"inputs/{dataset.index.ids[position]}": picture(
            {modality: values[i] for modality, values in zip(dataset.modalities, batch.inputs, strict=False)},
            dataset.spec.colours,
        )
        for i, position in enumerate(positions)
    }
