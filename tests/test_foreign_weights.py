"""Checkpoints from somebody else: what is no plain tensor of finite numbers is refused by key."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import avpt
from torch import Tensor

from avpt.errors import ArtifactError, AvptError
from avpt.models.encoder import EncoderSpec, build_encoder
from avpt.models.fitting import fit_weights
from avpt.models.weights import read_weights
from avpt.training.checkpoint import load_checkpoint

State = dict[str, Any]
PLAIN = EncoderSpec("resnet18", "visual", "batchnorm")


@pytest.fixture(scope="module")
def plain() -> State:
    return dict(build_encoder(PLAIN).state_dict())


@pytest.fixture(scope="module")
def abri() -> State:
    return beginning(dict(build_encoder(EncoderSpec("resnet18", "visual", "abri-channel")).state_dict()))


def beginning(state: State) -> State:
    """The first layers; what the rest lacks is told beside what is asked for."""
    return {key: value for key, value in state.items() if key.startswith(("conv1.", "bn1.", "layer1.0.bn1."))}


def saved(path: Path, value: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path)
    return path


def fitted(path: Path) -> dict[str, Tensor]:
    return fit_weights(read_weights(path, PLAIN)[0], PLAIN, "sum", str(path))[0]


ODD: dict[str, tuple[str, Callable[[], Tensor], str]] = {
    "sparse": ("bn1.weight", lambda: torch.zeros(64).to_sparse(), "bn1.weight is sparse_coo"),
    "quantised": ("bn1.weight", lambda: torch.quantize_per_tensor(torch.ones(64), 0.1, 0, torch.qint8), "is quantised"),
    "meta": ("bn1.weight", lambda: torch.zeros(64, device="meta"), "bn1.weight is without values (device meta)"),
    "nested": ("bn1.weight", lambda: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]), "is nested"),
    "expanded": ("bn1.weight", lambda: torch.ones(1).expand(64), "bn1.weight is expanded: larger than what is stored"),
    "terabytes": ("conv1.weight", lambda: torch.ones(1).expand(64, 2**38, 7, 7), "conv1.weight is expanded"),
    "complex": ("bn1.weight", lambda: torch.ones(64, dtype=torch.complex64), "bn1.weight is complex64, not floating"),
    "whole numbers": ("bn1.weight", lambda: torch.ones(64, dtype=torch.int8), "bn1.weight is int8, not floating point"),
    "NaN": ("bn1.bias", lambda: torch.full((64,), math.nan), "bn1.bias holds infinite values or NaN"),
    "infinite": (
        "bn1.running_var",
        lambda: torch.full((64,), math.inf),
        "bn1.running_var holds infinite values or NaN",
    ),
    "negative": ("bn1.running_var", lambda: torch.full((64,), -1.0), "bn1.running_var holds negative variances"),
    "infinite half": ("bn1.bias", lambda: torch.full((64,), 1e9).half(), "bn1.bias holds infinite values or NaN"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tensors_are_refused_by_key(tmp_path: Path, plain: State, name: str) -> None:
    key, make, says = ODD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nested and quantised tensors
        value = make()
    path = saved(tmp_path / "odd.pt", beginning(plain) | {key: value})
    with pytest.raises(ArtifactError) as error:
        fitted(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_taken(tmp_path: Path, plain: State, dtype: torch.dtype) -> None:
    path = saved(tmp_path / "other.pt", {k: v.to(dtype) if v.is_floating_point() else v for k, v in plain.items()})
    actual = fitted(path)
    assert {value.dtype for value in actual.values()} == {torch.float32, torch.int64}
    assert torch.equal(actual["conv1.weight"], plain["conv1.weight"].to(dtype).float())


def without(*parts: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(parts)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("bn1.new_weight"), "has half of an ABRi layer: bn1.new_weight missing"),
        (without("bn1.new_bias", "bn1.alpha"), "has half of an ABRi layer: bn1.new_bias, bn1.alpha missing"),
        (without("layer1.0.bn1.weight"), "has half of an ABRi layer: layer1.0.bn1.weight missing"),
        (lambda state: state | {"bn1.alpha": torch.zeros(3)}, "bn1.alpha is (3,), its layer (64,)"),
        (lambda state: state | {"bn1.new_bias": torch.zeros(64, 2)}, "bn1.new_bias is (64, 2), its layer (64,)"),
    ],
)
def test_half_of_abri_is_refused(tmp_path: Path, abri: State, change: Callable[[State], State], says: str) -> None:
    with pytest.raises(ArtifactError) as error:
        fitted(saved(tmp_path / "half.pt", change(abri)))
    assert says in str(error.value)


def test_a_checkpoint_that_holds_itself_ends(tmp_path: Path) -> None:
    ring: State = {}
    ring["model"] = {"state_dict": ring}
    with pytest.raises(ArtifactError, match="it holds no tensors by name"):
        fitted(saved(tmp_path / "ring.pt", ring))
    with pytest.raises(ArtifactError, match=r"no conv1\.weight"):
        fitted(saved(tmp_path / "prefixes.pt", {"module." * 10**5 + "conv1.weight": torch.zeros(1)}))


def bomb(path: Path, source: Path) -> Path:
    """The same archive, compressed, with zeros for numbers."""
    with zipfile.ZipFile(source) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bad:
        for entry in good.infolist():
            content = good.read(entry)
            bad.writestr(entry.filename, bytes(2**25) if "/data/" in entry.filename else content)
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TorchScript is on its way out
def test_torchscript_is_told_as_that(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 3), torch.zeros(1, 2)), tmp_path / "script.pt")  # type: ignore[no-untyped-call]
    with pytest.raises(ArtifactError, match=r"script\.pt is a TorchScript archive, .*save the state_dict\(\)"):
        fitted(tmp_path / "script.pt")


def test_what_unpacks_to_more_than_it_is_is_refused_before(
    tmp_path: Path, plain: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(tmp_path / "bomb.pt", saved(tmp_path / "good.pt", {"conv1.weight": plain["conv1.weight"]}))
    assert path.stat().st_size < 2**20
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("it is unpacked"))
    with pytest.raises(ArtifactError, match=r"bomb\.pt is compressed, 32 MiB in a file of 0"):
        fitted(path)
    with pytest.raises(AvptError, match=r"bomb\.pt is damaged \(ArtifactError\)"):
        load_checkpoint(path, lambda state: None)


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    result = avpt("init", "--modality", "audio", "--weights", tmp_path / "pipe.pt", "--out", tmp_path / "x.safetensors")
    assert result.code == 1
    assert len(result.stderr.splitlines()) == 1


def test_a_first_convolution_for_other_inputs_is_told_with_its_file(tmp_path: Path, plain: State) -> None:
    path = saved(tmp_path / "two.pt", plain | {"conv1.weight": torch.ones(64, 2, 7, 7)})
    with pytest.raises(ArtifactError) as error:
        fitted(path)
    assert str(error.value).startswith(f"{path}: conv1.weight takes 2 channels, and 3 are needed; `avpt init --conv1")
