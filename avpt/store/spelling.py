"""Names that look alike: classes spelled in two ways, and files whose accents are in Unicode's other encoding."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from avpt.errors import listed

log = logging.getLogger(__name__)

MOST_SHOWN = 100  # characters of a name quoted in a message


def lookalikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in case, white space, invisible characters or the encoding of accents."""
    groups: dict[str, list[str]] = {}
    for name in names:
        bare = "".join(character for character in name if unicodedata.category(character) not in ("Cf", "Zs"))
        key = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", bare).casefold())
        groups.setdefault(key, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def warn_of_lookalikes(classes: Iterable[str]) -> None:
    """Warn of classes that may be meant to be one, spelled so that each difference is visible."""
    if groups := lookalikes(classes):
        pairs = [" and ".join(ascii(name[:MOST_SHOWN]) for name in group) for group in groups]
        log.warning("%s look alike and are classes of their own; spell them alike if they are one", listed(pairs, 3))


def find_spelling(base: Path, cell: str) -> Path:
    """The path of a cell; if it does not exist, the one with its accents in the other of Unicode's two encodings.

    macOS writes them decomposed (NFD), most other systems composed (NFC), and copies of files keep their names.
    """
    path = base / cell
    if cell.isascii() or _is_there(path):
        return path
    actual = base
    for part in Path(cell).parts:
        spellings = [actual / part, *(actual / unicodedata.normalize(form, part) for form in ("NFC", "NFD"))]
        actual = next((spelling for spelling in spellings if _is_there(spelling)), spellings[0])
    return actual if _is_there(actual) else path


def _is_there(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises if a name is too long
