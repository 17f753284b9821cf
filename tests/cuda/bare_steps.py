"""Training steps of avpt's models on one batch that lies on the device, without anything else: one JSON line each.

`bare_steps.py DEVICE BATCH STEPS IMAGE-SIZE FRAMES FRAME MEL CONFIGURATION ...`, each as `joint:bf16:compile,fast`.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import Tensor, nn

from avpt.models.encoder import Classifier, EncoderSpec, build_encoder
from avpt.models.fusion import FusedModel
from avpt.training.runtime import start

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def model_and_inputs(kind: str, device: torch.device, sizes: list[int]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    batch, side, count, frames, mel = sizes
    audio = torch.randn(batch, 1, frames, mel, device=device)
    visual = torch.randn(batch, count, 3, side, side, device=device)
    if kind == "joint":
        norms = EncoderSpec("resnet18", "audio", "abri-channel"), EncoderSpec("resnet18", "visual", "batchnorm")
        heard, seen = map(build_encoder, norms)
        return FusedModel(heard, seen, "concat", 2).to(device), (audio, visual)
    if kind == "audio":
        return Classifier(build_encoder(EncoderSpec("resnet18", "audio", "abri-channel")), 2).to(device), (audio,)
    return Classifier(build_encoder(EncoderSpec("resnet18", "visual", "batchnorm")), 2).to(device), (visual,)


def rate(configuration: str, name: str, steps: int, sizes: list[int]) -> dict[str, object]:
    kind, precision, *more = configuration.split(":")
    options = set(more[0].split(",")) if more else set()
    device = start(0, name, precision, fast="fast" in options)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model, inputs = model_and_inputs(kind, device, sizes)
    if "channels-last" in options:
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    trained = torch.compile(model, dynamic=False) if "compile" in options else model
    labels = torch.randint(2, (sizes[0],), device=device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, TYPES.get(precision), enabled=precision in TYPES):
            loss = nn.functional.cross_entropy(trained(*inputs), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()

    for _ in range(max(1, steps // 5)):
        step()
    if on_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if on_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    record: dict[str, object] = {
        "configuration": configuration,
        "clips_per_second": round(steps * sizes[0] / seconds, 1),
    }
    return record | ({"device_mib": torch.cuda.max_memory_allocated() >> 20} if on_cuda else {})


def main() -> None:
    name, batch, steps, side, count, frames, mel, *configurations = sys.argv[1:]
    sizes = [int(number) for number in (batch, side, count, frames, mel)]
    for configuration in configurations:
        try:
            record = rate(configuration, name, int(steps), sizes)
        except Exception as error:
            record = {"configuration": configuration, "error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
