"""How each choice of --frame-codec encodes, decodes and checks a frame.

A frame is (height, width, 3) uint8 RGB; a shard keeps its bytes and, beside them, its size. torch is imported only
where a frame is encoded or decoded, so that a finished store can be inspected without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from avpt.machine.light_imports import without_compiler
from avpt.types import MAX_PIXELS, FrameCodec

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray[Any, Any]

JPEG_QUALITY = 95  # of 100
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# markers of a JPEG: those without a segment, starts and ends, frame headers
ALONE, SOI, EOI, SOS = frozenset({0x00, 0x01, *range(0xD0, 0xD8)}), 0xD8, 0xD9, 0xDA
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class DamagedFrameError(Exception):
    """Stored bytes are not the frame that they should be; the message says what is wrong."""


@dataclass(frozen=True)
class Codec:
    """One way to store a frame.

    `decode` and the two checks take the stored bytes (size,) uint8, height and width. The checks return
    what is wrong, or an empty string: `check_form` looks at what is cheap to see, `check_size` at the size that the
    bytes themselves ask for, before memory of that size is allocated.
    """

    encode: Callable[[Array], bytes]
    decode: Callable[[Array, int, int], Tensor]  # (3, height, width) uint8; RuntimeError if it can't be decoded
    check_form: Callable[[Array, int, int], str]
    check_size: Callable[[Array, int, int], str]


def encode_frame(rgb: Array, codec: FrameCodec) -> bytes:
    """Encode a frame (height, width, 3) uint8 as the bytes that are stored."""
    return CODECS[codec].encode(rgb)


def decode_frame(stored: Array, codec: FrameCodec, height: int, width: int) -> Tensor:
    """Decode a stored frame (size,) uint8 to (3, height, width) uint8.

    Raises:
        DamagedFrameError: it is not a frame of that size.
    """
    if wrong := _wrong_number_of_pixels(height, width) or CODECS[codec].check_size(stored, height, width):
        raise DamagedFrameError(wrong)
    try:
        return CODECS[codec].decode(stored, height, width)
    except RuntimeError as error:
        raise DamagedFrameError(f"does not decode: {str(error).rpartition(', ')[2]}") from None


def wrong_frame(stored: Array, codec: FrameCodec, height: int, width: int, *, deep: bool) -> str:
    """What is wrong with a stored frame (size,) uint8, or an empty string; `deep` decodes it too."""
    if wrong := _wrong_number_of_pixels(height, width):
        return wrong
    if not len(stored):
        return "is empty"
    if wrong := CODECS[codec].check_form(stored, height, width):
        return wrong
    try:
        if deep:
            decode_frame(stored, codec, height, width)
    except DamagedFrameError as error:
        return str(error)
    return ""


def _wrong_number_of_pixels(height: int, width: int) -> str:
    if height * width > MAX_PIXELS:
        return f"is {height} x {width}, which is more than {MAX_PIXELS} pixels"
    return "" if min(height, width) > 0 else f"is {height} x {width}"


# --- jpeg: a JPEG file of quality 95 ---------------------------------------------------------------------------------


def _encode_jpeg(rgb: Array) -> bytes:
    import torch

    with without_compiler():
        from torchvision.io import encode_jpeg

    image = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)
    return bytes(encode_jpeg(image, quality=JPEG_QUALITY).numpy().tobytes())


def _decode_jpeg(stored: Array, height: int, width: int) -> Tensor:
    import torch

    with without_compiler():
        from torchvision.io import ImageReadMode, decode_jpeg

    frame: Tensor = decode_jpeg(torch.from_numpy(stored), ImageReadMode.RGB)
    return frame


def _check_jpeg_form(stored: Array, height: int, width: int) -> str:
    whole = stored[:2].tobytes() == JPEG_START and stored[-2:].tobytes() == JPEG_END
    return "" if whole else "does not start and end as a JPEG does"


def _check_jpeg_size(stored: Array, height: int, width: int) -> str:
    size = jpeg_size(stored.tobytes())
    return "" if size == (height, width) else f"is a JPEG of {size[0]} x {size[1]}, not {height} x {width}"


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width in the frame header (ITU-T T.81, B.2.2), found as libjpeg finds it; 0 x 0 without one."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        while data[at : at + 1] == b"\xff":
            at += 1
        marker = data[at] if at < len(data) else EOI
        at += 1
        if marker in ALONE:
            continue
        if marker in (SOI, EOI, SOS):
            break  # none of them comes before the frame header
        if marker in FRAMES:
            return int.from_bytes(data[at + 3 : at + 5]), int.from_bytes(data[at + 5 : at + 7])
        at += max(2, int.from_bytes(data[at : at + 2]))
    return 0, 0


# --- raw: the rows as they are ---------------------------------------------------------------------------------------


def _encode_raw(rgb: Array) -> bytes:
    return rgb.tobytes()


def _decode_raw(stored: Array, height: int, width: int) -> Tensor:
    import torch

    return torch.from_numpy(stored).view(height, width, 3).permute(2, 0, 1)


def _check_raw_size(stored: Array, height: int, width: int) -> str:
    needed = height * width * 3
    return "" if len(stored) == needed else f"has {len(stored)} bytes, not the {needed} of {height} x {width} pixels"


CODECS: dict[FrameCodec, Codec] = {
    "jpeg": Codec(_encode_jpeg, _decode_jpeg, _check_jpeg_form, _check_jpeg_size),
    "raw": Codec(_encode_raw, _decode_raw, _check_raw_size, _check_raw_size),
}
