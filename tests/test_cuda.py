"""What holds on a CUDA device, and the settings meant for it; nothing here needs PyAV, timm or tests/conftest.py.

`tests/cuda.sh` runs these where a device is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from avpt.errors import ConfigError
from avpt.loading.transforms import normalise_visual
from avpt.models.encoder import Classifier, EncoderSpec, build_encoder
from avpt.training import runtime

CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _settings_of_torch() -> Iterator[None]:
    """Whatever a test asks for ends with it."""
    deterministic, cudnn, matmul = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn,
        torch.backends.cuda,
    )
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.matmul.allow_tf32
    yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    cudnn.benchmark, cudnn.allow_tf32, matmul.matmul.allow_tf32 = before


def settings() -> tuple[bool, bool, bool, bool]:
    """Deterministic kernels, kernels measured, TF32 in convolutions and in products of matrices."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32


def test_float32_is_not_tf32_in_disguise() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    runtime.start(0, "cpu")
    assert settings() == (True, False, False, False)


def test_fast_is_another_choice_of_kernels() -> None:
    runtime.start(0, "cpu", fast=True)
    assert settings() == (False, True, False, False)
    runtime.start(0, "cpu")
    assert settings() == (True, False, False, False)


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_what_a_cpu_can_not_do_is_refused(precision: str) -> None:
    with pytest.raises(ConfigError, match=f"--precision {precision} needs a CUDA device, not cpu"):
        runtime.start(0, "cpu", precision)


def answer(precision: str, device: torch.device) -> list[Tensor]:
    """Logits and gradients of a ResNet-18 with ABRi for a few spectrograms, the same each time."""
    torch.manual_seed(3)
    model = Classifier(build_encoder(EncoderSpec("resnet18", "audio", "abri-channel")), 5).to(device)
    inputs, labels = torch.randn(8, 1, 128, 64).to(device), (torch.arange(8) % 5).to(device)
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    with torch.autocast(device.type, types.get(precision), enabled=precision in types):
        logits = model(inputs)
        loss = nn.functional.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [logits.detach().float(), *(gradient.float() for gradient in gradients)]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_the_same_step_gives_the_same_bits(where: str, precision: str) -> None:
    if where == "cpu" and precision != "fp32":
        pytest.skip("a CPU may have no one answer in it")
    device = runtime.start(0, where, precision)
    first, second = answer(precision, device), answer(precision, device)
    assert all(map(torch.equal, first, second))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_rounds_and_float32_does_not() -> None:
    draw = torch.Generator().manual_seed(0)
    images, kernels = torch.randn(4, 64, 16, 16, generator=draw), torch.randn(64, 64, 3, 3, generator=draw)
    expected = nn.functional.conv2d(images.double(), kernels.double())
    errors = {}
    for precision in ("fp32", "tf32"):
        device = runtime.start(0, "cuda", precision)
        output = nn.functional.conv2d(images.to(device), kernels.to(device)).cpu().double()
        errors[precision] = float((output - expected).abs().max() / expected.abs().max())
    assert errors["fp32"] < 1e-5
    if torch.cuda.get_device_capability() >= (8, 0):
        assert errors["tf32"] > errors["fp32"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pictures_are_normalised_as_on_the_cpu() -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(12).view(1, 3, 32, 32)
    there = normalise_visual(frames.cuda()).cpu()
    torch.testing.assert_close(there, normalise_visual(copy.deepcopy(frames)), rtol=1e-6, atol=1e-6)
