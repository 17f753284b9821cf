"""The clips that the tests read, made with PyAV: ordinary ones, odd ones, cut, damaged and hardly any.

Every picture says its number: twelve tiles, bright or dark as its bits (`numbered`, `number_of`). Every second of sound
has its own pitch (`tones`). What no muxer writes is patched into the bytes that it wrote.
"""

from __future__ import annotations

import colorsys
import heapq
import struct
import wave
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

ROWS, COLUMNS = 3, 4  # of tiles in a picture
DARK, BRIGHT = 40, 215  # the largest channel of a tile
PIECE = Fraction(1, 25)  # seconds of sound that are encoded at a time
TURNS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # degrees clockwise
MIRRORED = (0, 1, 1, 0)  # rows become columns
FILMS = {"red.webm": 8, "green.webm": 8, "blue.webm": 6}  # seconds; a hue and a pitch each
LARGE = (360, 640)  # height, width
NTSC = Fraction(30000, 1001)
X264 = {"preset": "veryfast", "g": "45", "sc_threshold": "0"}  # key frames every 45, and nowhere else
VPX = {"deadline": "realtime", "cpu-used": "8", "g": "50"}
COVERS = {"mjpeg": "yuvj420p", "png": "rgb24"}  # pixels by codec
FRAGMENTED = "frag_keyframe+empty_moov+default_base_moof"


# --- what is seen and heard ----------------------------------------------------------------------------------------


def hues(first: float = 0.0, last: float = 1.0) -> np.ndarray:
    """(12, 3): full colours from one hue to another, one a tile."""
    steps = np.linspace(first, last, ROWS * COLUMNS, endpoint=False)
    return np.array([colorsys.hsv_to_rgb(hue % 1, 0.9, 1.0) for hue in steps])


GREY = np.ones((ROWS * COLUMNS, 3))
RAINBOW = hues()


def numbered(number: int, height: int = 48, width: int = 64, colours: np.ndarray = GREY) -> np.ndarray:
    """(height, width, 3): a picture whose tiles are dark or bright as the bits of its number."""
    bits = np.array([number >> bit & 1 for bit in range(ROWS * COLUMNS)])
    tiles = np.where(bits, BRIGHT, DARK)[:, None] * colours
    small = tiles.round().astype(np.uint8).reshape(ROWS, COLUMNS, 3)
    columns, rows = np.arange(width) * COLUMNS // width, np.arange(height) * ROWS // height
    return np.asarray(small[:, columns][rows])


def number_of(picture: np.ndarray) -> int:
    """The number of a picture (height, width, 3) of any colours, or of a grey one (height, width)."""
    light = picture.max(axis=2) if picture.ndim == 3 else picture
    number = 0
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        tile = light[middle(row, ROWS, light.shape[0]), middle(column, COLUMNS, light.shape[1])]
        number |= int(tile.mean() > (DARK + BRIGHT) / 2) << bit
    return number


def middle(index: int, count: int, size: int) -> slice:
    """The middle half of one of `count` equal parts."""
    return slice(int((index + 0.25) * size / count), int((index + 0.75) * size / count) + 1)


def numbers(count: int, height: int, width: int, colours: np.ndarray = RAINBOW) -> Iterator[np.ndarray]:
    """Pictures from number 0 on."""
    return (numbered(number, height, width, colours) for number in range(count))


def tones(seconds: float, rate: int, channels: int = 1, pitch: float = 300.0, hiss: float = 300.0) -> np.ndarray:
    """(samples, channels) int16: a tone 100 Hz higher each second and 110 Hz each channel, over soft noise."""
    times = np.arange(round(seconds * rate)) / rate
    hertz = pitch + 100.0 * np.floor(times)[:, None] + 110.0 * np.arange(channels)
    tone = 9000 * np.sin(2 * np.pi * np.cumsum(hertz, axis=0) / rate)
    noise = np.random.default_rng(0).normal(0, hiss, tone.shape)
    return np.asarray(np.round(tone + noise)).astype(np.int16)


# --- encoding ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A stream of pictures, and how it is encoded."""

    drawn: Iterable[np.ndarray]  # (height, width, 3) uint8 each
    codec: str = "libx264"
    pixels: str = "yuv420p"
    rate: int | Fraction = 30
    stamps: Iterable[int] | None = None  # milliseconds, where the rate varies
    begin: int = 0  # seconds; the first stamp
    aspect: Fraction | None = None  # of a pixel
    bit_rate: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def frames(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Every frame with its time in seconds."""
        tick = 1 / Fraction(self.rate) if self.stamps is None else Fraction(1, 1000)
        for i, picture in zip(count() if self.stamps is None else self.stamps, self.drawn, strict=False):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base, frame.pts = tick, i + int(self.begin / tick)
            yield i * tick, frame


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A stream of sound, and how it is encoded."""

    samples: np.ndarray  # (samples, channels) int16
    codec: str = "aac"
    rate: int = 44100
    layout: str = "mono"
    begin: int = 0  # seconds
    bit_rate: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def frames(self) -> Iterator[tuple[Fraction, av.AudioFrame]]:
        """Every piece with its time in seconds."""
        size = int(PIECE * self.rate)
        for at in range(0, len(self.samples), size):
            frame = sound_frame(self.samples[at : at + size], self.layout, self.rate, at + self.begin * self.rate)
            yield Fraction(at, self.rate), frame


def sound_frame(samples: np.ndarray, layout: str, rate: int, stamp: int) -> av.AudioFrame:
    """Samples (samples, channels) int16 as a frame."""
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), stamp
    return frame


def write(
    path: Path,
    pictures: Pictures | None = None,
    sound: Sound | None = None,
    *,
    cover: str | None = None,
    prepare: Callable[[Any], None] = lambda container: None,
    flags: str = "",
) -> Path:
    """Encode one stream or both, side by side, into the container that the path's suffix names.

    `cover` is the codec of a cover picture; `prepare` is given the container before its header is written; `flags`
    are those of an MP4 file.
    """
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as container:
        sources: list[tuple[Any, Iterator[tuple[Fraction, Any]]]] = []
        if pictures is not None:
            sources.append(picture_stream(container, pictures))
        if sound is not None:
            sources.append(sound_stream(container, sound))
        if cover is not None:
            drawn = Pictures(drawn=[numbered(0, 90, 120, RAINBOW)], codec=cover, pixels=COVERS[cover])
            sources.append(picture_stream(container, drawn))
            sources[-1][0].disposition = Disposition.attached_pic
        prepare(container)
        timed = [[(time, stream, frame) for time, frame in frames] for stream, frames in sources]
        for _, stream, frame in heapq.merge(*timed, key=lambda each: each[0]):
            container.mux(stream.encode(frame))
        for stream, _ in sources:
            container.mux(stream.encode(None))
    return path


def picture_stream(container: Any, pictures: Pictures) -> tuple[Any, Iterator[tuple[Fraction, Any]]]:
    """A new stream of a container, and its frames."""
    frames = pictures.frames()
    first = next(frames)
    stream = container.add_stream(pictures.codec, rate=pictures.rate, options=dict(pictures.options))
    stream.height, stream.width, stream.pix_fmt = first[1].height, first[1].width, pictures.pixels
    stream.codec_context.time_base = first[1].time_base
    if pictures.codec.startswith("libvpx"):
        stream.codec_context.thread_count = 1  # its threads spin while they wait: on a busy machine for seconds
    if pictures.aspect is not None:
        stream.codec_context.sample_aspect_ratio = pictures.aspect
    if pictures.bit_rate is not None:
        stream.codec_context.bit_rate = pictures.bit_rate
    return stream, chain([first], frames)


def sound_stream(container: Any, sound: Sound) -> tuple[Any, Iterator[tuple[Fraction, Any]]]:
    """A new stream of a container, and its pieces."""
    options = dict(sound.options)
    stream = container.add_stream(sound.codec, rate=sound.rate, layout=sound.layout, options=options)
    if sound.bit_rate is not None:
        stream.codec_context.bit_rate = sound.bit_rate
    return stream, sound.frames()


# --- patching ------------------------------------------------------------------------------------------------------


def replaced(path: Path, old: bytes, new: bytes, after: bytes = b"") -> Path:
    """Write over the first of some bytes, of those that follow others where that is asked."""
    content = path.read_bytes()
    at = content.index(old, content.index(after))
    path.write_bytes(content[:at] + new + content[at + len(old) :])
    assert len(old) == len(new)
    return path


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Give the first track of an MP4 file the matrix a b c d: x' = a x + c y, y' = b x + d y."""
    a, b, c, d = (65536 * n for n in matrix)
    return with_matrix(path, (a, b, 0, c, d, 0, 0, 0, 1 << 30))


def with_matrix(path: Path, matrix: tuple[int, ...]) -> Path:
    """Write the nine numbers of the matrix of the first track header of an MP4 file."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    assert content[at : at + 4] == struct.pack(">i", 65536)
    content[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    return path


def spoiled(
    source: Path, target: Path, kind: Any, within: Callable[[int, float], bool] = lambda number, time: True
) -> Path:
    """A copy of a file with packets of one kind overwritten: those whose number and time in seconds are chosen."""
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets: Any = container.demux(container.streams.best(kind))
        for number, packet in enumerate(packet for packet in packets if packet.size):
            if within(number, float(packet.pts * packet.time_base)):
                at = content.index(bytes(packet), packet.pos)  # Matroska's begin with a header
                content[at : at + packet.size] = b"\xff" * packet.size
    target.write_bytes(content)
    return target


def cut(path: Path, seconds: float) -> Path:
    """Leave what a file holds before the first picture that is shown at a time or later."""
    with av.open(str(path)) as container:
        packets: Any = container.demux(video=0)
        end = next(packet.pos for packet in packets if packet.size and packet.pts * packet.time_base >= seconds)
    path.write_bytes(path.read_bytes()[:end])
    return path


# --- both streams --------------------------------------------------------------------------------------------------


def ordinary(
    path: Path,
    seconds: float = 2.02,
    size: tuple[int, int] = (180, 320),
    *,
    heard: float | None = None,
    rate: int = 30,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    aspect: Fraction | None = None,
    sound: str = "aac",
    options: Mapping[str, str] = X264,
    **rest: Any,
) -> Path:
    """Numbered pictures and stereo tones, of as many seconds unless the sound is `heard` for others."""
    pictures = Pictures(
        drawn=numbers(int(seconds * rate), *size),
        codec=codec,
        pixels=pixels,
        rate=rate,
        aspect=aspect,
        options=options,
    )
    tone = Sound(samples=tones(seconds if heard is None else heard, 44100, 2), codec=sound, layout="stereo")
    return write(path, pictures, tone, **rest)


def film(path: Path, seconds: int, hue: float) -> Path:
    """Pictures of one hue, and a pitch that goes with it."""
    drawn = numbers(25 * seconds, 180, 240, hues(hue - 0.1, hue + 0.1))
    return write(
        path,
        Pictures(drawn=drawn, codec="libvpx", rate=25, bit_rate=400_000, options=VPX),
        Sound(samples=tones(seconds, 48000, pitch=400 + 2000 * hue), codec="libopus", rate=48000, bit_rate=64_000),
    )


def with_cover(path: Path) -> Path:
    return ordinary(path, size=LARGE, cover="mjpeg")


def narrow_pixels(path: Path) -> Path:
    return ordinary(path, size=LARGE, aspect=Fraction(2, 3))


def mirrored(path: Path) -> Path:
    return turned(ordinary(path, 1.0), MIRRORED)


def fragmented(path: Path) -> Path:
    return ordinary(path, 1.5, flags=FRAGMENTED)


def sound_ends_early(path: Path) -> Path:
    """Sound for 0.74 s of 1.2 s; pictures of the full range."""
    return ordinary(path, 1.2, (240, 320), heard=0.74, rate=60, pixels="yuvj420p")


def with_chapters(path: Path) -> Path:
    """Chapters of a second each; chroma as fine as luma."""

    def prepare(container: Any) -> None:
        tick = Fraction(1, 1000)
        starts = [{"id": i, "start": 1000 * i, "end": 1000 * (i + 1), "time_base": tick} for i in range(5)]
        container.set_chapters([start | {"metadata": {"title": str(start["id"])}} for start in starts])

    return ordinary(path, 5.0, (240, 320), pixels="yuv444p", prepare=prepare)


def black_and_silent(path: Path) -> Path:
    black = np.zeros((120, 160, 3), np.uint8)
    pictures = Pictures(drawn=[black] * 300, options=X264)
    return write(path, pictures, Sound(samples=np.zeros((441_000, 1), np.int16)))


def empty_second_track(path: Path) -> Path:
    """Two tracks of pictures, one of which holds none."""

    def prepare(container: Any) -> None:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 360, 640, "yuv420p"

    return ordinary(path, 1.07, prepare=prepare, flags=FRAGMENTED)


def wrong_lengths(path: Path) -> Path:
    """An AVI file whose header says that it is short, and that its media are longer than the file."""
    ordinary(path, 1.97, (144, 256), codec="mpeg4", sound="libmp3lame", options={"g": "15"})
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", 370)
    size = content.index(b"movi") - 4
    content[size : size + 4] = struct.pack("<I", 2**30)
    path.write_bytes(content)
    return path


# --- pictures alone ------------------------------------------------------------------------------------------------


def one_pixel(path: Path) -> Path:
    return write(path, Pictures(drawn=numbers(5, 1, 1), pixels="yuv444p", rate=1, options=X264))


def held(path: Path, degrees: int) -> Path:
    """As a phone writes it that is held upright, or turned."""
    pictures = Pictures(drawn=numbers(3, 320, 568), options=X264)
    return turned(write(path, pictures), TURNS[degrees])


def first_stamp_of_ten_seconds(path: Path) -> Path:
    return write(path, Pictures(drawn=numbers(120, 128, 160), begin=10, options=X264))


def odd_size(path: Path) -> Path:
    return write(path, Pictures(drawn=numbers(30, 121, 161), codec="libvpx-vp9", rate=NTSC, options=VPX))


def ten_bits(path: Path) -> Path:
    return write(path, Pictures(drawn=numbers(30, 200, 200), pixels="yuv420p10le", options=X264))


# --- sound alone ---------------------------------------------------------------------------------------------------


def six_channels(path: Path) -> Path:
    return write(path, None, Sound(samples=tones(3.0, 48000, 6), codec="libopus", rate=48000, layout="5.1"))


def cover_alone(path: Path) -> Path:
    """Sound with a cover, which is a stream of pictures to FFmpeg."""
    sound = Sound(samples=tones(2.74, 48000, 2), codec="flac", rate=48000, layout="stereo")
    return write(path, None, sound, cover="png")


def tag_of_other_bytes(path: Path) -> Path:
    """A tag that is not UTF-8."""
    sound = Sound(samples=tones(2.74, 48000, 2), codec="flac", rate=48000, layout="stereo")
    write(path, None, sound, prepare=lambda container: container.metadata.update(title="latin"))
    return replaced(path, b"latin", b"l\xe4tin")


def mono_wav(path: Path) -> Path:
    """By the standard library, which names no layout of channels."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(tones(4.0, 16000).astype("<i2").tobytes())
    return path


def wide_wav(path: Path) -> Path:
    return write(path, None, Sound(samples=tones(4.0, 8000, hiss=0), codec="pcm_s32le", rate=8000))


# --- cut, damaged, or hardly there ---------------------------------------------------------------------------------


def cut_matroska(path: Path) -> Path:
    """Both streams end at half of two seconds."""
    return cut(ordinary(path), 1.05)


def cut_mp4(path: Path) -> Path:
    """It does not open: the index came last."""
    return cut(ordinary(path), 1.0)


def damaged_picture(path: Path) -> Path:
    """Five seconds of pictures, of which one packet in the middle is damaged."""
    write(path, Pictures(drawn=numbers(50, 180, 320), rate=10, options=X264))
    return spoiled(path, path, "video", lambda number, time: number == 30)


def damaged_end(path: Path) -> Path:
    """A second of pictures, of which the last packet but one is damaged."""
    write(path, Pictures(drawn=numbers(30, 180, 320), rate=NTSC, options=X264))
    return spoiled(path, path, "video", lambda number, time: number == 28)


def undecodable_mp4(path: Path) -> Path:
    """As an encrypted file looks to who has no key: both streams are described, and nothing in them decodes."""
    fragmented(path)
    return spoiled(spoiled(path, path, "video"), path, "audio")


def undecodable_webm(path: Path) -> Path:
    write(path, Pictures(drawn=numbers(50, 240, 320), codec="libvpx-vp9", rate=25, options=VPX))
    return spoiled(path, path, "video")


def sound_of_no_codec(path: Path) -> Path:
    """The sound stream says nothing of how it is coded."""
    return replaced(ordinary(path, 1.0), b"stsd", b"xtsd", after=b"smhd")


def no_picture(path: Path) -> Path:
    """A transport stream that announces pictures, and holds a little sound."""
    samples = tones(0.1, 48000, 2)
    sound = Sound(samples=samples, codec="ac3", rate=48000, layout="stereo")

    def prepare(container: Any) -> None:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"

    return write(path, None, sound, prepare=prepare)


def header_alone(path: Path) -> Path:
    """The first part of a stream that is sent in parts."""
    write(path, Pictures(drawn=numbers(5, 360, 640), options=X264), flags=FRAGMENTED)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"moof") - 4])
    return path


def text_alone(path: Path) -> Path:
    """Sound that says it is text."""
    write(path, None, Sound(samples=tones(1.0, 44100)))
    return replaced(replaced(path, b"soun", b"text"), b"mp4a", b"text", after=b"stsd")


CLIPS: dict[str, Callable[[Path], Path]] = {
    "-one-pixel-.mp4": one_pixel,
    "black_and_silent.mp4": black_and_silent,
    "blue.webm": partial(film, seconds=FILMS["blue.webm"], hue=0.66),
    "cover_alone.flac": cover_alone,
    "cut.mkv": cut_matroska,
    "cut.mp4": cut_mp4,
    "damaged_end.mp4": damaged_end,
    "damaged_picture.mp4": damaged_picture,
    "empty_second_track.mp4": empty_second_track,
    "first_stamp_of_ten_seconds.mp4": first_stamp_of_ten_seconds,
    "fragmented.mp4": fragmented,
    "green.webm": partial(film, seconds=FILMS["green.webm"], hue=0.33),
    "header_alone.mp4": header_alone,
    "held_0.mov": partial(held, degrees=0),
    "held_180.mov": partial(held, degrees=180),
    "held_270.mov": partial(held, degrees=270),
    "held_90.mov": partial(held, degrees=90),
    "mirrored.mp4": mirrored,
    "mono.wav": mono_wav,
    "narrow_pixels.mp4": narrow_pixels,
    "no_picture.ts": no_picture,
    "odd_size.webm": odd_size,
    "ordinary.mkv": ordinary,
    "red.webm": partial(film, seconds=FILMS["red.webm"], hue=0.0),
    "six_channels.ogg": six_channels,
    "sound_ends_early.mp4": sound_ends_early,
    "sound_of_no_codec.mp4": sound_of_no_codec,
    "tag_of_other_bytes.flac": tag_of_other_bytes,
    "ten_bits.mp4": ten_bits,
    "text_alone.mp4": text_alone,
    "undecodable.mp4": undecodable_mp4,
    "undecodable.webm": undecodable_webm,
    "wide.wav": wide_wav,
    "with_chapters.mkv": with_chapters,
    "with_cover.mp4": with_cover,
    "wrong_lengths.avi": wrong_lengths,
}


class Clips:
    """The clips by name, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            unfinished = self.folder / "unfinished" / name
            unfinished.parent.mkdir(exist_ok=True)
            CLIPS[name](unfinished).rename(path)
        return path


def grey_png(path: Path, side: int) -> Path:
    """A PNG of one grey, in RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    compress = zlib.compressobj(1)
    pixels = b"".join(compress.compress(b"\0" + b"\x80" * 3 * side) for _ in range(side)) + compress.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


RATE = 25  # pictures a second
SECONDS = 22  # of most files
REALTIME = {"deadline": "realtime", "cpu-used": "8", "g": "60"}


@dataclass(frozen=True)
class Recipe:
    """How a long file is made."""

    suffix: str
    video: str | None
    audio: str | None
    sample_rate: int = 16000
    exact: bool = False  # its sound is found to the sample
    begin: int = 0  # seconds; the first stamp
    varying: bool = False
    options: dict[str, str] = field(default_factory=dict)


def noise(samples: int, rate: int) -> np.ndarray:
    """(samples,) int16, mostly below 2 kHz, so that every codec keeps its form."""
    width = rate // 4000
    white = np.random.default_rng(0).normal(size=samples + width)
    smooth = np.convolve(white, np.hanning(width + 2)[1:-1], "valid")[:samples]
    return np.asarray(smooth / smooth.std() * 6000).clip(-32000, 32000).astype(np.int16)


def stamps_of(recipe: Recipe, seconds: int) -> list[int]:
    """Milliseconds of each picture."""
    if not recipe.varying:
        return [1000 * i // RATE for i in range(RATE * seconds)]
    steps = np.random.default_rng(1).choice([10, 20, 40, 80, 700], size=RATE * seconds, p=[0.3, 0.3, 0.2, 0.18, 0.02])
    stamps = np.concatenate([[0], np.cumsum(steps)])
    return [int(stamp) for stamp in stamps if stamp < 1000 * seconds]


def make_film(path: Path, recipe: Recipe, seconds: int = SECONDS) -> Path:
    pictures = sound = None
    if recipe.video:
        stamps = stamps_of(recipe, seconds)
        pictures = Pictures(
            drawn=map(numbered, range(len(stamps))),
            codec=recipe.video,
            rate=RATE,
            stamps=stamps if recipe.varying else None,
            begin=recipe.begin,
            bit_rate=400_000,
            options=recipe.options,
        )
    if recipe.audio:
        layout, channels = ("stereo", 2) if recipe.audio == "vorbis" else ("mono", 1)
        sound = Sound(
            samples=noise(seconds * recipe.sample_rate, recipe.sample_rate)[:, None].repeat(channels, axis=1),
            codec=recipe.audio,
            rate=recipe.sample_rate,
            layout=layout,
            begin=recipe.begin,
            bit_rate=None if recipe.audio.startswith(("pcm", "flac")) else 96_000,
            options={"strict": "-2"} if recipe.audio == "vorbis" else {},
        )
    return write(path, pictures, sound)
