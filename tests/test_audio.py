"""Sound against what the `wave` module, plain arithmetic and torchaudio itself say about the same samples."""

from __future__ import annotations

import shutil
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from by_ffmpeg import kaldis_log_mel
from media import Clips, tones
from torchaudio.compliance import kaldi

from avpt.errors import MediaError
from avpt.media import audio, streams
from avpt.media.audio import read_waveform
from avpt.media.resampling import Levels, mono, resample
from avpt.media.spectrograms import log_mel, samples_needed, spectrogram

SILENCE = float(np.log(np.finfo(np.float32).eps))  # -15.94: Kaldi's floor


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    """(samples, channels) int16 -> a WAV file, by the standard library."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def write_sound(path: Path, codec: str, pieces: list[tuple[np.ndarray, int]], layout: str, **options: str) -> Path:
    """Pieces of ((1, samples * channels) packed s16, pts) -> any container, through PyAV."""
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=16000)
        stream.layout = layout
        for samples, pts in pieces:
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
            frame.sample_rate, frame.pts = 16000, pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-20000, 20000, (samples, channels)).astype(np.int16)


def read(path: Path, sample_rate: int = 16000, **options: float | None) -> np.ndarray:
    waveform = read_waveform(path, sample_rate, **options)  # type: ignore[arg-type]
    assert waveform is not None
    assert waveform.dtype == np.float32
    return waveform


def tone(waveform: np.ndarray, rate: int) -> tuple[float, float]:
    """The loudest frequency, in Hz, and the amplitude of a tone there."""
    windowed = waveform * np.hanning(len(waveform))
    spectrum = np.abs(np.fft.rfft(windowed))
    peak = int(spectrum.argmax())
    return peak * rate / len(waveform), 4 * float(spectrum[peak]) / len(waveform)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    samples = noise(16000, 2)
    waveform = read(write_wav(tmp_path / "a.wav", samples, 16000))
    np.testing.assert_allclose(waveform, samples.mean(axis=1) / 32768, atol=1e-7)


@pytest.mark.parametrize(("layout", "channels"), [("5.1", 6), ("7.1", 8), ("12 channels", 12)])
def test_many_channels_are_averaged_not_mixed(tmp_path: Path, layout: str, channels: int) -> None:
    samples = noise(8000, channels)
    path = write_sound(tmp_path / "a.wav", "pcm_s16le", [(samples.reshape(1, -1), 0)], layout)
    np.testing.assert_allclose(read(path), samples.mean(axis=1) / 32768, atol=1e-7)


def test_more_planes_than_pyav_hands_over() -> None:
    samples = noise(100, 12)
    packed = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="12 channels")
    packed.sample_rate = 16000
    (planar,) = av.AudioResampler("fltp").resample(packed)
    assert planar.format.is_planar
    np.testing.assert_allclose(mono(audio._planes(planar)), samples.mean(axis=1) / 32768, atol=1e-6)


@pytest.mark.parametrize(
    ("codec", "step"),
    [
        ("pcm_u8", 2**-7),
        ("pcm_s24le", 2**-15),
        ("pcm_s32le", 2**-15),
        ("pcm_f32le", 2**-15),
        ("pcm_f64le", 2**-15),
    ],
)
def test_every_pcm_reaches_the_same_scale(tmp_path: Path, codec: str, step: float) -> None:
    samples = noise(4000)
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream: Any = container.add_stream(codec, rate=16000)
        stream.layout = "mono"
        resampler = av.AudioResampler(stream.format, "mono", 16000)
        frame = av.AudioFrame.from_ndarray(samples.T, format="s16", layout="mono")
        frame.sample_rate = 16000
        for converted in resampler.resample(frame):
            container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(read(tmp_path / "a.wav"), samples[:, 0] / 32768, atol=step)


@pytest.mark.parametrize(("source", "target"), [(8000, 16000), (44100, 16000), (44101, 16000), (16000, 8000)])
def test_resampling_keeps_a_tone(tmp_path: Path, source: int, target: int) -> None:
    seconds = np.arange(2 * source) / source
    samples = np.round(16384 * np.sin(2 * np.pi * 1000 * seconds))[:, None]
    waveform = read(write_wav(tmp_path / "a.wav", samples, source), target)
    assert len(waveform) == pytest.approx(2 * target, abs=2)
    middle = waveform[target // 2 : target // 2 + target]
    frequency, amplitude = tone(middle, target)
    assert frequency == pytest.approx(1000, abs=1)
    assert amplitude == pytest.approx(0.5, rel=0.01)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(target // 2, target // 2 + target) / target)
    np.testing.assert_allclose(middle, expected, atol=0.01)  # and its phase: no delay


def test_unspecified_layout_and_32_bits(clips: Clips) -> None:
    with wave.open(str(clips["mono.wav"])) as file:
        expected = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    with av.open(str(clips["mono.wav"])) as container:
        assert container.streams.audio[0].layout.name == "1 channels"
    np.testing.assert_allclose(read(clips["mono.wav"]), expected, atol=1e-7)
    assert len(read(clips["wide.wav"])) == pytest.approx(64000, abs=2)
    np.testing.assert_allclose(read(clips["wide.wav"], 8000), tones(4.0, 8000, hiss=0)[:, 0] / 32768, atol=1e-7)


def test_six_channel_opus(clips: Clips) -> None:
    waveform = read(clips["six_channels.ogg"])
    assert len(waveform) == pytest.approx(3.0 * 16000, abs=200)
    spectrum = np.abs(np.fft.rfft(waveform[16800:31200] * np.hanning(14400)))  # in the second second
    for channel in (0, 1, 2, 4, 5):  # the fourth keeps low tones only
        hertz = round((400 + 110 * channel) * 14400 / 16000)
        assert spectrum[hertz - 20 : hertz + 21].argmax() == pytest.approx(20, abs=1), channel


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        (0.0, None, 0, 48000),
        (0.5, None, 8000, 48000),
        (0.1, 0.7, 1600, 11200),  # 0.1 is not a float: 1600.0000000000001
        (0.0, 0.3, 0, 4800),
        (1.23456, 1.34567, 19753, 21531),
        (2.5, 9.0, 40000, 48000),
    ],
)
def test_start_and_end_are_exact(tmp_path: Path, start: float, end: float | None, first: int, last: int) -> None:
    samples = noise(48000)
    waveform = read(write_wav(tmp_path / "a.wav", samples, 16000), start=start, end=end)
    np.testing.assert_array_equal(waveform, (samples[first:last, 0] / 32768).astype(np.float32))


def test_start_counts_from_the_containers_start_in_milliseconds_of_matroska(tmp_path: Path) -> None:
    samples = noise(32000)
    pieces = [(samples[at : at + 500].T.copy(), at + 160000) for at in range(0, 32000, 500)]  # begins at 10 s
    path = write_sound(tmp_path / "a.mkv", "pcm_s16le", pieces, "mono")
    with av.open(str(path)) as container:
        assert container.start_time == 10_000_000
    np.testing.assert_array_equal(read(path, start=0.7, end=1.1), samples[11200:17600, 0] / np.float32(32768))


def test_rate_and_layout_may_change_midway(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = noise(8000), noise(32000, 2)
    frames: list[av.AudioFrame] = []
    for samples, rate, layout in (
        (first, 8000, "mono"),
        (second[:16000], 16000, "stereo"),
        (second[16000:], 16000, "stereo"),
    ):
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = rate
        frame.pts = None if frames else 5
        frames.append(frame)
    monkeypatch.setattr(audio, "decode", lambda track, packets: iter(frames))
    stream = SimpleNamespace(time_base=Fraction(1))
    track = streams.Track(stream, demuxer=Any, origin=Fraction(5), quick=False)  # type: ignore[arg-type]
    pieces = list(audio._cut(track, 0.75, 2.5))
    assert [(rate, samples.shape) for rate, samples in pieces] == [
        (8000, (1, 2000)),
        (16000, (2, 16000)),
        (16000, (2, 8000)),
    ]
    waveform = np.concatenate(list(resample(iter(pieces), 16000, Levels())))
    assert len(waveform) == pytest.approx(28000, abs=2)
    expected = second[:24000].mean(axis=1) / 32768
    np.testing.assert_allclose(waveform[-24000:], expected, atol=1e-7)


def test_max_samples_is_a_prefix_and_stops_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav(tmp_path / "a.wav", noise(44100 * 20, 2), 44100)
    whole = read(path)
    seen: list[int] = []

    def counted(*args: Any) -> Iterator[av.AudioFrame]:
        for frame in streams.decode(*args):
            seen.append(frame.samples)
            yield frame

    monkeypatch.setattr("avpt.media.audio.decode", counted)
    np.testing.assert_array_equal(read(path, max_samples=16000), whole[:16000])
    assert 44100 <= sum(seen) < 2 * 44100
    seen.clear()
    assert len(read(path, start=1.0, end=2.0)) == pytest.approx(16000, abs=2)
    assert 2 * 44100 <= sum(seen) < 3 * 44100


def test_no_sound_stream_is_not_an_error(clips: Clips) -> None:
    assert read_waveform(clips["held_0.mov"], 16000) is None


def test_tags_that_are_not_utf8(clips: Clips) -> None:
    path = clips["tag_of_other_bytes.flac"]
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    waveform = read(path, 48000)
    np.testing.assert_allclose(waveform, tones(2.74, 48000, 2).mean(axis=1) / 32768, atol=1e-6)
    assert len(read(path)) == pytest.approx(2.74 * 16000, abs=200)


@pytest.mark.parametrize("name", ["sound_of_no_codec.mp4", "undecodable.mp4"])
def test_declared_sound_without_a_sample(clips: Clips, name: str) -> None:
    with pytest.raises(MediaError, match="sound stream") as caught:
        read_waveform(clips[name], 16000)
    assert caught.value.stage == "audio"


def test_no_sound_in_the_range(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", noise(16000), 16000)
    with pytest.raises(MediaError, match=r"no sound between 3 s and 4 s") as caught:
        read_waveform(path, 16000, start=3.0, end=4.0)
    assert caught.value.stage == "audio"
    with pytest.raises(MediaError, match="gives no sample"):
        read_waveform(write_wav(tmp_path / "empty.wav", noise(0), 16000), 16000)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "folder", "cut", "playlist"])
def test_not_media(clips: Clips, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clip.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path = tmp_path / "clip.txt"
        path.write_text("one line of text, and another\n" * 200)
    elif kind == "folder":
        path.mkdir()
    elif kind == "cut":
        shutil.copy(clips["cut.mp4"], path)
    elif kind == "playlist":
        path = tmp_path / "clip.m3u8"
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(MediaError) as caught:
        read_waveform(path, 16000)
    assert caught.value.stage == "open"
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_log_mel_is_kaldis(tmp_path: Path) -> None:
    waveform = read(write_wav(tmp_path / "a.wav", noise(16000), 16000))
    fbank = log_mel(waveform, sample_rate=16000, mel_bins=128)
    assert fbank.shape == (98, 128)
    torch.testing.assert_close(fbank, kaldis_log_mel(waveform), rtol=0, atol=1e-5)


def test_log_mel_by_hand() -> None:
    """One window of one tone, computed with numpy alone from Kaldi's definition."""
    signal = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(400) / 16000)
    frame = signal - signal.mean()
    frame = np.concatenate([frame[:1] * 0.03, frame[1:] - 0.97 * frame[:-1]]) * np.hanning(400)
    power = np.abs(np.fft.rfft(frame, 512)) ** 2

    def mel(hertz: np.ndarray) -> np.ndarray:
        return np.asarray(1127 * np.log(1 + hertz / 700))

    edges = np.linspace(mel(np.array(20.0)), mel(np.array(8000.0)), 66)
    bins = mel(np.arange(257) * 16000 / 512)
    rising = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    expected = np.log(np.maximum(np.maximum(0, np.minimum(rising, falling)) @ power, np.exp(SILENCE)))
    fbank = log_mel(signal.astype(np.float32), sample_rate=16000, mel_bins=64).numpy()[0]
    assert int(fbank.argmax()) == int(expected.argmax())
    np.testing.assert_allclose(fbank[expected > -5], expected[expected > -5], atol=0.02)


def test_silence_and_a_short_waveform() -> None:
    silent = log_mel(np.zeros(16000, np.float32), sample_rate=16000, mel_bins=128)
    np.testing.assert_allclose(silent, SILENCE, atol=1e-3)
    short = noise(100)[:, 0].astype(np.float32) / 32768
    padded = np.concatenate([short - short.mean(), np.zeros(300, np.float32)]).astype(np.float32)
    expected = kaldi.fbank(
        torch.from_numpy(padded)[None],
        htk_compat=True,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
    )
    fbank = log_mel(short, sample_rate=16000, mel_bins=128)
    assert fbank.shape == (1, 128)
    torch.testing.assert_close(fbank, expected, rtol=0, atol=1e-5)


def test_values_that_are_not_finite() -> None:
    with pytest.raises(MediaError, match="not finite"):
        log_mel(np.array([0.0, np.nan] * 400, np.float32), sample_rate=16000, mel_bins=128)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("frames", [1, 2, 101])
def test_samples_needed_gives_exactly_the_frames(rate: int, frames: int) -> None:
    needed = samples_needed(frames, rate)
    waveform = noise(needed)[:, 0].astype(np.float32)
    assert len(log_mel(waveform, sample_rate=rate, mel_bins=32)) == frames
    assert len(log_mel(waveform[:-1], sample_rate=rate, mel_bins=32)) == max(1, frames - 1)


def test_spectrogram_pads_with_zero_or_cuts() -> None:
    waveform = noise(16000)[:, 0].astype(np.float32) / 32768
    expected = log_mel(waveform, sample_rate=16000, mel_bins=64)
    padded, real = spectrogram(waveform, sample_rate=16000, mel_bins=64, frames=200, pad="zero")
    assert (padded.shape, real) == ((200, 64), 98)
    torch.testing.assert_close(padded[:98], expected)
    assert (padded[98:] == 0).all()
    cut, real = spectrogram(waveform, sample_rate=16000, mel_bins=64, frames=50, pad="zero")
    assert (cut.shape, real) == ((50, 64), 50)
    torch.testing.assert_close(cut, expected[:50], rtol=0, atol=1e-3)  # the mean is that of the part


@pytest.mark.parametrize("samples", [3, 5000, 16000, 40000])
def test_spectrogram_repeats_the_waveform(samples: int) -> None:
    waveform = noise(samples)[:, 0].astype(np.float32) / 32768
    fbank, real = spectrogram(waveform, sample_rate=16000, mel_bins=64, frames=200, pad="repeat")
    tiled = np.tile(waveform, -(-32240 // samples))[:32240]  # 400 + 199 * 160
    assert (fbank.shape, real) == ((200, 64), 200)
    torch.testing.assert_close(fbank, log_mel(tiled, sample_rate=16000, mel_bins=64))
