"""Sound and pictures against what the `ffmpeg` command makes of the same clips: another build, another program.

The tests skip where there is no `ffmpeg`. What differs by right is stated where it is allowed for.
"""

from __future__ import annotations

import pytest
from by_ffmpeg import DRAWN_ALIKE, looks_alike, needs_ffmpeg, sounds_alike
from media import Clips

pytestmark = needs_ffmpeg

SOUNDING = (
    "black_and_silent.mp4",
    "blue.webm",
    "cover_alone.flac",
    "cut.mkv",
    "empty_second_track.mp4",
    "green.webm",
    "mirrored.mp4",
    "mono.wav",
    "narrow_pixels.mp4",
    "red.webm",
    "six_channels.ogg",
    "sound_ends_early.mp4",
    "tag_of_other_bytes.flac",
    "wide.wav",
    "with_chapters.mkv",
    "with_cover.mp4",
    "wrong_lengths.avi",
)
PICTURED = (
    "-one-pixel-.mp4",
    "black_and_silent.mp4",
    "blue.webm",
    "cut.mkv",
    "empty_second_track.mp4",
    "first_stamp_of_ten_seconds.mp4",
    "held_0.mov",
    "held_180.mov",
    "held_270.mov",
    "held_90.mov",
    "mirrored.mp4",
    "narrow_pixels.mp4",
    "odd_size.webm",
    "sound_ends_early.mp4",
    "sound_of_no_codec.mp4",
    "ten_bits.mp4",
    "with_chapters.mkv",
    "with_cover.mp4",
)
# samples that FFmpeg 5 leaves before the sound, where later ones cut
PRIMING = {"cut.mkv": 372, "with_chapters.mkv": 372}


# --- sound ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOUNDING)
def test_log_mel_agrees_with_ffmpegs_sound(clips: Clips, name: str) -> None:
    sounds_alike(clips[name], PRIMING.get(name, 0), silent=name == "black_and_silent.mp4")


# --- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURED)
def test_pictures_agree_with_ffmpegs(clips: Clips, name: str) -> None:
    looks_alike(clips[name], DRAWN_ALIKE)
