"""Opening media safely, and decoding what can be decoded: shared by sound and picture.

FFmpeg (through PyAV) reads files that strangers made: a file may name no network address, a frame has a
largest size, and damage is skipped packet by packet instead of ending the clip.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream

from avpt.errors import MediaError

MAX_PIXELS = 64_000_000  # pixels of one decoded frame; a larger one is refused before it is allocated
CONTAINER_TICK = Fraction(1, 1_000_000)  # seconds; the unit of a container's start time (AV_TIME_BASE)

NOT_MEDIA = frozenset({"tty"})  # the demuxer that draws any .txt file as pictures of a terminal

Read = TypeVar("Read")


@contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """A media file, open for reading; MediaError("open") where it is missing, empty, or not media."""
    with _readable():
        size = path.stat().st_size
    if path.is_dir():
        raise MediaError("open", "this is a folder, not a media file")
    if size == 0:
        raise MediaError("open", "the file is empty (zero bytes)")
    # "file:" keeps a name that looks like an address or an option from being read as one
    with _opened(f"file:{path}") as container:
        yield container


@contextmanager
def open_image(path: Path) -> Iterator[tuple[InputContainer, bytes]]:
    """An image file and its bytes, read from memory: FFmpeg takes '%' in a name for a numbered pattern."""
    with _readable():
        content = path.read_bytes()
    if not content:
        raise MediaError("open", "the file is empty (zero bytes)")
    with _opened(io.BytesIO(content)) as container:
        yield container, content


def read_best(path: Path, kind: Literal["audio", "video"], read: Callable[[InputContainer, Any], Read]) -> Read | None:
    """What `read` makes of the best stream of one kind that it can read; None where the file has none.

    FFmpeg's choice is tried first, then the others in order. Where `read` raises MediaError on every one,
    the first error stands. Cover pictures are not a picture stream.
    """
    problem: MediaError | None = None
    for position in count():
        with open_media(path) as container:  # afresh for each stream: the one before has used up the packets
            streams = streams_of(container, kind)
            if position == len(streams):
                break
            try:
                return read(container, streams[position])
            except MediaError as error:
                problem = problem or error
    if problem is not None:
        raise problem
    return None


def streams_of(container: InputContainer, kind: Literal["audio", "video"]) -> list[Stream]:
    """The streams of one kind, FFmpeg's choice first, without cover pictures."""
    best = container.streams.best(kind)
    cover = Disposition.attached_pic
    streams = [stream for stream in container.streams if stream.type == kind and not stream.disposition & cover]
    return sorted(streams, key=lambda stream: best is None or stream.index != best.index)


def decode(container: InputContainer, stream: Stream) -> Iterator[Any]:
    """The frames of a stream that decode, in the order they are shown, up to where the container breaks."""
    if stream.codec_context is None:  # an unknown codec; decoding with it would crash the process
        return
    stream.codec_context.thread_count = 1  # clips are decoded side by side, one core each
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    packets = container.demux(cast(Any, stream))
    while True:
        try:
            packet = next(packets)
        except (StopIteration, FFmpegError):
            break
        if packet.size == 0:  # FFmpeg reads it as an error or, worse, as the end
            continue
        with suppress(FFmpegError):
            yield from packet.decode()
    with suppress(FFmpegError):
        yield from cast(Any, stream).decode(None)  # frames that the decoder still holds back


def start_of(container: InputContainer) -> Fraction:
    """Seconds on the streams' clock at which the container starts: the zero of every time in avpt."""
    return (container.start_time or 0) * CONTAINER_TICK


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise MediaError("open", f"the file can't be read: {_reason(error)}") from error


@contextmanager
def _opened(source: str | io.BytesIO) -> Iterator[InputContainer]:
    options = {"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
    try:
        container = av.open(source, mode="r", options=options, metadata_errors="replace")
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        raise MediaError("open", f"the file can't be read as media: {_reason(error)}") from error
    with container:
        if container.format.name in NOT_MEDIA:
            raise MediaError("open", "the file can't be read as media: it is text")
        yield container


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0].lower() if text else type(error).__name__
