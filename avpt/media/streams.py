"""Reading the streams of a media file, as far as they can be read; shared by audio and pictures.

Damage is skipped packet by packet instead of ending the clip.

A clip is read twice at most. The quick read opens a file once for both of its streams, seeks to the clip, and
decodes only what the clip shows; it raises ShortCutError wherever it might differ from the plain read. The plain read
opens the file for one stream and decodes all of it, from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Discard, Disposition, Stream

from avpt.errors import MediaError
from avpt.media.demuxing import Demuxer, ShortCutError
from avpt.media.lengths import GUESSED, Length, length_of, start_of
from avpt.media.opening import open_media
from avpt.text import format_count
from avpt.types import MAX_PIXELS

MOST_READ_ON = 200_000_000  # the most bytes that are read only to see how long a stream is
PREROLL = Fraction(1, 2)  # seconds of audio before a clip, in which the decoder settles
SEEK_BEYOND = 5.0  # seconds into a file; an earlier start is as cheap to reach by reading on
SEEK_MARGIN = 2.0  # seconds before the start; a seek aims there, since it finds key frames by their decoding time
# containers in which a seek lands on a known time
SEEKABLE = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "wav", "flac"})
TRUNCATED = 0.9  # of the length that the file states; a stream that ends before is reported
SHORT_HOLES = 0.25  # seconds in all; shorter holes are explained by packets that do not decode
CLOCK_BACK = 0.1  # seconds; stamps that go back by more are of another clock (ffmpeg has the same limit)
RESETS = 0x200  # FFmpeg's AVFMT_TS_DISCONT, a flag of transport and program streams and Ogg

Kind = Literal["audio", "video"]
Read = TypeVar("Read")


@dataclass
class Track:
    """One stream of an open file, read packet by packet."""

    stream: Any
    demuxer: Demuxer
    origin: Fraction  # seconds on the stream's clock at which the container starts: the zero of every time in avpt
    quick: bool  # whether what the clip does not show may be skipped
    sought: bool = False  # whether a seek came first, so that the packets do not begin where the stream does
    length: Length = field(default_factory=Length)  # according to the file
    guessed: bool = False  # whether its stamps are computed from the bit rate
    resets: bool = False  # whether its clock may restart in the middle
    restarted: bool = False  # whether it has done so
    damaged: int = 0  # packets that did not decode
    corrupt: int = 0  # frames of the clip that FFmpeg marks as damaged
    holes: list[Fraction] = field(default_factory=list)  # seconds that are missing within the clip
    end: Fraction | None = None  # seconds; the end of what decodes, None if reading stopped before
    reach: int = 0  # stamp; the end of the packets read so far, whether they decode or not
    unstamped: int = 0  # ticks; the duration of packets without a stamp
    stamps: list[int] = field(default_factory=list)  # of the pictures read so far
    remarks: list[str] = field(default_factory=list)  # what else users should know about it

    @property
    def stated(self) -> Fraction | None:
        """The end of the stream according to its file, in seconds."""
        return None if self.length.end is None else self.length.end - self.origin

    def stamp(self, seconds: Fraction) -> int:
        """The last instant of the stream's clock at or before a time in seconds."""
        return int((seconds + self.origin) // self.stream.time_base)

    def packets(self) -> Iterator[Any]:
        """The packets that are not read yet; `reach` follows how far they go."""
        latest: int | None = None
        while (packet := self.demuxer.next(self.stream.index)) is not None:
            if packet.dts is not None:
                back = 0 if latest is None else latest - packet.dts
                if self.quick and back > 0:
                    raise ShortCutError  # a clock that goes back can't be relied on
                if self.resets and back * self.stream.time_base > CLOCK_BACK:
                    seconds, self.restarted = float(back * self.stream.time_base), True
                    self.remarks.append(f"joined: its clock goes back by {seconds:.2f} s; what follows is put behind")
                latest = packet.dts
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None and not packet.is_discard:
                self.reach = max(self.reach, stamp + (packet.duration or 0))
                if self.stream.type == "video":
                    self.stamps.append(stamp)
            elif stamp is None:
                self.unstamped += packet.duration or 0
            yield packet

    def drop(self) -> None:
        """Stop reading this stream."""
        self.demuxer.drop(self.stream.index)

    def seconds(self, start: float, end: float | None) -> float | None:
        """The length of the clip from `start` to `end`; None if it can't be known.

        If the file does not say how long the stream is, its packets are read to the end, but not decoded; in a huge
        file, only enough of them to know that it is longer than any clip.
        """
        last = self.stated if self.end is None else self.end
        if last is None:
            last = self._read_on(end)
        ends = [float(each) for each in (last, end) if each is not None and each > start]
        return min(ends) - start if ends else None

    def _read_on(self, end: float | None) -> Fraction | None:
        """Seconds at which the packets end, or a point beyond `end`; None if they have no stamps."""

        def reached() -> Fraction:
            return (self.reach + self.unstamped) * Fraction(self.stream.time_base) - self.origin

        packets = self.packets()
        with suppress(StopIteration, MediaError, ShortCutError):  # damage behind the clip does not matter
            size = 0
            while size < MOST_READ_ON and (end is None or reached() < end):
                size += next(packets).size
        return reached() or None

    def troubles(self, start: float, end: float | None) -> list[str]:
        """What is wrong, from `start` to `end`, with a stream that could be read all the same."""
        troubles = list(dict.fromkeys(self.remarks))
        if sum(self.holes) > (SHORT_HOLES if self.damaged else 0):
            filled = "silence instead" if self.stream.type == "audio" else "the picture before stands still"
            troubles.append(f"hole: {float(sum(self.holes)):.2f} s are missing in between; {filled}")
        if self.end is not None and end is not None and end - self.end > (1 - TRUNCATED) * (end - start):
            troubles.append(f"short: it ends at {float(self.end):.2f} s, and the clip at {end:.2f} s")
        elif self.end is not None and self.length.more > (1 - TRUNCATED) * self.end:
            more = float(self.length.more)
            troubles.append(f"short: its header says {float(self.end):.2f} s, and {more:.2f} s more lie behind that")
        elif self.end is not None and self.stated and self.end < Fraction(TRUNCATED) * self.stated:
            troubles.append(f"truncated: it ends at {float(self.end):.2f} s of {float(self.stated):.2f} s")
        elif self.end is not None and self.demuxer.broken:
            troubles.append(f"damaged: the file can't be read beyond {float(self.end):.2f} s: {self.demuxer.broken}")
        wrong = [f"{format_count(self.damaged, 'packet')} can't be decoded"] * (self.damaged > 0)
        wrong += [f"{format_count(self.corrupt, 'frame')} decoded with errors"] * (self.corrupt > 0)
        return troubles + [f"damaged: {', '.join(wrong)}"] * bool(wrong)


Opened = Mapping[Kind, Track | None]  # the tracks of one file; None if it has no such stream


@contextmanager
def open_tracks(
    path: Path, kinds: Iterable[Kind], start: float = 0.0, audio_stream: int | None = None
) -> Iterator[dict[Kind, Track | None]]:
    """Open FFmpeg's choice of each kind of stream for a quick read from `start` on; None if there is no such stream.

    The file is read once: packets wait until their stream is asked for them. `audio_stream` selects an audio stream
    by its number among them, from 0.
    """
    with open_media(path) as container:
        choices = {kind: streams_of(container, kind, audio_stream if kind == "audio" else None) for kind in kinds}
        chosen = {kind: next(iter(streams), None) for kind, streams in choices.items()}
        streams = [stream for stream in chosen.values() if stream is not None]
        quick = all(_is_timed(container, stream) for stream in streams)
        sought = quick and bool(streams) and start > SEEK_BEYOND and container.format.name in SEEKABLE
        if sought:
            guide = chosen.get("video") or streams[0]
            at = Fraction(start) - Fraction(SEEK_MARGIN) + start_of(container)
            with suppress(FFmpegError):
                container.seek(int(at / cast(Fraction, guide.time_base)), stream=guide)
        tracks = _tracks(container, path, streams, quick=quick, sought=sought)
        for several in choices.values():
            _note_choice(tracks, several, 0)
        yield {kind: None if stream is None else tracks[stream.index] for kind, stream in chosen.items()}


def read_best(
    path: Path,
    kind: Kind,
    read: Callable[[Track], Read],
    start: float,
    opened: Opened | None,
    audio_stream: int | None = None,
) -> Read | None:
    """Apply `read` to the best stream of one kind that it can read; None if the file has none.

    A quick read comes first, on `opened` if the caller has the file open; then plain reads of FFmpeg's choice and of
    the other streams in order. If `read` raises MediaError on every one, the first error is raised. Cover pictures do
    not count as a picture stream. With `audio_stream`, only that stream is tried.
    """
    with open_tracks(path, [kind], start, audio_stream) if opened is None else nullcontext(opened) as tracks:
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
        with open_media(path) as container:  # again for each stream: the one before has used up the packets
            streams = streams_of(container, kind, audio_stream if kind == "audio" else None)
            if position == len(streams):
                break
            track = plain_track(container, path, streams[position])
            _note_choice({track.stream.index: track}, streams, position)
            try:
                return read(track)
            except MediaError as error:
                problem = problem or error
    assert problem is not None
    raise problem


def streams_of(container: InputContainer, kind: Kind, wanted: int | None = None) -> list[Stream]:
    """The streams of one kind, FFmpeg's choice first, without cover pictures; or only stream number `wanted`.

    Raises MediaError if there are streams, but not that one.
    """
    cover = Disposition.attached_pic
    streams = [stream for stream in container.streams if stream.type == kind and not stream.disposition & cover]
    if wanted is not None and streams:
        if wanted >= len(streams):
            has = format_count(len(streams), "sound stream")
            raise MediaError("audio", f"it has {has}, and no number {wanted} (they count from 0)")
        return [streams[wanted]]
    best = container.streams.best(kind)
    return sorted(streams, key=lambda stream: best is None or stream.index != best.index)


def _note_choice(tracks: Mapping[int, Track], streams: list[Stream], position: int) -> None:
    """Note in a track that its file has others of its kind."""
    if len(streams) > 1:
        track = tracks[streams[position].index]
        number = sorted(stream.index for stream in streams).index(track.stream.index)
        what, fails = ("sound" if track.stream.type == "audio" else "picture"), ", as others do not decode"
        why = fails * (position > 0)
        track.remarks.append(f"tracks: number {number} of {len(streams)} {what} streams is taken{why}")


def plain_track(container: InputContainer, path: Path, stream: Stream) -> Track:
    """One stream of a file, to be read from the beginning."""
    return _tracks(container, path, [stream], quick=False)[stream.index]


def decode(track: Track, packets: Iterable[Any] | None = None) -> Iterator[Any]:
    """The frames of a stream that decode, in the order they are shown, up to where the container breaks.

    `packets` are those of the track, or some of them; after a None among them the decoder restarts.
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


def _tracks(
    container: InputContainer, path: Path, streams: list[Stream], *, quick: bool, sought: bool = False
) -> dict[int, Track]:
    """A track for each of the streams, by its index; the other streams are not read at all."""
    for stream in container.streams:
        if stream not in streams:
            stream.discard = Discard.all
    demuxer = Demuxer(container, streams)
    tracks = {}
    for stream in streams:
        codec = stream.codec_context
        if codec is not None:
            codec.thread_count = 1  # clips are decoded in parallel, one core each
            codec.options = {"max_pixels": str(MAX_PIXELS)}
        tracks[stream.index] = Track(
            stream=stream,
            demuxer=demuxer,
            origin=start_of(container),
            quick=quick,
            sought=sought,
            length=length_of(container, stream, path),
            guessed=container.format.name in GUESSED,
            resets=bool(container.format.flags & RESETS),
        )
    return tracks


def _is_timed(container: InputContainer, stream: Stream) -> bool:
    """Whether stamps can be relied on: in WAV files, those of audio that is not PCM come from the bit rate."""
    return container.format.name != "wav" or str(stream.codec_context and stream.codec_context.name).startswith("pcm_")
