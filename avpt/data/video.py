"""Media or image files -> the frames that are shown at given times, upright, square-pixelled, small."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from av import VideoFrame
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import Interpolation, VideoReformatter
from torchvision.io import encode_jpeg

from avpt.data.media import (
    CONTAINER_TICK,
    MAX_PIXELS,
    Opened,
    Track,
    decode,
    open_image,
    plain_track,
    read_best,
    streams_of,
)
from avpt.data.skipping import shown_frames
from avpt.errors import MediaError

JPEG_QUALITY = 95  # of 100
MAX_SIDE = 65_500  # pixels, libjpeg's limit; only absurdly long pictures reach it
IMAGE_SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".png",
    ".pgm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
# torchvision's and PIL's default filter too; without the last two a grey is off by 1 or 2 levels, and colours blur
SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
UNDECODABLE = f"no picture decodes (empty, damaged, encrypted, or over {MAX_PIXELS // 1_000_000} megapixels)"

Shown = tuple[Fraction, VideoFrame]  # from when, in seconds from the container's start
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


def read_frames(
    path: Path,
    *,
    fps: float,
    max_frames: int,
    frame_size: int,
    start: float = 0.0,
    end: float | None = None,
    accuracy: Literal["exact", "keyframe"] = "exact",
    opened: Opened | None = None,
    troubles: list[str] | None = None,
) -> list[tuple[float, np.ndarray]] | None:
    """The frames on screen at start + k / fps seconds: pairs of k / fps and (height, width, 3) uint8 RGB.

    Seconds count from the container's start, k from 0. The frame on screen is the last whose time has
    come, or the first frame where none has. Stops before `end`, where the pictures stop, or at
    `max_frames`. Rotation and reflection by metadata and non-square pixels are applied; the short side is
    scaled down to `frame_size` pixels, never up.

    Args:
        path: any file with pictures.
        fps: instants a second.
        max_frames: the most that is needed.
        frame_size: pixels.
        start: where the clip begins; far into a file it is sought.
        end: where it ends; None is the file's end.
        accuracy: "keyframe" looks at key frames only, as if there were no others: several times faster.
        opened: the tracks of the file, where the caller has opened it for `start` already.
        troubles: is given what went wrong with pictures that could be read all the same.

    None where the file has no picture stream; MediaError("open") where it is not media;
    MediaError("visual") where nothing decodes, a frame is too large, or `start` lies beyond the last
    picture.
    """
    count = max_frames
    if end is not None:
        count = min(count, max(1, math.ceil((end - start) * fps - 1e-6)))  # (0.8 - 0.1) * 10 is just above 7
    instants = [Fraction(start) + Fraction(k) / Fraction(fps) for k in range(count)]

    def read(track: Track) -> list[tuple[float, np.ndarray]]:
        codec = track.stream.codec_context
        if codec is None:
            raise MediaError("visual", "the picture stream has no known codec")
        _check_size(codec.width, codec.height)
        frames = (shown_frames if track.quick else _all)(track, instants, accuracy == "keyframe")
        frames = _on_screen(track, _timed(track, frames, accuracy == "keyframe"), instants)
        painted = _paint(frames, fps, track.stream.sample_aspect_ratio, frame_size)
        if troubles is not None:
            troubles.extend(track.troubles(start, end))
        return painted

    return read_best(path, "video", read, start, opened)


def read_images(path: Path, *, fps: float, max_frames: int, frame_size: int) -> list[tuple[float, np.ndarray]]:
    """An image file, or a folder of them in natural order: pairs of i / fps and (height, width, 3) uint8 RGB.

    At most `max_frames` images, scaled as `read_frames` does, EXIF orientation applied. Hidden files and
    files without an image's suffix are passed over in a folder. MediaError("open") where there is nothing
    to read, MediaError("visual") where an image does not decode: none is left out.
    """
    files = [path]
    if path.is_dir():
        images = (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        files = sorted((file for file in images if not file.name.startswith(".")), key=_natural)
        if not files:
            raise MediaError("open", "the folder holds no image")
    shown = []
    for i, file in enumerate(files[:max_frames]):
        try:
            shown.append((i / fps, _read_image(file, frame_size)))
        except MediaError as error:
            raise MediaError(error.stage, f"image {file.name!r}: {error}") from error
    return shown


def encode_frame(rgb: np.ndarray, codec: Literal["jpeg", "raw"]) -> bytes:
    """(height, width, 3) uint8 RGB -> a JPEG file (quality 95), or the rows as they are."""
    if codec == "raw":
        return rgb.tobytes()
    image = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)
    return bytes(encode_jpeg(image, quality=JPEG_QUALITY).numpy().tobytes())


def _all(track: Track, instants: list[Fraction], keyframes: bool) -> Iterator[VideoFrame]:
    """Every frame of a stream, or every key frame."""
    if keyframes:
        track.stream.codec_context.skip_frame = "NONKEY"
    return (frame for frame in decode(track) if frame.key_frame or not keyframes)


def _timed(track: Track, frames: Iterator[VideoFrame], keyframes: bool) -> Iterator[Shown]:
    """The frames of a stream with times that never go back, then the end of the track."""
    time_base = track.stream.time_base
    latest: Fraction | None = None
    duration = Fraction(0)
    for frame in frames:
        _check_size(frame.width, frame.height)
        stamp = frame.dts if frame.pts is None else frame.pts
        expected = Fraction(0) if latest is None else latest + duration
        time = expected if stamp is None else stamp * time_base - track.origin
        if latest is not None:
            time = max(time, latest)
            duration = time - latest  # stands in where the file states none
        if frame.duration:
            duration = frame.duration * time_base
        latest = time
        yield time, frame
    if latest is not None:
        track.end = latest + duration
        if keyframes:  # the last one stays as long as there are pictures
            track.end = max(track.end, track.reach * time_base - track.origin)


def _on_screen(track: Track, frames: Iterator[Shown], instants: list[Fraction]) -> Iterator[VideoFrame]:
    """The frame on screen at each instant that the pictures reach; at least one, or MediaError."""
    due = 0  # the instant whose frame is looked for
    latest: Shown | None = None
    for upcoming in frames:
        while latest is not None and due < len(instants) and instants[due] + CONTAINER_TICK < upcoming[0]:
            yield latest[1]
            due += 1
        if due == len(instants):
            return
        latest = upcoming
    if latest is None or track.end is None:
        raise MediaError("visual", UNDECODABLE)
    time, frame = latest
    for instant in instants[due:]:
        if instant > time + CONTAINER_TICK and instant + CONTAINER_TICK >= track.end:
            break
        yield frame
        due += 1
    if due == 0:
        raise MediaError("visual", f"there is no picture at {float(instants[0]):g} s, where the clip starts")


def _paint(
    frames: Iterator[VideoFrame], fps: float, aspect: Fraction | None, frame_size: int
) -> list[tuple[float, np.ndarray]]:
    scaler = VideoReformatter()
    painted: list[tuple[float, np.ndarray]] = []
    latest: VideoFrame | None = None
    for k, frame in enumerate(frames):
        rgb = painted[-1][1] if frame is latest else _rgb(frame, _turn(frame), aspect, frame_size, scaler)
        painted.append((k / fps, rgb))
        latest = frame
    return painted


def _read_image(path: Path, frame_size: int) -> np.ndarray:
    with open_image(path) as (container, content):
        for stream in streams_of(container, "video"):
            for frame in decode(plain_track(container, stream)):
                _check_size(frame.width, frame.height)
                return _rgb(frame, _turn(frame, content), None, frame_size, VideoReformatter())
    raise MediaError("visual", UNDECODABLE)


def _rgb(
    frame: VideoFrame, turn: Matrix, aspect: Fraction | None, frame_size: int, scaler: VideoReformatter
) -> np.ndarray:
    """(height, width, 3) uint8: one swscale call to the final size, then the turn."""
    shown_width = frame.width * (aspect or 1)  # players stretch the width, whatever the ratio
    scale = min(Fraction(1), frame_size / Fraction(min(shown_width, frame.height)))
    width, height = max(1, round(shown_width * scale)), max(1, round(frame.height * scale))
    if max(width, height) > MAX_SIDE:
        raise MediaError("visual", f"a picture of {width} x {height} pixels is over the limit of {MAX_SIDE} a side")
    try:
        rgb = scaler.reformat(frame, width, height, "rgb24", interpolation=SCALING, threads=1).to_ndarray()
    except MemoryError:
        raise
    except (FFmpegError, ValueError) as error:
        raise MediaError("visual", f"pixels in FFmpeg's format {frame.format.name} are not supported") from error
    a, b, c, d = turn
    if abs(b) + abs(c) > abs(a) + abs(d):
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _turn(frame: VideoFrame, content: bytes = b"") -> Matrix:
    """How metadata turn a frame, as ffmpeg's autorotate does; a damaged display matrix says nothing."""
    try:
        side_data: Any = frame.side_data
        matrices = [bytes(data) for data in side_data if data.type is SideData.DISPLAYMATRIX]
    except ValueError:  # PyAV stops at kinds of side data that it does not know, EXIF among them
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
    found = EXIF.search(content)
    if found is None:
        return None
    tiff = content[found.start(1) :]
    order = "<" if tiff[:2] == b"II" else ">"
    with suppress(struct.error):
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for i in range(entries):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * i)
            if tag == ORIENTATION_TAG:
                return ORIENTATIONS.get(value)
    return None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise MediaError("visual", f"a frame of {width} x {height} pixels is over the limit of {limit} megapixels")


def _natural(path: Path) -> tuple[list[str | int], str]:
    """Sorts img2 before img10; the name itself decides between img2 and img02."""
    parts = re.split("([0-9]+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name
