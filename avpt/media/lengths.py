"""How long a stream is according to its file, read from the header where FFmpeg relies on the file's size."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from av.container import InputContainer
from av.stream import Stream

CONTAINER_TICK = Fraction(1, 1_000_000)  # seconds; the unit of a container's start time (AV_TIME_BASE)
GUESSED = frozenset({"aac", "ac3", "amr", "dts", "eac3", "loas", "mp3", "truehd"})  # durations from the bit rate
COUNTED = re.compile(rb"(?:Xing|Info)\0\0\0[\x01\x03\x05\x07\x09\x0b\x0d\x0f]|VBRI")  # an MP3 header with a length
FRAME_HEADER = 200  # bytes of an MP3 frame that are searched for such a header
UNKNOWN = 0x7FFF0000  # bytes; a writer that can't go back to fill in a size leaves 0, or about the largest that fits
NAME = re.compile(rb"[ -~]{4}")  # of a chunk
MAX_CHUNKS = 1000  # that are read; a file may consist of millions of empty ones
LEFT = 0.1  # of a file's bytes; as many may follow its audio unexplained


@dataclass(frozen=True)
class Length:
    """What a file says about how long a stream is."""

    end: Fraction | None = None  # seconds on the stream's clock; None if the file does not say
    more: Fraction = Fraction(0)  # seconds of audio behind that end


def start_of(container: InputContainer) -> Fraction:
    """The container's start, in seconds on the streams' clock."""
    return (container.start_time or 0) * CONTAINER_TICK


def length_of(container: InputContainer, stream: Stream, path: Path) -> Length:
    """Where a stream ends according to its file: by the stream's own length if it has one, else by the container's."""
    name, tick = container.format.name, stream.time_base
    if tick is None or (name in GUESSED and not (name == "mp3" and _is_counted(path))):
        return Length()
    begin = start_of(container) if stream.start_time is None else stream.start_time * tick
    if name in ("wav", "w64", "aiff", "au"):
        samples = _of_samples(path, name, stream)
        if samples is not None:
            return Length(begin + samples.end, samples.more) if samples.end is not None else samples
    # for these FFmpeg computes the duration of a cut file from what is left of it; the number of frames is the header's
    pcm = str(stream.codec_context and stream.codec_context.name).startswith("pcm_")
    if stream.frames and (name == "avi" or (name == "caf" and pcm)):
        return Length(begin + stream.frames * tick)
    if "matroska" in name:
        tagged = _seconds(stream.metadata.get("DURATION", ""))
        if tagged is not None:
            return Length(min(tagged, _of_container(container) or tagged))
    elif stream.duration and stream.duration > 0:
        return Length(begin + stream.duration * tick)
    return Length(_of_container(container))


def _of_container(container: InputContainer) -> Fraction | None:
    if not container.duration or container.duration < 0:
        return None
    duration = container.duration * CONTAINER_TICK
    # Matroska states the time of the end, not the duration from the start
    return duration if "matroska" in container.format.name else start_of(container) + duration


def _seconds(text: str) -> Fraction | None:
    """Parse `00:00:02.020000000`, as in Matroska's tags."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d{1,12})?)", text.strip())
    return int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3]) if match else None


def _is_counted(path: Path) -> bool:
    """Whether an MP3 file says how many frames it has."""
    with path.open("rb") as file:
        tag = file.read(10)
        if tag[:3] == b"ID3" and len(tag) == 10:
            size = sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:10], (21, 14, 7, 0), strict=True))
            file.seek(10 + size)
            return COUNTED.search(file.read(FRAME_HEADER)) is not None
        return COUNTED.search(tag + file.read(FRAME_HEADER)) is not None


def _of_samples(path: Path, name: str, stream: Any) -> Length | None:
    """What the header of uncompressed audio says; None if it says nothing, or if the audio is compressed."""
    codec = stream.codec_context
    plain = codec is not None and (codec.name.startswith("pcm_") or name in ("wav", "w64"))
    rate = codec.bit_rate // 8 if plain and codec.bit_rate else 0
    if not rate:
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        if name == "au":
            header = file.read(12)
            if len(header) < 12:
                return None
            data, said = struct.unpack(">II", header[4:12])
        else:
            content = next((chunk for chunk in _chunks(file, name, size) if chunk[0] in (b"data", b"SSND")), None)
            if content is None:
                return None
            _, data, said = content
        if said <= 0 or said >= UNKNOWN > size:
            return None
        end = data + said
        behind = size - end
        explained = behind <= LEFT * size or (name != "au" and _is_chunked(file, name, end + said % 2, size))
    return Length(Fraction(said, rate), Fraction(0) if explained else Fraction(behind, rate))


def _chunks(file: BinaryIO, name: str, size: int) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a WAV, W64 or AIFF file: name, where the content begins, and the size that it declares."""
    wide = name == "w64"  # names of 16 bytes, sizes of 8 that count the header
    head, at = (24, 40) if wide else (8, 12)
    said64: int | None = None
    for _ in range(MAX_CHUNKS):
        file.seek(at)
        header = file.read(head)
        if len(header) < head or at > size:
            return
        if wide:
            said = struct.unpack("<Q", header[16:])[0] - head
            step = (said + head + 7) // 8 * 8
        else:
            said = struct.unpack("<I" if name == "wav" else ">I", header[4:])[0]
            step = said + head + said % 2
        if header[:4] == b"ds64" and said >= 16:  # of RF64: the size that does not fit into 32 bits
            said64 = struct.unpack("<8xQ", file.read(16))[0]
        if header[:4] == b"data" and said == 0xFFFFFFFF and said64 is not None:
            said = said64
        yield header[:4], at + head + (8 if header[:4] == b"SSND" else 0), said - 8 * (header[:4] == b"SSND")
        if step <= 0:
            return
        at += step


def _is_chunked(file: BinaryIO, name: str, at: int, size: int) -> bool:
    """Whether the bytes between two places are chunks, and so not audio that the header leaves out."""
    order = ">I" if name == "aiff" else "<I"
    for _ in range(MAX_CHUNKS if name != "w64" else 0):
        if at + 8 > size:
            break
        file.seek(at)
        header = file.read(8)
        said = struct.unpack(order, header[4:])[0]
        if not NAME.fullmatch(header[:4]) or at + 8 + said > size:
            return False
        at += 8 + said + said % 2
    return True
