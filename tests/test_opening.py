"""Which files are opened: those that hold their own media, and no other file through them."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.format import ContainerFormat, formats_available
from helpers import avpt, write_manifest
from media import Clips, Pictures, Sound, number_of, numbered, tones, write
from PIL import Image

from avpt.commands.predict import clip_of
from avpt.errors import MediaError
from avpt.media import opening
from avpt.media.audio import read_waveform
from avpt.media.pointers import is_pointer
from avpt.media.video import read_frames, read_images
from avpt.types import IMAGE_SUFFIXES

LISTS = {
    "master.m3u8": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{0}\n",
    "media.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{0}\n#EXT-X-ENDLIST\n",
    "map.m3u": '#EXTM3U\n#EXT-X-MAP:URI="{0}"\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{0}\n#EXT-X-ENDLIST\n',
    "bare.m3u": "{0}\n{0}\n",
    "concat.txt": "ffconcat version 1.0\nfile {0}\n",
    "marked.mp4": "\ufeff#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{0}\n#EXT-X-ENDLIST\n",
    "dash.mpd": "<?xml version='1.0'?>\n<MPD><Period><BaseURL>{0}</BaseURL></Period></MPD>\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
}
# formats whose files, or names, stand for other files, devices or addresses
REFERRING = {
    *("concat", "dash", "hls", "image2", "image2pipe", "imf", "lavfi", "mlv", "rtp", "rtsp", "sap", "sdp", "svg_pipe"),
    *("vobsub", "webm_dash_manifest"),
}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Sound that nobody asks for."""
    return write(tmp_path / "secret.ts", None, Sound(samples=tones(1.0, 48000), codec="mp2", rate=48000))


def list_of(folder: Path, name: str, secret: Path) -> Path:
    (folder / name).write_text(LISTS[name].format(secret.name), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_other_files_is_refused_as_one(
    tmp_path: Path, secret: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = list_of(tmp_path, name, secret)
    monkeypatch.chdir(tmp_path)  # ffconcat in memory would start from here
    image = path.with_name(f"{name}.png")
    path.with_name(image.name).write_bytes(path.read_bytes())
    for read in (
        lambda: read_waveform(path, 16000),
        lambda: read_frames(path, fps=1, max_frames=3, frame_size=32),
        lambda: read_images(image, fps=1, max_frames=3, frame_size=32),
    ):
        with pytest.raises(MediaError) as caught:
            read()
        assert caught.value.stage == "open"
        assert "a list of other files" in str(caught.value) or (
            name == "bare.m3u" and "it is text" in str(caught.value)
        )


def test_every_format_of_ffmpeg_is_refused_or_holds_its_own_media(tmp_path: Path, secret: Path) -> None:
    opened: list[str] = []

    def io_open(url: str, flags: int, options: Any) -> Any:
        opened.append(url)
        return Path(url.removeprefix("file:")).open("rb")

    def attempt(path: Path, name: str | None, white: str | None) -> bool:
        opened.clear()
        options = {"protocol_whitelist": "file"} | ({} if white is None else {"format_whitelist": white})
        try:
            av.open(f"file:{path}", format=name, options=options, io_open=io_open).close()
        except (av.FFmpegError, ValueError, EOFError):
            return False
        return True

    lists = [list_of(tmp_path, name, secret) for name in LISTS]
    attempt(tmp_path / "media.m3u8", "hls", None)
    assert any(url.endswith("secret.ts") for url in opened)  # what is looked for can be seen
    allowed = set(opening.MEDIA.split(","))
    formats = {ContainerFormat(name, "r").name for name in formats_available if is_read(name)}
    assert len(formats) > 300
    assert not allowed & REFERRING
    assert {"alsa", "concat", "hls", "image2", "lavfi"} & formats
    taken = set()
    for name in sorted(formats):
        if not allowed & set(name.split(",")):
            assert not attempt(secret, name.split(",")[0], opening.MEDIA), name
            assert not attempt(secret, name.split(",")[0], opening.IMAGES), name
            continue
        taken |= set(name.split(","))
        for path in lists:
            attempt(path, name.split(",")[0], opening.MEDIA)
            assert set(opened) <= {f"file:{path}"}, (name, path.name)
    assert allowed <= taken  # each of the names is one of FFmpeg's


def is_read(name: str) -> bool:
    try:
        return bool(ContainerFormat(name, "r").is_input)
    except ValueError:
        return False


def test_from_memory_no_file_is_reached(secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the format let in, the protocol would not be."""
    monkeypatch.chdir(tmp_path)
    content = LISTS["concat.txt"].format(secret.name).encode()
    with av.open(io.BytesIO(content), format="concat") as container:
        assert container.streams.audio
    path = list_of(tmp_path, "concat.txt", secret)
    monkeypatch.setattr(opening, "IMAGES", f"{opening.IMAGES},concat")
    with pytest.raises(MediaError), opening.open_image(path) as (container, _):
        raise AssertionError(container.format.name)


OWN = (  # suffix, codec of the pictures, codec of the sound
    *("3gp h263 aac", "asf wmv2 wmav2", "mxf mpeg2video pcm_s16le", "nut ffv1 flac", "vob mpeg2video mp2"),
    *("aac - aac", "wtv mpeg2video mp2", "gif gif -", "apng apng -", "ivf libvpx -", "y4m wrapped_avframe -"),
    *("h264 libx264 -", "m2v mpeg2video -", "mjpeg mjpeg -", "aiff - pcm_s16be", "au - pcm_s16be", "caf - pcm_s16le"),
    *(
        "ac3 - ac3",
        "eac3 - eac3",
        "tta - tta",
        "wv - wavpack",
        "mka - libopus",
        "mp2 - mp2",
        "aac - aac",
    ),
)


@pytest.mark.parametrize("kind", OWN)
def test_formats_that_hold_their_own_media_are_opened(tmp_path: Path, kind: str) -> None:
    suffix, picture, sound = (None if word == "-" else word for word in kind.split())
    for codec in filter(None, (picture, sound)):
        if codec not in av.codec.codecs_available:
            pytest.skip(f"FFmpeg has no {codec} here")
    pixels = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p", "ffv1": "bgr0"}.get(picture or "", "yuv420p")
    size, rate = ((288, 352) if picture == "h263" else (96, 128)), 48000
    shown = None
    if picture is not None:
        drawn = (numbered(number, *size) for number in range(9, 34))
        shown = Pictures(drawn=drawn, codec=picture, pixels=pixels, rate=25, bit_rate=2_000_000)
    samples = tones(1.0, rate, 2)
    heard = sound and Sound(samples=samples, codec=sound, rate=rate, layout="stereo", bit_rate=384_000)
    path = write(tmp_path / f"a.{suffix}", shown, heard or None)
    if picture is not None:
        pictures = read_frames(path, fps=5, max_frames=9, frame_size=96)
        assert pictures is not None
        assert len(pictures) >= 4
    if sound is not None:
        waveform = read_waveform(path, 16000)
        assert waveform is not None
        assert 0.9 < len(waveform) / 16000 < 1.2


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_image_is_opened(tmp_path: Path, suffix: str) -> None:
    assert clip_of(tmp_path / f"a{suffix.upper()}").frames is not None  # by its name alone
    kind = {".jfif": "JPEG", ".jif": "JPEG", ".jpe": "JPEG", ".jpeg": "JPEG", ".jpg": "JPEG", ".tif": "TIFF"}
    kind |= {".jp2": "JPEG2000", ".pnm": "PPM", ".pgm": "PPM", ".pbm": "PPM"}
    name = kind.get(suffix, suffix[1:].upper())
    Image.init()
    if name not in Image.SAVE:
        pytest.skip(f"Pillow can't write {name} here")
    picture = Image.fromarray(numbered(9)).convert({".pgm": "L", ".pbm": "1"}.get(suffix, "RGB"))
    picture.save(tmp_path / f"a{suffix}", format=name)
    ((_, rgb),) = read_images(tmp_path, fps=1, max_frames=1, frame_size=48)
    assert number_of(rgb) == 9
    pictures = read_frames(tmp_path / f"a{suffix}", fps=1, max_frames=1, frame_size=48)
    assert pictures is not None


def test_a_numbered_name_is_one_file(tmp_path: Path) -> None:
    for name, number in (("a%02d.png", 5), ("a01.png", 9)):
        Image.fromarray(numbered(number)).save(tmp_path / name)
    shown = read_frames(tmp_path / "a%02d.png", fps=1, max_frames=3, frame_size=48)
    assert shown is not None
    (_, rgb), *others = shown
    assert not others
    np.testing.assert_array_equal(rgb, numbered(5))
    (tmp_path / "a%02d.png").unlink()
    with pytest.raises(MediaError, match="no such file"):
        read_frames(tmp_path / "a%02d.png", fps=1, max_frames=3, frame_size=48)


def test_lists_in_every_column_of_a_manifest(tmp_path: Path, secret: Path, clips: Clips) -> None:
    playlist, concat = list_of(tmp_path, "media.m3u8", secret), list_of(tmp_path, "concat.txt", secret)
    concat = concat.rename(tmp_path / "concat.png")
    rows = [
        {"id": "video", "video": str(playlist)},
        {"id": "audio", "audio": str(playlist)},
        {"id": "frames", "frames": str(concat)},
        {"id": "good", "audio": str(clips["mono.wav"])},
    ]
    manifest = write_manifest(tmp_path / "m.csv", [row | {"label": "a", "split": "train"} for row in rows])
    result = avpt(
        "preprocess", manifest, "--out", tmp_path / "store", "--max-failures", "1", "--workers", "1", "--json"
    )
    assert (result.json()["clips"], result.json()["failures"]) == (1, 3)
    with (tmp_path / "store" / "failures.csv").open(newline="", encoding="utf-8") as file:
        failed = list(csv.DictReader(file))
    assert [row["id"] for row in failed] == ["video", "audio", "frames"]
    assert all(row["stage"] == "open" and "a list of other files" in row["error"] for row in failed)


def test_what_git_lfs_left_is_told_once_and_before_decoding(tmp_path: Path, clips: Clips) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"
    (tmp_path / "frames").mkdir()
    Image.fromarray(numbered(1)).save(tmp_path / "frames" / ".a.png")
    for number in range(9):
        (tmp_path / "frames" / f".{number}").write_text("*.png filter=lfs")
        (tmp_path / "frames" / f"{number}.txt").write_text("told of first, where the folder is listed so")
    for name in ("a.wav", "b.mp4", "frames/a.png"):
        (tmp_path / name).write_bytes(pointer)
    rows = [{"audio": "a.wav"}, {"video": "b.mp4"}, {"frames": "frames"}, {"audio": str(clips["mono.wav"])}]
    manifest = write_manifest(tmp_path / "m.csv", [row | {"label": "a", "split": "train"} for row in rows])
    result = avpt("preprocess", manifest, "--out", tmp_path / "store", "--max-failures", "1")
    assert result.code == 1
    assert "3 of its 4 files are Git LFS pointers" in result.error
    assert "git lfs pull" in result.error
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "store").exists()
    for read in (lambda: read_waveform(tmp_path / "a.wav", 16000), lambda: read_frames_of(tmp_path / "frames")):
        with pytest.raises(MediaError, match="git lfs pull"):
            read()
    assert not is_pointer(clips["mono.wav"])
    assert not is_pointer(tmp_path / "gone")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("suffix", [".png", ".gif", ".wav"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    os.mkfifo(path)
    assert not is_pointer(path)
    for read in (lambda: read_waveform(path, 16000), lambda: read_frames_of(path)):
        with pytest.raises(MediaError, match="a device or a pipe"):
            read()


def read_frames_of(path: Path) -> Any:
    return read_images(path, fps=1, max_frames=1, frame_size=32)
