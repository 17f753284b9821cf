"""Frames against a plain full decode, and against pictures whose content says which frame and which way up they are."""

from __future__ import annotations

import shutil
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from expected import assert_similar, colours_by_arithmetic, full_decode, read, shows_what_decodes, shrink
from media import RAINBOW, Clips, Pictures, number_of, numbered, turned, with_matrix, write
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from avpt.errors import MediaError
from avpt.media import streams, video
from avpt.media.codecs import encode_frame
from avpt.media.video import read_frames, read_images

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
LOSSLESS: dict[str, Any] = {"codec": "libx264rgb", "pixels": "rgb24", "qp": "0"}
# EXIF's eight orientations: the stored quadrants, and what a viewer shows of them (CIPA DC-008)
QUADRANTS = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
UPRIGHT = {
    1: QUADRANTS,
    2: np.fliplr(QUADRANTS),
    3: np.rot90(QUADRANTS, 2),
    4: np.flipud(QUADRANTS),
    5: QUADRANTS.transpose(1, 0, 2),
    6: np.rot90(QUADRANTS, -1),
    7: np.rot90(QUADRANTS, 2).transpose(1, 0, 2),
    8: np.rot90(QUADRANTS, 1),
}
# the same as QuickTime track matrices: x' = a x + c y, y' = b x + d y
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def write_video(
    path: Path,
    pictures: list[np.ndarray],
    stamps: list[int] | None = None,
    codec: str = "ffv1",
    pixels: str = "bgr0",
    aspect: Fraction | None = None,
    **options: str,
) -> Path:
    """Pictures (height, width, 3) at stamps in milliseconds (default: 25 a second) -> a video, through PyAV."""
    stamps = stamps or list(range(0, 40 * len(pictures), 40))
    return write(
        path,
        Pictures(drawn=pictures, codec=codec, pixels=pixels, rate=25, stamps=stamps, aspect=aspect, options=options),
    )


def grey(value: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def values(shown: list[np.ndarray]) -> list[int]:
    return [int(rgb[0, 0, 0]) for rgb in shown]


def quadrants(rgb: np.ndarray) -> np.ndarray:
    """(2, 2, 3): the colours in the middle of each quarter, rounded to full or none."""
    height, width = rgb.shape[:2]
    middle = rgb[[height // 4, 3 * height // 4]][:, [width // 4, 3 * width // 4]]
    return np.where(middle > 127, 255, 0)


def test_the_frame_on_screen_at_each_instant_of_a_varying_rate(tmp_path: Path) -> None:
    stamps = [0, 40, 900, 1000, 1001, 2500, 2540, 4000]
    path = write_video(tmp_path / "a.mkv", [grey(10 * i) for i in range(8)], stamps)
    assert values(read(path, max_frames=5)) == [0, 30, 40, 60, 70]
    assert values(read(path, fps=2, max_frames=9)) == [0, 10, 30, 40, 40, 50, 60, 60, 70]
    assert values(read(path, max_frames=3)) == [0, 30, 40]
    assert values(read(path, start=0.9, end=3.9)) == [20, 40, 60]  # 0.9, 1.9, 2.9
    assert values(read(path, start=0.5, end=0.6)) == [10]


def test_pictures_stop_with_the_last_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [grey(i) for i in range(50)], **LOSSLESS)
    assert values(read(path)) == [0, 25]  # 2.0 s is over, exclusive
    assert values(read(path, fps=25)) == list(range(50))
    assert values(read(path, start=1.98)) == [49]
    assert values(read(path, fps=10, start=1.5, end=2.5)) == [37, 40, 42, 45, 47]


@pytest.mark.parametrize("start", [2.0, 2.5, 100.0])
def test_start_beyond_the_last_picture(tmp_path: Path, start: float) -> None:
    path = write_video(tmp_path / "a.mp4", [grey(i) for i in range(50)], **LOSSLESS)
    with pytest.raises(MediaError, match="no picture at") as caught:
        read_frames(path, fps=1, max_frames=10, frame_size=256, start=start)
    assert caught.value.stage == "visual"


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_seek_shows_the_same_frames(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [grey(i % 250, 32, 32) for i in range(25 * 20)]
    path = write_video(tmp_path / f"a.{suffix}", pictures, **LOSSLESS, g="50", bf="2")
    decoded = 0
    frames = streams.decode

    def counted(*args: Any) -> Any:
        nonlocal decoded
        for frame in frames(*args):
            decoded += 1
            yield frame

    monkeypatch.setattr("avpt.media.video.decode", counted)
    expected = [(15 * 25 + 5 * k) % 250 for k in range(10)]
    assert values(read(path, fps=5, start=15.0, end=17.0)) == expected
    assert decoded < 200  # 15 s are 375 frames
    monkeypatch.setattr(streams, "SEEK_MARGIN", -3.0)  # lands too late, is noticed
    assert values(read(path, fps=5, start=15.0, end=17.0)) == expected


def test_first_stamp_of_ten_seconds(clips: Clips) -> None:
    path = clips["first_stamp_of_ten_seconds.mp4"]
    with av.open(str(path)) as container:
        assert container.start_time == 10_000_000
    times, pictures = full_decode(path)
    assert times[0] == 0
    shown = read(path, fps=3, frame_size=64)
    assert [number_of(rgb) for rgb in shown] == list(range(0, 120, 10))
    assert len(shown) == 12  # 4 s
    for k, rgb in enumerate(shown):
        latest = max(i for i, time in enumerate(times) if time <= Fraction(k, 3))
        assert_similar(rgb, shrink(pictures[latest], *rgb.shape[:2]))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("odd_size.webm", 2),
        ("with_chapters.mkv", 5),  # 4:4:4
        ("ten_bits.mp4", 1),
        ("with_cover.mp4", 2),  # the second stream is a cover
        ("empty_second_track.mp4", 2),
        ("wrong_lengths.avi", 2),
        ("damaged_picture.mp4", 5),
        ("damaged_end.mp4", 2),
        ("cut.mkv", 2),
        ("held_0.mov", 1),
        ("black_and_silent.mp4", 10),
    ],
)
def test_clips_show_what_a_full_decode_holds(clips: Clips, name: str, count: int) -> None:
    shown = shows_what_decodes(clips[name])
    assert len(shown) == count
    for latest, rgb in shown:
        if name.startswith("black"):
            assert rgb.max() == 0
        elif not name.startswith("damaged"):
            assert number_of(rgb) == latest


def test_full_size_is_never_enlarged_and_keeps_its_pixels(clips: Clips) -> None:
    path = clips["odd_size.webm"]
    _, pictures = full_decode(path)
    (first, _) = read(path)
    assert first.shape == (121, 161, 3)
    assert_similar(first, pictures[0], 2.0)


def test_one_pixel_and_a_name_with_a_dash(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "-one-pixel-.mp4"
    monkeypatch.chdir(clips[name].parent)
    shown = read(Path(name))
    assert [rgb.shape for rgb in shown] == [(1, 1, 3)] * 5


@pytest.mark.parametrize("name", ["100%d.mp4", "a%03d b.mp4", "http:x.mp4", "concat:a|b.mp4"])
def test_names_that_look_like_something_else(
    clips: Clips, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(clips["held_0.mov"], name)
    assert len(read(Path(name))) == 1


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_phones_held_four_ways(clips: Clips, degrees: int, turns: int) -> None:
    path = clips[f"held_{degrees}.mov"]
    _, pictures = full_decode(path)
    (shown,) = read(path, frame_size=1000)
    assert_similar(shown, np.rot90(pictures[0], turns), 2.0)
    assert_similar(shown, np.rot90(numbered(0, 320, 568, RAINBOW), turns))
    (small,) = read(path, frame_size=256)
    assert small.shape == ((454, 256, 3) if degrees in (90, 270) else (256, 454, 3))


def test_rotated_and_mirrored_clip(clips: Clips) -> None:
    path = clips["mirrored.mp4"]  # its matrix is 0 1 1 0: rows become columns
    _, pictures = full_decode(path)
    assert_similar(read(path, frame_size=1000)[0], pictures[0].transpose(1, 0, 2), 2.0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_display_matrices(tmp_path: Path, orientation: int) -> None:
    picture = np.repeat(np.repeat(QUADRANTS, 20, axis=0), 30, axis=1)
    path = write_video(tmp_path / "a.mp4", [picture] * 3, **LOSSLESS)
    turned(path, MATRICES[orientation])
    shown = read(path)[0]
    assert shown.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    np.testing.assert_array_equal(quadrants(shown), UPRIGHT[orientation])


@pytest.mark.parametrize(
    "matrix", [(0,) * 9, (-65536, 0, 0, 0, 0, 0, 0, 0, 1 << 30), (65536, 65536, 0, 65536, 65536, 0, 0, 0, 1 << 30)]
)
def test_a_damaged_display_matrix_is_ignored(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    picture = np.repeat(np.repeat(QUADRANTS, 20, axis=0), 30, axis=1)
    path = write_video(tmp_path / "a.mp4", [picture] * 3, **LOSSLESS)
    with_matrix(path, matrix)
    np.testing.assert_array_equal(quadrants(read(path)[0]), QUADRANTS)


def test_non_square_pixels(clips: Clips, tmp_path: Path) -> None:
    path = clips["narrow_pixels.mp4"]
    assert read(path)[0].shape == (256, 303, 3)  # 640 x 360 at 2:3 is 426.67 x 360
    _, pictures = full_decode(path)
    assert_similar(read(path)[0], shrink(pictures[0], 256, 303))
    wide = write_video(tmp_path / "a.mkv", [grey(9, 20, 30)] * 2, **LOSSLESS, aspect=Fraction(2))
    assert read(wide)[0].shape == (20, 60, 3)
    assert read(wide, frame_size=10)[0].shape == (10, 30, 3)


@pytest.mark.parametrize(
    ("matrix", "full", "kr", "kb"),
    [("bt709", False, 0.2126, 0.0722), ("smpte170m", False, 0.299, 0.114), ("bt709", True, 0.2126, 0.0722)],
)
def test_colours_follow_the_streams_matrix_and_range(
    tmp_path: Path, matrix: str, full: bool, kr: float, kb: float
) -> None:
    luma, blue, red = 100, 90, 200
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        stream.codec_context.colorspace = {"bt709": 1, "smpte170m": 6}[matrix]
        stream.codec_context.color_range = 2 if full else 1
        planes = np.empty((3, 32, 32), np.uint8)
        planes[:] = np.array([luma, blue, red])[:, None, None]
        container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv444p")))
        container.mux(stream.encode(None))
    y = luma / 255 if full else (luma - 16) / 219
    u, v = ((n - 128) / (255 if full else 224) for n in (blue, red))
    r, b = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    expected = [round(255 * n) for n in (r, g, b)]
    np.testing.assert_allclose(read(tmp_path / "a.mkv")[0][16, 16], expected, atol=1)


@pytest.mark.parametrize("name", ["with_cover.mp4", "ten_bits.mp4"])
def test_colours_of_a_drawn_pattern_by_arithmetic(clips: Clips, name: str) -> None:
    colours_by_arithmetic(clips[name])


def test_a_frame_over_the_limit_is_refused(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clips["held_0.mov"]  # 568 x 320
    monkeypatch.setattr(video, "MAX_PIXELS", 568 * 320 - 1)
    monkeypatch.setattr("avpt.media.video.decode", None)  # never reached
    with pytest.raises(MediaError, match=r"568 x 320 pixels is over the limit") as caught:
        read(path)
    assert caught.value.stage == "visual"
    monkeypatch.undo()
    monkeypatch.setattr(streams, "MAX_PIXELS", 1000)  # the decoder's own limit, before it allocates
    with pytest.raises(MediaError, match="no picture decodes"):
        read(path)


def test_an_image_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    write_png(tmp_path / "bomb.png", header, b"\0" * 1000)
    with pytest.raises(MediaError, match="64 megapixels") as caught:
        read_images(tmp_path / "bomb.png", fps=1, max_frames=1, frame_size=256)
    assert caught.value.stage == "visual"


def test_covers_alone_are_no_pictures(clips: Clips) -> None:
    path = clips["cover_alone.flac"]
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert read_frames(path, fps=1, max_frames=10, frame_size=256) is None


@pytest.mark.parametrize("name", ["undecodable.mp4", "header_alone.mp4", "undecodable.webm"])
def test_streams_from_which_nothing_decodes(clips: Clips, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MediaError, match="no picture decodes") as caught:
        read(clips[name])
    assert caught.value.stage == "visual"
    assert capfd.readouterr().err == ""


def test_the_best_stream_is_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams: list[Any] = [container.add_stream("ffv1", rate=25) for _ in range(2)]
        for stream, size in zip(streams, (16, 64), strict=True):
            stream.width = stream.height = size
            stream.pix_fmt = "bgr0"
        streams[0].disposition = Disposition.visual_impaired  # FFmpeg chooses the other, then
        for stream, size in zip(streams, (16, 64), strict=True):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(size, size, size), format="rgb24")))
    assert values(read(tmp_path / "a.mkv")) == [64]


def test_the_next_stream_is_tried(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams: list[Any] = [container.add_stream("ffv1", rate=25) for _ in range(2)]
        for stream, size in zip(streams, (64, 16), strict=True):
            stream.width = stream.height = size
            stream.pix_fmt = "bgr0"
        (good,) = streams[1].encode(av.VideoFrame.from_ndarray(grey(77), format="rgb24"))
        bad: Any = av.Packet(b"\xff" * 500)
        bad.stream, bad.pts, bad.dts, bad.is_keyframe = streams[0], 0, 0, True
        container.mux([bad, good])
    with av.open(str(tmp_path / "a.mkv")) as container:
        best = container.streams.best("video")
        assert best is not None
        assert best.index == 0  # the larger
    assert values(read(tmp_path / "a.mkv")) == [77]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(path: Path, header: bytes, rows: bytes, extra: bytes = b"") -> Path:
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def jpeg(picture: np.ndarray) -> bytes:
    return bytes(encode_jpeg(torch.from_numpy(picture.copy()).permute(2, 0, 1), quality=100).numpy().tobytes())


def images(path: Path, max_frames: int = 100, frame_size: int = 256) -> Any:
    return read_images(path, fps=2, max_frames=max_frames, frame_size=frame_size)


def test_a_folder_in_natural_order(tmp_path: Path) -> None:
    greys = {"img10.jpg": 100, "img2.jpg": 20, "img1.JPG": 10, "img02.jpg": 15, "jmg0.jpeg": 200}
    for name, value in greys.items():
        (tmp_path / name).write_bytes(jpeg(grey(value)))
    (tmp_path / ".hidden.jpg").write_bytes(jpeg(grey(1)))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "deeper.jpg").mkdir()
    shown = images(tmp_path)
    assert [time for time, _ in shown] == [0.0, 0.5, 1.0, 1.5, 2.0]
    np.testing.assert_allclose(values([rgb for _, rgb in shown]), [10, 15, 20, 100, 200], atol=1)
    assert len(images(tmp_path, max_frames=2)) == 2


def test_folders_and_images_that_fail(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no image"):
        images(tmp_path)
    (tmp_path / "a.jpg").write_bytes(jpeg(grey(1)))
    (tmp_path / "b.jpg").write_bytes(jpeg(grey(2))[:30])
    with pytest.raises(MediaError, match=r"b\.jpg"):
        images(tmp_path)
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(MediaError, match=r"b\.jpg.*empty"):
        images(tmp_path)
    with pytest.raises(MediaError) as caught:
        images(tmp_path / "missing.jpg")
    assert caught.value.stage == "open"


@pytest.mark.parametrize("name", ["%d.png", "-y.png", "a%03d.png", "pipe:0.png"])
def test_image_names_are_not_patterns(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_png(Path(name), struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0), b"\0\x07\x07")
    assert values([rgb for _, rgb in images(Path(name))]) == [7]


@pytest.mark.parametrize(
    ("header", "row", "extra", "expected"),
    [
        ((8, 0), [50], b"", (50, 50, 50)),  # grey
        ((16, 0), [50, 50], b"", (50, 50, 50)),
        ((8, 4), [50, 0], b"", (50, 50, 50)),  # grey, wholly transparent
        ((8, 2), [10, 20, 30], b"", (10, 20, 30)),
        ((16, 2), [10, 10, 20, 20, 30, 30], b"", (10, 20, 30)),
        ((8, 6), [10, 20, 30, 128], b"", (10, 20, 30)),
        ((8, 3), [1], png_chunk(b"PLTE", bytes([0, 0, 0, 10, 20, 30])), (10, 20, 30)),
    ],
)
def test_every_kind_of_png_becomes_rgb(
    tmp_path: Path, header: tuple[int, int], row: list[int], extra: bytes, expected: tuple[int, int, int]
) -> None:
    depth, colour = header
    rows = (b"\0" + bytes(row * 3)) * 2
    path = write_png(tmp_path / "a.png", struct.pack(">IIBBBBB", 3, 2, depth, colour, 0, 0, 0), rows, extra)
    ((_, rgb),) = images(path)
    assert rgb.shape == (2, 3, 3)
    np.testing.assert_allclose(rgb.astype(int), np.broadcast_to(expected, (2, 3, 3)), atol=1)


@pytest.mark.parametrize("order", [b"II", b"MM"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_jpeg(tmp_path: Path, orientation: int, order: bytes) -> None:
    mark = "<" if order == b"II" else ">"
    tiff = order + struct.pack(f"{mark}HI", 42, 8)
    tiff += struct.pack(f"{mark}HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    block = b"Exif\0\0" + tiff
    content = jpeg(np.repeat(np.repeat(QUADRANTS, 20, axis=0), 30, axis=1))
    marked = content[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + content[2:]
    (tmp_path / "a.jpg").write_bytes(marked)
    ((_, rgb),) = images(tmp_path / "a.jpg")
    np.testing.assert_array_equal(quadrants(rgb), UPRIGHT[orientation])


def test_images_are_scaled_like_frames(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(grey(9, 100, 300)))
    assert images(tmp_path / "a.jpg", frame_size=50)[0][1].shape == (50, 150, 3)
    assert images(tmp_path / "a.jpg", frame_size=500)[0][1].shape == (100, 300, 3)


def test_encode_frame(clips: Clips) -> None:
    picture = full_decode(clips["held_0.mov"])[1][0]
    assert encode_frame(picture, "raw") == picture.tobytes()
    content = np.frombuffer(encode_frame(picture, "jpeg"), np.uint8)
    decoded = decode_jpeg(torch.from_numpy(content.copy()), mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
    assert_similar(decoded, picture, 3.0)
