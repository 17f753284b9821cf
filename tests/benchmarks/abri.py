"""What ABRi costs: steps of a network with ABRi layers against plain BatchNorm's, paired in one process.

Prints one JSON line for each architecture, and of several a table to stderr. Also times
the form with two whole batch norms in each layer, for reference.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import resnet18

from avpt.models.abri import AFTER, convert

METHOD = (
    "One process builds three networks (plain BatchNorm, ABRi, two whole batch norms a layer), each with "
    "its SGD. A pair is one step of the plain net and one of the other on the same batch, back to back; "
    "which goes first alternates. A training step is forward, cross-entropy, backward and SGD step; an "
    "evaluation step is one forward without gradients. A ratio is the median over pairs of other / plain, "
    "after warm-up."
)
TARGETS = {"train": 1.05, "eval": 1.03}

Step = Callable[[], None]


class TwoBranchBatchNorm2d(nn.Module):
    """ABRi as written: normalise twice, then blend, then what followed the layer."""

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        self.pretrained, self.new = (nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum) for _ in range(2))
        self.alpha = nn.Parameter(torch.full((layer.num_features, 1, 1), 0.5))
        self.after = nn.Sequential(*(layer.get_submodule(name) for name in AFTER if hasattr(layer, name)))

    def forward(self, input: Tensor) -> Tensor:
        blended = self.alpha * self.pretrained(input) + (1.0 - self.alpha) * self.new(input)
        after: Tensor = self.after(blended)
        return after


def network(arch: str) -> nn.Module:
    """A network of torchvision's or timm's with a classifier of 100 classes."""
    if arch == "resnet18":
        model: nn.Module = resnet18(num_classes=100)
        return model
    import timm

    return timm.create_model(arch, num_classes=100)


def with_two_branches(model: nn.Module) -> nn.Module:
    """The network with every BatchNorm replaced by the form with two."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, _BatchNorm):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, TwoBranchBatchNorm2d(layer))
    return model


def steps(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Step, Step]:
    """Return a training step and an evaluation step of a network."""
    model = model.to(images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def train() -> None:
        model.train()
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(images), labels))
        optimizer.step()
        wait(images.device)

    @torch.no_grad()
    def evaluate() -> None:
        model.eval()
        model(images)
        wait(images.device)

    return train, evaluate


def wait(device: torch.device) -> None:
    """Let a GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Step) -> float:
    """Run a step once and return how long it took."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def paired_ratio(other: Step, plain: Step, pairs: int, warmup: int) -> float:
    """Return the median of other / plain over paired runs in alternating order."""
    ratios = []
    for pair in range(-warmup, pairs):
        if pair % 2:
            other_seconds, plain_seconds = seconds(other), seconds(plain)
        else:
            plain_seconds, other_seconds = seconds(plain), seconds(other)
        if pair >= 0:
            ratios.append(other_seconds / plain_seconds)
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["resnet18"], help="resnet18 of torchvision, or any of timm's")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    records = []
    for arch in options.arch:
        records.append(measure(arch, options))
        print(json.dumps(records[-1]), flush=True)
    if len(records) > 1:
        print(table(records), file=sys.stderr)


def measure(arch: str, options: argparse.Namespace) -> dict[str, Any]:
    """The ratios of one architecture."""
    torch.manual_seed(0)
    images = torch.randn(options.batch_size, 3, options.image_size, options.image_size, device=options.device)
    labels = torch.randint(100, (options.batch_size,), device=options.device)
    plain_train, plain_eval = steps(network(arch), images, labels)
    abri_train, abri_eval = steps(convert(network(arch)), images, labels)
    two_train, two_eval = steps(with_two_branches(network(arch)), images, labels)

    def ratio(other: Step, plain: Step) -> float:
        return round(paired_ratio(other, plain, options.pairs, options.warmup), 4)

    return {
        "benchmark": "abri",
        "train_ratio": ratio(abri_train, plain_train),
        "eval_ratio": ratio(abri_eval, plain_eval),
        "two_branch_train_ratio": ratio(two_train, plain_train),
        "two_branch_eval_ratio": ratio(two_eval, plain_eval),
        "targets": TARGETS,
        "settings": vars(options) | {"arch": arch},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "method": METHOD,
    }


def table(records: list[dict[str, Any]]) -> str:
    """The ratios of several architectures, a line each."""
    names = ("train", "eval", "two_branch_train", "two_branch_eval")
    width = max(len(record["settings"]["arch"]) for record in records)
    lines = ["".join([" " * width, *(f"  {name:>16}" for name in names)])]
    for record in records:
        cells = (f"  {record[f'{name}_ratio']:16.3f}" for name in names)
        lines.append("".join([record["settings"]["arch"].ljust(width), *cells]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
