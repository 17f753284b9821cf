"""Checkpoints as people have them: where the encoder's weights stand in them, what is told, what is refused."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers import avpt, done, refused
from safetensors.torch import load_file
from torch import Tensor, nn

from avpt.errors import ArtifactError
from avpt.models.encoder import EncoderSpec, describe_encoder
from avpt.models.fitting import fit_weights
from avpt.models.known_architectures import recognise
from avpt.models.layouts import Layout
from avpt.models.weights import read_weights

State = dict[str, Tensor]
SPEC = EncoderSpec("resnet18", "visual", "batchnorm")
INIT = ("init", "--modality", "visual", "--weights")


@pytest.fixture(scope="module")
def plain() -> State:
    torch.manual_seed(0)
    return dict(torchvision.models.resnet18(num_classes=3).state_dict())


@pytest.fixture(scope="module")
def average(plain: State) -> State:
    return {key: value + 1 for key, value in plain.items()}


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def read(folder: Path, value: Any, key: str | None = None) -> tuple[State, Layout]:
    torch.save(value, folder / "weights.pt")
    return read_weights(folder / "weights.pt", SPEC, key)


def assert_same(state: State, expected: State) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "wrapper", ["state_dict", "model", "model_state_dict", "net", "weights", "params", "backbone", "encoder", "module"]
)
@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod.", "module._orig_mod.", "feature_extractor.resnet."])
def test_wrappers_and_prefixes(tmp_path: Path, plain: State, wrapper: str, prefix: str) -> None:
    few = {key: value for key, value in plain.items() if not key.startswith("fc.")}
    state, layout = read(tmp_path, {wrapper: under(prefix, few), "epoch": 3, "optimizer": {"state": {}}})
    assert_same(state, few)
    assert (layout.wrapper, layout.prefix, layout.left) == (wrapper, prefix, ["epoch", "optimizer"])
    stripped = f"; the prefix {prefix} is stripped" if prefix else ""
    assert layout.sentences() == [f"its weights are taken from under {wrapper}{stripped}; left lying: epoch, optimizer"]


def test_wrappers_in_wrappers(tmp_path: Path, plain: State) -> None:
    value = {
        "checkpoint": {"state": defaultdict(OrderedDict, {"model": OrderedDict(plain)})},
        "meta": {"mmcv_version": "1.7"},
    }
    state, layout = read(tmp_path, value)
    assert_same(state, plain)
    assert layout.wrapper == "checkpoint.state.model"
    assert layout.left == ["meta"]


@pytest.mark.parametrize(("wrapper", "inner"), [("state_dict_ema", ""), ("model_ema", "module."), ("ema", "net.")])
def test_averaged_weights_are_told_and_taken_where_asked(
    tmp_path: Path, plain: State, average: State, wrapper: str, inner: str
) -> None:
    value = {"model": plain, wrapper: under(inner, average) | {"n_averaged": torch.tensor(5)}}
    state, layout = read(tmp_path, value)
    assert_same(state, plain)
    assert layout.sentences()[1] == (
        f"averaged weights are there too, under {wrapper}: --weights-key {wrapper} takes them"
    )
    state, layout = read(tmp_path, value, wrapper)
    assert_same({key: state[key] for key in average}, average)
    assert layout.left == ["model"]
    assert not layout.averaged
    state, layout = read(tmp_path, {wrapper: average})  # alone there is no question
    assert_same(state, average)


def test_averages_in_the_same_mapping(tmp_path: Path, plain: State, average: State) -> None:
    value = {"state_dict": under("net.", plain) | under("ema_model.module.", average)}
    state, layout = read(tmp_path, value)
    assert_same(state, plain)
    assert layout.averaged == ["state_dict.ema_model"]
    assert_same(read(tmp_path, value, "ema_model")[0], average)
    state, layout = read(tmp_path, plain | under("ema.", average))
    assert_same(state, plain)
    assert layout.dropped == list(under("ema.", average))


MOCO = ("module.encoder_q.", "module.encoder_k.")


def test_several_encoders_are_refused_until_one_is_named(tmp_path: Path, plain: State, average: State) -> None:
    value = {"state_dict": under(MOCO[0], plain) | under(MOCO[1], average) | {"module.queue": torch.zeros(8, 10)}}
    with pytest.raises(ArtifactError) as error:
        read(tmp_path, value)
    names = "state_dict.module.encoder_q, state_dict.module.encoder_k"
    assert f"holds several encoders that fit: {names}; say which with --weights-key" in str(error.value)
    for key in ("encoder_k", "module.encoder_k", "state_dict.module.encoder_k", "module.encoder_k."):
        state, layout = read(tmp_path, value, key)
        assert_same(state, average)
    assert "queue" in layout.dropped
    with pytest.raises(ArtifactError, match=r"encoder_x; there are state_dict\.module\.encoder_"):
        read(tmp_path, value, "encoder_x")
    with pytest.raises(ArtifactError, match="several encoders"):
        read(tmp_path, value, "module")
    with pytest.raises(ArtifactError, match=r"several encoders that fit: student\.module\.backbone, teacher\.backbone"):
        read(tmp_path, {"student": under("module.backbone.", plain), "teacher": under("backbone.", plain), "epoch": 1})
    with pytest.raises(ArtifactError, match=r"several encoders that fit: \., momentum"):
        read(tmp_path, plain | under("momentum.", plain))
    assert_same(read(tmp_path, plain | under("momentum.", average), ".")[0], plain)


def test_of_two_encoders_only_one_is_of_the_architecture(tmp_path: Path, plain: State) -> None:
    value = under("sound.", plain) | under("image.", torchvision.models.resnet50().state_dict())
    assert_same(read(tmp_path, value)[0], plain)


def test_what_lies_beside_is_told_by_class(tmp_path: Path, plain: State) -> None:
    value = {
        "model": plain,
        "args": argparse.Namespace(lr=0.1, when=[Path("x")]),
        "best_acc1": np.float64(70),
        "history": np.arange(3),
        "hyper_parameters": {"optimizer": torch.optim.SGD, "kernel": slice(3)},
    }
    state, layout = read(tmp_path, value)
    assert_same(state, plain)
    assert layout.left == [
        "args (argparse.Namespace)",
        "best_acc1 (numpy scalar)",
        "history (numpy array)",
        "hyper_parameters (with torch.optim.sgd.SGD, builtins.slice)",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_told(tmp_path: Path, plain: State, dtype: torch.dtype) -> None:
    value = {key: one.to(dtype) if one.is_floating_point() else one for key, one in plain.items()}
    _, layout = read(tmp_path, value)
    assert layout.dtype == ("" if dtype == torch.float64 else str(dtype).removeprefix("torch."))


def problem(state: State, arch: str = "resnet18") -> str:
    with pytest.raises(ArtifactError) as error:
        fit_weights(state, EncoderSpec(arch, "visual", "batchnorm"), "sum", "x.pt")
    return str(error.value)


def test_a_batch_norm_without_parameters_or_statistics(plain: State) -> None:
    without = {key: value for key, value in plain.items() if key not in ("bn1.weight", "bn1.bias")}
    assert "bn1 has no gamma and beta (a BatchNorm with affine=False)" in problem(without)
    still = {key: value for key, value in plain.items() if "running" not in key and "num_batches" not in key}
    assert "have no running statistics (track_running_stats=False" in problem(still)


def test_a_network_without_batch_norm_is_not_told_of_it() -> None:
    state = pytest.importorskip("timm").create_model("test_vit").state_dict()
    del state["norm.weight"]
    with pytest.raises(ArtifactError, match=r"does not fit test_vit: .*norm\.weight is missing"):
        fit_weights(state, describe_encoder("test_vit", "visual", "batchnorm"), "sum", "x.pt")


def test_a_fused_batch_norm(plain: State) -> None:
    model = torchvision.models.resnet18().eval()
    fused = nn.utils.fuse_conv_bn_eval(model.conv1, model.bn1).state_dict()
    state = {key: value for key, value in plain.items() if not key.startswith("bn1.")}
    assert "its BatchNorm is fused into the convolutions (bn1 missing, conv1.bias there instead)" in problem(
        state | {f"conv1.{key}": value for key, value in fused.items()}
    )


def test_a_frozen_batch_norm_is_one(plain: State) -> None:
    frozen = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d).state_dict()
    fitted, _ = fit_weights(frozen, SPEC, "sum", "x.pt")
    assert torch.equal(fitted["conv1.weight"], frozen["conv1.weight"])


@pytest.mark.parametrize("arch", ["resnet101", "densenet121"])
def test_another_architecture_is_told_as_what_it_is(tmp_path: Path, arch: str) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": under("model.", torchvision.models.get_model(arch).state_dict())}, path)
    says = f"does not fit resnet18: it looks like {arch}: try --arch {arch}"
    result = refused(*INIT, path, "--out", tmp_path / "x.safetensors", says=says)
    assert "resnet50" not in result.stderr
    assert result.stderr.count(".weight") + result.stderr.count(".bias") + result.stderr.count("running_") <= 5


def test_what_is_of_no_known_architecture_is_told_so_first(plain: State, tmp_path: Path) -> None:
    """As the ResNets for CIFAR are: keys in torchvision's layout, other shapes, fewer blocks."""
    narrow = {key: value[:16] for key, value in plain.items() if value.ndim and not key.startswith("layer4")}
    path, out = tmp_path / "weights.pt", tmp_path / "x.safetensors"
    torch.save({"state_dict": under("module.", narrow)}, path)
    result = refused(
        *INIT, path, "--out", out, says="is not recognised as any of torchvision's or timm's architectures; as "
    )
    assert result.error.startswith(f"avpt: {path} is not recognised as any of")
    assert "take weights of one that `avpt encoders` lists" in result.error
    assert len(re.findall(r"is missing|is unknown|, not \(", result.error)) == 5
    torch.save(under("body.stem.", {"a.weight": torch.zeros(3), "b.weight": torch.zeros(2)}), path)
    refused(*INIT, path, "--out", out, says="timm's architectures: no conv1.weight, and it holds body.stem.a.weight,")


def test_a_key_that_is_not_there_gets_encoders_not_blocks(tmp_path: Path, plain: State, average: State) -> None:
    path, out = tmp_path / "weights.pt", tmp_path / "x.safetensors"
    torch.save({"state_dict": under("net.", plain), "teacher": average}, path)
    wrong = ("--weights-key", "foo", "--out", out)
    result = refused(*INIT, path, *wrong, says="at --weights-key foo; there are ")
    assert result.error.endswith(("state_dict.net, teacher", "teacher, state_dict.net"))
    torch.save(plain, path)
    refused(*INIT, path, *wrong, says="has no weights at --weights-key foo, but at its top; leave that option out")


@pytest.mark.parametrize("arch", ["shvit_s1", "efficientvit_m4", "swiftformer_xs", "efficientnet_lite0"])
def test_networks_of_timm_are_found_in_time(arch: str) -> None:
    with torch.device("meta"):
        state = pytest.importorskip("timm").create_model(arch).state_dict()
    known = recognise(under("net.", state))
    assert known is not None
    assert (known.name, known.built) == (arch, True)


def test_the_nearest_of_our_own_architectures_is_found_without_a_search(plain: State) -> None:
    known = recognise(under("net.", plain), everywhere=False)
    assert known is not None
    assert known.name == "resnet18"
    assert recognise({"a.weight": torch.zeros(3)}, everywhere=False) is None


def test_the_command_tells_and_records_it(tmp_path: Path, plain: State, average: State) -> None:
    path, out = tmp_path / "weights.pt", tmp_path / "out.safetensors"
    torch.save({"state_dict": under("model.", plain), "state_dict_ema": average, "epoch": 3}, path)
    result = avpt(*INIT, path, "--out", out, "--json")
    assert result.code == 0, result.stderr
    assert "under state_dict; the prefix model. is stripped; left lying: state_dict_ema, epoch" in result.stderr
    assert "--weights-key state_dict_ema takes them" in result.stderr
    record = result.json()["weights"]
    assert (record["wrapper"], record["prefix"]) == ("state_dict", "model.")
    assert record["left"] == ["state_dict_ema", "epoch"]
    assert torch.equal(load_file(out)["conv1.weight"], plain["conv1.weight"])
    refused(
        *INIT, path, "--weights-key", "state_dict_ema", "--out", out, says="weights_key: nothing there, state_dict_"
    )
    other = tmp_path / "ema.safetensors"
    done(*INIT, path, "--weights-key", "state_dict_ema", "--out", other)
    assert torch.equal(load_file(other)["conv1.weight"], average["conv1.weight"])
    refused(*INIT, "random", "--weights-key", "x", "--out", tmp_path / "y", says="--weights-key is for a file")
    again = done(*INIT, out, "--out", tmp_path / "again.safetensors", "--json").json()["weights"]
    assert again.keys() == {"loaded", "adapted", "dropped", "new", "folded"}  # our own artifact: nothing to tell
