"""Words and small pictures made of characters, so that they can be shown anywhere: in a terminal, a log, a page."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
ODD = re.compile(r"[^\x20-\x7e]")  # characters that may have to be escaped; most of them need not
FORMULA = tuple("=+-@＝＋－＠")  # what a cell begins with that a spreadsheet computes; some also take the wide ones


def printable(text: str, keep: str = "") -> str:
    r"""A text as it may be shown: what steers a terminal or can't be seen becomes `\x1b`, `\n`, `\u202e`.

    Shown once more it stays the same. Line breaks survive where `keep` has them.
    """
    return text if text.isprintable() else ODD.sub(lambda found: _escaped(found[0], keep), text)


def _escaped(character: str, keep: str) -> str:
    if character in keep or character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters, an ellipsis in its middle where it had more: both ends tell names apart."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def as_json(value: Any) -> str:
    """A value as a line of JSON, with nothing in it that can't be shown."""
    line = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return ODD.sub(lambda found: found[0] if _escaped(found[0], "") == found[0] else json.dumps(found[0])[1:-1], line)


def for_sheet(cell: object) -> str:
    """A cell of a CSV file that people look at: nothing but a number begins as a formula, which an apostrophe stops."""
    shown = printable("" if cell is None else str(cell))
    if not shown.startswith(FORMULA):
        return shown
    try:
        float(shown)
    except ValueError:
        return f"'{shown}"
    return shown


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
