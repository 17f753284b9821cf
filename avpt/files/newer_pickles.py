"""Checkpoints in newer pickle protocols, written again in the one that torch reads without running code.

`torch.load(..., weights_only=True)` knows the opcodes of protocol 2 alone, and `torch.save(..., pickle_protocol=5)`
writes others. Nothing in a file is called here either: what is written again are the names that it holds.
"""

from __future__ import annotations

import codecs
import io
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from avpt.files.pickles import LEGACY_HEAD, PROTOCOL, ZIP, Named, Unpickler

LEGACY_PICKLES = LEGACY_HEAD + 2  # and the value, and the keys of its storages; after these the storages stand


@contextmanager
def in_torchs_protocol(path: Path, protocol: int) -> Iterator[Path]:
    """A checkpoint whose value is a pickle of some protocol: the file itself, or a copy that torch can read.

    The copy goes to the folder for temporary files, as it is as large as the checkpoint.
    """
    if protocol <= PROTOCOL:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="avpt-") as folder:
        copy = Path(folder) / "checkpoint"
        with path.open("rb") as file, copy.open("wb") as out:
            zipped = file.read(len(ZIP)) == ZIP
            file.seek(0)
            if zipped:
                _copy_archive(file, out)
            else:
                for _ in range(LEGACY_PICKLES):
                    out.write(_again(file, path.stat().st_size))
                shutil.copyfileobj(file, out)
        yield copy


def _copy_archive(file: IO[bytes], out: IO[bytes]) -> None:
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            with old.open(entry) as inside:
                if entry.filename.endswith("/data.pkl"):
                    new.writestr(entry.filename, _again(inside, entry.file_size))
                    continue
                copied = zipfile.ZipInfo(entry.filename)
                copied.file_size = entry.file_size  # so that one of gigabytes gets the header that it needs
                with new.open(copied, "w") as beside:
                    shutil.copyfileobj(inside, beside)


def _again(file: IO[bytes], size: int) -> bytes:
    """The next pickle of a file in torch's protocol."""
    content = io.BytesIO()
    _Pickler(content, PROTOCOL, fix_imports=False).dump(_KeepingUnpickler(file, size).load())
    return content.getvalue()


@dataclass(frozen=True)
class _Stored:
    """Stands for what torch keeps outside the pickle."""

    pid: Any


class _KeepingUnpickler(Unpickler):
    def persistent_load(self, pid: Any, /) -> Any:
        """Keep what is known of it."""
        return _Stored(pid)


class _Pickler(pickle._Pickler):
    """Python's own, which writes what stands for a name as the pickle that named it did."""

    def persistent_id(self, obj: Any, /) -> Any:
        """What torch keeps outside the pickle stays there."""
        return obj.pid if isinstance(obj, _Stored) else None

    def reducer_override(self, obj: Any, /) -> Any:
        """How to write what this protocol has no words for, in names that torch allows."""
        if isinstance(obj, Named):
            return type(obj), obj.args, obj.state, iter(obj.items) if obj.items else None, iter(obj.pairs)
        if isinstance(obj, bytes):
            return codecs.encode, (obj.decode("latin1"), "latin1")
        if isinstance(obj, frozenset):
            return set, (list(obj),)
        return NotImplemented

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write the name that something stands for; it is not looked up.

        Raises:
            pickle.UnpicklingError: it has several lines, and would become other opcodes.
        """
        if not (isinstance(obj, type) and issubclass(obj, Named)):
            super().save_global(obj, name)  # type: ignore[misc]
            return
        module, _, own = obj.name.rpartition(".")
        if "\n" in obj.name:
            raise pickle.UnpicklingError(f"a name of several lines: {obj.name!r:.80}")
        self.write(pickle.GLOBAL + f"{module}\n{own}\n".encode())  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]
