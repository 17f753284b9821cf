"""A script of tests/test_loader_processes.py: batches of a store through loading processes, under some start method."""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path

import torch

from avpt.loading.dataset import ClipDataset
from avpt.loading.loader import Loader, explain_worker_deaths
from avpt.store.store import Store


def loader(path: Path, workers: int, seed: int | None = None) -> Loader:
    """Batches of four spectrograms, in order or shuffled."""
    store = Store(path)
    spec = store.input_spec(image_size=8, num_frames=1)
    clips = ClipDataset(store.indices["train"], ["audio"], spec, "raw")
    return Loader(clips, 4, device=torch.device("cpu"), workers=workers, shuffle_seed=seed)


def sums(batches: Loader) -> list[float]:
    """One number a batch."""
    return [float(batch.inputs[0].double().sum()) for batch in batches.epoch(0)]


if __name__ == "__main__":
    path, methods, last = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
    alone = sums(loader(path, 0))
    for method in methods:
        multiprocessing.set_start_method(method, force=True)
        with explain_worker_deaths():
            assert sums(loader(path, 1)) == alone
        assert not multiprocessing.active_children()
        print(method, flush=True)
    if last == "wait":  # to be killed in the midst of a pass
        pass_ = loader(path, 1).epoch(0)
        next(pass_)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(60)
