"""Sampling, augmentation, normalisation and masking of a clip, against their definitions."""

from __future__ import annotations

import hashlib
import io
import logging
from itertools import pairwise
from math import floor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers import Experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional
from torchvision.io import encode_jpeg
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as v2

from avpt.errors import ConfigError, StoreError
from avpt.loading import transforms
from avpt.loading.dataset import Augmentation, ClipDataset, InputSpec, Masking
from avpt.loading.loader import Loader
from avpt.loading.masking import plan_masking
from avpt.loading.sampling import EpochSampler, batch_bounds
from avpt.media.codecs import decode_frame
from avpt.store.store import Store
from avpt.types import MODALITIES, Batch, Modality

CPU = torch.device("cpu")
PATCH: dict[Modality, tuple[int, int]] = {"audio": (6, 4), "visual": (4, 4)}
JITTER = Augmentation((0.3, 1.0), True, (8, 12))


@given(st.integers(1, 400), st.integers(1, 40))
def test_segments(num_frames: int, num_segments: int) -> None:
    bounds = transforms.segment_bounds(num_frames, num_segments)
    assert len(bounds) == num_segments
    assert all(0 <= low < high <= num_frames for low, high in bounds)
    assert bounds == sorted(bounds)
    covered = [frame for low, high in bounds for frame in range(low, high)]
    assert set(covered) == set(range(num_frames))
    if num_frames >= num_segments:
        sizes = [high - low for low, high in bounds]
        assert covered == list(range(num_frames))
        assert max(sizes) - min(sizes) <= 1
    else:  # frames repeat, each about as often as the others
        uses = [covered.count(frame) for frame in range(num_frames)]
        assert len(covered) == num_segments
        assert max(uses) - min(uses) <= 1


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**31))
def test_frames_are_drawn_from_their_segments(num_frames: int, num_segments: int, seed: int) -> None:
    bounds = transforms.segment_bounds(num_frames, num_segments)
    middle = transforms.draw_frames(num_frames, num_segments, None)
    for at, (low, high) in zip(middle, bounds, strict=True):
        assert low <= at < high
        assert abs((at - low) - (high - 1 - at)) <= 1
    drawn = transforms.draw_frames(num_frames, num_segments, torch.Generator().manual_seed(seed))
    assert len(drawn) == num_segments
    assert all(low <= at < high for at, (low, high) in zip(drawn, bounds, strict=True))


def test_every_frame_of_a_segment_can_be_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [transforms.draw_frames(10, 3, generator) for _ in range(300)]
    seen = [set(column) for column in zip(*draws, strict=True)]
    assert seen == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8, 9}]
    assert transforms.draw_frames(10, 3, None) == [1, 4, 7]
    assert transforms.draw_frames(1, 3, None) == [0, 0, 0]


@settings(deadline=None)
@given(
    inputs=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    patch=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    ratios=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_masked_patches_against_a_slow_loop(
    inputs: int, channels: int, size: tuple[int, int], patch: tuple[int, int], ratios: list[float], seed: int
) -> None:
    (height, width), (tall, wide) = size, (min(patch[0], size[0]), min(patch[1], size[1]))
    patch = (tall, wide)
    rows, columns = height // tall, width // wide
    assert transforms.num_patches(height, width, patch) == rows * columns
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(inputs, channels, height, width, generator=generator) + 1
    scores = torch.rand(inputs, rows * columns, generator=generator)
    counts = [int(ratio * rows * columns) for ratio in ratios[:inputs]]

    expected = values.clone()
    for i in range(inputs):
        lowest = sorted(range(rows * columns), key=lambda p, i=i: (float(scores[i, p]), p))  # type: ignore[misc]
        for place in lowest[: counts[i]]:
            top, left = place // columns * tall, place % columns * wide
            expected[i, :, top : top + tall, left : left + wide] = 0
    actual = transforms.mask_patches(values, scores, torch.tensor(counts), patch)
    assert torch.equal(actual, expected)
    for i in range(inputs):
        assert int((actual[i, 0] == 0).sum()) == counts[i] * tall * wide
    assert bool((actual[:, :, rows * tall :] > 0).all())
    assert bool((actual[..., columns * wide :] > 0).all())


def test_the_papers_patches() -> None:
    assert transforms.num_patches(1024, 128, (32, 8)) == 512
    assert transforms.num_patches(224, 224, (10, 10)) == 484


def plan(ratios: dict[Modality, torch.Tensor], audio: tuple[int, int], visual: tuple[int, int]) -> Masking:
    spec = InputSpec(16000, 24, 48, "zero", 1.0, 10, 256, 0.0, 1.0, image_size=30, num_frames=1)
    return plan_masking(ratios, spec, {"audio": audio, "visual": visual})


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5))
def test_planned_patches_are_the_ratios_floored(ratios: list[float]) -> None:
    values = torch.tensor(ratios)
    actual = plan({"audio": values, "visual": 1 - values}, (6, 3), (4, 4))
    for counts, shares, patches in (
        (actual.num_masked["audio"], values, 64),
        (actual.num_masked["visual"], 1 - values, 49),
    ):
        for ratio, count in zip(shares.tolist(), counts.tolist(), strict=True):
            assert count in (floor(ratio * patches), round(ratio * patches))
            assert count == floor(ratio * patches) or count - ratio * patches < 1e-4  # kept below it by rounding alone


def test_patches_that_do_not_fit_or_are_few(caplog: pytest.LogCaptureFixture) -> None:
    none = torch.zeros(2)
    for audio, visual, option in (((49, 1), (4, 4), "--audio-patch 49x1"), ((6, 3), (31, 31), "--visual-patch 31")):
        with pytest.raises(ConfigError, match=f"{option}.* is larger than the"):
            plan({"audio": none, "visual": none}, audio, visual)
    logging.getLogger("avpt").setLevel(logging.INFO)
    caplog.clear()
    plan({"audio": none, "visual": none}, (6, 3), (3, 3))
    assert not caplog.records
    plan({"audio": none, "visual": none}, (12, 3), (4, 4))
    audio_told, visual_told = (record.getMessage() for record in caplog.records)
    assert "into 32 patches" in audio_told
    assert "--audio-patch 6x3" in audio_told
    assert "into 49 patches" in visual_told
    assert "--visual-patch 3" in visual_told


@given(st.integers(0, 99), st.integers(0, 99), st.text(max_size=8), st.sampled_from(["augment", "mask", "order"]))
def test_clip_seeds_differ_in_everything(seed: int, epoch: int, clip_id: str, use: str) -> None:
    actual = transforms.clip_seed(seed, epoch, clip_id, use)
    assert actual == transforms.clip_seed(seed, epoch, clip_id, use)
    assert 0 <= actual < 2**63
    others = [
        transforms.clip_seed(seed + 1, epoch, clip_id, use),
        transforms.clip_seed(seed, epoch + 1, clip_id, use),
        transforms.clip_seed(seed, epoch, clip_id + "x", use),
        transforms.clip_seed(seed, epoch, clip_id, use + "x"),
        transforms.clip_seed(epoch, seed, clip_id + ":", use),
    ]
    assert actual not in others
    assert len(set(others)) == len(others)


def test_clip_seeds_are_spread_and_fixed() -> None:
    seeds = np.array([transforms.clip_seed(0, 0, str(i), "mask") for i in range(4000)], np.float64) / 2**63
    assert len(set(seeds.tolist())) == 4000
    counts, _ = np.histogram(seeds, bins=8, range=(0, 1))
    assert counts.min() > 400
    digest = hashlib.sha256(b"3:5:mask:a clip").digest()  # a change here changes every published run
    assert transforms.clip_seed(3, 5, "a clip", "mask") == int.from_bytes(digest[:8], "big") // 2


@given(st.floats(-20, 10), st.floats(0.1, 10))
def test_audio_normalisation(mean: float, std: float) -> None:
    stored = np.linspace(-16, 9, 24, dtype=np.float16).reshape(1, 6, 4)
    actual = transforms.normalise_audio(torch.from_numpy(stored), mean, std)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), (stored.astype(np.float64) - mean) / (2 * std), rtol=1e-5, atol=1e-5)


def test_visual_normalisation() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 5, 4), dtype=np.uint8)
    actual = transforms.normalise_visual(torch.from_numpy(frames)).numpy()
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (frames[:, :, channel].astype(np.float64) / 255 - mean) / std
        np.testing.assert_allclose(actual[:, :, channel], expected, atol=1e-5)


@given(st.integers(2, 3000), st.integers(2, 300))
def test_batches_leave_no_clip_out_and_none_alone(num_clips: int, batch_size: int) -> None:
    edges = batch_bounds(num_clips, batch_size)
    sizes = [high - low for low, high in pairwise(edges)]
    assert (edges[0], edges[-1]) == (0, num_clips)
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    wanted = (num_clips + batch_size - 1) // batch_size
    alone = num_clips / wanted < 2  # cut into that many, a batch would be of one clip
    assert len(sizes) == (wanted - 1 if alone else wanted)
    assert max(sizes) <= batch_size + alone


@pytest.mark.parametrize("num_clips", [0, 1])
def test_one_clip_is_no_training_split(num_clips: int) -> None:
    with pytest.raises(StoreError, match="at least 2"):
        batch_bounds(num_clips, 8)


@settings(deadline=None)
@given(st.integers(2, 90), st.integers(2, 20), st.integers(0, 2**31))
def test_a_pass_sees_each_clip_once(num_clips: int, batch_size: int, seed: int) -> None:
    sampler = EpochSampler(num_clips, batch_size, seed)
    orders = []
    for epoch in range(3):
        sampler.epoch = epoch
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert {number for batch in batches for number, _, _ in batch} == {epoch}
        assert all(row == position for batch in batches for _, position, row in batch)
        orders.append([position for batch in batches for _, position, _ in batch])
        assert sorted(orders[-1]) == list(range(num_clips))
        assert list(sampler) == batches
    if num_clips > 20:
        assert orders[0] != orders[1] != orders[2] != orders[0]
        other = EpochSampler(num_clips, batch_size, seed + 1)
        assert [position for batch in other for _, position, _ in batch] != orders[0]


@given(st.integers(1, 50), st.integers(2, 9))
def test_evaluation_goes_in_order(num_clips: int, batch_size: int) -> None:
    batches = list(EpochSampler(num_clips, batch_size, None))
    assert [position for batch in batches for _, position, _ in batch] == list(range(num_clips))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches[-1]) >= 1


def dataset(experiment: Experiment, **options: Any) -> ClipDataset:
    store = Store(experiment.store)
    spec = store.input_spec(image_size=32, num_frames=2)
    return ClipDataset(store.indices["train"], MODALITIES, spec, store.settings["frame_codec"], **options)


def masking() -> Masking:
    return Masking(PATCH, {"audio": torch.arange(18) * 3, "visual": 54 - torch.arange(18) * 3})


def batches_of(clips: ClipDataset, batch_size: int, epoch: int, workers: int = 0, shuffle: int = 1) -> list[Batch]:
    loader = Loader(clips, batch_size, device=CPU, workers=workers, shuffle_seed=shuffle)
    return list(loader.epoch(epoch))


def by_clip(batches: list[Batch]) -> dict[int, tuple[torch.Tensor, ...]]:
    return {
        int(position): tuple(values[row] for values in batch.inputs)
        for batch in batches
        for row, position in enumerate(batch.positions)
    }


def test_workers_do_not_change_a_bit(experiment: Experiment) -> None:
    clips = dataset(experiment, seed=5, augmentation=JITTER, masking=masking())
    first = Loader(clips, 5, device=CPU, workers=0, shuffle_seed=5)
    expected = [list(first.epoch(number)) for number in (0, 1)]
    for workers in (0, 1, 2):
        loader = first if workers == 0 else Loader(clips, 5, device=CPU, workers=workers, shuffle_seed=5)
        assert len(loader) == 4
        for number in (1, 0):  # not even the epochs before do
            for wanted, actual in zip(expected[number], loader.epoch(number), strict=True):
                assert torch.equal(wanted.positions, actual.positions)
                assert torch.equal(wanted.labels, actual.labels)
                assert all(torch.equal(a, b) for a, b in zip(wanted.inputs, actual.inputs, strict=True))


def test_a_clip_depends_on_seed_epoch_and_clip_alone(experiment: Experiment) -> None:
    clips = dataset(experiment, seed=5, augmentation=JITTER, masking=masking())
    torch.manual_seed(0)
    expected = by_clip(batches_of(clips, 5, epoch=3))
    torch.manual_seed(1)
    again = by_clip(batches_of(clips, 18, epoch=3, shuffle=77))
    assert expected.keys() == again.keys() == set(range(18))
    for position, values in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(values, again[position], strict=True))

    later = by_clip(batches_of(clips, 5, epoch=4))
    other = by_clip(batches_of(dataset(experiment, seed=6, augmentation=JITTER, masking=masking()), 5, epoch=3))
    for changed in (later, other):
        for side in (0, 1):
            assert not any(torch.equal(expected[i][side], changed[i][side]) for i in expected)


def test_drawing_a_clip_leaves_the_global_generator_alone(experiment: Experiment) -> None:
    clips = dataset(experiment, augmentation=JITTER)
    state = torch.get_rng_state()
    clips[0, 0, 0]
    assert torch.equal(torch.get_rng_state(), state)


def test_masking_sets_as_many_patches_as_planned(experiment: Experiment) -> None:
    still = Augmentation((1.0, 1.0), False, (0, 0))
    plain = by_clip(batches_of(dataset(experiment, augmentation=still), 6, epoch=0))
    masked = by_clip(batches_of(dataset(experiment, augmentation=still, masking=masking()), 6, epoch=0))
    drawn = []
    for position in range(18):
        for side, (modality, wanted) in enumerate(masking().num_masked.items()):
            tall, wide = PATCH[modality]
            for before, after in zip(
                plain[position][side].view(-1, *plain[position][side].shape[-3:]),
                masked[position][side].view(-1, *plain[position][side].shape[-3:]),
                strict=True,
            ):
                hidden = functional.avg_pool2d((after == 0).all(0)[None].float(), (tall, wide))[0] == 1
                assert int(hidden.sum()) == int(wanted[position])
                shown = ~hidden.repeat_interleave(tall, 0).repeat_interleave(wide, 1)
                assert torch.equal(after[:, shown], before[:, shown])
                drawn.append((modality, hidden))
    frames = [hidden for modality, hidden in drawn if modality == "visual"]
    assert not torch.equal(frames[8], frames[9])  # two frames of one clip have patches of their own


def test_unaugmented_input_is_the_stored_clip(experiment: Experiment) -> None:
    store = Store(experiment.store)
    loader = Loader(dataset(experiment), 7, device=CPU, workers=0)
    (sound, pictures), labels = by_clip(list(loader.epoch(0)))[9], torch.cat([b.labels for b in loader.epoch(0)])
    with h5py.File(experiment.store / "train-00001.h5") as file:  # shards of 8: clip 9 is the second of the second
        fbank, label = file["audio/fbank"][1].astype(np.float64), int(file["label"][1])
        first = int(file["visual/clip_offset"][1])
        low, high = file["visual/byte_offset"][first : first + 2]
        picture = Image.open(io.BytesIO(file["visual/bytes"][low:high].tobytes())).convert("RGB")
    np.testing.assert_allclose(sound[0].numpy(), (fbank - store.mean) / (2 * store.std), atol=1e-5)
    assert int(labels[9]) == label
    scaled = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)).astype(np.float64) / 255
    expected = (scaled - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert pictures.shape == (2, 3, 32, 32)
    assert float((pictures[0].permute(1, 2, 0) - torch.from_numpy(expected)).abs().mean()) < 0.02
    assert torch.equal(pictures[0], pictures[1])  # one picture stands for both segments


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 20), st.integers(0, 30), st.integers(0, 2**31), st.sampled_from([torch.float16, torch.float32]))
def test_spec_augment_masks_one_band_and_one_run(frequency: int, time: int, seed: int, dtype: torch.dtype) -> None:
    fbank = torch.arange(40 * 24).view(40, 24).to(dtype) / 64 + 1
    torch.manual_seed(seed)
    actual = transforms.spec_augment(fbank, frequency, time, fill=-4.5)
    assert actual.dtype == dtype
    assert actual.shape == fbank.shape
    masked = actual == -4.5
    assert torch.equal(actual[~masked], fbank[~masked])
    bins, frames = masked.all(0).nonzero()[:, 0].tolist(), masked.all(1).nonzero()[:, 0].tolist()
    assert len(bins) <= frequency
    assert len(frames) <= time
    for run in (bins, frames):
        assert run == list(range(run[0], run[-1] + 1)) if run else True
    expected = torch.zeros_like(masked)
    expected[:, bins] = True
    expected[frames] = True
    assert torch.equal(masked, expected)


def test_crop_and_flip() -> None:
    frame = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(3, 8, 8)
    whole = transforms.training_frames(8, (1.0, 1.0), flip=False)
    assert torch.equal(whole(frame), frame)
    assert torch.equal(transforms.evaluation_frames(8)(frame), frame)
    flipping = transforms.training_frames(8, (1.0, 1.0), flip=True)
    torch.manual_seed(0)
    seen = [flipping(frame) for _ in range(20)]
    assert all(torch.equal(view, frame) or torch.equal(view, frame.flip(2)) for view in seen)
    assert 0 < sum(torch.equal(view, frame) for view in seen) < 20
    cropping = transforms.training_frames(6, (0.08, 0.5), flip=False)
    assert {tuple(cropping(frame).shape) for _ in range(5)} == {(3, 6, 6)}
    assert len({cropping(frame).numpy().tobytes() for _ in range(5)}) > 1


def test_a_random_crop_is_scaled_as_torchvision_scales_it() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    frame, cropping = rows.permute(2, 0, 1), transforms.training_frames(24, (0.1, 1.0), flip=False)
    for seed in range(5):
        torch.manual_seed(seed)
        actual = cropping(frame)
        torch.manual_seed(seed)
        box = RandomResizedCrop.get_params(frame, [0.1, 1.0], [3 / 4, 4 / 3])
        assert torch.equal(actual, v2.resized_crop(frame, *box, [24, 24], antialias=True))


def test_frame_codecs(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 20 * 14 * 3).reshape(20, 14, 3).astype(np.uint8)
    raw = decode_frame(np.frombuffer(ramp.tobytes(), np.uint8).copy(), "raw", 20, 14)
    assert np.array_equal(raw.permute(1, 2, 0).numpy(), ramp)
    encoded = encode_jpeg(torch.from_numpy(ramp).permute(2, 0, 1).contiguous(), 95).numpy()
    decoded = decode_frame(encoded, "jpeg", 20, 14)
    assert decoded.shape == (3, 20, 14)
    assert decoded.dtype == torch.uint8
    path = tmp_path / "frame.jpg"
    path.write_bytes(encoded.tobytes())
    theirs = np.asarray(Image.open(path)).astype(int)
    assert np.abs(decoded.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 3
    grey = io.BytesIO()
    Image.fromarray(ramp[..., 0]).save(grey, "JPEG")
    assert decode_frame(np.frombuffer(grey.getvalue(), np.uint8).copy(), "jpeg", 20, 14).shape[0] == 3


@pytest.mark.parametrize("rows", [False, True])
def test_frames_are_scaled_exactly_as_torchvision_does(rows: bool) -> None:
    """Whether a frame's values lie plane by plane or, as in a raw store, pixel by pixel."""
    for height, width, size in ((28, 28, 32), (340, 256, 224), (31, 57, 8), (64, 64, 64), (9, 300, 33)):
        frame = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
        frame = frame if rows else frame.contiguous()
        expected = v2.resize(frame, [size, size])
        found = transforms.evaluation_frames(size)(frame)
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
