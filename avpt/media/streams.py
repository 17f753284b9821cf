"""Reading what can be read of a media file: shared by sound and picture.

Damage is skipped packet by packet instead of ending the clip.

A clip is read twice at most. The quick way opens a file once for both of its streams, seeks to the clip, and
decodes only what the clip shows; it raises ShortCutError wherever it might not see what the plain way sees. The
plain way opens the file for one stream and decodes all of it, from the beginning.
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
from avpt.types import MAX_PIXELS

MOST_READ_ON = 200_000_000  # bytes that are read only to see how long a stream is
PREROLL = Fraction(1, 2)  # seconds of sound before a clip from which its decoder settles
SEEK_BEYOND = 5.0  # seconds into a file; an earlier start is as cheap to reach by reading on
SEEK_MARGIN = 2.0  # seconds before the start that a seek aims at, since key frames are found by decoding time
SEEKABLE = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "wav", "flac"})  # a seek lands on a known time
TRUNCATED = 0.9  # of the length that its file states; a stream that ends before is reported
SHORT_HOLES = 0.25  # seconds in all that packets which do not decode leave behind
CLOCK_BACK = 0.1  # seconds; stamps that go back by more are another clock's (ffmpeg draws the line there too)
RESETS = 0x200  # FFmpeg's AVFMT_TS_DISCONT: of transport and program streams, Ogg

Kind = Literal["audio", "video"]
Read = TypeVar("Read")


@dataclass
class Track:
    """One stream of an open file, read packet by packet."""

    stream: Any
    demuxer: Demuxer
    origin: Fraction  # seconds on the stream's clock at which the container starts: the zero of every time in avpt
    quick: bool  # what the clip does not show may be passed over
    sought: bool = False  # the packets do not begin where the stream does
    length: Length = field(default_factory=Length)  # by the file's own word
    guessed: bool = False  # its stamps are made up from the bit rate
    resets: bool = False  # its clock may begin anew in the midst of it
    restarted: bool = False  # it has
    damaged: int = 0  # packets that did not decode
    corrupt: int = 0  # frames of the clip that FFmpeg marks as damaged
    holes: list[Fraction] = field(default_factory=list)  # seconds that are missing in the midst of the clip
    end: Fraction | None = None  # seconds; where what decodes comes to its end, None where reading stopped before
    reach: int = 0  # stamp; where the packets read so far come to their end, whether they decode or not
    unstamped: int = 0  # ticks that those last which have no stamp
    stamps: list[int] = field(default_factory=list)  # of the pictures read so far
    told: list[str] = field(default_factory=list)  # what else there is to say of it

    @property
    def stated(self) -> Fraction | None:
        """Seconds at which the stream ends by its file's own word."""
        return None if self.length.end is None else self.length.end - self.origin

    def stamp(self, seconds: Fraction) -> int:
        """The last instant of the stream's clock at or before a time in seconds."""
        return int((seconds + self.origin) // self.stream.time_base)

    def packets(self) -> Iterator[Any]:
        """The packets that are not read yet; `reach` keeps account of how far they go."""
        latest: int | None = None
        while (packet := self.demuxer.next(self.stream.index)) is not None:
            if packet.dts is not None:
                back = 0 if latest is None else latest - packet.dts
                if self.quick and back > 0:
                    raise ShortCutError  # a clock that goes back tells no time
                if self.resets and back * self.stream.time_base > CLOCK_BACK:
                    seconds, self.restarted = float(back * self.stream.time_base), True
                    self.told.append(f"joined: its clock goes back by {seconds:.2f} s; what follows is put behind")
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
        """Read no more of it."""
        self.demuxer.drop(self.stream.index)

    def seconds(self, start: float, end: float | None) -> float | None:
        """How long the clip from `start` to `end` is, None where nothing tells.

        Where the file does not say how long the stream is, the packets up to its end are read, not decoded; of a huge
        one so many that it is known to be longer than clips are.
        """
        last = self.stated if self.end is None else self.end
        if last is None:
            last = self._read_on(end)
        ends = [float(each) for each in (last, end) if each is not None and each > start]
        return min(ends) - start if ends else None

    def _read_on(self, end: float | None) -> Fraction | None:
        """Seconds at which the packets end, or some beyond `end`; None where they do not tell."""

        def reached() -> Fraction:
            return (self.reach + self.unstamped) * Fraction(self.stream.time_base) - self.origin

        packets = self.packets()
        with suppress(StopIteration, MediaError, ShortCutError):  # what lies behind the clip can't spoil it
            size = 0
            while size < MOST_READ_ON and (end is None or reached() < end):
                size += next(packets).size
        return reached() or None

    def troubles(self, start: float, end: float | None) -> list[str]:
        """What went wrong with a stream that could be read all the same, from `start` to `end`."""
        found = list(dict.fromkeys(self.told))
        if sum(self.holes) > (SHORT_HOLES if self.damaged else 0):
            filled = "silence instead" if self.stream.type == "audio" else "the picture before stands still"
            found.append(f"hole: {float(sum(self.holes)):.2f} s are missing in between; {filled}")
        if self.end is not None and end is not None and end - self.end > (1 - TRUNCATED) * (end - start):
            found.append(f"short: it ends at {float(self.end):.2f} s, and the clip at {end:.2f} s")
        elif self.end is not None and self.length.more > (1 - TRUNCATED) * self.end:
            more = float(self.length.more)
            found.append(f"short: its header says {float(self.end):.2f} s, and {more:.2f} s more lie behind that")
        elif self.end is not None and self.stated and self.end < Fraction(TRUNCATED) * self.stated:
            found.append(f"truncated: it ends at {float(self.end):.2f} s of {float(self.stated):.2f} s")
        elif self.end is not None and self.demuxer.broken:
            found.append(f"damaged: the file can't be read beyond {float(self.end):.2f} s: {self.demuxer.broken}")
        wrong = [f"{_counted(self.damaged, 'packet')} can't be decoded"] * (self.damaged > 0)
        wrong += [f"{_counted(self.corrupt, 'frame')} decoded with errors"] * (self.corrupt > 0)
        return found + [f"damaged: {', '.join(wrong)}"] * bool(wrong)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


Opened = Mapping[Kind, Track | None]  # of one file; None where it has no such stream


@contextmanager
def open_tracks(
    path: Path, kinds: Iterable[Kind], start: float = 0.0, audio_stream: int | None = None
) -> Iterator[dict[Kind, Track | None]]:
    """FFmpeg's choice of each kind of stream, or None, for a quick look at what is there from `start` on.

    The file is read once: a packet that comes before its stream is asked for it waits. With `audio_stream` the sound
    is the stream of that number among those with sound, from 0.
    """
    with open_media(path) as container:
        choices = {kind: streams_of(container, kind, audio_stream if kind == "audio" else None) for kind in kinds}
        found = {kind: next(iter(streams), None) for kind, streams in choices.items()}
        streams = [stream for stream in found.values() if stream is not None]
        quick = all(_is_timed(container, stream) for stream in streams)
        sought = quick and bool(streams) and start > SEEK_BEYOND and container.format.name in SEEKABLE
        if sought:
            guide = found.get("video") or streams[0]
            at = Fraction(start) - Fraction(SEEK_MARGIN) + start_of(container)
            with suppress(FFmpegError):
                container.seek(int(at / cast(Fraction, guide.time_base)), stream=guide)
        tracks = _tracks(container, path, streams, quick=quick, sought=sought)
        for several in choices.values():
            _tell_choice(tracks, several, 0)
        yield {kind: None if stream is None else tracks[stream.index] for kind, stream in found.items()}


def read_best(
    path: Path,
    kind: Kind,
    read: Callable[[Track], Read],
    start: float,
    opened: Opened | None,
    audio_stream: int | None = None,
) -> Read | None:
    """What `read` makes of the best stream of one kind that it can read; None where the file has none.

    The quick way is tried first, on `opened` where the caller has the file open; then the plain way, on FFmpeg's
    choice and on the other streams in order. Where `read` raises MediaError on every one, the first error stands.
    Cover pictures are not a picture stream. `audio_stream` leaves no choice.
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
        with open_media(path) as container:  # afresh for each stream: the one before has used up the packets
            streams = streams_of(container, kind, audio_stream if kind == "audio" else None)
            if position == len(streams):
                break
            track = plain_track(container, path, streams[position])
            _tell_choice({track.stream.index: track}, streams, position)
            try:
                return read(track)
            except MediaError as error:
                problem = problem or error
    assert problem is not None
    raise problem


def streams_of(container: InputContainer, kind: Kind, wanted: int | None = None) -> list[Stream]:
    """The streams of one kind, FFmpeg's choice first, without cover pictures; or only the one that is wanted.

    MediaError where there are some, but not that one.
    """
    cover = Disposition.attached_pic
    streams = [stream for stream in container.streams if stream.type == kind and not stream.disposition & cover]
    if wanted is not None and streams:
        if wanted >= len(streams):
            has = _counted(len(streams), "sound stream")
            raise MediaError("audio", f"it has {has}, and no number {wanted} (they count from 0)")
        return [streams[wanted]]
    best = container.streams.best(kind)
    return sorted(streams, key=lambda stream: best is None or stream.index != best.index)


def _tell_choice(tracks: Mapping[int, Track], streams: list[Stream], position: int) -> None:
    """Note with a track that its file has others."""
    if len(streams) > 1:
        track = tracks[streams[position].index]
        number = sorted(stream.index for stream in streams).index(track.stream.index)
        what, fails = ("sound" if track.stream.type == "audio" else "picture"), ", as others do not decode"
        track.told.append(f"tracks: number {number} of {len(streams)} {what} streams is taken{fails * (position > 0)}")


def plain_track(container: InputContainer, path: Path, stream: Stream) -> Track:
    """One stream of a file, to be read from the beginning."""
    return _tracks(container, path, [stream], quick=False)[stream.index]


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


def _tracks(
    container: InputContainer, path: Path, streams: list[Stream], *, quick: bool, sought: bool = False
) -> dict[int, Track]:
    """A track for each of the streams, by its index; the others are not read at all."""
    for stream in container.streams:
        if stream not in streams:
            stream.discard = Discard.all
    demuxer = Demuxer(container, streams)
    tracks = {}
    for stream in streams:
        codec = stream.codec_context
        if codec is not None:
            codec.thread_count = 1  # clips are decoded side by side, one core each
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
    """Whether stamps can be believed: those of sound that is not PCM in a WAV file come from the bit rate."""
    return container.format.name != "wav" or str(stream.codec_context and stream.codec_context.name).startswith("pcm_")
