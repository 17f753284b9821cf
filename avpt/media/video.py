"""From media or image files to the frames shown at some instants: upright, with square pixels, scaled down."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from av import VideoFrame
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter

from avpt.errors import MediaError, listed
from avpt.media.clip import Notes
from avpt.media.lengths import CONTAINER_TICK
from avpt.media.opening import open_image
from avpt.media.orientation import Matrix, turn_of
from avpt.media.skipping import UNSTAMPED, shown_frames
from avpt.media.streams import CLOCK_BACK, Opened, Track, decode, plain_track, read_best, streams_of
from avpt.types import IMAGE_SUFFIXES, MAX_PIXELS

MAX_SIDE = 65_500  # pixels, libjpeg's limit; only absurdly long pictures reach it
# torchvision's and PIL's default filter too; without the last two, greys are off by 1 or 2 levels and colours blur
SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
UNDECODABLE = f"no picture decodes (empty, damaged, encrypted, or over {MAX_PIXELS // 1_000_000} megapixels)"

BLACK = 16  # of 255: codecs may store black as bright as this
FLAT = 4  # of 255; pixels that differ by no more are of one colour
LATE = 0.25  # seconds before the first picture; a longer wait is reported
CLUTTER = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})  # files that operating systems leave in folders
STEADY = 0.9  # of the pictures; where so many come at the usual distance, a long gap is a hole
LONG_GAP, LONG_GAPS = 0.5, 10  # seconds, and usual distances; a gap that exceeds both is long
LASTING = UNSTAMPED | {
    "mov,mp4,m4a,3gp,3g2,mj2"
}  # containers in which a picture may last, by a length or by repetition
RANGES = {16: "PQ", 18: "HLG"}  # transfer functions of HDR, by number (ITU-T H.273)

Shown = tuple[Fraction, VideoFrame]  # since when it is shown, in seconds from the container's start


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
    notes: Notes | None = None,
) -> list[tuple[float, np.ndarray]] | None:
    """Read the frames on screen at start + k / fps seconds: pairs of k / fps and (height, width, 3) uint8 RGB.

    Seconds count from the container's start, k from 0. The frame on screen is the last whose time has come, or the
    first frame if none has. The frames stop before `end`, where the pictures stop, or at `max_frames`. Rotation and
    reflection by metadata and the aspect ratio of pixels are applied; the short side is scaled down to `frame_size`
    pixels, never up.

    Args:
        path: any file with pictures.
        fps: instants per second.
        max_frames: the most frames that are needed.
        frame_size: pixels.
        start: where the clip begins; far into a file, it is reached by seeking.
        end: where it ends; None means the end of the file.
        accuracy: "keyframe" uses key frames alone, as if there were no others, which is several times faster.
        opened: the tracks of the file, if the caller has already opened it for `start`.
        notes: receives what else there is to know about the pictures that were read.

    Returns None if the file has no picture stream. Raises MediaError("open") if it is not media, and
    MediaError("visual") if nothing decodes, a frame is too large, or `start` lies beyond the last picture.
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
        painted = _paint(track, frames, fps, frame_size)
        if notes is not None:
            track.holes = _holes(track, instants[0], instants[-1])
            notes.troubles += track.troubles(start, end) + _seen([rgb for _, rgb in painted])
            notes.seconds = track.seconds(start, end)
        return painted

    return read_best(path, "video", read, start, opened)


def read_images(
    path: Path, *, fps: float, max_frames: int, frame_size: int, notes: Notes | None = None
) -> list[tuple[float, np.ndarray]]:
    """Read an image file, or a folder of them in natural order: pairs of i / fps and (height, width, 3) uint8 RGB.

    Reads at most `max_frames` images, scales them as `read_frames` does and applies the EXIF orientation. In a folder,
    hidden files are skipped, and so are files without an image's suffix, which `notes` mentions. Raises
    MediaError("open") if there is nothing to read, and MediaError("visual") if an image does not decode: none is left
    out.
    """
    files = [path]
    troubles: list[str] = []
    if path.is_dir():
        inside = sorted((file for file in path.iterdir() if not file.name.startswith(".")), key=_natural)
        files = [file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
        if not files:
            raise MediaError("open", "the folder holds no image")
        if others := [file.name for file in inside if file not in set(files) and file.name not in CLUTTER]:
            troubles = [f"ignored: {len(others)} in its folder are no images by their names ({listed(others, 3)})"]
    shown = []
    for i, file in enumerate(files[:max_frames]):
        try:
            shown.append((i / fps, _read_image(file, frame_size)))
        except MediaError as error:
            raise MediaError(error.stage, f"image {file.name!r}: {error}") from error
    if notes is not None:
        notes.troubles += troubles + _seen([rgb for _, rgb in shown])
        notes.seconds = len(files) / fps
    return shown


def _seen(pictures: list[np.ndarray]) -> list[str]:
    """Why nothing is seen on the pictures; empty if something is."""
    if any(np.ptp(rgb[..., channel]) > FLAT for rgb in pictures for channel in (1, 0, 2)):
        return []
    if all(rgb.max() <= BLACK for rgb in pictures):
        return ["black: all its pictures are black"]
    return ["blank: all its pictures are of one colour"]


def _all(track: Track, instants: list[Fraction], keyframes: bool) -> Iterator[VideoFrame]:
    """Every frame of a stream, or every key frame."""
    if not keyframes:
        return decode(track)
    track.stream.codec_context.skip_frame = "NONKEY"
    return (frame for frame in decode(track, _isolate_keyframes(track)) if frame.key_frame)


def _isolate_keyframes(track: Track) -> Iterator[Any]:
    """The packets of a stream, with a None after each key frame: HEVC may show the second before the first."""
    for packet in track.packets():
        yield packet
        if packet.is_keyframe:
            yield None


def _timed(track: Track, frames: Iterator[VideoFrame], keyframes: bool) -> Iterator[Shown]:
    """The frames of a stream with times that never go back, then the end of the track."""
    stream = track.stream
    time_base, codec = stream.time_base, stream.codec_context
    # where stamps say only when a frame is decoded, they belong to the frames in the order in which they are shown
    decoded = stream.container.format.name in UNSTAMPED and codec.has_b_frames and not keyframes
    latest: Fraction | None = None
    duration = shift = Fraction(0)  # of the frame before; of the stamps, after the clock went back
    for frame in frames:
        _check_size(frame.width, frame.height)
        stamp = frame.dts if frame.pts is None or decoded else frame.pts
        expected = Fraction(0) if latest is None else latest + duration
        time = expected if stamp is None else stamp * time_base - track.origin + shift
        if latest is not None:
            if track.resets and latest - time > CLOCK_BACK:
                shift += expected - time
                time = expected
            time = max(time, latest)
            duration = time - latest  # used if the file states none
        if frame.duration:
            duration = frame.duration * time_base
        latest = time
        yield time, frame
    if latest is not None:
        track.end = latest + duration
        if keyframes:  # the last one stays on screen to the end of the pictures
            track.end = max(track.end, track.reach * time_base - track.origin)


def _holes(track: Track, start: Fraction, until: Fraction) -> list[Fraction]:
    """How long pictures are missing, in seconds, where they otherwise come at a steady rate between two times."""
    if track.restarted or track.stream.container.format.name in LASTING:
        return []
    first, last = track.stamp(start), track.stamp(until)
    gaps = [(after - stamp, stamp) for stamp, after in pairwise(sorted(track.stamps))]
    usual = sorted(gap for gap, _ in gaps)[len(gaps) // 2] if gaps else 0
    steady = usual > 0 and sum(gap <= 2 * usual for gap, _ in gaps) >= STEADY * len(gaps)
    long = max(LONG_GAP / track.stream.time_base, LONG_GAPS * usual)
    missing = [gap - usual for gap, stamp in gaps if gap > long and first - gap < stamp < last] if steady else []
    return [gap * track.stream.time_base for gap in missing]


def _on_screen(track: Track, frames: Iterator[Shown], instants: list[Fraction]) -> Iterator[VideoFrame]:
    """The frame on screen at each instant that the pictures reach; MediaError if they reach none."""
    due = 0  # index of the instant whose frame comes next
    latest: Shown | None = None
    for upcoming in frames:
        if latest is None and upcoming[0] - instants[0] > LATE:
            track.remarks.append(
                f"late: its pictures begin at {float(upcoming[0]):.2f} s; the first stands in before that"
            )
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


def _paint(track: Track, frames: Iterator[VideoFrame], fps: float, frame_size: int) -> list[tuple[float, np.ndarray]]:
    scaler = VideoReformatter()
    painted: list[tuple[float, np.ndarray]] = []
    latest: VideoFrame | None = None
    for k, frame in enumerate(frames):
        if frame is latest:
            rgb = painted[-1][1]
        else:
            rgb = _rgb(frame, turn_of(frame), track.stream.sample_aspect_ratio, frame_size, scaler)
            _note_troubles(track, frame, latest)
        painted.append((k / fps, rgb))
        latest = frame
    return painted


def _note_troubles(track: Track, frame: VideoFrame, before: VideoFrame | None) -> None:
    """Note what is wrong with a frame that is stored all the same."""
    track.corrupt += frame.is_corrupt
    if frame.color_trc in RANGES:
        track.remarks.append(f"hdr: its pictures are {RANGES[frame.color_trc]}, and are stored without tone-mapping")
    if frame.interlaced_frame:
        track.remarks.append("interlaced: its pictures are stored without deinterlacing")
    if before is not None and (frame.width, frame.height) != (before.width, before.height):
        sizes = f"{before.width} x {before.height} to {frame.width} x {frame.height}"
        track.remarks.append(f"joined: its pictures change from {sizes}")


def _read_image(path: Path, frame_size: int) -> np.ndarray:
    with open_image(path) as (container, content):
        for stream in streams_of(container, "video"):
            for frame in decode(plain_track(container, path, stream)):
                _check_size(frame.width, frame.height)
                return _rgb(frame, turn_of(frame, content), None, frame_size, VideoReformatter())
    raise MediaError("visual", UNDECODABLE)


def _rgb(
    frame: VideoFrame, turn: Matrix, aspect: Fraction | None, frame_size: int, scaler: VideoReformatter
) -> np.ndarray:
    """(height, width, 3) uint8: one swscale call to the final size, then the turn."""
    shown_width = frame.width * (aspect or 1)  # players change the width, whatever the ratio
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


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise MediaError("visual", f"a frame of {width} x {height} pixels is over the limit of {limit} megapixels")


def _natural(path: Path) -> tuple[list[str | int], str]:
    """A key that sorts img2 before img10; the name itself decides between img2 and img02."""
    parts = re.split("([0-9]+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name
