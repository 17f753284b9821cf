"""Which clips are set aside: every class gives its share, and what was cut from one recording stays together."""

from __future__ import annotations

import json
import tracemalloc
import wave
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import STORE_OPTIONS, Result, avpt, done, write_manifest
from hypothesis import given
from hypothesis import strategies as st

from avpt.commands._shards import source_of
from avpt.errors import ManifestError, StoreError
from avpt.machine.set_aside import hashes, set_aside
from avpt.store.manifest import read_manifest
from avpt.store.splits import _strata, balancing_weights, training_splits
from avpt.store.store import Store

CLASSES = ("ant", "bee", "cow")


def held(strata: list[int], sources: list[str], fraction: float) -> set[int]:
    positions = set_aside(np.array(strata), hashes(source.encode() for source in sources), fraction).tolist()
    assert positions == sorted(set(positions))
    return set(positions)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=80),
    st.floats(0.01, 0.5),
    st.randoms(),
)
def test_sources_are_never_parted(clips: list[tuple[int, int]], fraction: float, random: object) -> None:
    strata, sources = [k for k, _ in clips], [f"film {s}" for _, s in clips]
    val = held(strata, sources, fraction)
    assert not {sources[i] for i in val} & {sources[i] for i in range(len(clips)) if i not in val}
    left = {strata[i] for i in range(len(clips)) if i not in val}
    assert left == set(strata)  # every class can still be learnt
    order = list(range(len(clips)))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = held([strata[i] for i in order], [sources[i] for i in order], fraction)
    assert {order[i] for i in again} == val


@pytest.mark.parametrize(
    ("classes", "films", "segments", "expected"),
    [(10, 20, 5, 100), (10, 3, 20, 60), (2, 3, 30, 30), (4, 10, 1, 4)],
)
def test_shares_are_met_as_nearly_as_whole_sources_allow(
    classes: int, films: int, segments: int, expected: int
) -> None:
    strata = [k for k in range(classes) for _ in range(films * segments)]
    sources = [f"{k}-{film}" for k in range(classes) for film in range(films) for _ in range(segments)]
    val = held(strata, sources, 0.1)
    assert len(val) == expected
    counts = Counter(strata[i] for i in val)
    if films * segments / 10 >= segments:  # a class's share is a whole film or more
        assert set(counts.values()) == {films * segments // 10}
    else:
        assert set(counts.values()) == {segments}


def test_a_film_of_two_classes_counts_for_both() -> None:
    strata = [0, 0, 1, 1] * 10
    sources = [f"film {i // 4}" for i in range(40)]
    val = held(strata, sources, 0.2)
    assert Counter(strata[i] for i in val) == {0: 4, 1: 4}


def test_nothing_is_set_aside_where_every_class_is_one_source() -> None:
    assert not held([0, 0, 1, 1], ["a", "a", "b", "b"], 0.5)
    assert held([0, 0, 1, 1], ["a", "a", "b", "c"], 0.5)


def test_several_labels_take_memory_for_those_that_are_set() -> None:
    clips, classes, each = 40_000, 500, 3
    draw = np.random.default_rng(0)
    labels = np.zeros((clips, classes), np.uint8)
    labels[np.repeat(np.arange(clips), each), draw.integers(0, classes, clips * each)] = 1
    tracemalloc.start()
    try:
        strata = _strata(labels)
        _, peak = tracemalloc.get_traced_memory()
        weights = balancing_weights(labels)
    finally:
        tracemalloc.stop()
    assert peak < 100 * clips * each  # bytes; a matrix of int64 is 160 MB
    occurs = labels.sum(axis=0, dtype=np.int64)
    for clip in range(0, clips, 997):
        there = np.flatnonzero(labels[clip])
        assert strata[clip] == min(there, key=lambda k: (occurs[k], k))
    assert weights.sum() == pytest.approx(len(set(strata.tolist())))


# --- segments of one recording, from the manifest to training ------------------------------------------------------


def recording(path: Path, seconds: float = 3.0) -> Path:
    """Noise, of another loudness for each name."""
    draw = np.random.default_rng(list(path.name.encode()))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((draw.normal(0, 3000, round(16000 * seconds))).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four recordings a class, each cut into five segments under names of their own; no val split."""
    folder = tmp_path_factory.mktemp("segments")
    rows: list[dict[str, str]] = []
    for name in CLASSES:
        for film in range(4):
            path = recording(folder / f"{name}{film}.wav")
            for part in range(5):
                row = {"id": f"clip {len(rows)}", "label": name, "split": "train", "audio": path.name}
                rows.append(row | {"start": f"{part / 2}", "end": f"{part / 2 + 0.5}"})
    rows.append({"id": "whole", "label": CLASSES[0], "split": "train", "audio": recording(folder / "w.wav").name})
    manifest = write_manifest(folder / "manifest.csv", rows)
    done("preprocess", manifest, "--out", folder / "store", *STORE_OPTIONS, "--shard-size", "30", "--workers", "1")
    return folder / "store"


def test_segments_of_a_recording_are_carved_together(segments: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(segments)
    splits = training_splits(store, ["audio"], 0.2)
    films = [{source for source in splits[name].sources if source} for name in ("train", "val")]
    assert films[0] | films[1] == {f"{name}{film}.wav" for name in CLASSES for film in range(4)}
    assert not films[0] & films[1]
    assert len(films[1]) >= 2
    assert abs(len(splits["val"]) - 0.2 * 61) <= 2.5  # half a recording
    assert "clips of one recording stay together" in caplog.text
    again = training_splits(Store(segments), ["audio"], 0.2)
    assert again["val"].ids == splits["val"].ids


def test_a_shard_tells_what_its_segments_are_of(segments: Path) -> None:
    with h5py.File(segments / "train-00000.h5") as first, h5py.File(segments / "train-00002.h5") as last:
        sources = first["source"].asstr()[:].tolist()
        assert sources == [f"{name}{film}.wav" for name in CLASSES[:2] for film in range(4) for _ in range(5)][:30]
        assert last["id"].asstr()[:].tolist() == ["whole"]
        assert "source" not in last  # a store without segments has the bytes that it always had
    assert done("verify", segments).code == 0


def test_rows_of_one_whole_file_are_tied(tmp_path: Path) -> None:
    for name in ("a", "b"):
        recording(tmp_path / f"{name}.wav")
    base = {"label": "x", "split": "train"}
    rows = [
        {**base, "id": "all", "audio": "a.wav"},
        {**base, "id": "again", "audio": "./a.wav"},
        {**base, "id": "part", "audio": "a.wav", "start": "0", "end": "1"},
        {**base, "id": "other", "audio": "b.wav"},
    ]
    clips = read_manifest(write_manifest(tmp_path / "manifest.csv", rows)).clips
    assert [source_of(clip) for clip in clips] == ["a.wav", "a.wav", "a.wav", ""]


def test_classes_that_val_lacks_are_told(segments: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = training_splits(Store(segments), ["audio"], 0.01)
    assert len(splits["val"]) in (1, 5)
    assert "none of these clips is of" in caplog.text


def test_a_class_from_one_recording_is_told_how_to_divide(tmp_path: Path) -> None:
    rows = [
        {"label": name, "split": "train", "audio": recording(tmp_path / f"{name}.wav").name, "start": s, "end": e}
        for name in ("a", "b")
        for s, e in (("0", "1"), ("1", "2"))
    ]
    manifest = write_manifest(tmp_path / "manifest.csv", rows)
    done("preprocess", manifest, "--out", tmp_path / "store", *STORE_OPTIONS, "--workers", "1")
    with pytest.raises(StoreError, match="clips of one recording stay together; add clips, or give rows"):
        training_splits(Store(tmp_path / "store"), ["audio"], 0.5)


def test_the_recording_is_the_file_unless_the_manifest_names_it(tmp_path: Path) -> None:
    path = recording(tmp_path / "a.wav", 0.1).name
    rows = [
        {"id": "1", "audio": path, "recording": "tape 7"},
        {"id": "2", "audio": path, "start": "0", "recording": "tape 7"},
        {"id": "3", "audio": f"./{path}", "start": "1"},
        {"id": "4", "video": path, "end": "1"},
        {"id": "5", "audio": path},
    ]
    named = [row | {"label": "x", "split": "train"} for row in rows]
    clips = read_manifest(write_manifest(tmp_path / "manifest.csv", named)).clips
    assert [source_of(clip) for clip in clips] == ["tape 7", "tape 7", "a.wav", "a.wav", "a.wav"]
    named[0]["recording"] = "tape\0"
    with pytest.raises(ManifestError, match=r"recording 'tape\\x00' has control characters"):
        read_manifest(write_manifest(tmp_path / "manifest.csv", named))


# --- class folders -------------------------------------------------------------------------------------------------


def class_folders(folder: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.wav").write_bytes(b"x")
    return folder


def divided(folder: Path, *options: str) -> tuple[Result, dict[str, Counter[str]]]:
    """What the command says of class folders, and how many clips of each class it put where."""
    result = done("manifest", "folder", folder, "--out", folder / "manifest.csv", *options)
    lines = (folder / "manifest.csv").read_text(encoding="utf-8").splitlines()
    counts: dict[str, Counter[str]] = {}
    for line in lines[1:]:
        _, label, split, *_ = line.split(",")
        counts.setdefault(label, Counter())[split] += 1
    return result, counts


def test_class_folders_are_divided_class_by_class(tmp_path: Path) -> None:
    """By a hash of each path alone a class of ten has no test clip in a third of all cases."""
    many = {f"class{number:02d}": 10 for number in range(30)}
    folder = class_folders(tmp_path / "clips", **many, large=100)
    options = ("--test-fraction", "0.1", "--val-fraction", "0.2")
    result, counts = divided(folder, *options)
    assert counts.pop("large") == {"train": 70, "val": 20, "test": 10}
    assert all(count == {"train": 7, "val": 2, "test": 1} for count in counts.values())
    assert "has no clip of" not in result.stderr
    record = json.loads((folder / "manifest.csv.json").read_text(encoding="utf-8"))["summary"]["by_class"]
    assert record["large"] == {"train": 70, "val": 20, "test": 10}
    assert len(record) == 31
    (folder / "class00" / "more.wav").write_bytes(b"x")  # a clip that comes moves few others
    before = (folder / "manifest.csv").read_text(encoding="utf-8").splitlines()
    done("manifest", "folder", folder, "--out", folder / "manifest.csv", *options, "--overwrite")
    after = (folder / "manifest.csv").read_text(encoding="utf-8").splitlines()
    assert len(set(before) - set(after)) <= 1


def test_empty_cells_are_shown_and_warned_of(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "clips", ant=20, bee=1, cow=2)
    result, counts = divided(folder, "--test-fraction", "0.2")
    assert counts.keys() == {"ant", "bee", "cow"}
    assert (counts["ant"], counts["bee"]) == ({"train": 16, "test": 4}, {"train": 1})
    assert counts["cow"] in ({"train": 1, "test": 1}, {"train": 2})
    lacking = [name for name, count in counts.items() if not count["test"]]
    assert f"test has no clip of {len(lacking)} of 3 classes ({', '.join(lacking)})" in result.stderr
    table = result.stderr[result.stderr.index("clips by class") :].splitlines()
    rows = {cells[0]: cells[1:] for line in table if (cells := line.split()) and cells[0] in counts}
    assert rows == {name: [str(count["train"]), str(count["test"] or "-")] for name, count in counts.items()}
    assert "val has no clip" not in result.stderr  # nobody asked for one


def test_a_split_that_was_asked_for_and_got_nothing_is_told(tmp_path: Path) -> None:
    result, counts = divided(class_folders(tmp_path / "clips", ant=1, bee=1), "--val-fraction", "0.5")
    assert counts == {"ant": {"train": 1}, "bee": {"train": 1}}
    assert "val has no clip of 2 of 2 classes (ant, bee)" in result.stderr


def test_val_is_carved_class_by_class_from_a_train_folder(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "clips" / "train", ant=10, bee=30).parent
    class_folders(folder / "test", ant=2, bee=2)
    _, counts = divided(folder, "--val-fraction", "0.1")
    assert counts == {"ant": {"train": 9, "val": 1, "test": 2}, "bee": {"train": 27, "val": 3, "test": 2}}


def test_of_many_classes_those_with_gaps_are_shown(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "clips", **{f"c{number:02d}": 10 for number in range(60)}, rare=1)
    result, _ = divided(folder, "--test-fraction", "0.1")
    assert "classes that a split has no clip of (1 shown; manifest.csv.json counts all)" in result.stderr
    assert avpt("manifest", "folder", folder, "--out", folder / "manifest.csv", "--test-fraction", "0.1").code == 0
    record = json.loads((folder / "manifest.csv.json").read_text(encoding="utf-8"))
    assert record["summary"]["by_class"]["rare"] == {"train": 1, "val": 0, "test": 0}
