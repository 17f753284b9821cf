"""What a shard stores of a clip, and the settings behind it.

This module does not import torch, so that a finished store can be inspected without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from avpt.types import MODALITIES, FrameCodec, Modality


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
    frame_codec: FrameCodec = "jpeg"
    frame_accuracy: Literal["exact", "keyframe"] = "exact"
    allow_missing: Literal["none", "audio", "visual", "either"] = "none"  # what a clip may lose if it is broken
    on_truncated: Literal["keep", "fail"] = "keep"
    audio_stream: int | None = None  # of the audio streams, from 0; None leaves the choice to FFmpeg
    require: Literal["none", "audio", "visual", "both"] = "none"  # what a clip is left out without

    def span(self, modality: Modality) -> float:
        """The most seconds that are stored of a clip's sound or pictures."""
        return self.spectrogram_frames * FRAME_SHIFT if modality == "audio" else self.max_frames / self.fps


FRAME_SHIFT = 0.01  # seconds from one frame of a spectrogram to the next
LONGER = 1.1  # times what is stored of a clip; a clip that is longer is reported
SHORTER = 0.25  # of the spectrogram; audio that fills less of it is reported

# what may be reported of a clip that is kept, by the first word of its `error` in partial.csv
TROUBLES = {
    "missing": "sound or picture is broken and left out",
    "truncated": "ends before its file says",
    "short": "ends before the clip, or holds more than its header says",
    "damaged": "could not be read or decoded in part",
    "hole": "lacks something in between",
    "joined": "is made of parts of other kinds or clocks",
    "late": "sound or pictures begin after the clip",
    "silent": "nothing is heard",
    "black": "nothing is seen",
    "blank": "one colour is seen",
    "hdr": "is stored without tone-mapping",
    "interlaced": "is stored without deinterlacing",
    "tracks": "one of several streams is taken (--audio-stream)",
    "ignored": "files in its folder are no images by their names",
}
LOSSES = frozenset({"missing", "truncated", "short", "damaged", "hole"})  # kinds that mean that something is missing
LEFT_OUT = "left out"  # begins the `error` in failures.csv of a clip that lacks what --require asks for


def kind_of(what: str) -> str:
    """The first word of an `error` in partial.csv."""
    return what.partition(":")[0]


def failed(what: str) -> bool:
    """Whether an `error` in failures.csv is of a clip that failed, and was not left out because that was asked for."""
    return kind_of(what) != LEFT_OUT


@dataclass
class Notes:
    """What was noticed while the audio or the pictures of a clip were read."""

    troubles: list[str] = field(default_factory=list)  # each begins with a word of TROUBLES
    seconds: float | None = None  # the clip's length by its file, however much of it is read


@dataclass(frozen=True)
class Trouble:
    """Something that users should know about a clip that is kept."""

    modality: Modality
    what: str  # begins with a word of TROUBLES


@dataclass(frozen=True)
class DecodedClip:
    """One clip as a shard stores it; a modality that the clip lacks has no frames."""

    fbank: np.ndarray  # (frames, mel) in audio_dtype, log-mel before normalisation; all 0 if there is no audio
    num_audio_frames: int  # frames before padding; 0 = no audio
    times: np.ndarray  # (F,) float32, seconds from the clip's start
    sizes: np.ndarray  # (F, 2) int32, height and width
    frames: list[bytes]  # F pictures, JPEG files or raw RGB rows
    troubles: tuple[Trouble, ...] = ()
    seconds: Mapping[Modality, float] = field(default_factory=dict)  # the length of each, however much of it is stored

    @property
    def lacking(self) -> list[Modality]:
        """The modalities that it does not have."""
        there = {"audio": self.num_audio_frames > 0, "visual": bool(self.frames)}
        return [modality for modality in MODALITIES if not there[modality]]

    def spans(self, settings: ClipSettings) -> dict[Modality, float]:
        """The most seconds that are stored of each modality."""
        return {modality: settings.span(modality) for modality in MODALITIES if modality not in self.lacking}

    def is_longer(self, settings: ClipSettings, modalities: Collection[Modality] = MODALITIES) -> bool:
        """Whether any of the modalities lasts well beyond what is stored of it."""
        spans = self.spans(settings)
        return any(self.seconds.get(modality, 0.0) > LONGER * spans[modality] for modality in spans.keys() & modalities)

    def is_short(self, settings: ClipSettings) -> bool:
        """Whether most of the spectrogram is padding."""
        return 0 < self.num_audio_frames < SHORTER * settings.spectrogram_frames
