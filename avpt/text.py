"""Words, and small charts made of characters, that can be shown anywhere: in a terminal, a log, a page."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
ODD = re.compile(r"[^\x20-\x7e]")  # characters that may have to be escaped; most of them need not
FORMULA = tuple("=+-@＝＋－＠")  # a cell that begins so is computed by a spreadsheet; some accept the wide ones too


def printable(text: str, keep: str = "") -> str:
    r"""A text that is safe to show: what controls a terminal or is invisible becomes `\x1b`, `\n`, `\u202e`.

    Applied again it changes nothing. Characters in `keep`, such as line breaks, are left alone.
    """
    return text if text.isprintable() else ODD.sub(lambda match: _escaped(match[0], keep), text)


def _escaped(character: str, keep: str) -> str:
    if character in keep or character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters; a longer one loses its middle, as names may differ at either end."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def near(path: Path) -> str:
    """A path as one types it here: relative where it lies below the working directory."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed meanwhile
        return str(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def as_json(value: Any) -> str:
    """A value as one line of JSON, in which everything that can't be shown is escaped."""
    line = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return ODD.sub(lambda match: match[0] if _escaped(match[0], "") == match[0] else json.dumps(match[0])[1:-1], line)


def for_sheet(cell: object) -> str:
    """A cell of a CSV file for people: an apostrophe keeps a spreadsheet from computing it, unless it is a number."""
    shown = printable("" if cell is None else str(cell))
    if not shown.startswith(FORMULA):
        return shown
    try:
        float(shown)
    except ValueError:
        return f"'{shown}"
    return shown


def bar(share: float, width: int = 10) -> str:
    """A share of 1 as a bar of `width` characters, in eighths of one; any share above 0 is visible."""
    filled = min(width * 8, max(0, round(share * width * 8)))
    filled = max(filled, 1) if share > 0 else filled
    whole, rest = divmod(filled, 8)
    return ("█" * whole + (EIGHTHS[rest] if rest else "")).ljust(width)


def format_count(count: int, what: str) -> str:
    """Format a count: 1 seed, 2 seeds."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def decimals(value: float | None) -> str:
    """A metric to four decimals; a dash where it is not defined."""
    return "-" if value is None else f"{value:.4f}"


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """A curve as one line of characters, scaled from its lowest value to its highest and thinned to `width`."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "?" * len(values)
    low, high = min(finite), max(finite)
    span, most = high / 2 - low / 2, len(LEVELS) - 1  # halves: the difference of the largest floats is infinite
    shares = [(value / 2 - low / 2) / (span or 1.0) if math.isfinite(value) else None for value in values]
    return "".join(LEVELS[round(share * most)] if share is not None else "?" for share in shares)
