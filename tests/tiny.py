"""A store and a run folder written without a media file or a training step, for tests of what reads them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image

from avpt.files import artifacts
from avpt.files.artifacts import Header
from avpt.files.outputs import write_json, write_text
from avpt.media.clip import ClipSettings, DecodedClip
from avpt.store.store import read_shard_record, shard_name, store_record, write_shard
from avpt.types import SPLITS

CLASSES = ("cat", "dog")
SETTINGS = ClipSettings(mel_bins=4, spectrogram_frames=8, frame_size=16)
PER_SPLIT = 4
CONFIG = {"modality": "audio", "seed": 0, "epochs": 2, "lr": 0.1}
INPUT = {**asdict(SETTINGS), "mean": -3.0, "std": 2.0, "image_size": 32, "num_frames": 1}
SPEC = {
    "encoder": {"arch": "resnet18", "modality": "audio", "norm": "batchnorm"},
    "input": {name: value for name, value in INPUT.items() if name not in ("allow_missing", "on_truncated")},
    "num_classes": 2,
    "multi_label": False,
}
SCORES = {"loss": 0.7, "accuracy": 0.5, "top5": 1.0, "macro_f1": 0.5}


def clip(seed: int) -> DecodedClip:
    """Noise to hear and a grey picture."""
    picture = io.BytesIO()
    Image.new("RGB", (20, 16), (seed, seed, seed)).save(picture, "JPEG")
    fbank = np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float16)
    return DecodedClip(fbank, 8, np.zeros(1, np.float32), np.array([[16, 20]], np.int32), [picture.getvalue()])


def write_tiny_store(folder: Path) -> Path:
    """Four clips a split, two shards each."""
    folder.mkdir(parents=True)
    attributes: dict[str, Any] = asdict(SETTINGS) | {"multi_label": False}
    shards: dict[str, list[tuple[str, Any]]] = {}
    for split in SPLITS:
        for number in range(2):
            name, rows = shard_name(split, number), range(2 * number, 2 * number + 2)
            write_shard(
                folder / name,
                ids=[f"{split}-{row}" for row in rows],
                labels=np.array([row % 2 for row in rows], dtype=np.int64),
                clips=[clip(row) for row in rows],
                failures=(),
                partial=(),
                settings=attributes,
            )
            shards.setdefault(split, []).append((name, read_shard_record(folder / name)))
    settings = {"schema": 1, "config": attributes | {"shard_size": 2}, "inputs": {"manifest": "0" * 64}}
    write_json(folder / "settings.json", settings)
    for name in ("failures.csv", "partial.csv"):
        write_text(folder / name, "id,split,source,stage,error\r\n")
    write_json(folder / "store.json", store_record(settings, CLASSES, shards))
    return folder


def write_tiny_run(folder: Path, seed: int = 0) -> Path:
    """The records of a finished stage-1 run, its dynamics, and a model without weights."""
    (folder / "checkpoint").mkdir(parents=True)
    config, inputs = CONFIG | {"seed": seed}, {"store": "1" * 64, "init": "2" * 64}
    write_json(folder / "checkpoint" / "settings.json", {"config": config, "inputs": inputs})
    train = {"loss": 0.7, "accuracy": 0.5}
    rows = [
        {"epoch": epoch, "lr": 0.1, "train": train, "val": SCORES, "gradient_norm": {"encoder": 1.5}}
        for epoch in (1, 2)
    ]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    summary = {"best_epoch": 1, "epochs": 2, "val": SCORES, "test": SCORES}
    header = Header(kind="classifier", spec=SPEC, config=config, inputs=inputs, classes=list(CLASSES), metrics=summary)
    artifacts.save(folder / "model.safetensors", header, {"seed": torch.tensor([seed])})
    write_dynamics(folder / "dynamics.safetensors")
    write_json(folder / "summary.json", summary)
    return folder


def write_dynamics(path: Path, **changes: torch.Tensor) -> Path:
    """Of a run on sound that saw four clips twice."""
    tensors = {"probability": torch.full((2, PER_SPLIT), 0.5), "correct": torch.ones(2, PER_SPLIT, dtype=torch.bool)}
    tensors |= artifacts.pack_ids([f"train-{row}" for row in range(PER_SPLIT)]) | changes
    artifacts.save(path, Header(kind="dynamics", spec=SPEC | {"modality": "audio"}, config=CONFIG), tensors)
    return path


def write_confidence(path: Path, **changes: torch.Tensor) -> Path:
    """Of four clips."""
    tensors = {f"{side}_confidence": torch.full((PER_SPLIT,), 0.5) for side in ("audio", "visual")}
    tensors |= artifacts.pack_ids([f"train-{row}" for row in range(PER_SPLIT)]) | changes
    artifacts.save(path, Header(kind="confidence", config={"missing": "error"}, inputs={"audio": "3" * 64}), tensors)
    return path


def change_shard(store: Path, change: Callable[[h5py.File], object], name: str = "train-00001") -> Path:
    """Change a shard, and sign it as if it had been written so."""
    path = store / f"{name}.h5"
    with h5py.File(path, "r+") as file:
        change(file)
    content = path.read_bytes()
    record = json.loads(path.with_suffix(".json").read_text())
    record |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(record))
    return store
