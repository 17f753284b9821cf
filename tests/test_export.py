"""`avpt export`: what it writes gives, without avpt, the outputs that the run recorded."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from helpers import ARCH, ROOT, TRAIN_OPTIONS, Experiment, avpt, digit_rows, done, refused
from media import Sound, ordinary, tones, write
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from avpt.files import artifacts
from avpt.files.model_headers import read_input
from avpt.loading.clip_inputs import clip_inputs, clip_settings
from avpt.loading.dataset import ClipDataset, InputSpec
from avpt.loading.loader import Loader
from avpt.media.audio import read_waveform
from avpt.media.decode import decode_clip
from avpt.media.spectrograms import log_mel
from avpt.models.encoder import EncoderSpec, build_encoder
from avpt.store.store import Store
from avpt.types import Modality

NUMBERS = (1, 4, 9)  # clips a batch


def export(model: Path, form: str, out: Path, *options: str) -> dict[str, Any]:
    return done("export", model, "--format", form, "--out", out, "--json", *options).json()


def clips_of(experiment: Experiment) -> dict[str, Tensor]:
    """The test clips as the model takes them."""
    store = Store(experiment.store)
    spec = InputSpec(**artifacts.read_header(experiment.fused / "model.safetensors")[0].spec["input"])
    modalities: list[Modality] = ["audio", "visual"]
    clips = ClipDataset(store.indices["test"], modalities, spec, "jpeg")
    (batch,) = Loader(clips, 99, device=torch.device("cpu"), workers=0).epoch(0)
    return dict(zip(modalities, batch.inputs, strict=True))


@pytest.fixture(scope="module")
def inputs(experiment: Experiment) -> dict[str, Tensor]:
    return clips_of(experiment)


@pytest.fixture(scope="module")
def resnet_inputs(resnet18: Experiment) -> dict[str, Tensor]:
    return clips_of(resnet18)


def logits(run: Path, name: str = "logits") -> Tensor:
    return load_file(run / "predictions.safetensors")[f"test_{name}"]


def close(found: Tensor, expected: Tensor) -> None:
    """Equal within 1e-4 of the largest."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def run_code(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names


# --- torchvision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_the_printed_python_loads_a_classifier_strictly(
    resnet18: Experiment, resnet_inputs: dict[str, Tensor], tmp_path: Path, modality: str
) -> None:
    run, out = getattr(resnet18, modality), tmp_path / "plain.safetensors"
    result = done("export", run, "--format", "torchvision", "--out", out)
    assert result.stdout == f"{out}\n"
    code = result.stderr[result.stderr.index("import torch") :]
    model = run_code(code)["model"]
    assert isinstance(model, torchvision.models.ResNet)
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)} == {nn.BatchNorm2d}
    with torch.no_grad():
        close(model(resnet_inputs[modality] if modality == "audio" else resnet_inputs[modality][:, 0]), logits(run))
    assert set(load_file(out)) == set(model.state_dict())


def test_an_encoder_of_a_fused_model(resnet18: Experiment, resnet_inputs: dict[str, Tensor], tmp_path: Path) -> None:
    """Both encoders, through the fusion's own weights, give the run's logits."""
    features = []
    for modality in ("audio", "visual"):
        record = export(resnet18.fused, "torchvision", tmp_path / f"{modality}.st", "--modality", modality)
        assert record["output"] == "features"
        assert record["classes"] == []
        assert not any(name.startswith("fc.") for name in load_file(tmp_path / f"{modality}.st"))
        model = run_code(record["code"])["model"]
        with torch.no_grad():
            features.append(model(resnet_inputs[modality] if modality == "audio" else resnet_inputs[modality][:, 0]))
    tensors = load_file(resnet18.fused / "model.safetensors")
    fused = torch.cat(features, 1) @ tensors["fusion.linear.weight"].T + tensors["fusion.linear.bias"]
    close(fused, logits(resnet18.fused))


def test_an_encoder_from_init(resnet18: Experiment, resnet_inputs: dict[str, Tensor], tmp_path: Path) -> None:
    model = run_code(export(resnet18.audio_init, "torchvision", tmp_path / "a.st")["code"])["model"]
    abri = build_encoder(EncoderSpec("resnet18", "audio", "abri-channel")).eval()
    abri.load_state_dict(load_file(resnet18.audio_init))
    with torch.no_grad():
        close(model(resnet_inputs["audio"]), abri(resnet_inputs["audio"]))


def test_init_starts_from_what_was_exported(resnet18: Experiment, tmp_path: Path) -> None:
    export(resnet18.audio, "torchvision", tmp_path / "plain.st")
    command = ("init", "--modality", "audio", "--weights", tmp_path / "plain.st", "--out", tmp_path / "init.st")
    assert done(*command, "--json").json()["weights"]["dropped"] == ["fc.bias", "fc.weight"]
    plain, init = load_file(tmp_path / "plain.st"), load_file(tmp_path / "init.st")
    assert all(torch.equal(value, plain[name]) for name, value in init.items())


def test_the_file_says_what_it_is(resnet18: Experiment, tmp_path: Path) -> None:
    export(resnet18.audio, "torchvision", tmp_path / "plain.st")
    with safe_open(tmp_path / "plain.st", "numpy") as file:
        metadata = file.metadata()
    assert list(metadata) == ["avpt"]
    header, source = json.loads(metadata["avpt"]), artifacts.read_header(resnet18.audio / "model.safetensors")[0]
    assert header["kind"] == "export"
    assert header["classes"] == ["0", "1", "2"]
    assert header["spec"]["input"] == source.spec["input"]
    assert header["spec"]["inputs"] == {"audio": ["batch", 1, 48, 32]}
    assert header["spec"]["encoders"] == {"audio": {"arch": "resnet18", "modality": "audio", "norm": "batchnorm"}}
    assert done("info", tmp_path / "plain.st", "--json").json()["kind"] == "export"
    for command in ("evaluate", "predict"):
        result = avpt(command, tmp_path / "plain.st", resnet18.store if command == "evaluate" else "film.mp4")
        assert result.code == 1
        assert "is of kind export; classifier or fused is needed here" in result.error


# --- ONNX and torch.export ---------------------------------------------------------------------------------------


def check_onnx(path: Path, inputs: dict[str, Tensor], expected: Tensor, output: str) -> None:
    onnx.checker.check_model(onnx.load(path))
    session = onnxruntime.InferenceSession(path)
    assert {entry.name: entry.shape for entry in session.get_inputs()} == {
        name: ["batch", *value.shape[1:]] for name, value in inputs.items()
    }
    assert [entry.name for entry in session.get_outputs()] == [output]
    for count in NUMBERS:
        (found,) = session.run(None, {name: value[:count].numpy() for name, value in inputs.items()})
        assert found.dtype == np.float32
        close(torch.from_numpy(found), expected[:count])


def test_onnx_of_a_whole_fused_model(experiment: Experiment, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    out = tmp_path / "fused.onnx"
    record = export(experiment.fused, "onnx", out)
    check_onnx(out, inputs, logits(experiment.fused), "logits")
    (metadata,) = onnx.load(out).metadata_props
    header = json.loads(metadata.value)
    assert metadata.key == "avpt"
    assert header["classes"] == record["classes"] == ["0", "1", "2"]
    assert header["spec"]["input"] == record["input"]
    assert done("info", out, "--json").json()["spec"] == header["spec"]
    content = out.read_bytes()
    assert b'.py", line' not in content  # nor where it was traced
    assert b"/site-packages" not in content

    stamp = out.stat().st_mtime_ns
    assert done("export", experiment.fused, "--format", "onnx", "--out", out).stdout == f"{out}\n"
    assert out.stat().st_mtime_ns == stamp
    session = run_code(record["code"].rpartition("\n(")[0])["session"]
    assert isinstance(session, onnxruntime.InferenceSession)


def test_onnx_of_an_abri_classifier(experiment: Experiment, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    out = tmp_path / "audio.onnx"
    export(experiment.audio, "onnx", out)
    check_onnx(out, {"audio": inputs["audio"]}, logits(experiment.audio), "logits")
    content = out.read_bytes()
    export(experiment.audio, "onnx", out, "--overwrite")
    assert out.read_bytes() == content


@pytest.mark.slow
def test_onnx_of_a_whole_fused_model_has_the_same_bytes_again(experiment: Experiment, tmp_path: Path) -> None:
    out = tmp_path / "fused.onnx"
    export(experiment.fused, "onnx", out)
    content = out.read_bytes()
    export(experiment.fused, "onnx", out, "--overwrite")
    assert out.read_bytes() == content


def test_torch_export(experiment: Experiment, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    record = export(experiment.fused, "torch-export", tmp_path / "fused.pt2")
    extra = {"avpt.json": ""}
    module = torch.export.load(tmp_path / "fused.pt2", extra_files=extra).module()
    assert json.loads(extra["avpt.json"])["spec"]["input"] == record["input"]
    for count in NUMBERS:
        with torch.no_grad():
            close(module(*(value[:count] for value in inputs.values())), logits(experiment.fused)[:count])
    content = (tmp_path / "fused.pt2").read_bytes()
    with zipfile.ZipFile(tmp_path / "fused.pt2") as archive:
        assert not any(b"/site-packages" in archive.read(name) for name in archive.namelist())
    done("export", experiment.fused, "--format", "torch-export", "--out", tmp_path / "fused.pt2", "--overwrite")
    assert (tmp_path / "fused.pt2").read_bytes() == content
    assert done("info", tmp_path / "fused.pt2", "--json").json()["classes"] == ["0", "1", "2"]
    names = run_code(record["code"].rpartition("logits =")[0])
    assert callable(names["model"])


@pytest.mark.slow
def test_features_of_a_fused_model_over_several_frames(experiment: Experiment, tmp_path: Path) -> None:
    several = tmp_path / "several"
    command = ("finetune-unimodal", experiment.store, "--modality", "visual", "--init", experiment.visual_init)
    done(*command, *TRAIN_OPTIONS, "--epochs", "1", "--num-frames", "2", "--out", several)
    done(
        *("fuse-train", experiment.store, "--audio", experiment.audio, "--visual", several, "--mask", "none"),
        *(*TRAIN_OPTIONS, "--epochs", "1", "--num-frames", "2", "--out", tmp_path / "fused"),
    )
    record = export(tmp_path / "fused", "torch-export", tmp_path / "v.pt2", "--modality", "visual")
    assert record["inputs"] == {"visual": ["batch", 2, 3, 32, 32]}
    encoder = build_encoder(EncoderSpec(ARCH, "visual", "batchnorm")).eval()
    tensors = load_file(tmp_path / "fused" / "model.safetensors")
    encoder.load_state_dict({n.removeprefix("visual."): v for n, v in tensors.items() if n.startswith("visual.")})
    frames = torch.randn(3, 2, 3, 32, 32)
    with torch.no_grad():
        expected = (encoder(frames[:, 0]) + encoder(frames[:, 1])) / 2
        close(torch.export.load(tmp_path / "v.pt2").module()(frames), expected)


# --- running again, and what can be wrong ------------------------------------------------------------------------


def test_the_same_again_changes_nothing_and_other_options_are_refused(resnet18: Experiment, tmp_path: Path) -> None:
    out = tmp_path / "plain.st"
    command = ("export", resnet18.fused, "--format", "torchvision", "--modality", "audio", "--out", out)
    first = done(*command, "--json")
    content, stamp = out.read_bytes(), out.stat().st_mtime_ns
    assert done(*command, "--json").stdout == first.stdout
    assert out.stat().st_mtime_ns == stamp
    assert done(*command, "--quiet").stderr == ""
    done(*command, "--overwrite")
    assert out.read_bytes() == content
    assert str(resnet18.folder).encode() not in content
    result = avpt(*command, "--modality", "visual")
    assert result.code == 1
    assert "modality: audio there, visual now" in result.error
    result = avpt("export", resnet18.audio, "--format", "torch-export", "--out", out)
    assert (result.code, "was not exported by avpt, or is damaged" in result.error) == (1, True)
    assert out.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["plain.st"]


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("fused", ("--format", "torchvision"), "writes one encoder; add --modality audio or --modality visual"),
        ("audio", ("--format", "onnx", "--modality", "visual"), "which takes audio input"),
        ("audio_init", ("--format", "torch-export"), "it is not trained yet"),
        ("confidence", ("--format", "torchvision"), "is of kind confidence; encoder or classifier or fused"),
        ("manifest", ("--format", "torchvision"), "is a manifest (CSV); an artifact is a safetensors file"),
        ("folder", ("--format", "torchvision"), "is not a run folder written by avpt"),
    ],
)
def test_what_can_not_be_exported(
    resnet18: Experiment, tmp_path: Path, model: str, options: tuple[str, ...], says: str
) -> None:
    result = avpt("export", getattr(resnet18, model), *options, "--out", tmp_path / "x", "--quiet")
    assert result.code == 1
    assert result.stdout == ""
    assert says in result.error
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_files_at_out_that_are_not_ours_stay(resnet18: Experiment, tmp_path: Path) -> None:
    for name, content in (("letter", b"hello"), ("empty", b""), ("proto", bytes(range(8, 200)))):
        (tmp_path / name).write_bytes(content)
        for form in ("torchvision", "onnx", "torch-export"):
            result = avpt("export", resnet18.audio, "--format", form, "--out", tmp_path / name, "--overwrite")
            assert result.code == 1, name
            assert "remove it or choose another --out" in result.error
            assert len(result.stderr.splitlines()) == 1
        assert (tmp_path / name).read_bytes() == content
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a/avpt.json", json.dumps(asdict(artifacts.Header(kind="export")) | {"config": 3}))
    result = avpt("export", resnet18.audio, "--format", "torch-export", "--out", tmp_path / "zip")
    assert "has a damaged avpt header" in result.error
    result = avpt("export", resnet18.audio, "--format", "onnx", "--out", tmp_path)
    assert "is a folder; --out must name a file" in result.error


def test_without_the_extra_it_says_what_to_install(
    resnet18: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = avpt("export", resnet18.audio, "--format", "onnx", "--out", tmp_path / "a.onnx")
    assert result.code == 1
    assert result.error == "avpt: ONNX needs packages that are not installed: pip install 'avpt[onnx]'"
    done("export", resnet18.audio, "--format", "torchvision", "--out", tmp_path / "a.st")


class OddError(Exception):
    """An error of a kind that only an exporter has."""


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
@pytest.mark.parametrize("kind", [OddError, RuntimeError, AssertionError, KeyError, ValueError, NotImplementedError])
def test_a_network_that_torch_cant_export_is_told_in_one_line(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, kind: type[Exception]
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        try:
            raise kind("\x1b[31mdata-dependent\x1b[0m branch\nin line 7")
        except Exception as error:
            raise OddError("step 1 of 3 failed\nand pages more") from error

    monkeypatch.setattr(*((torch.onnx, "export") if form == "onnx" else (torch.export, "export")), fails)
    out = tmp_path / "model"
    says = f"torch can't export {ARCH} as {form} ({kind.__name__}: "
    result = refused("export", experiment.audio, "--format", form, "--out", out, says=says)
    assert "data-dependent" in result.error
    assert "step 1" not in result.error


def test_what_has_nothing_to_do_with_the_network_is_not_blamed_on_it(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch.export, "export", fails)
    command = ("export", experiment.audio, "--format", "torch-export", "--out", tmp_path / "model")
    refused(*command, says="too little memory")


# --- feeding an exported model -----------------------------------------------------------------------------------


def test_the_readmes_code_makes_the_inputs_of_the_training(resnet18: Experiment, tmp_path: Path) -> None:
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "avpt/guide/export.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    (block,) = (block for block in blocks if "def audio(waveform)" in block)
    done(
        "export",
        resnet18.fused,
        "--format",
        "torchvision",
        "--modality",
        "audio",
        "--out",
        tmp_path / "it.safetensors",
    )
    code: dict[str, Any] = {}
    exec(block.replace("digits.safetensors", str(tmp_path / "it.safetensors")), code)

    header = artifacts.read_header(resnet18.fused / "model.safetensors")[0]
    spec = read_input(resnet18.fused, header)
    raw = replace(clip_settings(spec), frame_codec="raw")
    (row, *_) = digit_rows()
    sound, picture = Path(row["audio"]), Path(row["frames"])
    waveform = read_waveform(sound, spec.sample_rate)
    assert waveform is not None
    decoded = decode_clip(None, sound, picture, None, None, raw)
    inputs = clip_inputs(decoded, replace(spec, frame_codec="raw"))
    pixels = torch.from_numpy(np.frombuffer(decoded.frames[0], np.uint8).copy())
    frames = pixels.view(1, *(int(side) for side in decoded.sizes[0]), 3).permute(0, 3, 1, 2)
    assert (code["audio"](torch.from_numpy(waveform)) - inputs["audio"]).abs().max() < 0.01  # float16 in a store
    assert (code["visual"](frames) - inputs["visual"]).abs().max() < 0.05  # where a pixel is rounded


def test_the_guides_code_mixes_and_resamples_as_avpt_does(tmp_path: Path) -> None:
    text = (ROOT / "avpt/guide/export.md").read_text(encoding="utf-8")
    code: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        if "def waveform(" in block or "def resampled(" in block:
            exec(block, code)
    files = [ordinary(tmp_path / "clip.mp4", size=(48, 64))]
    for rate in (8000, 15000, 22050, 48000):
        sound = Sound(samples=tones(2.0, rate, 2), codec="pcm_s16le", rate=rate, layout="stereo")
        files.append(write(tmp_path / f"{rate}.wav", None, sound))
    for path in files:
        expected = read_waveform(path, 16000)
        assert expected is not None
        assert np.array_equal(code["waveform"](str(path), 16000).numpy(), expected), path
        with av.open(str(path)) as file:
            samples = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1).astype(np.float32)
            rate = file.streams.audio[0].rate
        planes = samples.reshape(-1, 2).T / 2**15 if path.suffix == ".wav" else samples
        found = code["resampled"](torch.from_numpy(planes), rate, 16000).numpy()
        far = log_mel(found, sample_rate=16000, mel_bins=128) - log_mel(expected, sample_rate=16000, mel_bins=128)
        assert far.abs().mean() < 0.0005, path
        assert far.abs().max() < 0.2, path
