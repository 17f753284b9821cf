"""A waveform's log-mel spectrogram, as the method defines its input (arXiv 2302.03533); PyAV is not needed."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torchaudio.compliance import kaldi

from avpt.errors import MediaError
from avpt.media.clip import FRAME_SHIFT

WINDOW = 25.0  # milliseconds that one frame of the log-mel looks at
SHIFT = 1000 * FRAME_SHIFT  # milliseconds from one frame to the next
PADDING = 0.0  # log-mel value of frames beyond the end of the audio, as in the authors' released code


def samples_needed(frames: int, sample_rate: int) -> int:
    """The number of samples at `sample_rate` Hz that give exactly `frames` log-mel frames."""
    return _samples(WINDOW, sample_rate) + (frames - 1) * _samples(SHIFT, sample_rate)


def log_mel(waveform: np.ndarray, *, sample_rate: int, mel_bins: int) -> torch.Tensor:
    """(samples,) at `sample_rate` Hz -> (frame, mel) float32, natural log; digital silence is -15.94.

    Kaldi's filter bank (torchaudio) with the settings of the Audio Spectrogram Transformer (Gong et al.
    2021), which the authors' code uses: mean removed, Hanning window, no dither. A waveform shorter than
    one window is zero-padded to one.
    """
    samples = torch.from_numpy(waveform)
    samples = samples - samples.mean()
    samples = torch.nn.functional.pad(samples, (0, max(0, samples_needed(1, sample_rate) - len(samples))))
    fbank: torch.Tensor = kaldi.fbank(
        samples[None],
        htk_compat=True,
        sample_frequency=sample_rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=mel_bins,
        dither=0.0,
        frame_length=WINDOW,
        frame_shift=SHIFT,
    )
    if not fbank.isfinite().all():
        raise MediaError("audio", "the sound holds values that are not finite")
    return fbank


def spectrogram(
    waveform: np.ndarray, *, sample_rate: int, mel_bins: int, frames: int, pad: Literal["zero", "repeat"]
) -> tuple[torch.Tensor, int]:
    """(samples,) -> (frames, mel) float32 log-mel, cut or padded, and how many of the frames are real.

    `pad` "zero" fills the rest with log-mel 0.0; "repeat" repeats a short waveform until every frame is real.
    """
    assert len(waveform) > 0
    needed = samples_needed(frames, sample_rate)
    if pad == "repeat":
        waveform = np.resize(waveform, max(needed, len(waveform)))
    fbank = log_mel(waveform[:needed], sample_rate=sample_rate, mel_bins=mel_bins)
    padded = torch.full((frames, mel_bins), PADDING)
    padded[: len(fbank)] = fbank
    return padded, len(fbank)


def _samples(milliseconds: float, sample_rate: int) -> int:
    return int(sample_rate * milliseconds * 0.001)  # as kaldi.fbank computes it
