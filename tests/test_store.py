"""`avpt preprocess`: what a store holds of each clip, and what becomes of clips that fail."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers import STORE_OPTIONS, Experiment, avpt, digit_rows, done, files_of, mixed_rows, write_manifest
from media import Clips
from PIL import Image
from torchaudio.compliance import kaldi

from avpt.media.audio import read_waveform
from avpt.store.store import normalisation

DATASETS: dict[str, type] = {
    "label": np.int64,
    "audio/fbank": np.float16,
    "audio/num_frames": np.int32,
    "visual/clip_offset": np.int64,
    "visual/time": np.float32,
    "visual/byte_offset": np.int64,
    "visual/bytes": np.uint8,
    "visual/size": np.int32,
}
FRAMES, MEL = 48, 32  # as STORE_OPTIONS says
SAMPLES = 400 + (FRAMES - 1) * 160  # at 16 kHz: one 25 ms window, and a step of 10 ms for each further frame
TRAIN, VAL, TEST = 18, 9, 9


def rows_of(manifest: Path) -> dict[str, dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def read(path: Path) -> dict[str, Any]:
    """Every dataset of a shard."""
    with h5py.File(path) as file:
        ids = [value.decode() for value in file["id"][:]]
        return {"id": ids} | {name: file[name][:] for name in DATASETS}


def pictures(shard: dict[str, Any], clip: int) -> list[bytes]:
    low, high = shard["visual/clip_offset"][clip : clip + 2]
    edges = shard["visual/byte_offset"][low : high + 1]
    return [shard["visual/bytes"][edges[i] : edges[i + 1]].tobytes() for i in range(high - low)]


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Kaldi's filter bank as the method sets it."""
    sound = torch.from_numpy(waveform[:SAMPLES].astype(np.float32))
    fbank: torch.Tensor = kaldi.fbank(
        (sound - sound.mean())[None],
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=MEL,
        dither=0.0,
        frame_shift=10,
    )
    return fbank.numpy()


def json_of(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def test_a_shard_is_the_table_of_the_contract(experiment: Experiment) -> None:
    for shard, clips in (("train-00000", 8), ("train-00002", 2), ("val-00001", 1), ("test-00000", 8)):
        with h5py.File(experiment.store / f"{shard}.h5") as file:
            actual: list[str] = []
            file.visititems(lambda name, item, to=actual: to.append(name) if isinstance(item, h5py.Dataset) else None)
            assert set(actual) == {"id", *DATASETS}
            total, size = int(file["visual/clip_offset"][-1]), int(file["visual/byte_offset"][-1])
            shapes = {
                "id": (clips,),
                "label": (clips,),
                "audio/fbank": (clips, FRAMES, MEL),
                "audio/num_frames": (clips,),
                "visual/clip_offset": (clips + 1,),
                "visual/time": (total,),
                "visual/byte_offset": (total + 1,),
                "visual/bytes": (size,),
                "visual/size": (total, 2),
            }
            assert {name: file[name].shape for name in actual} == shapes
            assert {name: file[name].dtype for name in DATASETS} == DATASETS
            assert h5py.check_string_dtype(file["id"].dtype) == h5py.h5t.string_info("utf-8", None)
            for name in actual:
                assert file[name].chunks is None
                assert file[name].compression is None
            attributes = dict(file.attrs)
            assert attributes.pop("schema") == 1
            assert attributes == {
                "sample_rate": 16000,
                "mel_bins": MEL,
                "spectrogram_frames": FRAMES,
                "pad": "zero",
                "audio_dtype": "float16",
                "fps": 1.0,
                "max_frames": 10,
                "frame_size": 28,
                "frame_codec": "jpeg",
                "frame_accuracy": "exact",
                "allow_missing": "none",
                "on_truncated": "keep",
                "multi_label": False,
            }


def test_clips_are_the_manifests_rows_in_order(experiment: Experiment) -> None:
    rows = rows_of(experiment.manifest)
    for split, shards in (("train", 3), ("val", 2), ("test", 2)):
        parts = [read(experiment.store / f"{split}-{number:05d}.h5") for number in range(shards)]
        ids = [name for part in parts for name in part["id"]]
        assert ids == [name for name, row in rows.items() if row["split"] == split]
        labels = np.concatenate([part["label"] for part in parts])
        assert labels.tolist() == [int(rows[name]["label"]) for name in ids]  # classes "0", "1", "2"
        for part in parts:
            assert part["visual/clip_offset"].tolist() == list(range(len(part["id"]) + 1))  # one picture a clip
            assert part["visual/byte_offset"][0] == 0
            assert (np.diff(part["visual/byte_offset"]) > 0).all()
            assert not part["visual/time"].any()
            assert (part["visual/size"] == 28).all()


def test_sound_is_kaldis_filter_bank(experiment: Experiment) -> None:
    rows, shard = rows_of(experiment.manifest), read(experiment.store / "train-00000.h5")
    short = 0
    for clip, name in enumerate(shard["id"]):
        path = Path(rows[name]["audio"])
        with wave.open(str(path)) as file:
            rate, pcm = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        same = read_waveform(path, rate)
        resampled = read_waveform(path, 16000)
        assert same is not None
        assert resampled is not None
        np.testing.assert_array_equal(same, pcm.astype(np.float32))
        expected = log_mel(resampled)
        count = min(len(expected), FRAMES)
        assert shard["audio/num_frames"][clip] == count
        np.testing.assert_allclose(shard["audio/fbank"][clip][:count], expected[:count], atol=0.005)
        assert not shard["audio/fbank"][clip][count:].any()
        short += count < FRAMES
    assert 0 < short < 8  # both kinds were seen


def test_pictures_are_the_png_files(experiment: Experiment) -> None:
    rows, shard = rows_of(experiment.manifest), read(experiment.store / "val-00000.h5")
    for clip, name in enumerate(shard["id"]):
        source = np.asarray(Image.open(rows[name]["frames"]).convert("RGB")).astype(int)
        (encoded,) = pictures(shard, clip)
        image = Image.open(io.BytesIO(encoded))
        assert image.format == "JPEG"
        difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - source)
        assert difference.mean() < 3
        assert difference.max() < 40


def test_statistics_are_of_the_training_splits_real_frames(experiment: Experiment) -> None:
    parts = [read(experiment.store / f"train-{number:05d}.h5") for number in range(3)]
    real = [
        fbank[:count].astype(np.float64).ravel()
        for part in parts
        for fbank, count in zip(part["audio/fbank"], part["audio/num_frames"], strict=True)
    ]
    values = np.concatenate(real)
    actual = json_of(experiment.store / "store.json")["normalisation"]
    assert actual == pytest.approx({"mean": values.mean(), "std": values.std()}, rel=1e-10)
    sums = json_of(experiment.store / "train-00000.json")["sums"]
    first = np.concatenate(real[:8])
    expected = {"count": len(first), "sum": first.sum(), "sum_of_squares": (first**2).sum()}
    assert sums == pytest.approx(expected, rel=1e-12)


def test_silence_and_no_sound_have_statistics_too() -> None:
    silent = {"sums": {"count": 4, "sum": -4 * 15.9375, "sum_of_squares": 4 * 15.9375**2}}
    assert normalisation([silent, silent]) == (-15.9375, 1.0)
    assert normalisation([]) == (0.0, 1.0)


def test_json_files(experiment: Experiment) -> None:
    store = experiment.store
    settings, record = json_of(store / "settings.json"), json_of(store / "store.json")
    assert settings["inputs"] == {"manifest": hashlib.sha256(experiment.manifest.read_bytes()).hexdigest()}
    chosen = {"mel_bins": MEL, "spectrogram_frames": FRAMES, "frame_size": 28, "shard_size": 8}
    assert settings["config"].items() >= chosen.items()
    assert not settings["config"].keys() & {"workers", "out", "seed", "max_failures", "clip_timeout"}
    assert record["schema"] == 1
    assert record["classes"] == ["0", "1", "2"]
    assert record["failures"] == 0
    assert record["splits"] == {
        "train": {"shards": ["train-00000", "train-00001", "train-00002"], "clips": TRAIN},
        "val": {"shards": ["val-00000", "val-00001"], "clips": VAL},
        "test": {"shards": ["test-00000", "test-00001"], "clips": TEST},
    }
    assert len(list(store.glob("*.h5"))) == 7
    for shard in store.glob("*.h5"):
        beside = json_of(shard.with_suffix(".json"))
        assert beside["sha256"] == hashlib.sha256(shard.read_bytes()).hexdigest()
        assert beside["bytes"] == shard.stat().st_size
        assert beside["clips"] == len(read(shard)["id"])
        assert beside["failures"] == beside["partial"] == []
    for name in ("failures", "partial"):
        assert (store / f"{name}.csv").read_text(encoding="utf-8").split() == ["id,split,source,stage,error"]


def test_number_of_workers_does_not_change_a_byte(experiment: Experiment, tmp_path: Path) -> None:
    options = ("preprocess", experiment.manifest, *STORE_OPTIONS)
    for workers in ("1", "2"):
        out = tmp_path / workers
        assert done(*options, "--workers", workers, "--out", out).stdout == f"{out}\n"
        assert files_of(out) == files_of(experiment.store)


def test_a_lost_shard_is_made_again(experiment: Experiment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(experiment.store, store)
    for name in ("store.json", "train-00001.h5", "val-00000.json", "failures.csv"):
        (store / name).unlink()
    with (store / "test-00000.h5").open("rb+") as file:
        file.truncate(1000)
    kept = (store / "train-00000.h5").stat().st_mtime_ns
    done("preprocess", experiment.manifest, *STORE_OPTIONS, "--out", store)
    assert files_of(store) == files_of(experiment.store)
    assert (store / "train-00000.h5").stat().st_mtime_ns == kept


def test_raw_frames_float32_limit_and_shard_size(experiment: Experiment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    options = ("--frame-codec", "raw", "--audio-dtype", "float32", "--limit", "20", "--shard-size", "7")
    actual = done("preprocess", experiment.manifest, *STORE_OPTIONS, *options, "--out", store, "--json").json()
    assert actual.items() >= {"store": str(store), "clips": 20, "failures": 0, "partial": 0}.items()
    splits = json_of(store / "store.json")["splits"]
    assert splits == {
        "train": {"shards": ["train-00000", "train-00001", "train-00002"], "clips": 18},
        "val": {"shards": ["val-00000"], "clips": 2},
    }
    rows = rows_of(experiment.manifest)
    parts = [read(store / f"{name}.h5") for name in splits["train"]["shards"]]
    assert [len(part["id"]) for part in parts] == [7, 7, 4]
    for part in parts:
        for clip, name in enumerate(part["id"]):
            source = Image.open(rows[name]["frames"]).convert("RGB")
            assert pictures(part, clip) == [np.asarray(source).tobytes()]
    fbank = np.concatenate([part["audio/fbank"] for part in parts])
    assert fbank.dtype == np.float32
    others = [read(experiment.store / f"train-{number:05d}.h5")["audio/fbank"] for number in range(3)]
    assert np.array_equal(fbank.astype(np.float16), np.concatenate(others))


def test_several_labels_one_modality_and_repeated_sound(tmp_path: Path) -> None:
    rows = mixed_rows(tmp_path / "media")
    manifest = write_manifest(tmp_path / "media" / "manifest.csv", rows)
    store = tmp_path / "store"
    done("preprocess", manifest, *STORE_OPTIONS, "--multi-label", "--pad", "repeat", "--out", store)
    shard = read_multi(store / "train-00000.h5")
    assert json_of(store / "store.json")["classes"] == ["cat", "dog", "élan"]
    assert json_of(store / "store.json")["multi_label"] is True
    assert shard["id"] == ["clip 0", "clip 1", "clip 2", "clip 4", "clip 5"]
    assert shard["label"].dtype == np.uint8
    assert shard["label"].tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1], [0, 0, 1]]
    assert shard["audio/num_frames"].tolist() == [FRAMES, FRAMES, 0, FRAMES, FRAMES]
    assert not shard["audio/fbank"][2].any()
    assert shard["visual/clip_offset"].tolist() == [0, 1, 1, 2, 3, 4]
    for clip, row in ((0, 0), (1, 1), (3, 4), (4, 5)):
        waveform = read_waveform(tmp_path / "media" / rows[row]["audio"], 16000)
        assert waveform is not None
        played = np.concatenate([waveform] * (SAMPLES // len(waveform) + 1))[:SAMPLES]
        np.testing.assert_allclose(shard["audio/fbank"][clip], log_mel(played), atol=0.005)


def read_multi(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        assert file.attrs["multi_label"]
        assert file.attrs["pad"] == "repeat"
    return read(path)


def test_failures_are_told_counted_and_mended(tmp_path: Path) -> None:
    media, store = tmp_path / "media", tmp_path / "store"
    rows = mixed_rows(media)
    manifest = write_manifest(media / "manifest.csv", rows)
    command = ("preprocess", manifest, *STORE_OPTIONS, "--multi-label", "--shard-size", "3")
    done(*command, "--out", tmp_path / "clean")

    good = {name: (media / name).read_bytes() for name in (rows[0]["audio"], rows[3]["frames"])}
    (media / rows[0]["audio"]).write_bytes(b"no sound at all")
    (media / rows[3]["frames"]).write_bytes(good[rows[3]["frames"]][:60])
    refused = avpt(*command, "--out", store)
    assert refused.code == 1
    assert "2 of 6 clips failed" in refused.error
    assert "--max-failures" in refused.error
    assert not (store / "store.json").exists()
    assert (store / "train-00000.h5").exists()

    made = (store / "train-00000.h5").stat().st_mtime_ns
    summary = done(*command, "--max-failures", "0.34", "--json", "--out", store).json()
    assert (
        summary.items()
        >= {
            "store": str(store),
            "clips": 4,
            "failures": 2,
            "partial": 0,
        }.items()
    )
    assert (store / "train-00000.h5").stat().st_mtime_ns == made  # nothing was tried again
    with (store / "failures.csv").open(newline="", encoding="utf-8") as file:
        failures = list(csv.DictReader(file))
    assert list(failures[0]) == ["id", "split", "source", "stage", "error"]
    assert [(row["id"], row["split"]) for row in failures] == [("clip 0", "train"), ("clip 3", "val")]
    assert failures[0]["stage"] == "open"
    assert failures[1]["stage"] in ("open", "visual")
    assert rows[0]["audio"] in failures[0]["source"]
    assert rows[3]["frames"] in failures[1]["source"]
    assert all(row["error"] for row in failures)
    record = json_of(store / "store.json")
    assert record["failures"] == 2
    assert {split: part["clips"] for split, part in record["splits"].items()} == {"train": 4, "val": 0}
    assert read(store / "val-00000.h5")["audio/fbank"].shape == (0, FRAMES, MEL)
    assert record["fingerprint"] != json_of(tmp_path / "clean" / "store.json")["fingerprint"]

    for name, content in good.items():
        (media / name).write_bytes(content)
    kept = (store / "train-00001.h5").stat().st_mtime_ns
    done(*command, "--retry-failures", "--out", store)
    assert files_of(store) == files_of(tmp_path / "clean")
    assert (store / "train-00001.h5").stat().st_mtime_ns == kept


def test_the_fingerprint_follows_the_data(tmp_path: Path) -> None:
    media = tmp_path / "media"
    rows = mixed_rows(media)
    command = (
        "preprocess",
        write_manifest(media / "manifest.csv", rows),
        *STORE_OPTIONS,
        "--multi-label",
        "--limit",
        "4",
    )
    prints: list[str] = []
    for workers, picture in (("1", None), ("2", None), ("2", np.eye(28, dtype=np.uint8) * 255)):
        if picture is not None:
            Image.fromarray(picture).save(media / rows[3]["frames"])
        out = tmp_path / f"store-{len(prints)}"
        done(*command, "--workers", workers, "--out", out)
        prints.append(json_of(out / "store.json")["fingerprint"])
    done(*command, "--fps", "2", "--out", tmp_path / "options")
    prints.append(json_of(tmp_path / "options" / "store.json")["fingerprint"])
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_more_shards_than_a_process_may_open(experiment: Experiment, tmp_path: Path) -> None:
    rows = digit_rows()
    manifest = write_manifest(tmp_path / "manifest.csv", [row for row in rows if row["split"] == "train"])
    done("preprocess", manifest, "--out", tmp_path / "store", *STORE_OPTIONS, "--shard-size", "1")
    code = (
        "import resource; from avpt.store import shard_files; shard_files.open_file_limit = lambda: 8\n"
        "import sys; from pathlib import Path; from avpt.store.store import Store\n"
        "from avpt.loading.dataset import ClipDataset, InputSpec\n"
        "store = Store(Path(sys.argv[1])); spec = InputSpec(16000, 32, 48, 'zero', 1.0, 10, 28, 0.0, 1.0, 32, 1)\n"
        "clips = ClipDataset(store.indices['train'], ['audio', 'visual'], spec, 'jpeg')\n"
        "clips[(0, 0, 0)]\n"
        "import os; used = len(os.listdir('/proc/self/fd'))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, used + 8))\n"
        "for _ in range(2):\n"
        "    for i in range(len(clips)): clips[(0, i, i)]\n"
        "print(len(clips))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == 18


def test_a_store_of_silence_is_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(bytes(16000))
    rows = [{"label": name, "split": "train", "audio": f"{name}.wav"} for name in ("a", "b")]
    result = done("preprocess", write_manifest(tmp_path / "m.csv", rows), "--out", tmp_path / "store", *STORE_OPTIONS)
    assert "warning: the sound of the training clips is constant" in result.stderr
    record = json.loads((tmp_path / "store" / "store.json").read_text())
    assert record["normalisation"]["std"] == 1.0


def test_shards_without_settings_are_not_taken_for_new_ones(experiment: Experiment, tmp_path: Path) -> None:
    store = shutil.copytree(experiment.store, tmp_path / "store")
    (store / "settings.json").unlink()
    other = (*STORE_OPTIONS, "--mel-bins", "24")
    result = avpt("preprocess", experiment.manifest, "--out", store, *other)
    assert result.code == 1
    assert "and no settings.json says whose they are" in result.error
    done("preprocess", experiment.manifest, "--out", store, *other, "--overwrite")
    done("preprocess", experiment.manifest, "--out", tmp_path / "fresh", *other)
    assert files_of(store) == files_of(tmp_path / "fresh")


def test_a_damaged_or_lost_file_of_the_store_is_told_or_made_again(experiment: Experiment, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(experiment.store, store)
    command = ("preprocess", experiment.manifest, "--out", store, *STORE_OPTIONS)
    for name in ("failures.csv", "partial.csv"):
        (store / name).unlink()
        done(*command)
        assert files_of(store) == files_of(experiment.store)
    (store / "store.json").write_text("{", encoding="utf-8")
    result = avpt(*command)
    assert result.code == 1
    assert result.error.startswith(
        f"avpt: {store}/store.json is damaged (it is not JSON); remove it and run the same command again"
    )
    (store / "store.json").unlink()
    done(*command)
    assert files_of(store) == files_of(experiment.store)


def test_labels_that_look_like_several_are_told(clips: Clips, tmp_path: Path) -> None:
    tone = str(clips["mono.wav"])
    rows = [{"id": "a", "label": "x;y", "split": "train", "audio": tone}]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    assert "--multi-label" in done("preprocess", manifest, "--out", tmp_path / "one").stderr
    assert "--multi-label" not in done("preprocess", manifest, "--out", tmp_path / "two", "--multi-label").stderr
