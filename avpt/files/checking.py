"""JSON that comes from files: limited in size, and checked field by field when it is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from avpt.errors import ConfigError

T = TypeVar("T")

DEEPEST = 32  # levels of lists and objects; what avpt writes has six
LARGEST = 2**26  # bytes of a file of JSON; the largest that avpt writes have a few million
MOST_BITS = 64  # of an integer; a far larger one is beyond the range of a float
HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # half a surrogate pair; the others are bytes of file names


class RecordError(ValueError):
    """A record is not what it should be; the message names the field."""


def parse(text: str | bytes) -> Any:
    """The value of JSON text.

    Raises:
        RecordError: it is not JSON, or holds what no record of avpt's could.
    """
    if len(text) > LARGEST:
        raise RecordError(f"it has {len(text) >> 20} MiB, more than any record")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else "it is not JSON"
        raise RecordError(what) from None
    level = [value]
    for _ in range(DEEPEST):
        if not level:
            return value
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += [*one.keys(), *one.values()]
            elif isinstance(one, list):
                below += one
            elif isinstance(one, int) and one.bit_length() > MOST_BITS:
                raise RecordError("it holds a number out of range")
            elif isinstance(one, str) and not one.isascii() and HALF.search(one):
                raise RecordError("it holds half a character")  # which can be neither shown nor hashed
        level = below
    raise RecordError("it is nested too deeply")


def convert(value: Any, kind: type[T]) -> T:
    """A parsed value as a dataclass or another typed record; fields that the type does not have are left out.

    Raises:
        RecordError: it does not fit; the message names the field.
    """
    try:
        return msgspec.convert(value, kind)
    except ConfigError as error:  # values that no options could have had
        raise RecordError(str(error).partition(";")[0]) from None
    except UnicodeEncodeError:  # a byte of a file name where a name of ours should be
        raise RecordError("it holds half a character") from None
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        field = where.strip("`").removeprefix(".") if where.startswith((".", "[")) else ""
        what = (what[0].lower() + what[1:]).replace("`", "")[:200]
        raise RecordError(f"{field[:100]}: {what}" if field else what) from None


def check(value: Any, kind: type[T]) -> T:
    """Check that a value is a record of a kind, which is a TypedDict, and return it with all its fields.

    Raises:
        RecordError: it is not; the message names the field.
    """
    convert(value, kind)
    checked: T = value
    return checked


def read_text(path: Path) -> str:
    """The text of a file that should hold a record.

    Raises:
        FileNotFoundError, OSError: it is missing, or can't be read.
        RecordError: it is not a plain file, far too large, or not UTF-8.
    """
    if path.exists() and not path.is_file():  # a pipe would never end, nor would a device
        raise RecordError("it is not a file")
    if (size := path.stat().st_size) > LARGEST:
        raise RecordError(f"it has {size >> 20} MiB, more than any record")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecordError("it is not UTF-8") from None


def read(path: Path, kind: type[T]) -> T:
    """Read a record from a file and check it; fields that its kind does not have stay. Raises what `read_text` does."""
    return check(parse(read_text(path)), kind)


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """Read a file with one record per line. Raises what `read_text` does."""
    records = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            records.append(check(parse(line), kind))
        except RecordError as error:
            raise RecordError(f"line {number}: {error}") from None
    return records
