"""What a shard stores of a clip, and the settings behind it; light: a finished store is looked at without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from avpt.types import Modality


@dataclass(frozen=True)
class ClipSettings:
    """How clips are turned into spectrograms and frames; every clip of a store shares one."""

    sample_rate: int = 16000  # Hz
    mel_bins: int = 128
    spectrogram_frames: int = 1024  # of 10 ms
    pad: Literal["zero", "repeat"] = "zero"
    audio_dtype: Literal["float16", "float32"] = "float16"
    fps: float = 1.0  # frames per second
    max_frames: int = 10
    frame_size: int = 256  # pixels, the short side
    frame_codec: Literal["jpeg", "raw"] = "jpeg"
    frame_accuracy: Literal["exact", "keyframe"] = "exact"
    allow_missing: Literal["none", "audio", "visual", "either"] = "none"  # of a clip that has it, but broken
    on_truncated: Literal["keep", "fail"] = "keep"


@dataclass(frozen=True)
class Trouble:
    """Something that a clip was kept without."""

    modality: Modality
    what: str  # begins with missing, short, truncated or damaged


@dataclass(frozen=True)
class DecodedClip:
    """One clip as a shard stores it; a modality that the clip lacks has no frames."""

    fbank: np.ndarray  # (frames, mel) in audio_dtype, log-mel before normalisation; all 0 where there is no sound
    num_audio_frames: int  # frames before padding; 0 = no sound
    times: np.ndarray  # (F,) float32, seconds from the clip's start
    sizes: np.ndarray  # (F, 2) int32, height and width
    frames: list[bytes]  # F pictures, JPEG files or raw RGB rows
    troubles: tuple[Trouble, ...] = ()
