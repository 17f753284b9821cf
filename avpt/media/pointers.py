"""Git LFS pointers: the small files that stand in for those that Git LFS keeps elsewhere."""

from __future__ import annotations

from pathlib import Path

from avpt.types import IMAGE_SUFFIXES

POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_SIZE = 1024  # bytes; Git LFS pointers are smaller


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer; False if it can't be read.

    In a folder of images, one image is checked: Git LFS fetches them together.
    """
    try:
        if path.is_dir():
            images = (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != ".")
            path = next(filter(Path.is_file, images), path)
        if not path.is_file() or path.stat().st_size > POINTER_SIZE:  # opening a pipe would block
            return False
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except (OSError, ValueError):
        return False
