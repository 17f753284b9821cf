"""Whether a batch gives one answer. Kernels that read uninitialised memory or add in no fixed order give several.

oneDNN's bfloat16 convolutions on a processor with AMX are of that kind where a plane is tiny: with a stride of 2 on
3 x 2 they read what was in memory before (torch 2.14). Then neither can we promise the bytes of an undisturbed run,
nor are the numbers to be trusted.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from avpt.errors import ConfigError
from avpt.training import objective
from avpt.training.passes import Stepping
from avpt.training.world import World
from avpt.types import Batch

log = logging.getLogger(__name__)

# sizes in bytes, from 3 MiB to 384, of the blocks of memory that are filled: smaller ones fit into what larger leave
BLOCKS = [3 * 2**n for n in range(20, 6, -1) for _ in range(min(128, max(2, 2**22 // (3 * 2**n))))]


def check_repeatable(model: nn.Module, batch: Batch, stepping: Stepping, world: World) -> None:
    """Take a batch forward and backward twice before a run begins, and compare the bits of what comes out.

    Where they differ in any process, all of them refuse a precision that another could replace, and warn of others.
    The model is tried plain, not compiled and without the exchange of gradients: it is the kernels that differ, and
    they are the same. The model and the random generators are left as they were.

    Raises:
        ConfigError: the CPU gives two answers in a precision other than fp32.
    """
    if not world.any(not _one_answer(model, batch, stepping)):
        return
    device, precision = batch.labels.device, stepping.precision
    if device.type == "cpu" and precision != "fp32":
        raise ConfigError(
            f"--precision {precision} gives two answers for one batch on this processor; use --precision fp32"
        )
    log.warning(
        "%s gives two answers for one batch on %s: the same command will not give the same bytes again, "
        "nor will a run that is interrupted end with those of an undisturbed one",
        *(precision, "this processor" if device.type == "cpu" else device.type),
    )


def _one_answer(model: nn.Module, batch: Batch, stepping: Stepping) -> bool:
    device = batch.labels.device
    try:
        with _uninitialised_memory(0x00, device):
            first = _answer(model, batch, stepping)
        with _uninitialised_memory(0xFF, device):
            second = _answer(model, batch, stepping)
    except torch.OutOfMemoryError:  # the first step reports that better
        return True
    return all(map(_same_bits, first, second))


def _answer(model: nn.Module, batch: Batch, stepping: Stepping) -> list[Tensor]:
    """Logits, loss and gradients of a training step; each time with the same random numbers, on a copy of the model."""
    device = batch.labels.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        trained = copy.deepcopy(model).train()  # with all that a pass changes: BatchNorm's statistics
        if stepping.mix is not None:
            batch = stepping.mix(batch, 0)
        with stepping.autocast(device):
            logits = trained(*batch.inputs)
            loss = objective.loss(logits, batch.labels, batch.targets, stepping.label_smoothing)
        learning = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, learning, allow_unused=True)
    return [logits.detach(), loss.detach(), *(gradient for gradient in gradients if gradient is not None)]


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same bits, those of NaN included."""
    return torch.equal(*(values.flatten().view(torch.uint8) for values in (first, second)))


@contextmanager
def _uninitialised_memory(byte: int, device: torch.device) -> Iterator[None]:
    """Make uninitialised memory hold this byte while the block runs.

    Of many filled blocks every other one is freed: neighbours would be joined and returned to the system. What is
    larger than these torch itself can fill, though with NaN alone, which bytes of 0xFF are too.
    """
    blocks = [torch.full((size,), byte, dtype=torch.uint8, device=device) for size in BLOCKS]
    del blocks[::2]
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = byte == 0xFF  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
