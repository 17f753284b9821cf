"""Every choice of --frame-codec: what it stores of a frame, what comes back, and what is seen of damage."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from expected import assert_similar

from avpt.media import codecs
from avpt.media.codecs import CODECS, DamagedFrameError, decode_frame, encode_frame, wrong_frame
from avpt.options import PreprocessConfig
from avpt.options.base import type_hints
from avpt.types import FrameCodec

HEIGHT, WIDTH = 20, 14
PICTURE = np.linspace(0, 255, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
CHOICES: tuple[FrameCodec, ...] = get_args(get_args(type_hints(PreprocessConfig)["frame_codec"])[0])


def stored(codec: FrameCodec, rgb: np.ndarray = PICTURE) -> np.ndarray:
    return np.frombuffer(encode_frame(rgb, codec), np.uint8).copy()


def test_there_is_a_codec_for_each_choice() -> None:
    assert len(CHOICES) >= 2
    assert CODECS.keys() == set(CHOICES)


@pytest.mark.parametrize("codec", CHOICES)
def test_a_frame_comes_back(codec: FrameCodec) -> None:
    for rgb in (PICTURE, PICTURE[::-1, ::-1], PICTURE[:1, :1]):  # also views with strides of their own
        frame = decode_frame(stored(codec, rgb), codec, *rgb.shape[:2])
        assert_similar(frame.permute(1, 2, 0).numpy(), rgb)


@pytest.mark.parametrize("codec", CHOICES)
@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_frame_has_nothing_wrong(codec: FrameCodec, deep: bool) -> None:
    assert wrong_frame(stored(codec), codec, HEIGHT, WIDTH, deep=deep) == ""


@pytest.mark.parametrize("codec", CHOICES)
def test_damage_is_seen(codec: FrameCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stored(codec)
    assert wrong_frame(whole[:0], codec, HEIGHT, WIDTH, deep=False) == "is empty"
    assert wrong_frame(whole[:-3], codec, HEIGHT, WIDTH, deep=False)
    for size in ((HEIGHT + 1, WIDTH), (WIDTH, HEIGHT + 2), (0, WIDTH), (-1, WIDTH)):
        assert wrong_frame(whole, codec, *size, deep=True)
        with pytest.raises(DamagedFrameError):
            decode_frame(whole, codec, *size)
    monkeypatch.setattr(codecs, "MAX_PIXELS", HEIGHT * WIDTH - 1)  # refused before memory is taken
    assert wrong_frame(whole, codec, HEIGHT, WIDTH, deep=False) == "is 20 x 14, which is more than 279 pixels"
    with pytest.raises(DamagedFrameError, match="more than 279 pixels"):
        decode_frame(whole, codec, HEIGHT, WIDTH)
