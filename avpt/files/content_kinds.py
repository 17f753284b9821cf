"""What somebody else's file or folder is, by how it begins, so that a message about the wrong one can say so."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from avpt.files.pickles import ZIP
from avpt.files.torch_files import is_saved_by_torch

HEAD = 4096  # bytes that are looked at
SAFETENSORS_HEADER = 8  # bytes that hold the length of the JSON after them
SAFETENSORS = "a safetensors file, such as an artifact of avpt's"
PICKLED = "a PyTorch checkpoint, or another pickle"
CELLS = 3  # of a first line, from which text is taken for a table

# where the bytes stand, the bytes, and what begins with them
BEGINNINGS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "a picture (PNG)"),
    (0, b"\xff\xd8\xff", "a picture (JPEG)"),
    (0, b"GIF8", "a picture (GIF)"),
    (0, b"II*\0", "a picture (TIFF)"),
    (0, b"MM\0*", "a picture (TIFF)"),
    (8, b"WEBP", "a picture (WebP)"),
    (8, b"WAVE", "a sound file (WAV)"),
    (8, b"AVI ", "a video (AVI)"),
    (4, b"ftyp", "a video or sound file (MP4)"),
    (0, b"\x1aE\xdf\xa3", "a video or sound file (Matroska or WebM)"),
    (0, b"OggS", "a sound or video file (Ogg)"),
    (0, b"fLaC", "a sound file (FLAC)"),
    (0, b"ID3", "a sound file (MP3)"),
    (0, b"\x89HDF", "an HDF5 file, such as a shard of a store"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x1f\x8b", "a compressed file (gzip)"),
    (0, b"7z\xbc\xaf", "an archive (7z)"),
    (257, b"ustar", "an archive (tar)"),
    (0, b"version https://git-lfs", "a Git LFS pointer in place of the file, which `git lfs pull` fetches"),
)


def what_it_is(path: Path) -> str:
    """What lies at a path, in words with their article; empty where that can't be told, as of plain text."""
    if path.is_dir():
        return _folder(path)
    try:
        if not path.is_file():  # reading a pipe would block
            return ""
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD)
        if is_saved_by_torch(path):
            return PICKLED
        if head.startswith(ZIP):
            return _zip(path)
    except OSError:
        return ""
    if head.startswith(b"\x08") and path.suffix == ".onnx":  # its format has no beginning of its own
        return "an ONNX model, such as `avpt export` writes"
    for offset, beginning, name in BEGINNINGS:
        if head[offset:].startswith(beginning):
            return name
    length = int.from_bytes(head[:SAFETENSORS_HEADER], "little")
    if head[SAFETENSORS_HEADER:].startswith(b"{") and length <= size - SAFETENSORS_HEADER:
        return SAFETENSORS
    return _text(head)


def is_something_else(path: Path) -> bool:
    """Whether a file can be told, and holds neither tensors nor pickles."""
    return what_it_is(path) not in ("", SAFETENSORS, PICKLED)


def but_what(path: Path) -> str:
    """What follows "it is not a store" in a message: ", but a run folder"; empty where what it is can't be told."""
    return f", but {what}" if (what := what_it_is(path)) else ""


def _folder(path: Path) -> str:
    if (path / "settings.json").exists():
        return "a store"
    if (path / "checkpoint").is_dir() or ((path / "summary.json").exists() and (path / "metrics.jsonl").exists()):
        return "a run folder"
    return ""


def _zip(path: Path) -> str:
    """What a zip file is by the names in it; empty of one that is cut short, which may have been anything."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return ""
    exported = any(name.endswith("/avpt.json") for name in names)
    return "a model that `avpt export` wrote" if exported else "a zip archive"


def _text(head: bytes) -> str:
    """What text is by its first characters and lines."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 or not error.start:  # the last character may be cut
            return ""
        text = head[: error.start].decode("utf-8-sig")
    lines = text.lstrip().splitlines()
    first = lines[0] if lines else ""
    if first[:1] in ("{", "["):
        return "a JSON file" if len(head) == HEAD or _is_json(text) else ""
    if first.lower().startswith(("<!doctype html", "<html")):
        return "a web page (HTML)"
    cells = {cell.strip().strip('"') for cell in first.split(",")}
    if cells >= {"label", "split"}:
        return "a manifest (CSV)"
    return "a table (CSV)" if len(cells) >= CELLS and len(lines) > 1 and first.count(",") == lines[1].count(",") else ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return all(_is_json(line) for line in text.splitlines()) if "\n" in text.strip() else False
    return True
