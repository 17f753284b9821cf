"""Opening media safely, and reading what can be read: shared by sound and picture.

FFmpeg (through PyAV) reads files that strangers made: a file may name no network address, a frame has a
largest size, and damage is skipped packet by packet instead of ending the clip.

A clip is read twice at most. The quick way opens a file once for both of its streams, seeks to the clip, and
decodes only what the clip shows; it raises ShortCutError wherever it might not see what the plain way sees. The
plain way opens the file for one stream and decodes all of it, from the beginning.
"""

from __future__ import annotations

import errno
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Discard, Disposition, Stream

from avpt.errors import MediaError

MAX_PIXELS = 64_000_000  # pixels of one decoded frame; a larger one is refused before it is allocated
MAX_WAITING = 100_000_000  # bytes of one stream's packets that are kept while the other is read
CONTAINER_TICK = Fraction(1, 1_000_000)  # seconds; the unit of a container's start time (AV_TIME_BASE)
PREROLL = Fraction(1, 2)  # seconds of sound before a clip from which its decoder settles
SEEK_BEYOND = 5.0  # seconds into a file; an earlier start is as cheap to reach by reading on
SEEK_MARGIN = 2.0  # seconds before the start that a seek aims at, since key frames are found by decoding time
SEEKABLE = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "wav", "flac"})  # a seek lands on a known time
TRUNCATED = 0.9  # of its container's duration; a stream that ends before is reported
GUESSED = frozenset({"aac", "ac3", "amr", "dts", "eac3", "loas", "mp3", "truehd"})  # durations, from the bit rate
UNREADABLE = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO})  # the disk's fault, not the file's

NOT_MEDIA = frozenset({"tty"})  # the demuxer that draws any .txt file as pictures of a terminal

Kind = Literal["audio", "video"]
Read = TypeVar("Read")


class ShortCutError(Exception):
    """The quick way of reading is in doubt here; the plain way is not."""


@dataclass
class Track:
    """One stream of an open file, read packet by packet."""

    stream: Any
    demuxer: _Demuxer
    origin: Fraction  # seconds on the stream's clock at which the container starts: the zero of every time in avpt
    duration: Fraction | None  # seconds that the container says it lasts
    quick: bool  # what the clip does not show may be passed over
    sought: bool = False  # the packets do not begin where the stream does
    damaged: int = 0  # packets that did not decode
    end: Fraction | None = None  # seconds; where what decodes comes to its end, None where reading stopped before
    reach: int = 0  # stamp; where the packets read so far come to their end, whether they decode or not

    def stamp(self, seconds: Fraction) -> int:
        """The last instant of the stream's clock at or before a time in seconds."""
        return int((seconds + self.origin) // self.stream.time_base)

    def packets(self) -> Iterator[Any]:
        """The packets that are not read yet; `reach` keeps account of how far they go."""
        latest: int | None = None
        while (packet := self.demuxer.next(self.stream.index)) is not None:
            if packet.dts is not None:
                if self.quick and latest is not None and packet.dts < latest:
                    raise ShortCutError  # a clock that goes back tells no time
                latest = packet.dts
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None and not packet.is_discard:
                self.reach = max(self.reach, stamp + (packet.duration or 0))
            yield packet

    def drop(self) -> None:
        """Read no more of it."""
        self.demuxer.drop(self.stream.index)

    def troubles(self, start: float, end: float | None) -> list[str]:
        """What went wrong with a stream that could be read all the same, from `start` to `end`."""
        found = []
        if self.end is not None and end is not None and end - self.end > (1 - TRUNCATED) * (end - start):
            found.append(f"short: it ends at {float(self.end):.2f} s, and the clip at {end:.2f} s")
        elif self.end is not None and self.duration and self.end < Fraction(TRUNCATED) * self.duration:
            found.append(f"truncated: it ends at {float(self.end):.2f} s of {float(self.duration):.2f} s")
        if self.damaged:
            found.append(f"damaged: {self.damaged} packet{'s' * (self.damaged > 1)} can't be decoded")
        return found


Opened = Mapping[Kind, Track | None]  # of one file; None where it has no such stream


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


@contextmanager
def open_tracks(path: Path, kinds: Iterable[Kind], start: float = 0.0) -> Iterator[dict[Kind, Track | None]]:
    """FFmpeg's choice of each kind of stream, or None, for a quick look at what is there from `start` on.

    The file is read once: a packet that comes before its stream is asked for it waits.
    """
    with open_media(path) as container:
        found = {kind: next(iter(streams_of(container, kind)), None) for kind in kinds}
        streams = [stream for stream in found.values() if stream is not None]
        quick = all(_is_timed(container, stream) for stream in streams)
        sought = quick and bool(streams) and start > SEEK_BEYOND and container.format.name in SEEKABLE
        if sought:
            guide = found.get("video") or streams[0]
            at = Fraction(start) - Fraction(SEEK_MARGIN) + _start_of(container)
            with suppress(FFmpegError):
                container.seek(int(at / cast(Fraction, guide.time_base)), stream=guide)
        tracks = _tracks(container, streams, quick=quick, sought=sought)
        yield {kind: None if stream is None else tracks[stream.index] for kind, stream in found.items()}


def read_best(
    path: Path, kind: Kind, read: Callable[[Track], Read], start: float, opened: Opened | None
) -> Read | None:
    """What `read` makes of the best stream of one kind that it can read; None where the file has none.

    The quick way is tried first, on `opened` where the caller has the file open; then the plain way, on FFmpeg's
    choice and on the other streams in order. Where `read` raises MediaError on every one, the first error stands.
    Cover pictures are not a picture stream.
    """
    with open_tracks(path, [kind], start) if opened is None else nullcontext(opened) as tracks:
        track = tracks[kind]
        if track is None:
            return None
        with suppress(MediaError, ShortCutError):
            try:
                return read(track)
            finally:
                track.drop()
    problem: MediaError | None = None
    for position in count():
        with open_media(path) as container:  # afresh for each stream: the one before has used up the packets
            streams = streams_of(container, kind)
            if position == len(streams):
                break
            stream = streams[position]
            try:
                return read(plain_track(container, stream))
            except MediaError as error:
                problem = problem or error
    assert problem is not None
    raise problem


def streams_of(container: InputContainer, kind: Kind) -> list[Stream]:
    """The streams of one kind, FFmpeg's choice first, without cover pictures."""
    best = container.streams.best(kind)
    cover = Disposition.attached_pic
    streams = [stream for stream in container.streams if stream.type == kind and not stream.disposition & cover]
    return sorted(streams, key=lambda stream: best is None or stream.index != best.index)


def plain_track(container: InputContainer, stream: Stream) -> Track:
    """One stream of a file, to be read from the beginning."""
    return _tracks(container, [stream], quick=False)[stream.index]


def decode(track: Track, packets: Iterable[Any] | None = None) -> Iterator[Any]:
    """The frames of a stream that decode, in the order they are shown, up to where the container breaks.

    `packets` are those of the track, or some of them; after a None among them the decoder starts afresh.
    """
    if track.stream.codec_context is None:  # an unknown codec; decoding with it would crash the process
        return
    for packet in track.packets() if packets is None else packets:
        yield from _decoded(track, packet)
        if packet is None:
            track.stream.codec_context.flush_buffers()
    yield from _decoded(track, None)  # frames that the decoder still holds back


def _decoded(track: Track, packet: Any) -> list[Any]:
    try:
        return list(track.stream.decode(packet))
    except MemoryError:
        raise
    except FFmpegError:
        track.damaged += packet is not None
        return []


def _tracks(container: InputContainer, streams: list[Stream], *, quick: bool, sought: bool = False) -> dict[int, Track]:
    """A track for each of the streams, by its index; the others are not read at all."""
    for stream in container.streams:
        if stream not in streams:
            stream.discard = Discard.all
    duration = _duration(container)
    demuxer = _Demuxer(container, streams)
    tracks = {}
    for stream in streams:
        codec = stream.codec_context
        if codec is not None:
            codec.thread_count = 1  # clips are decoded side by side, one core each
            codec.options = {"max_pixels": str(MAX_PIXELS)}
        tracks[stream.index] = Track(stream, demuxer, _start_of(container), duration, quick, sought)
    return tracks


class _Demuxer:
    """The packets of some streams of a file, which is read once: those that nobody has asked for yet wait."""

    def __init__(self, container: InputContainer, streams: list[Stream]) -> None:
        self.source = container.demux(*cast(Any, streams))
        self.waiting: dict[int, deque[Any]] = {stream.index: deque() for stream in streams}
        self.held = 0  # bytes that wait
        self.exhausted = False

    def next(self, index: int) -> Any:
        """The next packet of a stream, None where there is none."""
        mine = self.waiting[index]
        while not mine and not self.exhausted:
            self._pull()
        if not mine:
            return None
        packet = mine.popleft()
        self.held -= packet.size
        return packet

    def drop(self, index: int) -> None:
        """Let a stream's packets go by from now on."""
        self.held -= sum(packet.size for packet in self.waiting.pop(index, ()))

    def _pull(self) -> None:
        try:
            packet = next(self.source)
        except MemoryError:
            raise
        except (StopIteration, FFmpegError) as error:
            if getattr(error, "errno", None) in UNREADABLE:
                raise MediaError("open", f"the file can't be read to its end: {_reason(error)}") from error
            self.exhausted = True
            return
        queue = self.waiting.get(packet.stream_index)
        if packet.size and queue is not None:  # FFmpeg reads an empty packet as an error or, worse, as the end
            queue.append(packet)
            self.held += packet.size
            if self.held > MAX_WAITING:
                raise ShortCutError


def _is_timed(container: InputContainer, stream: Stream) -> bool:
    """Whether stamps can be believed: those of sound that is not PCM in a WAV file come from the bit rate."""
    return container.format.name != "wav" or str(stream.codec_context and stream.codec_context.name).startswith("pcm_")


def _duration(container: InputContainer) -> Fraction | None:
    """Seconds that a container says it lasts, None where it does not."""
    if not container.duration or container.duration < 0 or container.format.name in GUESSED:
        return None
    duration = container.duration * CONTAINER_TICK
    # Matroska's is the time of its end, not counted from its start
    return duration - max(_start_of(container), Fraction(0)) if "matroska" in container.format.name else duration


def _start_of(container: InputContainer) -> Fraction:
    """Seconds on the streams' clock at which the container starts."""
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
    except MemoryError:
        raise
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        raise MediaError("open", f"the file can't be read as media: {_reason(error)}") from error
    with container:
        if container.format.name in NOT_MEDIA:
            raise MediaError("open", "the file can't be read as media: it is text")
        yield container


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0].lower() if text else type(error).__name__
