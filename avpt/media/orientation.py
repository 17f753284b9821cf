"""Which way up a picture is shown, according to its file."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from typing import Any

from av import VideoFrame
from av.sidedata.sidedata import Type as SideData

Matrix = tuple[int, int, int, int]  # a, b, c, d: pixel (x, y) is shown at (a x + c y, b x + d y), y pointing down
UPRIGHT: Matrix = (1, 0, 0, 1)
# where EXIF begins in a JPEG, PNG, WebP or TIFF file
EXIF = re.compile(rb"(?:Exif\0\0|eXIf|EXIF.{4}|\A)(II\*\0|MM\0\*)", re.DOTALL)
ORIENTATION_TAG = 0x0112  # EXIF's; its values 1 to 8 are the keys below
ORIENTATIONS: dict[int, Matrix] = {
    1: UPRIGHT,
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
QUARTER_TURNS: tuple[Matrix, ...] = (
    UPRIGHT,
    (0, -1, 1, 0),
    (-1, 0, 0, -1),
    (0, 1, -1, 0),
)  # counter-clockwise


def turn_of(frame: VideoFrame, content: bytes = b"") -> Matrix:
    """How the metadata turn a frame, as in ffmpeg's autorotate; a damaged display matrix is ignored."""
    try:
        side_data: Any = frame.side_data
        matrices = [bytes(data) for data in side_data if data.type is SideData.DISPLAYMATRIX]
    except ValueError:  # PyAV fails at kinds of side data that it does not know, EXIF among them
        orientation = _exif_orientation(content)
        if orientation is not None:
            return orientation
        angle = frame.rotation
        return QUARTER_TURNS[round(angle / 90) % 4] if abs(angle) <= 360 else UPRIGHT
    if not matrices:
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("=9i", matrices[0])
    return (a, b, c, d) if a * d != b * c else UPRIGHT


def _exif_orientation(content: bytes) -> Matrix | None:
    """The orientation in an image's EXIF block, which is a small TIFF file (CIPA DC-008, section 4.6)."""
    match = EXIF.search(content)
    if match is None:
        return None
    tiff = content[match.start(1) :]
    order = "<" if tiff[:2] == b"II" else ">"
    with suppress(struct.error):
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for i in range(entries):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * i)
            if tag == ORIENTATION_TAG:
                return ORIENTATIONS.get(value)
    return None
