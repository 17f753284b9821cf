"""Pickles that would leave a mark: nothing in a checkpoint runs, whatever it names, and what it names is told."""

from __future__ import annotations

import argparse
import builtins
import functools
import io
import os
import pickle
import runpy
import shutil
import subprocess
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn, serialization

from avpt.errors import ArtifactError
from avpt.files.pickles import Named, outline
from avpt.files.torch_files import load_checkpoint
from avpt.models.encoder import EncoderSpec
from avpt.models.weights import read_weights

GOOD = {"conv1.weight": torch.ones(2, 3)}


class Calls:
    """A pickle that would call something when it is loaded."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


class Custom:
    """A class of somebody's, that leaves a mark when it is made, filled or looked at."""

    mark: Path

    def __new__(cls, *args: Any) -> Custom:
        cls.mark.touch()
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.mark.touch()


class CustomList(list[Any]):
    def append(self, item: Any) -> None:
        Custom.mark.touch()

    def extend(self, items: Any) -> None:
        Custom.mark.touch()


class CustomDict(dict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        Custom.mark.touch()


class Shadowed:
    """Pickled as a state dict whose methods are other than they should be."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), dict.fromkeys(("items", "get", "keys"), bytearray), None, iter(GOOD.items())


def leave_mark(path: str) -> None:
    Path(path).touch()


def saved(path: Path, value: Any, legacy: bool = False, protocol: int = 2) -> Path:
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return path


# what would be called with the path of the mark, and how the refusal calls it; None: it is left lying
CODE: dict[str, tuple[Callable[[Path], Calls], str | None]] = {
    "os.mkdir": (lambda mark: Calls(os.mkdir, str(mark)), "posix.mkdir"),
    "os.system": (lambda mark: Calls(os.system, f"touch {mark}"), "posix.system"),
    "subprocess": (lambda mark: Calls(subprocess.check_call, ["touch", str(mark)]), "subprocess.check_call"),
    "eval": (lambda mark: Calls(builtins.eval, f"open({str(mark)!r}, 'w')"), "builtins.eval"),
    "exec": (lambda mark: Calls(builtins.exec, f"open({str(mark)!r}, 'w')"), "builtins.exec"),
    "open": (lambda mark: Calls(io.open, str(mark), "w"), "io.open"),
    "import": (lambda mark: Calls(builtins.__import__, "antigravity"), "builtins.__import__"),
    "method": (lambda mark: Calls(Path.touch, mark), "builtins.getattr"),
    "runpy": (lambda mark: Calls(runpy.run_path, str(mark)), "runpy.run_path"),
    "shutil": (lambda mark: Calls(shutil.copy, __file__, str(mark)), "shutil.copy"),
    "pickle": (lambda mark: Calls(pickle.loads, pickle.dumps(Calls(os.mkdir, str(mark)))), "pickle.loads"),
    "torch.load": (lambda mark: Calls(torch.load, str(mark)), "torch.serialization.load"),
    "torch.save": (lambda mark: Calls(torch.save, 1, str(mark)), None),
    "hub": (lambda mark: Calls(torch.hub.set_dir, str(mark)), "torch.hub.set_dir"),
    "partial": (lambda mark: Calls(functools.partial(os.mkdir, str(mark))), "posix.mkdir"),
    "own function": (lambda mark: Calls(leave_mark, str(mark)), None),
}
NESTED: dict[str, Callable[[Any], Any]] = {
    "alone": lambda code: code,
    "payload": lambda code: {"model": GOOD, "payload": code},
    "hyper_parameters.inside": lambda code: {"model": GOOD, "hyper_parameters": {"inside": [1, (code,)]}},
    "args": lambda code: {"model": GOOD, "args": argparse.Namespace(code=code)},
}


@pytest.mark.parametrize(("legacy", "protocol"), [(False, 2), (True, 2), (False, 4), (True, 5)])
@pytest.mark.parametrize("name", CODE)
def test_what_runs_code_is_refused_by_class_and_key(tmp_path: Path, name: str, legacy: bool, protocol: int) -> None:
    make, called = CODE[name]
    if name == "method" and protocol > 2:  # which names a method as it is, and needs no getattr
        called = f"{Path.__module__}.Path.touch"
    mark = tmp_path / "mark"
    for key, nest in NESTED.items():
        path = saved(tmp_path / "weights.pt", nest(make(mark)), legacy, protocol)
        hub = torch.hub.get_dir()
        if called is None:
            checkpoint = load_checkpoint(path)
            assert len(checkpoint.foreign) == 1
        else:
            with pytest.raises(ArtifactError) as error:
                load_checkpoint(path)
            assert called in str(error.value)
            assert key == "alone" or f"{called} at {key}" in str(error.value)
            assert str(path) in str(error.value)
        assert torch.hub.get_dir() == hub
        assert not mark.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_classes_of_others_are_neither_made_nor_filled(tmp_path: Path, legacy: bool, protocol: int) -> None:
    Custom.mark = tmp_path / "mark"
    custom = object.__new__(Custom)
    custom.__dict__["x"] = 1
    filled, mapped = CustomList(), CustomDict()
    list.append(filled, 1)
    dict.__setitem__(mapped, "k", torch.zeros(2))
    value = {"model": GOOD, "a": custom, "b": filled, "c": mapped, "d": Custom, "e": [custom, {"f": filled}]}
    checkpoint = load_checkpoint(saved(tmp_path / "weights.pt", value, legacy, protocol))
    assert not Custom.mark.exists()
    here = __name__
    assert checkpoint.foreign == {
        ("a",): f"{here}.Custom",
        ("b",): f"{here}.CustomList",
        ("d",): f"{here}.Custom",
        ("e",): f"{here}.Custom",
        ("e", "f"): f"{here}.CustomList",
    }
    assert torch.equal(checkpoint.value["c"]["k"], torch.zeros(2))  # a mapping of any class is one
    assert torch.equal(checkpoint.value["model"]["conv1.weight"], GOOD["conv1.weight"])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_newer_protocols_are_read_as_torchs_own(tmp_path: Path, protocol: int, legacy: bool) -> None:
    weights = torch.randn(3, 4)
    state = OrderedDict({"a": weights, "view": weights[1:], "parameter": nn.Parameter(weights), "half": weights.half()})
    value = {
        "model": state,
        "plain": [None, True, 3, 2**80, 1.5, "é", b"\xff", bytearray(b"x"), 1 + 2j, (1, (2,)), {1, 2}],
        "kinds": [torch.float16, torch.device("cpu"), weights.shape],
        "args": argparse.Namespace(lr=0.1),
        "history": np.arange(3),
        "best": np.float64(2),
    }
    expected = load_checkpoint(saved(tmp_path / "old.pt", value, legacy))
    actual = load_checkpoint(saved(tmp_path / "new.pt", value, legacy, protocol))
    assert actual.foreign == expected.foreign
    assert actual.value.keys() == expected.value.keys()
    for key in ("plain", "kinds"):
        assert actual.value[key] == expected.value[key]
    for key, tensor in expected.value["model"].items():
        assert torch.equal(actual.value["model"][key], tensor)
        assert actual.value["model"][key].dtype == tensor.dtype
    assert actual.value["model"]["view"].untyped_storage().nbytes() == 48  # what is shared is still shared


def test_names_of_a_newer_protocol_become_no_other_opcodes(tmp_path: Path) -> None:
    name = "posix\nmkdir\nX\x04"
    content = b"\x80\x04\x8c" + bytes([len(name)]) + name.encode() + b"\x8c\x01a\x93."  # STACK_GLOBAL
    with pytest.raises(ArtifactError):
        read_weights(hand_made(tmp_path / "weights.pt", content), EncoderSpec("resnet18", "visual", "batchnorm"))


def test_a_pickle_that_torch_did_not_write_is_told_with_the_cure(tmp_path: Path) -> None:
    for protocol in (2, 4, 5):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps({"model": GOOD, "code": Calls(os.mkdir, str(tmp_path / "mark"))}, protocol))
        with pytest.raises(ArtifactError, match=r"written by pickle, not by torch\.save.*torch\.save\(pickle\.load"):
            read_weights(path, EncoderSpec("resnet18", "visual", "batchnorm"))
    assert not (tmp_path / "mark").exists()


def test_what_this_process_calls_safe_is_not_called_either(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = saved(tmp_path / "weights.pt", {"model": GOOD, "x": Calls(leave_mark, str(mark))})
    with serialization.safe_globals([leave_mark]):
        before = set(serialization.get_safe_globals())
        assert load_checkpoint(path).foreign == {("x",): f"{__name__}.leave_mark"}
        assert set(serialization.get_safe_globals()) == before
    assert not mark.exists()


def test_methods_that_a_file_sets_are_not_called(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    tensor.__dict__["numel"] = bytearray
    checkpoint = load_checkpoint(saved(tmp_path / "weights.pt", {"model": Shadowed(), "x": tensor}))
    assert list(checkpoint.value["model"]) == ["conv1.weight"]
    assert type(checkpoint.value["model"]) is dict
    assert checkpoint.value["x"].numel() == 2


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_network_is_refused_by_class(tmp_path: Path, legacy: bool) -> None:
    model = torchvision.models.resnet18()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, inside = saved(tmp_path / "a.pt", model, legacy), saved(tmp_path / "b.pt", {"ema": model}, legacy)
    for path in (whole, inside):
        with pytest.raises(ArtifactError, match=r"torchvision\.models\.resnet\.ResNet") as error:
            read_weights(path, EncoderSpec("resnet18", "visual", "batchnorm"))
        assert "save its state_dict()" in str(error.value) or legacy


def test_a_network_beside_the_weights_is_left_lying(tmp_path: Path) -> None:
    value = {"model": GOOD, "criterion": nn.CrossEntropyLoss()}
    found = load_checkpoint(saved(tmp_path / "weights.pt", value))
    assert found.foreign == {("criterion",): "torch.nn.modules.loss.CrossEntropyLoss"}


def hand_made(path: Path, content: bytes) -> Path:
    """A checkpoint of this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return path


def test_names_that_are_no_part_of_the_value_are_seen(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    call = b"cposix\nmkdir\nX\x04\x00\x00\x00mark\x85R0"  # made, and thrown away
    path = hand_made(tmp_path / "weights.pt", b"\x80\x02" + call + b"}.")
    with pytest.raises(ArtifactError, match=r"names posix\.mkdir, with which"):
        load_checkpoint(path)
    assert not mark.exists()
    for content in (b"\x80\x02\x82\x01.", b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00markoK.", b"\x80\x02]}b."):
        with pytest.raises(ArtifactError):
            read_weights(hand_made(path, content), EncoderSpec("resnet18", "visual", "batchnorm"))


def test_an_outline_calls_nothing_and_holds_all(tmp_path: Path) -> None:
    Custom.mark = tmp_path / "mark"
    custom = object.__new__(Custom)
    seen = outline(saved(tmp_path / "weights.pt", {"a": custom, "b": torch.nn.Parameter(torch.ones(2))}))
    assert seen is not None
    assert isinstance(seen.root["a"], Named)
    assert f"{__name__}.Custom" in seen.classes
    assert not Custom.mark.exists()
    assert not any(isinstance(value, Tensor) for value in seen.root.values())
