"""What ABRi costs: steps of a network with ABRi layers against plain BatchNorm's, paired in one process.

Prints one JSON line for each architecture, and of several a table to stderr. Also times the form with two whole
batch norms in each layer, for reference. With `--count` it counts the operations of a step instead, which is what a
small step costs on a GPU.
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
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet18

from avpt.models.abri import AFTER, convert

METHOD = (
    "One process builds three networks (plain BatchNorm, ABRi, two whole batch norms a layer), each with "
    "its SGD. A pair is one step of the plain net and one of the other on the same batch, back to back; "
    "which goes first alternates. A training step is forward, cross-entropy, backward and SGD step; an "
    "evaluation step is one forward without gradients. A ratio is the median over pairs of other / plain, "
    "after warm-up."
)
COUNTED = (
    "Operations that torch dispatches in one step, but for views and bare allocations, which launch nothing; one over "
    "a list of tensors is one, as on a GPU where they are of one shape. A training step is forward, cross-entropy and "
    "backward, without the optimizer's."
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


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count what is dispatched and launches something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += not (func.is_view or name == "detach" or name.startswith("empty"))
        return func(*args, **(kwargs or {}))


def operations(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return how many operations a training step and an evaluation step of a network take."""
    model = model.to(images.device).train()
    with Operations() as training:
        torch.autograd.backward(F.cross_entropy(model(images), labels))
    model.eval()
    with Operations() as evaluation, torch.no_grad():
        model(images)
    return training.count, evaluation.count


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
    parser.add_argument("--count", action="store_true", help="count the operations of a step, time nothing")
    options = parser.parse_args()
    records = []
    for arch in options.arch:
        records.append(measure(arch, options))
        print(json.dumps(records[-1]), flush=True)
    if len(records) > 1 and not options.count:
        print(table(records), file=sys.stderr)


def measure(arch: str, options: argparse.Namespace) -> dict[str, Any]:
    """The ratios of one architecture."""
    torch.manual_seed(0)
    images = torch.randn(options.batch_size, 3, options.image_size, options.image_size, device=options.device)
    labels = torch.randint(100, (options.batch_size,), device=options.device)
    plain, abri = network(arch), convert(network(arch))
    two = with_two_branches(network(arch))
    common = {"settings": vars(options) | {"arch": arch}, "torch": torch.__version__}
    if options.count:
        counts: dict[str, int] = {}
        for name, model in (("", abri), ("plain_", plain), ("two_branch_", two)):
            training, evaluation = operations(model, images, labels)
            counts |= {f"{name}train_operations": training, f"{name}eval_operations": evaluation}
        return {"benchmark": "abri", **counts, **common, "method": COUNTED}
    plain_train, plain_eval = steps(plain, images, labels)
    abri_train, abri_eval = steps(abri, images, labels)
    two_train, two_eval = steps(two, images, labels)

    def ratio(other: Step, plain: Step) -> float:
        return round(paired_ratio(other, plain, options.pairs, options.warmup), 4)

    return {
        "benchmark": "abri",
        "train_ratio": ratio(abri_train, plain_train),
        "eval_ratio": ratio(abri_eval, plain_eval),
        "two_branch_train_ratio": ratio(two_train, plain_train),
        "two_branch_eval_ratio": ratio(two_eval, plain_eval),
        "targets": TARGETS,
        **common,
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
