"""Files that Git leaves in place of those that Git LFS keeps elsewhere."""

from __future__ import annotations

from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_SIZE = 1024  # bytes; Git LFS keeps its pointers below that


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in place of one that Git LFS keeps elsewhere; False where it can't be read.

    Of a folder of images one is looked at: they come together.
    """
    try:
        if path.is_dir():
            path = next((file for file in path.iterdir() if file.is_file()), path)
        if path.stat().st_size > POINTER_SIZE:
            return False
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except (OSError, ValueError):
        return False
