"""Numbers that are equal but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def near(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    """Each is as good as the largest: what was added up to a small one may have been large.

    What a network gives hangs on the processor, and on how many clips are in a batch; and how large that is, after
    the few steps of these tests, on the processor too.
    """
    torch.testing.assert_close(found, expected, rtol=share, atol=share * float(expected.abs().max()))
