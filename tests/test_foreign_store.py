"""A store from somebody else reads no other file, takes no more memory than it has bytes, and is refused by name."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import avpt, done
from tiny import change_shard, write_tiny_store

from avpt.errors import StoreError
from avpt.store.store import Store
from avpt.store.verification.shard import ShardTask, check_shard

SECRET = np.arange(2, dtype=np.int64)  # what the other file holds: it would do as labels


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "store")


def anew(name: str, **options: Any) -> Callable[[h5py.File], object]:
    """Another dataset in the place of one."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return change


def link(name: str, target: Any) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = target

    return change


def external(file: h5py.File) -> None:
    other = Path(file.filename).parents[1] / "secret"
    SECRET.tofile(other)
    anew("label", shape=(2,), dtype=np.int64, external=[(str(other), 0, 16)])(file)


def other_shard(file: h5py.File) -> str:
    return str(Path(file.filename).with_name("train-00000.h5"))


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(2,), dtype=np.int64)
    layout[:] = h5py.VirtualSource(other_shard(file), "label", shape=(2,))
    del file["label"]
    file.create_virtual_dataset("label", layout)


def one_text_for_all(file: h5py.File) -> None:
    """A million ids that are one and the same of a hundred thousand letters: 100 GB."""
    del file["id"]
    file.create_dataset("id", data=["x" * 100_000], dtype=h5py.string_dtype(), shape=(1,))
    (start,) = (file["id"].id.get_offset(),)
    file.flush()
    descriptor = Path(file.filename).read_bytes()[start : start + 16]
    del file["id"]
    texts = file.create_dataset("id", shape=(1_000_000,), dtype=h5py.string_dtype())
    texts[-1] = ""  # so that it is allocated
    file.flush()
    with Path(file.filename).open("r+b") as raw:
        raw.seek(texts.id.get_offset())
        raw.write(descriptor * 1_000_000)


def put(name: str, at: Any, value: Any) -> Callable[[h5py.File], object]:
    return lambda file: file[name].__setitem__(at, value)


ATTACKS: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "external storage": (external, "label is in another file, not int64 (2,)"),
    "virtual": (virtual, "label is in another file"),
    "external link": (lambda f: link("label", h5py.ExternalLink(other_shard(f), "/label"))(f), "label is a link"),
    "external group": (
        lambda f: link("audio", h5py.ExternalLink(other_shard(f), "/audio"))(f),
        "audio/fbank is a link",
    ),
    "ring of links": (link("id", h5py.SoftLink("/id")), "id is a link"),
    "dangling link": (link("visual/time", h5py.SoftLink("/nowhere")), "visual/time is a link"),
    "missing": (lambda f: f.__delitem__("label"), "label is missing"),
    "a group": (lambda f: (f.__delitem__("label"), f.create_group("label")), "label is no dataset"),
    "a dataset for a group": (
        lambda f: (f.__delitem__("audio"), f.create_dataset("audio", data=1)),
        "fbank is missing",
    ),
    "scalar": (anew("label", data=1), "label is int64 ()"),
    "empty": (anew("label", data=h5py.Empty("i8")), "label is empty"),
    "compound": (
        anew("label", data=np.zeros(2, [("a", "i4"), ("b", "i4")])),
        "label is [('a', '<i4'), ('b', '<i4')] (2,)",
    ),
    "pointers": (anew("label", shape=(2,), dtype=h5py.ref_dtype), "label is larger than its bytes"),
    "lists": (anew("id", shape=(2,), dtype=h5py.vlen_dtype(np.int64)), "id is larger than its bytes"),
    "short texts": (anew("id", data=np.array([b"a", b"b"])), "id is |S1 (2,), not text (2,)"),
    "wrong length": (anew("label", data=np.zeros(3, np.int64)), "label is int64 (3,), not int64 (2,)"),
    "terabytes": (anew("visual/bytes", shape=(1 << 42,), dtype=np.uint8), "visual/bytes is larger than its bytes"),
    "terabytes in pieces": (
        anew("visual/bytes", shape=(1 << 42,), dtype=np.uint8, chunks=(1 << 20,)),
        "visual/bytes is compressed or in pieces",
    ),
    "more than can be counted": (
        anew("audio/fbank", shape=(1 << 31, 1 << 31, 1 << 2), dtype=np.float16),
        "audio/fbank is larger than its bytes",
    ),
    "texts that share bytes": (one_text_for_all, "id is larger than its bytes"),
    "label too high": (put("label", 1, 2), "train-3: its label is 2, of 2 classes"),
    "label below 0": (put("label", 0, -1), "train-2: its label is -1"),
    "too much sound": (put("audio/num_frames", 1, 9), "train-3: its audio/num_frames is 9, not 0 to 8"),
    "frames go back": (put("visual/clip_offset", 1, 5), "visual/clip_offset goes back from 5 to 2"),
    "frames end": (put("visual/clip_offset", 2, 1 << 60), "visual/clip_offset ends at"),
    "id twice": (put("id", 1, b"train-2"), "lists 4 train clips, the shards hold 3"),
    "id of another shard": (put("id", 1, b"train-0"), "lists 4 train clips, the shards hold 3"),
    "not UTF-8": (put("id", 1, b"\xff"), "can't be read ('utf-8' codec"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_opening_and_verifying_say_the_same(store: Path, name: str) -> None:
    attack, says = ATTACKS[name]
    change_shard(store, attack)
    with pytest.raises(StoreError) as error:
        _ = Store(store).indices
    assert says in str(error.value)
    assert str(store) in str(error.value)
    assert "\n" not in str(error.value)
    if "is" in says.split()[1:2]:  # of the layout, for which there is one function
        settings = json.loads((store / "settings.json").read_text())["config"]
        check = check_shard(ShardTask(store / "train-00001", settings, 2, False))
        assert [p.problem for p in check.problems if says in p.problem]


def test_nothing_of_another_file_is_shown(store: Path) -> None:
    change_shard(store, external)
    result = avpt("info", store)
    assert (result.code, result.stdout) == (1, "")
    assert "label is in another file" in result.stderr


def test_a_whole_store_is_taken(store: Path) -> None:
    index = Store(store).indices["train"]
    assert (index.ids, index.labels.tolist()) == ([f"train-{row}" for row in range(4)], [0, 1, 0, 1])
    assert done("verify", store, "--json", "--workers", "1").json()["problems"] == []


@pytest.mark.parametrize("name", ["../../other/train-00000", "/train-00000", "val-00000", "train-00001", "x"])
def test_store_json_names_its_own_shards_alone(store: Path, name: str) -> None:
    record = json.loads((store / "store.json").read_text())
    record["splits"]["train"]["shards"][0] = name
    (store / "store.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match=r"store\.json is damaged \(splits\.train\.shards: '.*' is not train-00000\)"):
        Store(store)


def test_a_picture_that_asks_for_more_memory_than_it_says_is_damaged(store: Path) -> None:
    from avpt.loading.dataset import read_frames

    def wide(file: h5py.File) -> None:
        data = file["visual/bytes"][:]
        at = data.tobytes().index(b"\xff\xc0")
        data[at + 5 : at + 9] = 255  # 65,535 x 65,535 pixels, 12.9 GB
        file["visual/bytes"][:] = data

    change_shard(store, wide, "train-00000")
    with pytest.raises(StoreError, match="holds a damaged frame"):
        list(read_frames(Store(store).indices["train"], 0, [0], "jpeg"))


def test_no_lock_is_needed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 opens a file that another process has locked, as it does where there are no locks at all."""
    path = store / "train-00001.h5"
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert len(Store(store).indices["train"]) == 4
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert len(Store(store).indices["train"]) == 4


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO, errno.EACCES, errno.ESTALE])
def test_what_can_not_be_read_is_not_to_be_removed(store: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(number, "told by HDF5 in a paragraph")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(StoreError) as error:
        _ = Store(store).indices
    assert str(error.value) == f"{store}/train-00000.h5 can't be opened ({os.strerror(number)})"
    config = json.loads((store / "settings.json").read_text(encoding="utf-8"))["config"]
    check = check_shard(ShardTask(store / "train-00000", config, 2, False))
    assert [(problem.problem, problem.remedy) for problem in check.problems] == [(str(error.value), "access")]


def test_a_record_that_can_not_be_read_is_not_a_missing_shard(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path.with_suffix(".json")))

    with monkeypatch.context() as patch:
        patch.setattr("avpt.store.store.read_shard", refuse)
        assert avpt("info", store).stderr == f"avpt: {store}/train-00000.json: {os.strerror(errno.EIO)}\n"
    beside = store / "train-00000.json"
    beside.write_text(beside.read_text(encoding="utf-8").replace('"clips": 2', '"clips": "x"'), encoding="utf-8")
    says = f"avpt: {beside} is damaged (clips: expected int, got str); remove it and run its `avpt preprocess` again\n"
    assert avpt("info", store).stderr == says
