"""What is read past HDF5, and what is used again, is what it would have been otherwise."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers import STORE_OPTIONS, Experiment, digit_rows, done, finetune, write_manifest
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from avpt.errors import StoreError
from avpt.loading import transforms
from avpt.loading.dataset import ClipDataset
from avpt.loading.evaluation_clips import EvaluationDataset, Noise
from avpt.loading.loader import Loader
from avpt.loading.memory import Memory
from avpt.store import shard_files
from avpt.store.shard_files import DTYPES, ShardFiles
from avpt.store.store import Store
from avpt.types import MODALITIES

CPU = torch.device("cpu")


def clips_of(store: Store, image_size: int = 28) -> ClipDataset:
    spec = replace(store.input_spec(image_size, num_frames=2), mean=0.0, std=0.5)
    return ClipDataset(store.indices["train"], MODALITIES, spec, store.settings["frame_codec"])


def test_what_is_read_is_what_hdf5_says(experiment: Experiment) -> None:
    files = Store(experiment.store).indices["train"].shards
    random = np.random.default_rng(0)
    assert len(files) == 3
    for shard, path in enumerate(files.paths):
        with h5py.File(path) as file:
            for name in DTYPES:
                whole = file[name][:].reshape(-1)
                actual = files.read(shard, name, 0, len(whole))
                assert actual.dtype == whole.dtype
                assert np.array_equal(actual, whole)
                first, last = sorted(random.integers(0, len(whole) + 1, 2).tolist())
                assert np.array_equal(files.read(shard, name, first, last - first), whole[first:last])


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 10**12), (17, -3), (10**12, 1)])
def test_nothing_is_read_beyond_the_values(experiment: Experiment, start: int, count: int) -> None:
    files = Store(experiment.store).indices["train"].shards
    with pytest.raises(StoreError, match=r"train-00001\.h5 points outside its own visual/bytes"):
        files.read(1, "visual/bytes", start, count)


def test_files_are_closed_and_opened_again(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_files, "open_file_limit", lambda: 4)
    before = len(list(Path("/proc/self/fd").iterdir()))
    files = Store(experiment.store).indices["train"].shards
    expected = [files.read(shard, "visual/byte_offset", 0, 3).tolist() for shard in range(3)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 2
    assert [files.read(shard, "visual/byte_offset", 0, 3).tolist() for shard in range(3)] == expected
    copy: ShardFiles = pickle.loads(pickle.dumps(files))
    assert copy.read(2, "visual/byte_offset", 0, 3).tolist() == expected[2]
    del files, copy
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def gone(shard: Path) -> None:
    shard.unlink()


def cut(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 3)


def pointing_far(shard: Path) -> None:
    with h5py.File(shard, "r+") as file:
        file["visual/byte_offset"][1:] = 2**60


def scrambled(shard: Path) -> None:
    with h5py.File(shard, "r+") as file:
        file["visual/bytes"][:] = 7


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (gone, "train-00001.h5 can't be read (No such file or directory)"),
        (cut, "train-00001.h5 is truncated"),
        (pointing_far, "train-00001.h5 points outside its own visual/bytes"),
        (scrambled, "train-00001.h5 holds a damaged frame"),
    ],
)
def test_a_shard_damaged_while_it_is_used_is_told(
    experiment: Experiment, tmp_path: Path, damage: Callable[[Path], None], says: str, workers: int
) -> None:
    path = shutil.copytree(experiment.store, tmp_path / "store")
    clips = clips_of(Store(path))
    damage(path / "train-00001.h5")
    with pytest.raises(StoreError) as error:
        list(Loader(clips, 5, device=CPU, workers=workers).epoch(0))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def compressed(file: h5py.File) -> dict[str, Any]:
    return {"data": file["audio/fbank"][:], "chunks": (1, 48, 32), "compression": "gzip"}


def of_other_type(file: h5py.File) -> dict[str, Any]:
    return {"data": file["audio/fbank"][:].astype(np.float32)}


@pytest.mark.parametrize("rewritten", [compressed, of_other_type])
def test_a_shard_of_another_layout_is_refused(
    experiment: Experiment, tmp_path: Path, rewritten: Callable[[h5py.File], dict[str, Any]]
) -> None:
    path = shutil.copytree(experiment.store, tmp_path / "store")
    with h5py.File(path / "train-00001.h5", "r+") as file:
        options = rewritten(file)
        del file["audio/fbank"]
        file.create_dataset("audio/fbank", **options)
    beside = path / "train-00001.json"
    record = json.loads(beside.read_text(encoding="utf-8"))
    record["bytes"] = (path / "train-00001.h5").stat().st_size
    beside.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(StoreError, match=r"train-00001\.h5: audio/fbank is (compressed|float32)"):
        _ = Store(path).indices


def test_raw_frames_and_clips_of_one_modality(experiment: Experiment, tmp_path: Path) -> None:
    """Raw frames come out as they were stored, clips without sound or pictures are read for what they have."""
    rows = digit_rows()
    rows = [{**row, "audio": ""} if i % 5 == 1 else row for i, row in enumerate(rows)]
    manifest = write_manifest(tmp_path / "manifest.csv", rows)
    done("preprocess", manifest, "--out", tmp_path / "store", *STORE_OPTIONS, "--frame-codec", "raw")
    store = Store(tmp_path / "store")
    index = store.indices["train"]
    clips = clips_of(store)
    for position in range(len(index)):
        with h5py.File(index.shards.paths[index.shard[position]]) as file:
            row = int(index.row[position])
            first = int(file["visual/clip_offset"][row])
            low, high = file["visual/byte_offset"][first : first + 2]
            stored = file["visual/bytes"][low:high].reshape(28, 28, 3).transpose(2, 0, 1)
            fbank = file["audio/fbank"][row]
        clip = clips[0, position, position]
        assert np.array_equal(clip["audio"][0].numpy(), fbank)
        assert bool(clip["audio"].any()) == bool(index.num_audio_frames[position])
        assert all(np.array_equal(frame.numpy(), stored) for frame in clip["visual"])


@given(st.integers(20, 90), st.integers(20, 90), st.integers(0, 2**31))
def test_crops_are_torchvisions(height: int, width: int, seed: int) -> None:
    frame = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
    theirs = v2.Compose([v2.RandomResizedCrop((24, 24), scale=(0.2, 0.9)), v2.RandomHorizontalFlip()])
    torch.manual_seed(seed)
    expected = theirs(frame)
    torch.manual_seed(seed)
    assert torch.equal(transforms.training_frames(24, (0.2, 0.9), flip=True)(frame), expected)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_that_are_held_are_not_written_over(experiment: Experiment, workers: int) -> None:
    loader = Loader(clips_of(Store(experiment.store)), 2, device=CPU, workers=workers, shuffle_seed=3)
    for number in range(2):
        held = list(loader.epoch(number))
        copies = [tuple(values.clone() for values in batch.inputs) for batch in held]
        views = [batch.inputs[1][:, :1] for batch in held]  # of which nothing else is held
        first = [view.clone() for view in views]
        positions = [batch.positions for batch in held]
        later = list(loader.epoch(number))
        for batch, copy, again in zip(held, copies, later, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch.inputs, copy, strict=True))
            assert all(torch.equal(a, b) for a, b in zip(again.inputs, copy, strict=True))
        del held, batch, later, again
        list(loader.epoch(number + 1))
        assert all(torch.equal(a, b) for a, b in zip(views, first, strict=True))
        assert sorted(torch.cat(positions).tolist()) == list(range(18))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_is_used_in_evaluation_and_outside(experiment: Experiment, workers: int) -> None:
    loader = Loader(clips_of(Store(experiment.store)), 5, device=CPU, workers=workers)
    with torch.inference_mode():
        expected = [batch.inputs for batch in loader.epoch(0)]
    with torch.no_grad():
        for actual, wanted in zip(loader.epoch(0), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(actual.inputs, wanted, strict=True))


@pytest.fixture
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_four_threads")
def test_noise_is_the_same_with_and_without_processes(experiment: Experiment) -> None:
    store = Store(experiment.store)
    # of this length sums are divided among threads everywhere, not only by some kernels
    spec = replace(store.input_spec(28, num_frames=1), spectrogram_frames=1024)
    index = store.indices["test"]
    index = replace(index, num_audio_frames=np.full_like(index.num_audio_frames, 1024))
    clips = EvaluationDataset(index, ["audio"], spec, "jpeg", noise=Noise("audio", 0.0))
    here, there = (list(Loader(clips, 5, device=CPU, workers=workers).epoch(0)) for workers in (0, 1))
    for mine, other in zip(here, there, strict=True):
        assert torch.equal(mine.inputs[0], other.inputs[0])
    loader = Loader(clips, 5, device=CPU, workers=0)
    assert torch.equal(loader.clips(0, [0, 1]).inputs[0], here[0].inputs[0][:2])
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("end", ["stopped", "failed"])
@pytest.mark.usefixtures("_four_threads")
def test_what_follows_a_batch_has_its_threads_again(experiment: Experiment, end: str) -> None:
    clips = clips_of(Store(experiment.store))
    batches = Loader(clips, 4, device=CPU, workers=0).epoch(0)
    next(batches)
    assert torch.get_num_threads() == 4
    if end == "failed":
        clips.index.labels.resize(5, refcheck=False)
        with pytest.raises(IndexError):
            list(batches)
    del batches
    assert torch.get_num_threads() == 4


def test_results_of_a_pass_hold_no_files_open(experiment: Experiment) -> None:
    loader = Loader(clips_of(Store(experiment.store)), 1, device=CPU, workers=1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [(batch.labels, batch.positions) for batch in loader.epoch(0)]
    assert len(kept) == 18
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 10


def test_damage_is_one_line_though_workers_live(experiment: Experiment, tmp_path: Path) -> None:
    store = shutil.copytree(experiment.store, tmp_path / "store")
    scrambled(store / "train-00001.h5")
    command = [str(part) for part in finetune(experiment, "visual", experiment.visual_init)]
    command[1] = str(store)
    command = [sys.executable, "-m", "avpt", *command, "--workers", "2", "--quiet", "--out", str(tmp_path / "run")]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "train-00001.h5 holds a damaged frame" in result.stderr


def test_memory_is_lent_to_one_at_a_time() -> None:
    memory = Memory()
    leaf = torch.ones(3, requires_grad=True)
    saved = (memory.floats("audio", (4, 3)).fill_(2.0) * leaf).sum()  # autograd holds the input, nobody else does
    other = memory.floats("audio", (4, 3)).fill_(5.0)
    saved.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [8.0, 8.0, 8.0]
    del saved  # whose memory is free now
    view = other.view(-1)[:2]
    place = other.data_ptr()
    del other
    taken = [memory.floats("audio", (4, 3)) for _ in range(2)]
    assert place not in [tensor.data_ptr() for tensor in taken]
    del taken, view
    again = memory.floats("audio", (2, 3))
    assert again.shape == (2, 3)
    assert memory.floats("visual", (2, 3)).data_ptr() != again.data_ptr()
    assert memory.floats("audio", (9, 9)).shape == (9, 9)


def test_memory_is_used_again() -> None:
    memory = Memory()
    places = {memory.floats("audio", (size, 1000)).data_ptr() for size in (9, 8, 9, 8)}
    assert len(places) == 1
