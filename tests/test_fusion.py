"""`avpt fuse-train`: fusions, shares and masks against the tensors of the files and the method's formulas."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    TRAIN_OPTIONS,
    WIDTH,
    Experiment,
    assert_consistent,
    avpt,
    done,
    fuse,
    input_of,
    near,
    network_of,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avpt.loading.dataset import ClipDataset, Masking
from avpt.loading.loader import Loader
from avpt.models.abri import AbriBatchNorm2d
from avpt.models.encoder import EncoderSpec, build_encoder
from avpt.models.fusion import FUSIONS, FusedModel, FusionName
from avpt.store.store import Store
from avpt.types import MODALITIES

State = dict[str, Tensor]
NAMES: tuple[FusionName, ...] = ("concat", "sum", "film", "gated")
TENSORS = {
    "concat": {"linear.weight", "linear.bias"},
    "sum": {"audio.weight", "audio.bias", "visual.weight", "visual.bias"},
    "film": {"modulation.weight", "modulation.bias", "linear.weight", "linear.bias"},
    "gated": {"gate.weight", "value.weight", "linear.weight", "linear.bias"},
}


def logits_by_hand(name: str, w: State, a: Tensor, v: Tensor) -> Tensor:
    """The table of fusions in the method, from the tensors below `fusion.`."""
    if name == "concat":
        return torch.cat([a, v], 1) @ w["linear.weight"].T + w["linear.bias"]
    if name == "sum":
        return a @ w["audio.weight"].T + w["audio.bias"] + v @ w["visual.weight"].T + w["visual.bias"]
    if name == "film":
        both = a @ w["modulation.weight"].T + w["modulation.bias"]
        gamma, beta = both[:, : v.shape[1]], both[:, v.shape[1] :]
        return (gamma * v + beta) @ w["linear.weight"].T + w["linear.bias"]
    gate = 1 / (1 + (-(a @ w["gate.weight"].T)).exp())
    return (gate * (v @ w["value.weight"].T)) @ w["linear.weight"].T + w["linear.bias"]


def shares_by_hand(name: str, w: State, a: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The two-player Shapley value: a modality's worth averaged over both orders of arrival."""
    nothing_a, nothing_v = torch.zeros_like(a), torch.zeros_like(v)
    both, none = logits_by_hand(name, w, a, v), logits_by_hand(name, w, nothing_a, nothing_v)
    only_a, only_v = logits_by_hand(name, w, a, nothing_v), logits_by_hand(name, w, nothing_a, v)
    audio = ((only_a - none) + (both - only_v)) / 2
    visual = ((only_v - none) + (both - only_a)) / 2
    return {"logits": both, "audio_logits": audio + none / 2, "visual_logits": visual + none / 2}


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_the_methods(name: FusionName) -> None:
    torch.manual_seed(1)
    head = FUSIONS[name](6, 9, 4).double()
    assert head.state_dict().keys() == TENSORS[name]
    a, v = torch.randn(5, 6).double(), torch.randn(5, 9).double()
    torch.testing.assert_close(head(a, v), logits_by_hand(name, dict(head.state_dict()), a, v))


@pytest.mark.parametrize("name", NAMES)
def test_shares_add_up_and_are_shapley_values(name: FusionName) -> None:
    torch.manual_seed(2)
    audio = build_encoder(EncoderSpec("resnet18", "audio", "abri-channel"))
    visual = build_encoder(EncoderSpec("resnet18", "visual", "batchnorm"))
    model = FusedModel(audio, visual, name, 4).eval()
    sound, pictures = torch.randn(3, 1, 48, 32), torch.randn(3, 2, 3, 32, 32)
    with torch.no_grad():
        found = model.outputs(sound, pictures)
        a = audio(sound)
        v = (visual(pictures[:, 0]) + visual(pictures[:, 1])) / 2
        expected = shares_by_hand(name, dict(model.fusion.state_dict()), a, v)
        assert torch.equal(model(sound, pictures), found["logits"])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        near(found[key], value, 1e-4)
    near(found["audio_logits"] + found["visual_logits"], found["logits"], 1e-4)
    if name == "concat":
        weight, bias = model.fusion.state_dict()["linear.weight"], model.fusion.state_dict()["linear.bias"]
        near(found["audio_logits"], a @ weight[:, :512].T + bias / 2, 1e-4)
        near(found["visual_logits"], v @ weight[:, 512:].T + bias / 2, 1e-4)


def test_encoders_of_different_width_fuse() -> None:
    audio = build_encoder(EncoderSpec("resnet18", "audio", "batchnorm"))
    visual = build_encoder(EncoderSpec("resnet50", "visual", "batchnorm"))
    for name in NAMES:
        model = FusedModel(audio, visual, name, 3).eval()
        with torch.no_grad():
            assert model(torch.randn(1, 1, 32, 32), torch.randn(1, 1, 3, 32, 32)).shape == (1, 3)


def part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def test_a_fused_run_keeps_abri_and_is_consistent(experiment: Experiment) -> None:
    assert_consistent(experiment.fused)
    state = load_file(experiment.fused / "model.safetensors")
    stage1 = {m: load_file(getattr(experiment, m) / "model.safetensors") for m in MODALITIES}
    expected = {f"{m}.{name}" for m, tensors in stage1.items() for name in part(tensors, "encoder.")}
    assert state.keys() == expected | {"fusion.linear.weight", "fusion.linear.bias"}
    assert "audio.layer1.0.bn1.alpha" in state
    assert not [name for name in state if name.startswith("visual.") and "new_" in name]
    assert state["fusion.linear.weight"].shape == (3, 2 * WIDTH)


def test_predictions_are_the_models_own(experiment: Experiment) -> None:
    store, state = Store(experiment.store), load_file(experiment.fused / "model.safetensors")
    clips = ClipDataset(store.indices["test"], MODALITIES, input_of(store), "jpeg")
    (batch,) = Loader(clips, 9, device=torch.device("cpu"), workers=0).epoch(0)
    features = []
    for modality, channels, norm_layer in (("audio", 1, AbriBatchNorm2d), ("visual", 3, nn.BatchNorm2d)):
        encoder = network_of(part(state, f"{modality}."), channels, norm_layer=norm_layer)
        values = batch.inputs[0 if modality == "audio" else 1]
        with torch.no_grad():
            features.append(encoder.eval()(values.flatten(0, 1) if values.ndim == 5 else values))
    expected = shares_by_hand("concat", part(state, "fusion."), *features)
    found = load_file(experiment.fused / "predictions.safetensors")
    for name, value in expected.items():
        near(found[f"test_{name}"], value, 1e-4)


@pytest.mark.parametrize(
    "name",
    ["sum", "film", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in ("sum", "film"))],
)  # the others are trained by many tests, and by that of masking with every method
def test_every_fusion_trains_from_bare_encoders(experiment: Experiment, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    encoders = ("--audio", experiment.audio_init, "--visual", experiment.visual_init)
    options = (*TRAIN_OPTIONS, "--epochs", "1", "--mask", "none", "--fusion", name)
    assert done("fuse-train", experiment.store, *encoders, *options, "--out", run).stdout == f"{run}\n"
    assert_consistent(run)
    state = load_file(run / "last.safetensors")
    assert part(state, "fusion.").keys() == TENSORS[name]
    for modality in MODALITIES:
        before = load_file(getattr(experiment, f"{modality}_init"))
        learnt = part(state, f"{modality}.")
        assert learnt.keys() == before.keys()
        assert not torch.equal(learnt["conv1.0.weight"], before["conv1.0.weight"])
    mask = load_file(run / "mask.safetensors")
    assert not mask["audio_ratio"].any()
    assert not mask["visual_ratio"].any()
    assert load_file(run / "dynamics.safetensors")["probability"].isfinite().all()


def test_ratios_of_0_are_no_mask_and_others_matter(experiment: Experiment, tmp_path: Path) -> None:
    metrics = {}
    for name, options in (
        ("none", ("--mask", "none")),
        ("zero", ("--mask-ratio", "0")),
        ("full", ("--mask-ratio", "1", "--mask-eta", "20", "--mask-threshold", "0")),
    ):
        confidence = () if name == "none" else ("--confidence", experiment.confidence)
        done(*fuse(experiment), "--epochs", "1", *confidence, *options, "--out", tmp_path / name)
        metrics[name] = (tmp_path / name / "metrics.jsonl").read_bytes()
    assert metrics["zero"] == metrics["none"]
    assert metrics["full"] != metrics["none"]
    states = [load_file(tmp_path / name / "last.safetensors") for name in ("none", "zero")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def plan(
    experiment: Experiment, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str | Path
) -> tuple[State, Masking | None]:
    """What a fusion run would mask: the command up to its training."""
    seen: list[Masking | None] = []

    def train(*arguments: Any) -> dict[str, Any]:
        *_, begin, _, masking = arguments
        begin()
        seen.append(masking)
        return {"val": {"accuracy": 0.0}, "test": None, "best_epoch": 1, "epochs": 1}

    monkeypatch.setattr("avpt.runs.training_run.train", train)
    fixed = ("--confidence", experiment.confidence, "--mask-threshold", "0.1")
    done(*fuse(experiment), *fixed, *options, "--out", out)
    return load_file(out / "mask.safetensors"), seen[0]


def test_every_mask_option_has_its_effect(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sure = load_file(experiment.confidence)
    half = torch.maximum(sure["audio_confidence"], sure["visual_confidence"]).median().item()
    options: tuple[tuple[str, ...], ...] = (
        ("--mask", "uniform"),
        ("--mask", "none"),
        ("--mask-rule", "released"),
        ("--mask-ratio", "1"),
        ("--mask-ratio-audio", "1"),
        ("--mask-ratio-visual", "0.9"),
        ("--mask-eta", "3"),
        ("--mask-threshold", str(half)),  # which half of the clips reach
    )
    plain, masking = plan(experiment, tmp_path / "plain", monkeypatch)
    assert masking is not None
    for modality in MODALITIES:
        expected = [math.floor(ratio * 64) for ratio in plain[f"{modality}_ratio"].tolist()]
        assert masking.num_masked[modality].tolist() == expected
    found = {}
    for number, option in enumerate(options):
        tensors, _ = plan(experiment, tmp_path / str(number), monkeypatch, *option)
        found[option] = (tensors["audio_ratio"], tensors["visual_ratio"])
    seen = {(*plain["audio_ratio"].tolist(), *plain["visual_ratio"].tolist())}
    seen |= {(*audio.tolist(), *visual.tolist()) for audio, visual in found.values()}
    assert len(seen) == 1 + len(options)

    audio, visual = plain["audio_ratio"], plain["visual_ratio"]
    torch.testing.assert_close(found["--mask", "uniform"][0], audio.mean().expand(18))
    torch.testing.assert_close(found["--mask", "uniform"][1], visual.mean().expand(18))
    torch.testing.assert_close(found["--mask-ratio", "1"][0], 2 * audio)
    torch.testing.assert_close(found["--mask-ratio-audio", "1"][0], 2 * audio)
    assert torch.equal(found["--mask-ratio-audio", "1"][1], visual)
    torch.testing.assert_close(found["--mask-ratio-visual", "0.9"][1], 1.8 * visual)
    assert torch.equal(found["--mask-ratio-visual", "0.9"][0], audio)
    torch.testing.assert_close(found["--mask-eta", "3"][0], 0.5 * (3 * (2 * audio).atanh()).tanh())
    assert not found["--mask-rule", "released"][1].any()
    assert not found["--mask", "none"][0].any()


def test_patches_have_their_effect(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = ("--audio-patch", "3x4", "--visual-patch", "3")
    tensors, masking = plan(experiment, tmp_path / "run", monkeypatch, *patches)
    assert masking is not None
    assert masking.patch == {"audio": (3, 4), "visual": (3, 3)}
    for modality, count in (("audio", 16 * 8), ("visual", 10 * 10)):
        expected = [math.floor(ratio * count) for ratio in tensors[f"{modality}_ratio"].tolist()]
        assert masking.num_masked[modality].tolist() == expected  # type: ignore[index]
    large = avpt(
        *fuse(experiment), "--confidence", experiment.confidence, "--visual-patch", "33", "--out", tmp_path / "x"
    )
    assert large.code == 1
    assert "--visual-patch 33x33 is larger than the 32x32 input" in large.error
    assert not (tmp_path / "x").exists()


def without(path: Path, copy: Path, clips: int, missing: str) -> Path:
    """A confidence artifact without its first clips."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["avpt"])
    header["config"]["missing"] = missing
    tensors = load_file(path)
    offsets = tensors["id_offsets"]
    kept = {name: value[clips:].clone() for name, value in tensors.items() if len(value) == 18}
    kept["id_bytes"] = tensors["id_bytes"][int(offsets[clips]) :].clone()
    kept["id_offsets"] = offsets[clips:] - offsets[clips]
    save_file(kept, copy, {"avpt": json.dumps(header)})
    return copy


def test_clips_without_confidence(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = without(experiment.confidence, tmp_path / "strict.safetensors", 2, "error")
    refused = avpt(*fuse(experiment), "--confidence", strict, "--out", tmp_path / "refused")
    assert refused.code == 1
    assert "no confidence for 2 of 18 training clips" in refused.error

    skipping = without(experiment.confidence, tmp_path / "skipping.safetensors", 2, "skip")
    plain, _ = plan(experiment, tmp_path / "plain", monkeypatch)
    found, _ = plan(experiment, tmp_path / "run", monkeypatch, "--confidence", skipping)
    for modality in MODALITIES:
        ratio = plain[f"{modality}_ratio"].clone()
        ratio[:2] = 0
        assert torch.equal(found[f"{modality}_ratio"], ratio)


def test_confidence_of_another_run_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    other = shutil.copytree(experiment.visual, tmp_path / "other", ignore=shutil.ignore_patterns("*.pt"))
    recorded = load_file(other / "dynamics.safetensors")
    with safe_open(other / "dynamics.safetensors", "pt") as file:
        metadata = file.metadata()
    save_file(recorded | {"probability": recorded["probability"] / 2}, other / "dynamics.safetensors", metadata)
    command = (*fuse(experiment), "--confidence", experiment.confidence, "--visual", other, "--out", tmp_path / "run")
    refused = avpt(*command)
    assert refused.code == 1
    assert f"was not scored from --visual {other} as it is now; score it from the runs given" in refused.error
    assert not (tmp_path / "run").exists()


def test_masking_needs_confidence(experiment: Experiment, tmp_path: Path) -> None:
    refused = avpt(*fuse(experiment), "--out", tmp_path / "run")
    assert refused.code == 1
    assert "--confidence" in refused.error
    assert "--mask none" in refused.error
    assert not (tmp_path / "run").exists()
