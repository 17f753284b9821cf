"""Small pictures made of characters, for tables in a terminal; readable without colour and when piped."""

from __future__ import annotations

import math
from collections.abc import Sequence

EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"


def bar(share: float, width: int = 10) -> str:
    """A share of 1 as a bar of `width` characters, in eighths of one; what is more than nothing is seen."""
    filled = min(width * 8, max(0, round(share * width * 8)))
    filled = max(filled, 1) if share > 0 else filled
    whole, rest = divmod(filled, 8)
    return ("█" * whole + (EIGHTHS[rest] if rest else "")).ljust(width)


def decimals(value: float | None) -> str:
    """A metric to four decimals; a dash where it is not defined."""
    return "-" if value is None else f"{value:.4f}"


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """A curve in a line of characters, from its lowest value to its highest; long ones are thinned to `width`."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "?" * len(values)
    low, high = min(finite), max(finite)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(LEVELS[round((value - low) * scale)] if math.isfinite(value) else "?" for value in values)
