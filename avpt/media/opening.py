"""Opening untrusted files: only formats that hold their own media, and no file but the one that is named.

Some of FFmpeg's formats are lists of other files (HLS, ffconcat, numbered images): whoever writes one decides which of
the user's files are read. FFmpeg's white lists reject them before anything is opened.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError

from avpt.errors import MediaError
from avpt.media.pointers import is_pointer
from avpt.types import IMAGE_SUFFIXES, MAX_PIXELS

# FFmpeg's names. Left out are lists, scripts, devices, network streams, subtitles, text, formats that continue in
# other files (mlv, vobsub), and raw samples, whose rate is unknown.
CONTAINERS = (
    "apng,asf,avi,dhav,dv,film_cpk,filmstrip,flic,flv,gif,gxf,iff,ivf,kux,live_flv,matroska,mov,mpeg,mpegts,mxf,nsv,nut,"
    "nuv,obu,ogg,pva,rm,roq,smjpeg,smk,swf,ty,wtv,yuv4mpegpipe"
)
PICTURES = (
    "apv,av1,avs2,avs3,cavsvideo,dirac,dnxhd,evc,h261,h263,h264,hevc,ingenient,m4v,mjpeg,mjpeg_2000,mpegvideo,vc1,"
    "vc1test,vvc"
)
AUDIO = (
    "aac,ac3,ac4,adx,aiff,amr,amrnb,amrwb,ape,aptx,aptx_hd,ast,au,bonk,caf,codec2,dfpwm,dsf,dss,dts,dtshd,eac3,epaf,"
    "flac,g722,g723_1,g729,gsm,iamf,ilbc,ircam,lc3,loas,mlp,mmf,mp3,mpc,mpc8,nistsphere,oma,osq,pvf,qcp,qoa,rka,rso,"
    "sbc,shn,sox,spdif,tak,truehd,tta,voc,w64,wav,wsaud,wsd,wv,xwma"
)
IMAGES = (
    "apng,bmp_pipe,dds_pipe,dpx_pipe,exr_pipe,gif,gif_pipe,hdr_pipe,j2k_pipe,jpeg_pipe,jpegls_pipe,mjpeg,mov,pam_pipe,"
    "pbm_pipe,pcx_pipe,pfm_pipe,pgm_pipe,pgmyuv_pipe,phm_pipe,png_pipe,ppm_pipe,psd_pipe,qoi_pipe,sgi_pipe,"
    "sunrast_pipe,tiff_pipe,webp_pipe,xbm_pipe,xwd_pipe"
)
MEDIA = f"{CONTAINERS},{PICTURES},{AUDIO},{IMAGES}"
# opened by name; FFmpeg would take other pictures for a numbered sequence of files
BY_NAME = (".avif", ".gif")
LISTS = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:#EXTM3U|ffconcat|\[playlist\]|\[Reference\]|v=0\r?\no=|"
    rb"(?:<\?xml.*?\?>\s*)?(?:<!--.*?-->\s*)?<(?:MPD|smil|asx|playlist|(?:\w+:)?(?:AssetMap|CompositionPlaylist))\b)",
    re.IGNORECASE | re.DOTALL,
)
LIST_SUFFIXES = (".asx", ".cue", ".ffconcat", ".m3u", ".m3u8", ".mpd", ".pls", ".sdp", ".smil", ".wpl", ".xspf")
HEAD = 4096  # bytes from which a file that is not media is recognised
IS_POINTER = "it is a Git LFS pointer, not the file itself; run `git lfs pull`"


@contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """Open a media file for reading; MediaError("open") if it is missing, empty, or not media."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES and suffix not in BY_NAME:
        with open_image(path) as (container, _):
            yield container
        return
    _check_file(path)
    options = {"protocol_whitelist": "file", "format_whitelist": MEDIA}
    # "file:" prevents a name that looks like an address or an option from being taken for one
    with _opened(path, f"file:{path}", options) as container:
        yield container


@contextmanager
def open_image(path: Path) -> Iterator[tuple[InputContainer, bytes]]:
    """Open an image file, with its bytes; it is read from memory, from where no other file can be reached."""
    _check_file(path)
    with _readable():
        content = path.read_bytes()
    options = {"protocol_whitelist": "none", "format_whitelist": IMAGES}
    with _opened(path, io.BytesIO(content), options) as container:
        yield container, content


def _check_file(path: Path) -> None:
    """Check that a path is a file that is not empty; opening a pipe would block."""
    with _readable():
        status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise MediaError("open", "this is a folder, not a media file")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError("open", "this is a device or a pipe, not a media file")
    if status.st_size == 0:
        raise MediaError("open", "the file is empty (zero bytes)")
    if is_pointer(path):
        raise MediaError("open", IS_POINTER)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise MediaError("open", f"the file can't be read: {reason(error)}") from error


@contextmanager
def _opened(path: Path, source: str | io.BytesIO, options: dict[str, str]) -> Iterator[InputContainer]:
    options = options | {"max_pixels": str(MAX_PIXELS)}
    try:
        container = av.open(source, mode="r", options=options, metadata_errors="replace")
    except MemoryError:
        raise
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        refused = isinstance(error, ArgumentError)  # FFmpeg's error for a format that is not on the white list
        why = "it is of a format that avpt does not open" if refused else reason(error)
        message = _recognise(path) or f"the file can't be read as media: {why}"
        raise MediaError("open", message) from error
    with container:
        yield container


def _recognise(path: Path) -> str:
    """Say what a file that FFmpeg does not open is, by its first bytes; empty if they do not show it."""
    with _readable(), path.open("rb") as file:
        head = file.read(HEAD)
    text = not re.search(rb"[\x00-\x08\x0e-\x1a]", head)
    if LISTS.match(head) or (text and path.suffix.lower() in LIST_SUFFIXES):
        return "it is a list of other files, not media; name those files themselves"
    return "the file can't be read as media: it is text" if text else ""


def reason(error: Exception) -> str:
    """An error's message, as one line in lower case."""
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0].lower() if text else type(error).__name__
