"""What a shard stores of a clip, and the settings behind it; light: a finished store is looked at without torch."""

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
    allow_missing: Literal["none", "audio", "visual", "either"] = "none"  # of a clip that has it, but broken
    on_truncated: Literal["keep", "fail"] = "keep"
    audio_stream: int | None = None  # of those with sound, from 0; None is FFmpeg's choice


SHIFT = 0.01  # seconds from one frame of a spectrogram to the next
LONGER = 1.1  # times what is stored of a clip; the length from which on it is told
SHORTER = 0.25  # of the spectrogram; sound that fills less of it is told

# what may be said of a clip that is kept, by the word that its `error` in partial.csv begins with
KINDS = {
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
LOSSES = frozenset({"missing", "truncated", "short", "damaged", "hole"})  # those of which something is lacking


def kind_of(what: str) -> str:
    """The word that an `error` of partial.csv begins with."""
    return what.partition(":")[0]


@dataclass
class Found:
    """What reading sound or pictures tells beside them."""

    troubles: list[str] = field(default_factory=list)  # each begins with a word of KINDS
    seconds: float | None = None  # that the clip lasts by its file, however much of it is read


@dataclass(frozen=True)
class Trouble:
    """Something that must be known of a clip that is kept."""

    modality: Modality
    what: str  # begins with a word of KINDS


@dataclass(frozen=True)
class DecodedClip:
    """One clip as a shard stores it; a modality that the clip lacks has no frames."""

    fbank: np.ndarray  # (frames, mel) in audio_dtype, log-mel before normalisation; all 0 where there is no sound
    num_audio_frames: int  # frames before padding; 0 = no sound
    times: np.ndarray  # (F,) float32, seconds from the clip's start
    sizes: np.ndarray  # (F, 2) int32, height and width
    frames: list[bytes]  # F pictures, JPEG files or raw RGB rows
    troubles: tuple[Trouble, ...] = ()
    seconds: Mapping[Modality, float] = field(default_factory=dict)  # that each lasts, however much of it is stored

    def spans(self, settings: ClipSettings) -> dict[Modality, float]:
        """Seconds that are stored of each modality at most."""
        spans: dict[Modality, float] = {"audio": settings.spectrogram_frames * SHIFT} if self.num_audio_frames else {}
        return spans | ({"visual": settings.max_frames / settings.fps} if self.frames else {})

    def is_longer(self, settings: ClipSettings, modalities: Collection[Modality] = MODALITIES) -> bool:
        """Whether its sound or its pictures, or one of them, go on well beyond what is stored of them."""
        spans = self.spans(settings)
        return any(self.seconds.get(modality, 0.0) > LONGER * spans[modality] for modality in spans.keys() & modalities)

    def is_short(self, settings: ClipSettings) -> bool:
        """Whether most of its spectrogram is padding."""
        return 0 < self.num_audio_frames < SHORTER * settings.spectrogram_frames
