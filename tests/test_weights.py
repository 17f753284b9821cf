"""`avpt init`: weights of every layout, fitted strictly, with each way to treat BatchNorm."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers import Experiment, Result, avpt, done, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import ResNet

from avpt.errors import ArtifactError
from avpt.models.abri import AbriBatchNorm2d
from avpt.models.encoder import EncoderSpec
from avpt.models.weights import read_weights

State = dict[str, Tensor]
PLANTED = {  # layer -> channels whose gamma, and beta, are set
    "bn1": (5, 1e-12, 1e-13),
    "layer2.0.downsample.1": (17, -3e-8, 2e-7),
    "layer4.1.bn2": (100, 1e-9, 0.5),  # small gamma, large beta: not abnormal
}


@pytest.fixture(scope="module")
def experiment(resnet18: Experiment) -> Experiment:
    """These tests know torchvision's layers."""
    return resnet18


@pytest.fixture(scope="module")
def pretrained() -> State:
    """A torchvision ResNet-18 with eventful BatchNorm, classifier and all."""
    torch.manual_seed(3)
    state: State = torchvision.models.resnet18(weights=None, num_classes=7).state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.ndim == 1 and name != "fc.bias":
            value.normal_(0.3, 1)
        elif name.endswith("num_batches_tracked"):
            value.fill_(11)
    for layer, (channels, gamma, beta) in PLANTED.items():
        state[f"{layer}.weight"][:channels] = gamma
        state[f"{layer}.bias"][:channels] = beta
    return state


@pytest.fixture(scope="module")
def weights(pretrained: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(pretrained, path)
    return path


def init(weights: str | Path, out: Path, *options: str, modality: str = "visual") -> Result:
    return avpt("init", "--modality", modality, "--weights", weights, "--out", out, *options)


def made(weights: str | Path, out: Path, *options: str, modality: str = "visual") -> State:
    result = init(weights, out, *options, modality=modality)
    assert result.code == 0, result.stderr
    assert result.stdout == f"{out}\n"
    return load_file(out)


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["avpt"]
    values: dict[str, Any] = json.loads(metadata["avpt"])
    assert metadata["avpt"] == json.dumps(values, sort_keys=True, ensure_ascii=False)
    return values


def assert_same(found: State, expected: State, *, but: tuple[str, ...] = ("fc.weight", "fc.bias")) -> None:
    assert found.keys() - set(but) == expected.keys() - set(but)
    for name in found.keys() - set(but):
        assert torch.equal(found[name], expected[name]), name


def resnet(state: State, arch: str = "resnet18", norm_layer: Any = None) -> ResNet:
    """A torchvision ResNet, loaded strictly."""
    model: ResNet = torchvision.models.get_model(arch, weights=None, norm_layer=norm_layer)
    model.fc = nn.Identity()
    model.conv1 = nn.Conv2d(state["conv1.weight"].shape[1], 64, 7, stride=2, padding=3, bias=False)
    model.load_state_dict(state)
    return model.eval()


def test_safetensors_and_bare_checkpoint(pretrained: State, weights: Path, tmp_path: Path) -> None:
    assert_same(made(weights, tmp_path / "a.safetensors"), pretrained)
    torch.save(pretrained, tmp_path / "bare.pt")
    assert_same(made(tmp_path / "bare.pt", tmp_path / "b.safetensors"), pretrained)
    torch.save(OrderedDict(pretrained), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(made(tmp_path / "old.pth", tmp_path / "c.safetensors"), pretrained)


@pytest.mark.parametrize(
    ("prefix", "wrapper", "modality"),
    [
        ("module.", "model", "visual"),
        ("backbone.", "state_dict", "visual"),
        ("encoder.", None, "visual"),
        ("audio_net.", "state_dict", "audio"),
        ("visual_net.", "model", "visual"),
        ("module.encoder.", "model", "visual"),
        ("module.visual_net.", None, "visual"),
        ("module.audio_net.", "state_dict", "audio"),
    ],
)
def test_prefixes_and_wrappers(
    pretrained: State, tmp_path: Path, prefix: str, wrapper: str | None, modality: str
) -> None:
    state = pretrained | {"conv1.weight": pretrained["conv1.weight"][:, : 1 if modality == "audio" else 3].clone()}
    outer = prefix.split(".")[0] + "." if prefix.count(".") > 1 else ""
    classifier = {f"{outer}head.weight": torch.ones(3, 512)}
    inner = {prefix + name: value for name, value in state.items()} | classifier
    path = tmp_path / "checkpoint.pt"
    torch.save({wrapper: inner, "epoch": 3, "optimizer": {"lr": [0.1]}} if wrapper else inner, path)
    assert_same(made(path, tmp_path / "out.safetensors", modality=modality), state)


def test_the_stream_of_the_modality_is_taken(pretrained: State, tmp_path: Path) -> None:
    sound = {name: value * 2 if value.is_floating_point() else value for name, value in pretrained.items()}
    sound["conv1.weight"] = sound["conv1.weight"][:, :1].clone()
    both = {f"module.audio_net.{name}": value for name, value in sound.items()}
    both |= {f"module.visual_net.{name}": value for name, value in pretrained.items()}
    both |= {"module.fusion_module.fc_out.weight": torch.ones(2, 1024)}
    path = tmp_path / "both.pt"
    torch.save(both, path)
    assert_same(made(path, tmp_path / "visual.safetensors"), pretrained)
    result = init(path, tmp_path / "audio.safetensors", modality="audio")
    assert_same(load_file(tmp_path / "audio.safetensors"), sound)
    (dropped,) = (line.split() for line in result.stderr.splitlines() if line.split()[:1] == ["dropped"])
    assert dropped[1] == str(len(pretrained) + 1 + 2)  # the other stream, the fusion layer, this one's classifier


@pytest.mark.parametrize(("prefix", "modality"), [("audio_net.", "visual"), ("visual_net.", "audio")])
def test_a_lone_stream_can_start_the_other_modality(
    pretrained: State, tmp_path: Path, prefix: str, modality: str
) -> None:
    channels = 1 if prefix == "audio_net." else 3
    conv1 = pretrained["conv1.weight"][:, :channels].clone()
    path = tmp_path / "lone.pt"
    torch.save({prefix + name: value for name, value in (pretrained | {"conv1.weight": conv1}).items()}, path)
    found = made(path, tmp_path / "out.safetensors", modality=modality)
    assert_same(found, pretrained, but=("fc.weight", "fc.bias", "conv1.weight"))


def test_an_old_checkpoint_counts_no_batches(pretrained: State, tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({name: value for name, value in pretrained.items() if "num_batches" not in name}, path)
    expected = {name: value * 0 if "num_batches" in name else value for name, value in pretrained.items()}
    assert_same(made(path, tmp_path / "out.safetensors"), expected)


@pytest.mark.parametrize("how", ["sum", "mean", "random"])
def test_conv1_from_pictures_to_sound(pretrained: State, weights: Path, tmp_path: Path, how: str) -> None:
    found = made(weights, tmp_path / "out.safetensors", "--conv1", how, modality="audio")
    planes = pretrained["conv1.weight"].double().unbind(1)
    total = (planes[0] + planes[1] + planes[2])[:, None]
    assert found["conv1.weight"].shape == (64, 1, 7, 7)
    if how == "random":
        deviation = float(found["conv1.weight"].std())
        assert deviation == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)  # He's, by fan-out
        other = made(weights, tmp_path / "other.safetensors", "--conv1", how, "--seed", "1", modality="audio")
        assert not torch.equal(found["conv1.weight"], other["conv1.weight"])
    else:
        expected = total if how == "sum" else total / 3
        torch.testing.assert_close(found["conv1.weight"].double(), expected, rtol=1e-5, atol=1e-7)
    assert_same(found, pretrained, but=("fc.weight", "fc.bias", "conv1.weight"))


@pytest.mark.parametrize("how", ["sum", "random"])
def test_conv1_from_sound_to_pictures(pretrained: State, tmp_path: Path, how: str) -> None:
    conv1 = pretrained["conv1.weight"][:, 1:2].clone()
    save_file(pretrained | {"conv1.weight": conv1}, tmp_path / "audio.safetensors")
    found = made(tmp_path / "audio.safetensors", tmp_path / "out.safetensors", "--conv1", how)["conv1.weight"]
    assert found.shape == (64, 3, 7, 7)
    expected = torch.cat([conv1, conv1, conv1], 1).double() / 3
    if how == "sum":
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-9)
    else:
        assert not torch.allclose(found.double(), expected, atol=1e-3)


@pytest.mark.parametrize("bn", ["keep", "reset", "reset-abnormal", "abri"])
def test_batch_norm_variants(pretrained: State, weights: Path, tmp_path: Path, bn: str) -> None:
    found = made(weights, tmp_path / "out.safetensors", "--bn", bn)
    expected = {name: value.clone() for name, value in pretrained.items() if not name.startswith("fc.")}
    layers = [name.removesuffix(".running_var") for name in expected if name.endswith("running_var")]
    assert len(layers) == 20
    for layer in layers:
        gamma, beta = expected[f"{layer}.weight"], expected[f"{layer}.bias"]
        if bn == "reset":
            for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                expected[f"{layer}.{name}"].fill_(value)
            expected[f"{layer}.num_batches_tracked"].zero_()
        if bn == "reset-abnormal":
            beta[gamma.abs() < 1e-6] = 0.0
            gamma[gamma.abs() < 1e-6] = 1.0
        if bn == "abri":
            size = len(gamma)
            expected |= {f"{layer}.new_weight": torch.ones(size), f"{layer}.new_bias": torch.zeros(size)}
            expected |= {f"{layer}.new_running_mean": torch.zeros(size), f"{layer}.new_running_var": torch.ones(size)}
            expected[f"{layer}.alpha"] = torch.full((size,), 0.5)
    assert_same(found, expected)
    if bn == "reset-abnormal":
        assert found["layer4.1.bn2.weight"][:100].tolist() == [1.0] * 100
        assert found["layer4.1.bn2.bias"][:100].tolist() == [0.0] * 100
    norm = "abri-channel" if bn == "abri" else "batchnorm"
    assert header(tmp_path / "out.safetensors")["spec"]["encoder"]["norm"] == norm


class TwoBranches(nn.Module):
    """ABRi as its formula says, where training starts: the pre-trained layer, and a new one, each a BatchNorm."""

    def __init__(self, layer: nn.BatchNorm2d, alpha: float) -> None:
        super().__init__()
        self.alpha, self.pretrained, self.new = alpha, layer, nn.BatchNorm2d(layer.num_features, layer.eps)

    def forward(self, inputs: Tensor) -> Tensor:
        blended: Tensor = self.alpha * self.pretrained(inputs) + (1 - self.alpha) * self.new(inputs)
        return blended


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.0, 1.0])
def test_blend_trains_as_abri_does_at_its_start(pretrained: State, weights: Path, tmp_path: Path, alpha: float) -> None:
    """Beside two whole batch norms that share no code with it; its statistics are the pre-trained ones."""
    found = made(weights, tmp_path / "out.safetensors", "--bn", "blend", "--alpha", str(alpha))
    twice, plain = (torchvision.models.resnet18(num_classes=7).double() for _ in range(2))
    twice.load_state_dict(pretrained)
    for name, layer in list(twice.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            parent, _, own = name.rpartition(".")
            setattr(twice.get_submodule(parent), own, TwoBranches(layer, alpha).double())
    classifier = {name: pretrained[name] for name in ("fc.weight", "fc.bias")}
    plain.load_state_dict(found | classifier)  # strictly: torchvision's own names and nothing else
    pictures = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        expected, outputs = (network.train()(pictures) for network in (twice, plain))
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    for name in (name for name in found if "running" in name):
        assert torch.equal(found[name], pretrained[name])


def test_blend_says_what_it_did(pretrained: State, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = init(weights, out, "--bn", "blend", "--json")
    found, told = load_file(out), result.json()["blend"]
    layers = [name.removesuffix(".running_var") for name in found if name.endswith("running_var")]
    gammas, betas = (torch.cat([pretrained[f"{layer}.{part}"] for layer in layers]) for part in ("weight", "bias"))
    blended = torch.cat([found[f"{layer}.weight"] for layer in layers])
    torch.testing.assert_close(blended, gammas / 2 + 0.5)
    assert told["gamma_moved"] == pytest.approx(float((gammas / 2 - 0.5).square().mean().sqrt()), rel=1e-5)
    assert told["beta_moved"] == pytest.approx(float((betas / 2).square().mean().sqrt()), rel=1e-5)
    assert (told["abnormal"], told["lifted"], told["threshold"]) == (22, 22, 1e-6)
    assert header(out)["metrics"]["blend"] == told
    assert header(out)["config"]["bn"] == "blend"
    again = init(weights, out, "--bn", "blend")
    assert again.code == 0
    assert "22 of 22 channels below 1e-06 were lifted above it" in " ".join(again.stderr.split())
    rows = {"config.bn": "blend", "metrics.blend.lifted": "22"}
    text = done("info", out).stdout
    assert all(
        any(name in line and line.split()[-1] == value for line in text.splitlines()) for name, value in rows.items()
    )


def test_blend_draws_what_abri_draws(weights: Path, tmp_path: Path) -> None:
    """And the share per layer, which is learnt, is nothing to it."""
    random = ("--conv1", "random", "--seed", "5")
    blended = made(weights, tmp_path / "b.safetensors", "--bn", "blend", *random, modality="audio")
    abri = made(weights, tmp_path / "a.safetensors", "--bn", "abri", *random, modality="audio")
    convolutions = [name for name, value in abri.items() if value.ndim == 4]
    assert all(torch.equal(blended[name], abri[name]) for name in convolutions)
    layer = made(weights, tmp_path / "b.safetensors", "--bn", "blend", "--abri", "layer", *random, modality="audio")
    assert layer.keys() == blended.keys()


def test_abri_per_layer_and_alpha(weights: Path, tmp_path: Path) -> None:
    options = ("--bn", "abri", "--abri", "layer", "--alpha", "0.9")
    found = made(weights, tmp_path / "out.safetensors", *options)
    alphas = {name: value for name, value in found.items() if name.endswith("alpha")}
    assert len(alphas) == 20
    assert all(value.shape == (1,) and float(value) == pytest.approx(0.9) for value in alphas.values())


def test_abnormal_channels_are_counted(pretrained: State, weights: Path, tmp_path: Path) -> None:
    for threshold in ("1e-6", "1e-10", "0.2"):
        out = tmp_path / f"{threshold}.safetensors"
        result = init(weights, out, "--abnormal-threshold", threshold, "--json")
        assert result.code == 0, result.stderr
        record = result.json()
        total = abnormal = 0
        for layer in record["layers"]:
            gamma, beta = (pretrained[f"{layer['name']}.{part}"].tolist() for part in ("weight", "bias"))
            count = sum(max(abs(g), abs(b)) < float(threshold) for g, b in zip(gamma, beta, strict=True))
            assert (layer["channels"], layer["abnormal"]) == (len(gamma), count)
            total, abnormal = total + len(gamma), abnormal + count
        assert len(record["layers"]) == 20
        assert record["abnormal_share"] == pytest.approx(abnormal / total)
        assert header(out)["metrics"] == {name: record[name] for name in ("layers", "abnormal_share", "weights")}
        assert len(record["weights"]["loaded"]) == len(pretrained) - 2
        assert set(record["weights"]["dropped"]) == {"fc.weight", "fc.bias"}
        counts = {layer["name"]: layer["abnormal"] for layer in record["layers"]}
        if threshold == "1e-6":
            assert counts == dict.fromkeys(counts, 0) | {"bn1": 5, "layer2.0.downsample.1": 17}
        if threshold == "1e-10":
            assert sum(counts.values()) == counts["bn1"] == 5


def test_the_table_of_abnormal_channels_is_shown(weights: Path, tmp_path: Path) -> None:
    shown = init(weights, tmp_path / "out.safetensors").stderr
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.split()}
    assert rows["bn1"] == ["64", "5", "7.8%"]
    assert rows["layer2.0.downsample.1"] == ["128", "17", "13.3%"]
    assert rows["all"] == ["4800", "22", "0.5%"]


@pytest.mark.parametrize("arch", ["resnet34", "resnet50"])
def test_larger_resnets(tmp_path: Path, arch: str) -> None:
    torch.manual_seed(0)
    state: State = torchvision.models.get_model(arch, weights=None).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    found = made(tmp_path / "weights.safetensors", tmp_path / "out.safetensors", "--arch", arch)
    assert_same(found, state)
    wrong = init(tmp_path / "weights.safetensors", tmp_path / "wrong.safetensors")
    assert wrong.code == 1
    assert f"does not fit resnet18: it looks like {arch}: try --arch {arch}" in wrong.error
    assert not (tmp_path / "wrong.safetensors").exists()


def test_everything_that_does_not_fit_is_listed(pretrained: State, tmp_path: Path) -> None:
    state = dict(pretrained) | {"layer9.weight": torch.zeros(2), "bn1.bias": torch.zeros(63)}
    del state["layer1.0.conv1.weight"]
    save_file(state, tmp_path / "weights.safetensors")
    result = init(tmp_path / "weights.safetensors", tmp_path / "out.safetensors")
    assert result.code == 1
    for told in (
        "layer9.weight is unknown",
        "bn1.bias is (63,), not (64,)",
        "layer1.0.conv1.weight is missing",
        str(tmp_path / "weights.safetensors"),
    ):
        assert told in result.error


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin", "weights.safetensors"])
def test_a_pickle_with_code_is_refused_and_not_run(pretrained: State, tmp_path: Path, name: str) -> None:
    target, path = tmp_path / "ran", tmp_path / name
    torch.save(pretrained | {"payload": Payload(target)}, path)
    result = init(path, tmp_path / "out.safetensors")
    assert result.code == 1
    assert str(path) in result.error
    path.write_bytes(pickle.dumps(Payload(target), protocol=2))
    assert init(path, tmp_path / "out.safetensors").code == 1
    assert not target.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short", b"\x80\x02"])
def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, content: bytes) -> None:
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        result = init(tmp_path / name, tmp_path / "out.safetensors")
        assert result.code == 1
        assert str(tmp_path / name) in result.error
    assert init(tmp_path / "missing.pt", tmp_path / "out.safetensors").code == 1


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.integers(0, 2000), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=3))
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, zipped: bool, cut: int, flips: list[tuple[int, int]]) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"conv1.weight": torch.zeros(2, 2)}, path, _use_new_zipfile_serialization=zipped)
    content = bytearray(path.read_bytes())
    for place, value in flips:
        content[place % len(content)] = value
    path.write_bytes(content[: cut % len(content)] if cut % 2 else content)
    with suppress(ArtifactError):  # anything else is a traceback
        read_weights(path, EncoderSpec("resnet18", "visual", "batchnorm"))


def test_from_a_run_folder_and_from_a_fused_model(experiment: Experiment, tmp_path: Path) -> None:
    best = load_file(experiment.visual / "model.safetensors")
    expected = {name.removeprefix("encoder."): value for name, value in best.items() if name.startswith("encoder.")}
    found = made(experiment.visual, tmp_path / "run.safetensors")
    assert_same(found, expected)
    assert_same(made(tmp_path / "run.safetensors", tmp_path / "again.safetensors"), expected)
    fused = load_file(experiment.fused / "model.safetensors")
    expected = {name.removeprefix("visual."): value for name, value in fused.items() if name.startswith("visual.")}
    assert_same(made(experiment.fused / "model.safetensors", tmp_path / "fused.safetensors"), expected)


@pytest.mark.parametrize("source", ["audio", "fused"])
def test_abri_is_folded_first(experiment: Experiment, tmp_path: Path, source: str) -> None:
    file = getattr(experiment, source) / "model.safetensors"
    prefix = "encoder." if source == "audio" else "audio."
    state = {name.removeprefix(prefix): v for name, v in load_file(file).items() if name.startswith(prefix)}
    result = init(file, tmp_path / "out.safetensors", modality="audio")
    assert result.code == 0
    assert "folded into plain BatchNorm" in result.stderr
    folded = load_file(tmp_path / "out.safetensors")
    assert not [name for name in folded if "new_" in name or "alpha" in name]
    for layer in ("bn1", "layer3.0.downsample.1"):
        for name in ("running_mean", "running_var"):
            assert torch.equal(folded[f"{layer}.{name}"], state[f"{layer}.{name}"])
    sound = torch.randn(3, 1, 48, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = resnet(state, norm_layer=AbriBatchNorm2d)(sound), resnet(folded)(sound)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_artifacts_load_into_torchvision(experiment: Experiment, weights: Path, tmp_path: Path) -> None:
    found = made(weights, tmp_path / "out.safetensors", modality="audio")
    with torch.no_grad():
        assert resnet(found)(torch.zeros(1, 1, 64, 64)).shape == (1, 512)
        assert resnet(load_file(experiment.visual_init))(torch.zeros(1, 3, 64, 64)).shape == (1, 512)


def test_same_inputs_same_bytes(experiment: Experiment, weights: Path, tmp_path: Path) -> None:
    for options in (("--bn", "abri", "--conv1", "random"), ("--bn", "reset")):
        files = [tmp_path / f"{options[1]}-{number}.safetensors" for number in range(2)]
        for file in files:
            made(weights, file, *options, modality="audio")
        assert files[0].read_bytes() == files[1].read_bytes()
    again = tmp_path / "again.safetensors"
    made("random", again)
    assert again.read_bytes() == experiment.visual_init.read_bytes()
    other = made("random", tmp_path / "other.safetensors", "--seed", "1")
    assert not torch.equal(other["conv1.weight"], load_file(again)["conv1.weight"])
    assert not torch.equal(other["layer4.1.conv2.weight"], load_file(again)["layer4.1.conv2.weight"])


def test_header(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    made(weights, out, "--bn", "abri", modality="audio")
    values = header(out)
    assert values["kind"] == "encoder"
    assert values["schema"] == 1
    assert values["spec"]["encoder"] == {"arch": "resnet18", "modality": "audio", "norm": "abri-channel"}
    assert values["inputs"] == {"weights": hashlib.sha256(weights.read_bytes()).hexdigest()}
    chosen = {"modality": "audio", "bn": "abri", "alpha": 0.5, "conv1": "sum", "seed": 0, "abnormal_threshold": 1e-6}
    assert values["config"].items() >= chosen.items()
    assert not values["config"].keys() & {"out", "quiet", "json", "debug", "overwrite"}
    assert str(tmp_path) not in json.dumps(values)
    assert str(weights) not in json.dumps(values)
    assert done("init", "--modality", "audio", "--weights", weights, "--bn", "abri", "--out", out).stdout == f"{out}\n"


def test_what_is_there_already_is_looked_at_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    done("init", "--modality", "visual", "--weights", "random", "--out", out)

    def never(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("avpt.commands.init.initialise", never)  # which loads torch
    command = ("init", "--modality", "visual", "--weights", "random", "--out", out)
    assert "was there already" in done(*command).stderr
    refused(*command, "--arch", "resnet18d", says="arch: resnet18 there, resnet18d now", unchanged=tmp_path)
