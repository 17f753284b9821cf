"""Files that Git leaves in place of those that Git LFS keeps elsewhere."""

from __future__ import annotations

from pathlib import Path

from avpt.types import IMAGE_SUFFIXES

POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_SIZE = 1024  # bytes; Git LFS keeps its pointers below that


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in place of one that Git LFS keeps elsewhere; False where it can't be read.

    Of a folder of images one is looked at: they come together.
    """
    try:
        if path.is_dir():
            images = (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != ".")
            path = next(filter(Path.is_file, images), path)
        if not path.is_file() or path.stat().st_size > POINTER_SIZE:  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except (OSError, ValueError):
        return False
