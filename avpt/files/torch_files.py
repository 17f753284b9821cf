"""Files that `torch.save` wrote, read without running code and without taking more memory than they have bytes."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

from avpt.errors import ArtifactError

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"


def is_saved_by_torch(path: Path) -> bool:
    """Whether a file looks like one that `torch.save` wrote, by how it begins and, of a zip file, by what is in it."""
    with path.open("rb") as file:
        beginning = file.read(len(ZIP))
    if beginning != ZIP:
        return beginning.startswith(PICKLE)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def load_torch(path: Path) -> Any:
    """The value in a file.

    Raises:
        ArtifactError: it is compressed, which `torch.save` never does, and would unpack to more than its size.
        Exception: whatever torch raises for a file that it can't read.
    """
    import torch

    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
    if zipped:
        with zipfile.ZipFile(path) as archive:
            whole, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
        if whole > size:
            raise ArtifactError(
                f"{path} is compressed, {whole >> 20} MiB in a file of {size >> 20}, which torch.save writes no file; "
                "save the state_dict() again"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old pickle protocols
        return torch.load(path, map_location="cpu", weights_only=True)
