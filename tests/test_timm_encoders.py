"""Encoders of timm's architectures: built by timm's own facts, with ABRi in every BatchNorm, through all commands."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from helpers import PATCHES, Experiment, done, near, refused
from safetensors.torch import load_file
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import avpt
from avpt.diagnosis.dead_channels import measure
from avpt.errors import ConfigError
from avpt.models.abri import AbriBatchNorm, convert, fold, fold_network, norm_eps
from avpt.models.architectures import find_architecture, list_architectures
from avpt.models.encoder import build_encoder, check_size, describe_encoder, encoder_spec, features_shape
from avpt.types import Batch, Modality

WITH_BATCHNORM = ("resnet18d", "regnety_002", "efficientnet_lite0", "mobilenetv3_small_100", "densenet121")
SMALL = ("--image-size", "32", "--num-frames", "1", "--device", "cpu", "--quiet")


class TwoBranches(nn.Module):
    """ABRi as its formula says: two whole BatchNorms of the same input, blended."""

    def __init__(self, layer: AbriBatchNorm) -> None:
        super().__init__()
        kind = nn.BatchNorm1d if isinstance(layer, nn.BatchNorm1d) else nn.BatchNorm2d
        self.old, self.new = (
            kind(layer.num_features, layer.eps, layer.momentum, dtype=layer.weight.dtype) for _ in range(2)
        )
        state = layer.state_dict()
        self.old.load_state_dict({name: state[name] for name in self.old.state_dict()})
        fresh = {name: state[f"new_{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
        self.new.load_state_dict(fresh | {"num_batches_tracked": state["num_batches_tracked"]})
        self.alpha = nn.Parameter(state["alpha"].clone())
        self.rest = nn.Sequential(*(layer.get_submodule(name) for name in ("drop", "act") if hasattr(layer, name)))

    def forward(self, inputs: Tensor) -> Tensor:
        alpha = self.alpha.view(1, -1, *(1,) * (inputs.ndim - 2))
        rest: Tensor = self.rest(alpha * self.old(inputs) + (1 - alpha) * self.new(inputs))
        return rest


def stir(network: nn.Module) -> nn.Module:
    """Give every BatchNorm parameters, and every alpha, that differ from layer to layer."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, _BatchNorm):
                for name, value in layer.named_parameters(recurse=False):
                    value.add_(torch.empty_like(value).uniform_(-0.3, 0.3), alpha=1.0 if name != "alpha" else 0.5)
                layer.get_buffer("running_mean").normal_(0, 0.1)
                layer.get_buffer("running_var").uniform_(0.5, 2)
    return network


def with_two_branches(network: nn.Module) -> nn.Module:
    for name, layer in list(network.named_modules()):
        if isinstance(layer, AbriBatchNorm):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, TwoBranches(layer))
    return network


@pytest.mark.parametrize("arch", WITH_BATCHNORM)
def test_abri_by_conversion_is_two_branches(arch: str) -> None:
    """Output, gradients and statistics of a training step, and evaluation after it, are those of the formula."""
    spec = describe_encoder(arch, "audio", "abri-channel")
    mine = stir(build_encoder(spec)).double()
    theirs = with_two_branches(copy.deepcopy(mine))
    layers = {name: layer for name, layer in mine.named_modules() if isinstance(layer, AbriBatchNorm)}
    plain = timm.create_model(arch, num_classes=0, in_chans=1)
    assert len(layers) == sum(isinstance(layer, _BatchNorm) for layer in plain.modules())
    assert list(build_encoder(describe_encoder(arch, "audio", "batchnorm")).state_dict()) == list(plain.state_dict())

    inputs = torch.randn(3, 1, 64, 32, dtype=torch.float64)
    for network in (mine.train(), theirs.train()):
        network(inputs).square().mean().backward()
    parameters = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        layer, _, own = name.rpartition(".")
        if layer in layers:
            kin = {"alpha": "alpha", "new_weight": "new.weight", "new_bias": "new.bias"}.get(own, f"old.{own}")
            name = f"{layer}.{kin}"
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, parameters[name].grad, rtol=1e-6, atol=1e-12)
    for name, converted in layers.items():
        branches = theirs.get_submodule(name)
        assert isinstance(branches, TwoBranches)
        torch.testing.assert_close(converted.running_var, branches.old.running_var)
        torch.testing.assert_close(converted.new_running_mean, branches.new.running_mean)
        assert converted.num_batches_tracked == branches.old.num_batches_tracked
    with torch.no_grad():
        torch.testing.assert_close(mine.eval()(inputs), theirs.eval()(inputs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("arch", ["test_efficientnet", "test_resnet"])
def test_folding_a_network_keeps_its_outputs_and_names(arch: str) -> None:
    network = timm.create_model(arch, num_classes=3)
    names, inputs = list(network.state_dict()), torch.randn(4, 3, 32, 32)
    blended = stir(avpt.abri(network)).train()
    blended(inputs)
    expected = blended.eval()(inputs)
    folded = avpt.fold(blended)
    assert list(folded.state_dict()) == names
    near(folded(inputs), expected)
    timm.create_model(arch, num_classes=3).load_state_dict(folded.state_dict())


def test_a_layer_that_stands_in_two_places_is_still_one() -> None:
    layer = nn.BatchNorm1d(3)
    network = convert(nn.ModuleList([layer, nn.Sequential(layer)]))
    assert network.get_submodule("0") is network.get_submodule("1.0")
    assert isinstance(fold(convert(nn.BatchNorm1d(3))), nn.BatchNorm1d)  # type: ignore[arg-type]
    assert norm_eps(network).keys() == {"0", "1.0"}
    folded = fold_network(network)
    assert isinstance(folded.get_submodule("0"), nn.BatchNorm1d)
    assert folded.get_submodule("0") is folded.get_submodule("1.0")
    assert not any(isinstance(layer, AbriBatchNorm) for layer in folded.modules())


def test_an_activation_keeps_its_weights() -> None:
    layer = BatchNormAct2d(4, act_layer=nn.PReLU)
    slopes = layer.get_parameter("act.weight")
    with torch.no_grad():
        slopes.fill_(0.7)
    network = convert(nn.Sequential(layer))
    inputs = torch.randn(3, 4, 5, 5)
    expected = network.eval()(inputs)
    folded = fold_network(network).eval()
    assert type(folded[0]) is BatchNormAct2d  # type: ignore[index]
    assert torch.equal(folded.get_parameter("0.act.weight"), torch.full_like(slopes, 0.7))
    near(folded(inputs).detach(), expected.detach())


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("weight",), ()])
def test_what_is_frozen_stays_frozen(frozen: tuple[str, ...]) -> None:
    layer = nn.BatchNorm2d(3)
    for name in frozen:
        layer.get_parameter(name).requires_grad_(False)
    blended = convert(nn.Sequential(layer))
    trained = {name for name, value in blended.named_parameters() if value.requires_grad}
    parts = [name for name in ("weight", "bias") if name not in frozen]
    assert trained == {f"0.{branch}{name}" for name in parts for branch in ("", "new_")} | (
        {"0.alpha"} if parts else set()
    )
    folded = fold_network(blended)
    assert [name for name, value in folded.named_parameters() if not value.requires_grad] == [f"0.{n}" for n in frozen]


def test_a_batch_norm_without_parameters_stays_as_it_is() -> None:
    network = convert(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)))
    assert [type(layer).__name__ for layer in network.children()] == ["AbriBatchNorm2d", "BatchNorm2d"]


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (nn.Linear(2, 2), "no BatchNorm with gamma and beta"),
        (nn.BatchNorm2d(2, affine=False), "no BatchNorm with gamma and beta"),
        (nn.BatchNorm3d(2), "a BatchNorm3d, which ABRi does not know"),
        (nn.SyncBatchNorm(2), "a SyncBatchNorm, which ABRi does not know"),
        (torchvision.ops.FrozenBatchNorm2d(2), "no BatchNorm but frozen ones"),
    ],
)
def test_networks_that_abri_is_not_for_are_refused(network: nn.Module, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        avpt.abri(network)


# --- facts -------------------------------------------------------------------------------------------------------


def test_pictures_are_normalised_as_the_weights_were() -> None:
    theirs: Any = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    spec = describe_encoder("tf_efficientnet_lite0", "visual", "batchnorm")
    assert (spec.mean, spec.std) == (theirs.mean, theirs.std) == ((0.5,) * 3, (0.5,) * 3)
    assert encoder_spec(json.loads(json.dumps(spec.record()))) == spec
    assert describe_encoder("tf_efficientnet_lite0", "audio", "batchnorm").mean is None
    assert describe_encoder("efficientnet_lite0", "visual", "batchnorm").record() == {
        "arch": "efficientnet_lite0",
        "modality": "visual",
        "norm": "batchnorm",
    }


def test_features_are_as_wide_as_the_output() -> None:
    encoder = build_encoder(describe_encoder("mobilenetv3_small_100", "visual", "batchnorm"))
    assert encoder.width == encoder.eval()(torch.zeros(1, 3, 32, 32)).shape[1] == 1024


def test_sizes_that_do_not_fit_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"resnet18 takes inputs of any size"):
        describe_encoder("resnet18", "visual", "batchnorm", (64, 64))
    vit = describe_encoder("test_vit", "audio", "batchnorm", (64, 32))
    check_size(vit, (64, 32), "vit")
    with pytest.raises(ConfigError, match=r"inputs of 64x32 and no others, and these are 128x32.*--input-size 128x32"):
        check_size(vit, (128, 32), "vit")
    small = describe_encoder("densenet121", "visual", "batchnorm")
    with pytest.raises(
        ConfigError, match=r"densenet121 can't take inputs of 16x16.*the nearest of usual ones that it takes is 32x32"
    ):
        check_size(small, (16, 16), "densenet")


@pytest.mark.parametrize(
    ("arch", "modality", "asked", "nearest"),
    [
        ("efficientformer_l1", "audio", None, (224, 224)),  # no size but that of its weights
        ("efficientformer_l1", "visual", (256, 192), (224, 224)),
        ("test_convnext", "visual", (1, 2), (32, 32)),
        ("inception_v3", "visual", (32, 32), (96, 96)),
    ],
)
def test_the_nearest_size_works(
    arch: str, modality: Modality, asked: tuple[int, int] | None, nearest: tuple[int, int]
) -> None:
    def ask() -> None:
        if find_architecture(arch).fixed_size:
            describe_encoder(arch, modality, "batchnorm", asked)
        elif asked is not None:
            check_size(describe_encoder(arch, modality, "batchnorm"), asked, "it")

    with pytest.raises(ConfigError, match=f"nearest of usual ones that it takes is {nearest[0]}x{nearest[1]}"):
        ask()
    size = nearest if find_architecture(arch).fixed_size else None
    assert len(features_shape(describe_encoder(arch, modality, "batchnorm", size), nearest)) == 2


def test_patches_that_leave_a_rest_are_told(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    convnext = describe_encoder("test_convnext", "visual", "batchnorm")
    with caplog.at_level("WARNING", logger="avpt"):
        check_size(convnext, (32, 32), "encoder.safetensors")
        assert not caplog.records
        check_size(convnext, (35, 32), "encoder.safetensors")
    (record,) = caplog.records
    says = "encoder.safetensors: the patches of test_convnext do not divide inputs of 35x32 without a rest"
    assert record.getMessage().startswith(says)
    assert record.getMessage().endswith("the nearest that they divide is 32x32")
    sized = ("init", "--arch", "vit_tiny_patch16_224", "--modality", "audio", "--weights", "random", "--out")
    result = done(*sized, tmp_path / "x.safetensors", "--input-size", "50x32")
    assert result.stderr.count("the edge is cut off or padded; the nearest that they divide is 48x32") == 1
    assert "edge" not in done(*sized, tmp_path / "y.safetensors", "--input-size", "48x32").stderr


def test_an_architecture_for_pictures_alone_says_so(tmp_path: Path) -> None:
    says = "csatv2 takes pictures of 3 channels alone, and sound has 1"
    made = ("init", "--arch", "csatv2", "--weights", "random", "--out", tmp_path / "x.safetensors", "--modality")
    assert "takes inputs of" not in refused(*made, "audio", says=says).stderr
    shown = [line.split() for line in done("encoders", "csatv2.r512_in1k").stdout.splitlines()]
    (row,) = (words for words in shown if words[:1] == ["csatv2.r512_in1k"] and "M" in words)
    assert row[-1] == "sound"
    (known,) = done("encoders", "csatv2.r512_in1k", "--json").json()["encoders"]
    assert (known["problem"], known["width"]) == (says.replace("csatv2", "csatv2.r512_in1k"), 386)


def test_an_architecture_whose_features_are_no_vector_is_refused(tmp_path: Path) -> None:
    says = "the features of mobilenetv5_300m_enc are not a vector but 2048 x 16 x 16, so it can't be an encoder"
    made = ("init", "--arch", "mobilenetv5_300m_enc", "--modality", "visual", "--weights", "random")
    refused(*made, "--out", tmp_path / "x.safetensors", says=says)
    shown = done("encoders", "mobilenetv5_300m_enc").stdout
    assert "can't take" in shown
    assert "anything" in shown
    assert says in " ".join(shown.split())


def test_dead_channels_are_found_behind_any_activation() -> None:
    """Against hooks on timm's own activation modules, where the BatchNorm carries its activation along."""
    torch.manual_seed(0)
    encoder = stir(build_encoder(describe_encoder("efficientnet_lite0", "visual", "abri-channel")))
    inputs, seen = torch.randn(2, 3, 32, 32), dict[str, Tensor]()
    for name, layer in encoder.named_modules():
        if isinstance(layer, AbriBatchNorm) and isinstance(layer._modules["act"], nn.ReLU6):
            layer.register_forward_hook(
                lambda _m, _i, out, name=name: seen.__setitem__(name, (out == 0).sum((0, 2, 3)))
            )
    (activity,) = measure([encoder], [Batch((inputs,), torch.zeros(2), torch.arange(2))])
    assert activity.zeros.keys() == seen.keys()
    assert len(seen) == 33  # of 49: 16 blocks end in a BatchNorm that nothing follows
    assert all(torch.equal(activity.zeros[name], zeros) for name, zeros in seen.items())


@pytest.mark.parametrize("arch", ["test_efficientnet", "convnext_atto"])
def test_activations_without_a_zero_half_are_not_measured(arch: str) -> None:
    encoder = build_encoder(describe_encoder(arch, "visual", "batchnorm"))
    (activity,) = measure([encoder], [Batch((torch.randn(2, 3, 32, 32),), torch.zeros(2), torch.arange(2))])
    assert activity.zeros == {}


def test_encoders_are_listed_and_a_few_are_counted() -> None:
    every = done("encoders", "--json").json()["encoders"]
    assert [encoder["name"] for encoder in every] == list_architectures("")
    assert "efficientnet_lite0" in done("encoders").stdout
    (lite, other) = done("encoders", "lite0", "--json").json()["encoders"]
    assert (lite["name"], lite["width"], lite["batchnorm"], lite["mean"][0]) == ("efficientnet_lite0", 1280, 49, 0.485)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    assert other["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    refused("encoders", "nothing-like-it", says="no architecture fits")


def test_patterns_of_names() -> None:
    assert list_architectures("resnet18")[0] == "resnet18"
    assert list_architectures("vit_tiny_patch16_2*4") == ["vit_tiny_patch16_224"]
    assert set(timm.list_models()) <= set(list_architectures(""))
    assert find_architecture("resnet18.a1_in1k").library == "timm"
    assert list_architectures("ResNet18.A1_in1k") == ["resnet18.a1_in1k"]
    assert list_architectures("RESNET18") == list_architectures("resnet18")
    (one,) = done("encoders", "resnet18.a1_in1k", "--json").json()["encoders"]
    assert (one["name"], one["width"], one["problem"]) == ("resnet18.a1_in1k", 512, None)
    with pytest.raises(ConfigError, match=r"no architecture 'RESNET18D'; do you mean resnet18d"):
        find_architecture("RESNET18D")


# --- the commands ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fused model of a timm sound encoder with ABRi and another timm picture encoder, normalised by 0.5."""
    folder = tmp_path_factory.mktemp("timm")
    files = {name: folder / name for name in ("audio", "visual", "confidence.safetensors", "fused")}
    for modality, arch, norm in (("audio", "test_efficientnet", "abri"), ("visual", "test_resnet", "keep")):
        init = folder / f"{modality}.safetensors"
        done(*("init", "--arch", arch, "--modality", modality, "--weights", "random", "--bn", norm, "--out", init))
        training = ("--modality", modality, "--init", init, "--epochs", "2", "--batch-size", "8", *SMALL)
        done("finetune-unimodal", experiment.store, *training, "--out", files[modality])
    stage1 = ("--audio", files["audio"], "--visual", files["visual"])
    done("score-confidence", *stage1, *PATCHES, "--out", files["confidence.safetensors"])
    masked = ("--confidence", files["confidence.safetensors"], *PATCHES, "--epochs", "1", "--batch-size", "8", *SMALL)
    done("fuse-train", experiment.store, *stage1, *masked, "--out", files["fused"])
    return files


def header(path: Path) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(done("info", path, "--json").stdout)["spec"]
    return spec


def test_a_fused_model_has_two_architectures(run: dict[str, Path], experiment: Experiment) -> None:
    spec = header(run["fused"] / "model.safetensors")
    assert (spec["audio"]["arch"], spec["visual"]["arch"]) == ("test_efficientnet", "test_resnet")
    assert spec["input"]["picture_mean"] == [0.5, 0.5, 0.5]
    recorded = json.loads((run["fused"] / "summary.json").read_text())
    again = json.loads(done("evaluate", run["fused"], experiment.store, "--device", "cpu", "--json").stdout)
    assert again["test"] == recorded["test"]
    for name in ("audio", "visual"):
        done("probe", run[name], experiment.store, "--device", "cpu", "--quiet")


def test_an_artifact_says_what_network_it_is(run: dict[str, Path], tmp_path: Path) -> None:
    for name, modality, arch in (
        ("audio", "visual", "test_efficientnet"),
        ("fused", "visual", "test_resnet"),
        ("fused", "audio", "test_efficientnet"),
    ):
        named, left_out = (tmp_path / f"{name}-{modality}-{how}.safetensors" for how in ("named", "left-out"))
        init = ("init", "--modality", modality, "--weights", run[name])
        done(*init, "--out", left_out)
        done(*init, "--arch", arch, "--out", named)
        assert header(left_out)["encoder"]["arch"] == arch
        assert left_out.read_bytes() == named.read_bytes()


def test_what_an_encoder_is_fed_is_normalised_by_its_own_mean(run: dict[str, Path], experiment: Experiment) -> None:
    """The logits of the exported network on pictures that the test normalises itself are those on record."""
    out = run["visual"].parent / "plain.safetensors"
    done("export", run["visual"], "--format", "timm", "--out", out, "--quiet")
    network = timm.create_model("test_resnet", in_chans=3, num_classes=3)
    network.load_state_dict(load_file(out))
    clips = avpt.open_store(experiment.store, "test", modalities=["visual"], image_size=32, num_frames=1)
    expected = load_file(run["visual"] / "predictions.safetensors")["test_logits"]
    colours = (torch.tensor(colour).view(3, 1, 1) for colour in clips.pipeline.colours)
    mean, std = colours
    pixels = torch.stack([clips[i]["visual"][0] * std + mean for i in range(len(clips))])
    with torch.no_grad():
        near(network.eval()((pixels - 0.5) / 0.5), expected, 1e-4)


def test_exports_load_in_plain_timm(run: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "audio.safetensors"
    code = done("export", run["audio"], "--format", "timm", "--out", out, "--json")
    lines = json.loads(code.stdout)["code"]
    names: dict[str, Any] = {}
    exec(lines, names)
    model = avpt.load_model(run["audio"])
    inputs = torch.randn(3, 1, model.pipeline.spectrogram_frames, model.pipeline.mel_bins)
    with torch.no_grad():
        near(names["model"](inputs), model(audio=inputs))
    refused("export", run["audio"], "--format", "torchvision", "--out", tmp_path / "x", says="timm's; export it with")


def test_both_encoders_of_a_fused_model_load_in_plain_timm(
    run: dict[str, Path], experiment: Experiment, tmp_path: Path
) -> None:
    model = avpt.load_model(run["fused"])
    clips = avpt.open_store(experiment.store, "test", pipeline=model.pipeline)
    for modality in ("audio", "visual"):
        out = tmp_path / f"{modality}.safetensors"
        exported = done("export", run["fused"], "--modality", modality, "--format", "timm", "--out", out, "--json")
        names: dict[str, Any] = {}
        exec(exported.json()["code"], names)
        inputs = torch.stack([clips[i][modality] for i in range(3)])
        inputs = inputs if modality == "audio" else inputs[:, 0]  # the first frame of each clip
        with torch.no_grad():
            near(names["model"](inputs), getattr(model.network, modality)(inputs))


def test_a_vision_transformer_and_a_convnext_through_both_stages(experiment: Experiment, tmp_path: Path) -> None:
    spec = json.loads((experiment.store / "settings.json").read_text())["config"]
    size = f"{spec['spectrogram_frames']}x{spec['mel_bins']}"
    encoders = {"audio": ("test_vit", "--input-size", size), "visual": ("test_convnext",)}
    for modality, (arch, *sized) in encoders.items():
        init = tmp_path / f"{modality}.safetensors"
        made: tuple[str | Path, ...] = (
            "init",
            "--arch",
            arch,
            *sized,
            "--modality",
            modality,
            "--weights",
            "random",
            "--out",
            init,
        )
        refused(*made, "--bn", "abri", says="has no BatchNorm")
        done(*made)
        training = ("--modality", modality, "--init", init, "--epochs", "1", "--batch-size", "8", *SMALL)
        done("finetune-unimodal", experiment.store, *training, "--out", tmp_path / modality)
    stage1 = ("--audio", tmp_path / "audio", "--visual", tmp_path / "visual")
    done("score-confidence", *stage1, *PATCHES, "--out", tmp_path / "c.safetensors")
    masked = ("--confidence", tmp_path / "c.safetensors", *PATCHES, "--epochs", "1", "--batch-size", "8", *SMALL)
    done("fuse-train", experiment.store, *stage1, *masked, "--out", tmp_path / "fused")
    done("evaluate", tmp_path / "fused", experiment.store, "--device", "cpu")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--arch", "eficientnet_lite0"), "no architecture 'eficientnet_lite0'; do you mean efficientnet_lite0"),
        (("--arch", "hf-hub:someone/something"), "no architecture 'hf-hub:someone/something'"),
        (("--arch", "resnet18.nonsense"), "no architecture 'resnet18.nonsense'"),
        (("--arch", "resnet18d", "--weights", "imagenet"), "for timm's weights of resnet18d: --weights pretrained"),
        (("--arch", "vit_tiny_patch16_224", "--bn", "reset"), "has no BatchNorm, which --bn reset is about"),
        (("--arch", "resnet18", "--input-size", "64x64"), "resnet18 takes inputs of any size"),
        (("--arch", "test_vit", "--input-size", "64"), "must be HEIGHTxWIDTH"),
    ],
)
def test_bad_encoders_are_refused(options: tuple[str, ...], says: str, tmp_path: Path) -> None:
    weights = () if "--weights" in options else ("--weights", "random")
    refused("init", "--modality", "audio", *options, *weights, "--out", tmp_path / "x.safetensors", says=says)


@pytest.mark.parametrize("offline", [False, True])
def test_pretrained_weights_without_network_are_told_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    for name in ("http_proxy", "https_proxy"):  # offline wherever the test runs: no one listens on the discard port
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    huggingface_hub.close_session()
    begun = time.monotonic()
    command = ("init", "--arch", "test_resnet", "--modality", "audio", "--out", tmp_path / "x.safetensors")
    result = refused(*command, "--weights", "pretrained", says="weights of test_resnet are neither in timm's cache")
    assert time.monotonic() - begun < 20  # of which the client's own tries would take 23
    assert "fetch model.safetensors from https://huggingface.co/timm/test_resnet" in result.error
    assert "set HF_HOME to a folder" in result.error
    assert offline == ("HF_HUB_OFFLINE is set" in result.error)
    huggingface_hub.close_session()


def test_without_timm_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    code = "import sys; sys.modules['timm'] = None; from avpt.cli import app; app()"
    init = ("init", "--modality", "audio", "--weights", "random", "--out", str(tmp_path / "x.safetensors"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    for arch, fails in (("resnet18d", True), ("resnet18", False)):
        command = [sys.executable, "-c", code, *init, "--arch", arch, "--quiet"]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == fails, result.stderr
        if fails:
            (line,) = result.stderr.splitlines()
            assert line.startswith("avpt: 'resnet18d' is not an architecture of torchvision's")
            assert line.endswith("pip install 'avpt[timm]'")
    command = [sys.executable, "-c", code, "encoders", "lite0"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.stderr.endswith("(timm, which has 1,300 more, is not installed: pip install 'avpt[timm]')\n")


def test_an_encoder_of_one_size_is_made_for_it(tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    done(
        *("init", "--arch", "test_vit", "--modality", "audio", "--weights", "random"),
        *("--input-size", "64x32", "--out", out),
    )
    assert header(out)["encoder"]["size"] == [64, 32]
    refused(
        *("init", "--arch", "test_vit", "--modality", "audio", "--weights", "random"),
        *("--input-size", "60x30", "--out", tmp_path / "y.safetensors"),
        says="the nearest of usual ones that it takes is",
    )


def test_eps_are_each_layers_own() -> None:
    eps = set(norm_eps(build_encoder(describe_encoder("tf_efficientnet_lite0", "visual", "batchnorm"))).values())
    assert eps == {1e-3}
