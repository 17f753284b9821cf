"""How long a stream is by what its file says of it, read from the header where FFmpeg goes by the file's size."""

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
GUESSED = frozenset({"aac", "ac3", "amr", "dts", "eac3", "loas", "mp3", "truehd"})  # durations, from the bit rate
COUNTED = re.compile(rb"(?:Xing|Info)\0\0\0[\x01\x03\x05\x07\x09\x0b\x0d\x0f]|VBRI")  # an MP3 header with a length
FRAME_HEADER = 200  # bytes of an MP3 frame; its header is somewhere in them
UNKNOWN = 0x7FFF0000  # bytes; who can't go back to write a size leaves 0, or one about as large as fits
NAME = re.compile(rb"[ -~]{4}")  # of a chunk
MAX_CHUNKS = 1000  # looked at; a file may be made of millions of empty ones
LEFT = 0.1  # of the bytes of a file that may follow its sound unexplained


@dataclass(frozen=True)
class Length:
    """What a file says about how long a stream is."""

    end: Fraction | None = None  # seconds on the stream's clock, None where it does not say
    more: Fraction = Fraction(0)  # seconds of sound that lie behind the end


def start_of(container: InputContainer) -> Fraction:
    """Seconds on the streams' clock at which the container starts."""
    return (container.start_time or 0) * CONTAINER_TICK


def length_of(container: InputContainer, stream: Stream, path: Path) -> Length:
    """Where a stream ends by the file's own word: the stream's where the container has one for each, else its own."""
    name, tick = container.format.name, stream.time_base
    if tick is None or (name in GUESSED and not (name == "mp3" and _is_counted(path))):
        return Length()
    begin = start_of(container) if stream.start_time is None else stream.start_time * tick
    if name in ("wav", "w64", "aiff", "au"):
        found = _of_samples(path, name, stream)
        if found is not None:
            return Length(begin + found.end, found.more) if found.end is not None else found
    # of what these hold of a cut file FFmpeg makes a duration; the number of frames is that of the header
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
    # Matroska's is the time of its end, not counted from its start
    return duration if "matroska" in container.format.name else start_of(container) + duration


def _seconds(text: str) -> Fraction | None:
    """`00:00:02.020000000`, as Matroska's tags have it."""
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d{1,12})?)", text.strip())
    return int(found[1]) * 3600 + int(found[2]) * 60 + Fraction(found[3]) if found else None


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
    """What the header of plain sound says; None where it says nothing, or the sound is coded otherwise."""
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
            found = next((chunk for chunk in _chunks(file, name, size) if chunk[0] in (b"data", b"SSND")), None)
            if found is None:
                return None
            _, data, said = found
        if said <= 0 or said >= UNKNOWN > size:
            return None
        end = data + said
        behind = size - end
        explained = behind <= LEFT * size or (name != "au" and _is_chunked(file, name, end + said % 2, size))
    return Length(Fraction(said, rate), Fraction(0) if explained else Fraction(behind, rate))


def _chunks(file: BinaryIO, name: str, size: int) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a WAV, W64 or AIFF file: name, where the content begins, and its size as it says."""
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
    """Whether what lies between two places is chunks, and so no sound that the header leaves out."""
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
