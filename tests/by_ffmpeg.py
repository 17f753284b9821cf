"""What the ffmpeg command makes of a clip."""

from __future__ import annotations

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi
from torchaudio.functional import resample

from avpt.media.audio import read_waveform
from avpt.media.video import read_frames

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="there is no ffmpeg command"
)
FLOOR = -8.0  # log-mel below which codecs and resamplers leave only rounding
NEAR = 0.01  # mean absolute difference of log-mel above the floor; measured: 0.002 at most
ALIKE = 40.0  # dB of PSNR between pictures; measured: 45 at least
# where saturated colours meet, FFmpeg 5 interpolates them in another way; test_video.py has them by arithmetic
DRAWN_ALIKE = 30.0  # measured: 31.4 at least, and 35.8 of the clips made here
CHROMA = ":in_h_chr_pos=0:in_v_chr_pos=128"  # on the left, as MPEG has it; FFmpeg 5 takes it to be in the middle
FLAGS = "flags=bilinear+accurate_rnd+full_chroma_int"  # ours: without them ffmpeg's greys are off by 1 or 2 levels


def run(*arguments: str | Path) -> bytes:
    return subprocess.run([str(each) for each in arguments], check=True, capture_output=True).stdout


def probe(path: Path, kind: str, *show: str) -> dict[str, Any]:
    """What ffprobe says of the streams of a kind."""
    probed = run("ffprobe", "-v", "error", "-select_streams", kind, "-of", "json", *show, f"file:{path}")
    record: dict[str, Any] = json.loads(probed)
    return record


def sound_of(path: Path) -> np.ndarray:
    """(samples,) at 16 kHz: ffmpeg's samples, averaged by numpy, resampled by torchaudio, where their stamps say."""
    stream = probe(path, "a", "-show_entries", "stream=sample_rate,channels")["streams"][0]
    raw = run("ffmpeg", "-v", "fatal", "-i", f"file:{path}", "-map", "0:a:0", "-f", "f32le", "-c:a", "pcm_f32le", "-")
    channels = np.frombuffer(raw, "<f4").reshape(-1, stream["channels"])
    mono = torch.from_numpy(channels.mean(axis=1, dtype=np.float64).astype(np.float32))
    first = ("-read_intervals", "%+#5", "-show_entries", "frame=best_effort_timestamp_time:format=start_time")
    probed = probe(path, "a:0", *first)
    begin, stamps = max(Fraction(probed["format"].get("start_time", 0)), Fraction(0)), stamps_of(probed)
    late = round(max(stamps[0] - begin, Fraction(0)) * 16000) if stamps else 0
    sound = resample(mono, int(stream["sample_rate"]), 16000, lowpass_filter_width=32, rolloff=0.97)
    return np.pad(np.asarray(sound), (late, 0))


def stamps_of(probed: dict[str, Any]) -> list[Fraction]:
    """The times of frames that have one, as ffprobe tells them."""
    stamps = (frame.get("best_effort_timestamp_time") for frame in probed["frames"])
    return [Fraction(stamp) for stamp in stamps if stamp is not None]


def kaldis_log_mel(waveform: np.ndarray) -> torch.Tensor:
    """The log-mel of 16 kHz sound as torchaudio's port of Kaldi computes it, (frames, 128)."""
    samples = torch.from_numpy(waveform - waveform.mean())[None]
    fbank: torch.Tensor = kaldi.fbank(
        samples,
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    return fbank


def log_mel(waveform: np.ndarray) -> np.ndarray:
    return np.asarray(kaldis_log_mel(waveform))[:, :122]  # up to 7 kHz: above, resamplers fall off each in its way


def sounds_alike(path: Path, priming: int = 0, silent: bool = False) -> None:
    """What is read of a clip's sound is what ffmpeg makes of it."""
    ours, theirs = read_waveform(path, 16000), sound_of(path)
    assert ours is not None
    if len(theirs) > len(ours) + 2:
        theirs = theirs[priming:]
    assert len(ours) == pytest.approx(len(theirs), abs=2)
    ours_mel, theirs_mel = log_mel(ours), log_mel(theirs)
    frames = min(len(ours_mel), len(theirs_mel))
    loud = np.maximum(ours_mel[:frames], theirs_mel[:frames]) > FLOOR
    if silent:
        assert not loud.any()
        return
    assert loud.mean() > 0.01
    assert np.abs(ours_mel[:frames] - theirs_mel[:frames])[loud].mean() < NEAR


def pictures_of(path: Path, stream: str) -> tuple[list[Fraction], np.ndarray]:
    """Times from the container's start, and (frames, height, width, 3): every frame, upright, square-pixelled."""
    probed = probe(path, stream, "-show_entries", "frame=best_effort_timestamp_time,pix_fmt:format=start_time")
    begin = max(Fraction(probed["format"]["start_time"]), Fraction(0))  # below 0 there is only priming
    times = [Fraction(frame["best_effort_timestamp_time"]) for frame in probed["frames"]]
    site = CHROMA if "420" in probed["frames"][0]["pix_fmt"] else ""
    form = f"scale=w='round(iw*if(sar,sar,1))':h=ih:{FLAGS}{site},format=rgb24"
    arguments = ("-i", f"file:{path}", "-map", f"0:{stream}", "-vf", form, "-vsync", "0", "-f", "image2pipe")
    content = run("ffmpeg", "-v", "fatal", *arguments, "-c:v", "ppm", "-")
    return [time - begin for time in times], np.stack(split_ppm(content))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.square(one.astype(float) - other).mean())
    return 100.0 if error == 0 else 10 * float(np.log10(255**2 / error))


def looks_alike(path: Path, alike: float) -> None:
    """What is read of a clip's pictures is what ffmpeg makes of them."""
    times, pictures = pictures_of(path, "v:0")
    assert len(times) == len(pictures)
    shown = read_frames(path, fps=5, max_frames=60, frame_size=10_000)
    assert shown is not None
    for k, (_, rgb) in enumerate(shown):
        latest = max((i for i, time in enumerate(times) if time <= Fraction(k, 5) + Fraction(1, 10**5)), default=0)
        assert rgb.shape == pictures[latest].shape
        assert psnr(rgb, pictures[latest]) > alike, k


def split_ppm(content: bytes) -> list[np.ndarray]:
    pictures = []
    at = 0
    while at < len(content):
        header = content[at : at + 40].split(b"\n", 3)
        width, height = map(int, header[1].split())
        at += sum(len(part) + 1 for part in header[:3])
        pictures.append(np.frombuffer(content, np.uint8, width * height * 3, at).reshape(height, width, 3))
        at += width * height * 3
    return pictures
