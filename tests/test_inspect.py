"""`avpt inspect` against the tensors of the files, and a ResNet worked out by hand with every activation kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers import STORE_OPTIONS, Experiment, avpt, digit_rows, done, refused, write_manifest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.container import BarContainer
from safetensors.torch import load_file, save_file
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn
from torch.nn import functional as F

from avpt.diagnosis.channel_tables import describe_prediction, percent
from avpt.diagnosis.dead_channels import measure, score_prediction
from avpt.figures import channels as figures
from avpt.models import known_architectures
from avpt.models.any_encoder import load_any_encoder
from avpt.types import Batch

State = dict[str, Tensor]
HERE = ("--workers", "0", "--device", "cpu")
FEW = ("--image-size", "32", "--num-frames", "1")


def inspect(*arguments: str | Path) -> dict[str, Any]:
    return done("inspect", *arguments, "--json", *HERE).json()


def layers_of(state: State) -> list[str]:
    return [key.removesuffix(".running_var") for key in state if key.endswith(".running_var") and ".new_" not in key]


def plant(state: State, seed: int, share: float = 0.3) -> State:
    """Abnormal channels of all magnitudes in every layer; most betas are negative and large beside their gamma."""
    generator = torch.Generator().manual_seed(seed)
    planted = {name: value.clone() for name, value in state.items()}
    for layer in layers_of(state):
        size = len(state[f"{layer}.weight"])
        chosen = torch.rand(size, generator=generator) < share
        gamma = 10 ** torch.empty(size).uniform_(-12, -2.5, generator=generator)
        beta = torch.where(torch.rand(size, generator=generator) < 0.7, -20 * gamma, gamma)
        planted[f"{layer}.weight"] = torch.where(chosen, gamma, state[f"{layer}.weight"])
        planted[f"{layer}.bias"] = torch.where(chosen, beta, state[f"{layer}.bias"])
        planted[f"{layer}.weight"][0] = planted[f"{layer}.bias"][0] = 0.0
    return planted


@pytest.fixture(scope="module")
def experiment(resnet18: Experiment) -> Experiment:
    """These tests know torchvision's layers."""
    return resnet18


@pytest.fixture(scope="module")
def before(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign ResNet-18 for pictures with planted channels."""
    path = tmp_path_factory.mktemp("weights") / "before.safetensors"
    save_file(plant(load_file(experiment.visual_init), 1), path)
    return path


@pytest.fixture(scope="module")
def after(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another with fewer of them, as a bare checkpoint with a classifier."""
    path = tmp_path_factory.mktemp("weights") / "after.pth"
    state = plant(load_file(experiment.visual_init), 2, 0.1)
    torch.save({"model": state | {"fc.weight": torch.ones(7, 512), "fc.bias": torch.ones(7)}}, path)
    return path


def pair(state: State, layer: str) -> tuple[Tensor, Tensor]:
    """Gamma and beta that a layer acts with."""
    weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
    if f"{layer}.alpha" in state:
        alpha = state[f"{layer}.alpha"]
        weight = alpha * weight + (1 - alpha) * state[f"{layer}.new_weight"]
        bias = alpha * bias + (1 - alpha) * state[f"{layer}.new_bias"]
    return weight, bias


def by_hand(state: State, inputs: Tensor) -> dict[str, Tensor]:
    """A ResNet-18 in training mode: the activation behind each BatchNorm that a ReLU follows, all of it kept."""
    kept: dict[str, Tensor] = {}

    def norm(x: Tensor, layer: str) -> Tensor:
        return F.batch_norm(x, None, None, *pair(state, layer), training=True)

    x = F.conv2d(inputs, state["conv1.weight"], stride=2, padding=3)
    kept["bn1"] = F.relu(norm(x, "bn1"))
    x = F.max_pool2d(kept["bn1"], 3, 2, 1)
    for stage in range(1, 5):
        for number in range(2):
            block, stride = f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            y = F.conv2d(x, state[f"{block}.conv1.weight"], stride=stride, padding=1)
            kept[f"{block}.bn1"] = F.relu(norm(y, f"{block}.bn1"))
            y = norm(F.conv2d(kept[f"{block}.bn1"], state[f"{block}.conv2.weight"], padding=1), f"{block}.bn2")
            if stride == 2:
                x = norm(F.conv2d(x, state[f"{block}.downsample.0.weight"], stride=2), f"{block}.downsample.1")
            x = kept[f"{block}.bn2"] = F.relu(x + y)
    return kept


def sound(store: Path) -> Tensor:
    """Every training clip's normalised spectrogram (clips, 1, frames, mel), read without avpt."""
    record = done("info", store, "--json").json()["normalisation"]
    parts = []
    for shard in sorted(store.glob("train-*.h5")):
        with h5py.File(shard) as file:
            parts.append(file["audio/fbank"][:].astype(np.float32))
    normalised = (np.concatenate(parts)[:, None] - record["mean"]) / (2 * record["std"])
    return torch.from_numpy(normalised.astype(np.float32))


def batch(inputs: Tensor) -> Batch:
    return Batch((inputs,), torch.zeros(len(inputs)), torch.arange(len(inputs)))


# --- parameters --------------------------------------------------------------------------------------------------


def test_counts_at_every_threshold(before: Path, tmp_path: Path) -> None:
    limits = (1e-11, 1e-10, 1e-6, 2e-5, 1e-3)
    record = inspect(before, *(f"--threshold={limit}" for limit in reversed(limits)), "--abnormal-threshold", "2e-5")
    state = load_file(before)
    assert [layer["name"] for layer in record["layers"]] == layers_of(state)
    assert len(record["layers"]) == 20
    assert record["thresholds"] == list(limits)
    for layer in record["layers"]:
        largest = np.maximum(*(np.abs(state[f"{layer['name']}.{name}"].numpy()) for name in ("weight", "bias")))
        expected = [int((largest < limit).sum()) for limit in limits]
        assert layer == {"name": layer["name"], "channels": len(largest), "abnormal": expected[3], "below": expected}
        assert 0 < expected[0] < expected[2] < expected[4] < len(largest)  # planted so
    done("init", "--modality", "visual", "--weights", before, "--abnormal-threshold", "2e-5", "--out", tmp_path / "e")
    told = done("info", tmp_path / "e", "--json").json()["metrics"]
    assert told["abnormal_share"] == record["abnormal_share"]
    assert [layer["abnormal"] for layer in told["layers"]] == [layer["abnormal"] for layer in record["layers"]]
    nothing = ("after", "clips", "dead_share", "precision", "recall", "revived", "awoken", "died")
    assert all(record[name] is None for name in nothing)
    assert inspect(before)["thresholds"] == [1e-10, 1e-6, 2e-5, 1e-3]


def test_before_and_after_side_by_side(before: Path, after: Path) -> None:
    record, alone = inspect(before, "--after", after), inspect(after)
    old, new = load_file(before), torch.load(after)["model"]
    assert record["after"]["layers"] == alone["layers"]
    for layer in record["layers"]:
        was, now = (torch.stack(pair(state, layer["name"])).abs().amax(0) < 1e-6 for state in (old, new))
        assert layer["revived"] == int((was & ~now).sum()) > 0
    assert record["revived"] == sum(layer["revived"] for layer in record["layers"])


def test_abri_keeps_its_branches_apart(experiment: Experiment, before: Path, tmp_path: Path) -> None:
    init, per_layer = tmp_path / "init.safetensors", tmp_path / "layer.safetensors"
    done("init", "--modality", "audio", "--weights", before, "--bn", "abri", "--out", init)
    record = inspect(init)
    assert (record["norm"], record["modality"]) == ("abri-channel", "audio")
    assert [layer["below"] for layer in record["layers"]] == [layer["below"] for layer in inspect(before)["layers"]]
    assert record["blended_share"] == 0
    assert record["revived"] == sum(layer["abnormal"] for layer in record["layers"]) > 0

    state = load_file(init)  # as training might leave it: some channels near the pre-trained branch, some far off
    torch.manual_seed(3)
    for layer in layers_of(state):
        for name in ("alpha", "new_weight", "new_bias"):
            state[f"{layer}.{name}"] = torch.randn_like(state[f"{layer}.{name}"])
        state[f"{layer}.alpha"][::3] = 1.0  # the pre-trained branch alone: its abnormal channels stay so
    trained = tmp_path / "trained.safetensors"
    save_file(state, trained)
    revived = 0
    for layer in inspect(trained)["layers"]:
        own = torch.maximum(state[f"{layer['name']}.weight"].abs(), state[f"{layer['name']}.bias"].abs()) < 1e-6
        blended = torch.stack(pair(state, layer["name"])).abs().amax(0) < 1e-6
        assert layer["abnormal"] == int(own.sum())
        assert layer["blended_abnormal"] == int(blended.sum()) > 0
        assert layer["revived"] == int((own & ~blended).sum())
        revived += layer["revived"]
        alpha = state[f"{layer['name']}.alpha"].double()
        expected = {"mean": alpha.mean().item(), "min": alpha.min().item(), "max": alpha.max().item()}
        assert layer["alpha"] == pytest.approx(expected, rel=1e-5)
    whole = inspect(before, "--modality", "audio", "--after", trained)  # the origin has the same pre-trained branch
    assert whole["revived"] == revived == inspect(trained)["revived"]

    command = ("init", "--modality", "audio", "--weights", before, "--bn", "abri", "--abri", "layer", "--alpha", "0.3")
    done(*command, "--out", per_layer)
    record = inspect(per_layer)
    assert record["norm"] == "abri-layer"
    assert all(list(layer["alpha"].values()) == pytest.approx([0.3] * 3) for layer in record["layers"])


def test_what_blending_did_is_said(experiment: Experiment, before: Path, tmp_path: Path) -> None:
    """Of ABRi, where both branches are there, and of `--bn blend`, where `init` noted it, alike."""
    state, sides = load_file(before), {bn: tmp_path / f"{bn}.safetensors" for bn in ("abri", "blend")}
    for bn, path in sides.items():
        done("init", "--modality", "visual", "--weights", before, "--bn", bn, "--out", path)
    abri, blend = (inspect(path) for path in sides.values())
    assert (abri["norm"], blend["norm"]) == ("abri-channel", "batchnorm")
    assert blend["blend"] == pytest.approx(abri["blend"], rel=1e-5)
    assert abri["blend"]["lifted"] == abri["blend"]["abnormal"] == abri["revived"] > 0
    for layer in abri["layers"]:
        gamma, beta = state[f"{layer['name']}.weight"], state[f"{layer['name']}.bias"]
        assert layer["gamma_moved"] == pytest.approx(float((gamma / 2 - 0.5).square().mean().sqrt()), rel=1e-4)
        assert layer["beta_moved"] == pytest.approx(float((beta / 2).square().mean().sqrt()), rel=1e-4)
    assert inspect(before)["blend"] is None

    later = load_file(sides["blend"])
    later["bn1.weight"] += 0.5
    save_file(later, tmp_path / "later.safetensors")
    result = done("inspect", sides["blend"], "--after", tmp_path / "later.safetensors", *HERE)
    words = " ".join((result.stdout + result.stderr).split())
    lifted = abri["blend"]["lifted"]
    assert f"(--bn blend): blending moved gamma by {abri['blend']['gamma_moved']:.2g} and beta by" in words
    assert f"{lifted} of {lifted} channels below 1e-06 were lifted above it" in words
    record = inspect(sides["blend"], "--after", tmp_path / "later.safetensors")
    channels = sum(layer["channels"] for layer in record["layers"])
    assert record["training"]["gamma_moved"] == pytest.approx((64 * 0.25 / channels) ** 0.5, rel=1e-5)
    assert f"training moved the blended gamma by {record['training']['gamma_moved']:.2g} and beta by 0" in words
    assert "0 channels below 1e-06 after it" in words


def test_either_encoder_of_a_fused_model(experiment: Experiment) -> None:
    state = load_file(experiment.fused / "model.safetensors")
    record = inspect(experiment.fused, "--modality", "audio")
    assert (record["norm"], record["modality"]) == ("abri-channel", "audio")
    assert record["layers"][0]["alpha"]["mean"] == pytest.approx(state["audio.bn1.alpha"].mean().item())
    assert inspect(experiment.fused, "--modality", "visual")["norm"] == "batchnorm"
    refused("inspect", experiment.fused, *HERE, says="holds two encoders; say which with --modality")


def test_imagenet_from_the_cache(before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(load_file(before), tmp_path / "checkpoints" / Path(url).name)
    assert inspect("imagenet") == inspect(before) | {"encoder": "imagenet"}


# --- activations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["plain", "abri"])
def test_zeros_are_those_worked_out_by_hand(before: Path, experiment: Experiment, tmp_path: Path, norm: str) -> None:
    source = before if norm == "plain" else experiment.audio
    encoder = load_any_encoder(source, None, None).encoder
    assert encoder is not None
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    inputs = torch.randn(12, 3 if norm == "plain" else 1, 40, 48)
    encoder.eval()
    (activity,) = measure([encoder], map(batch, torch.split(inputs, [5, 7])))
    assert not encoder.training
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())

    parts = [by_hand(state, part) for part in torch.split(inputs, [5, 7])]
    assert activity.zeros.keys() == parts[0].keys() == activity.positions.keys()
    assert len(parts[0]) == 17  # of 20, three are shortcuts
    for layer in parts[0]:
        kept = torch.cat([part[layer] for part in parts])
        assert activity.positions[layer] == kept.numel() // kept.shape[1]
        zeros = (kept == 0).sum(dim=(0, 2, 3))
        assert (activity.zeros[layer] - zeros).abs().max() <= 2  # where rounding decides
    assert activity.maps is not None
    torch.testing.assert_close(activity.maps, parts[0]["bn1"][0], rtol=1e-4, atol=1e-5)
    (other,) = measure([encoder], [batch(inputs)], zero=0.1)
    expected = (by_hand(state, inputs)["bn1"] <= 0.1).sum(dim=(0, 2, 3))
    assert (other.zeros["bn1"] - expected).abs().max() <= 2
    assert (other.zeros["bn1"] - activity.zeros["bn1"]).sum() > 1000


def test_bottlenecks_have_their_relus_elsewhere() -> None:
    torch.manual_seed(0)
    encoder = torchvision.models.resnet50()
    kept: dict[str, list[Tensor]] = {}
    for name in ("layer1.0", "layer1.1"):
        block = encoder.get_submodule(name)  # torchvision's one ReLU of a block works three times in a forward
        block.relu.inplace = False
        block.relu.register_forward_hook(lambda _m, _i, output, name=name: kept.setdefault(name, []).append(output))
    (activity,) = measure([encoder], [batch(torch.randn(3, 3, 32, 32))])
    assert len(activity.zeros) == 1 + 3 * 16
    for name, outputs in kept.items():
        for number, output in enumerate(outputs, start=1):
            assert torch.equal(activity.zeros[f"{name}.bn{number}"], (output == 0).sum(dim=(0, 2, 3)))
    assert len(kept) == 2


def test_dead_channels_of_a_store(experiment: Experiment, before: Path, after: Path) -> None:
    """Pictures' encoders on sound: all 18 clips in one batch, so that their order does not matter."""
    options = ("--modality", "audio", "--store", experiment.store, "--abnormal-threshold", "1e-4")
    result = done("inspect", before, "--after", after, *options, "--json", *HERE)
    assert result.stderr.count("is made for visual input") == 2
    record, inputs = result.json(), sound(experiment.store)
    assert record["clips"] == len(inputs) == 18
    dead: list[dict[str, Tensor]] = []
    for state, side in ((load_file(before), record), (torch.load(after)["model"], record["after"])):
        state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
        kept = by_hand(state, inputs)
        dead.append({name: (value == 0).double().mean(dim=(0, 2, 3)) >= 0.999 for name, value in kept.items()})
        for layer in side["layers"]:
            expected = int(dead[-1][layer["name"]].sum()) if layer["name"] in kept else None
            assert layer["dead"] == expected
            assert expected is None or ".downsample." not in layer["name"]
        truth = torch.cat(list(dead[-1].values()))
        guess = torch.cat([torch.stack(pair(state, name)).abs().amax(0) < 1e-4 for name in kept])
        assert side["dead_share"] == pytest.approx(truth.double().mean().item())
        assert side["precision"] == pytest.approx(sklearn_metrics.precision_score(truth, guess))
        assert side["recall"] == pytest.approx(sklearn_metrics.recall_score(truth, guess))
        assert 0 < side["precision"] < 1
    was, still = (torch.cat(list(side.values())) for side in dead)
    assert record["awoken"] == int((was & ~still).sum()) > 0
    assert record["died"] == int((~was & still).sum()) > 0


def test_a_trained_encoder_is_fed_as_it_was_trained(experiment: Experiment) -> None:
    """The input pipeline of the run, found on either side, makes its own small pictures, not those of 224."""
    record = inspect(experiment.visual_init, "--after", experiment.visual, "--store", experiment.store)
    same = inspect(experiment.visual_init, "--store", experiment.store, *FEW)
    dead = [[layer["dead"] for layer in side["layers"]] for side in (record, same)]
    assert dead[0] == dead[1]
    assert inspect(experiment.visual, "--store", experiment.store)["dead_share"] == record["after"]["dead_share"]


def test_any_number_of_clips_and_workers(experiment: Experiment, before: Path) -> None:
    """Three clips by two: none is left alone, where the last layers have one position a clip."""
    options = ("--store", experiment.store, *FEW, "--clips", "3", "--batch-size", "2")
    record = inspect(before, *options)
    assert record["clips"] == 3
    again = done("inspect", before, *options, "--json", "--device", "cpu", "--workers", "2").json()
    assert again == record
    assert inspect(before, "--store", experiment.store, *FEW, "--split", "test")["clips"] == 9


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2), st.integers(1, 5))
def test_precision_and_recall(channels: list[tuple[bool, bool]], cut: int) -> None:
    abnormal, dead = torch.tensor(channels).T
    layers = [{"a": values[:cut], "b": values[cut:]} for values in (abnormal, dead)]
    precision, recall = score_prediction(layers[0] | {"shortcut": torch.ones(9, dtype=torch.bool)}, layers[1])
    options = {"zero_division": np.nan}
    for found, score in ((precision, sklearn_metrics.precision_score), (recall, sklearn_metrics.recall_score)):
        assert (np.nan if found is None else found) == pytest.approx(score(dead, abnormal, **options), nan_ok=True)


# --- what is shown -----------------------------------------------------------------------------------------------


def test_tables_fit_the_terminal(experiment: Experiment, before: Path, tmp_path: Path) -> None:
    init = tmp_path / "init.safetensors"
    done("init", "--modality", "visual", "--weights", before, "--bn", "abri", "--out", init)
    for options in ((), ("--after", init)):
        shown = done("inspect", before, *options, "--store", experiment.store, *FEW, *HERE).stdout
        rows = [line for line in shown.splitlines() if line.startswith(" ")]
        assert len(rows) > 45
        assert max(map(len, rows)) <= 80
        assert sum("layer4.0.downsample.1" in row for row in rows) == (4 if options else 2)  # not folded
        assert "\x1b" not in shown
        assert "predicts dead with precision" in shown
        total = next(row for row in shown[shown.index("dead channels") :].splitlines() if row.startswith(" all "))
        assert total.split()[1] == "3904"  # of 4800 channels, those that a ReLU follows
    result = done("inspect", before)
    assert result.stderr == f"reading the parameters of {before}\n"
    (row, *_) = (line for line in result.stdout.splitlines() if "layer1.0.bn1" in line)
    share = (torch.stack(pair(load_file(before), "layer1.0.bn1")).abs().amax(0) < 1e-3).double().mean().item()
    assert 0.26 < share < 0.3
    assert row.split()[-2:] == [f"{share:.0%}".removesuffix("%"), "█▏"]  # of four characters


@pytest.mark.parametrize(
    ("precision", "recall", "says"),
    [
        (0.5, 0.25, "abnormal (below 0.001) predicts dead with precision 0.500, recall 0.250 in x"),
        (None, 0.0, "no measured channel is abnormal (below 0.001) in x: nothing to predict"),
        (0.0, None, "no measured channel is dead in x: nothing to predict"),
        (None, None, "no measured channel is abnormal (below 0.001) or dead in x: nothing to predict"),
    ],
)
def test_a_prediction_that_can_not_be_scored_says_why(precision: float | None, recall: float | None, says: str) -> None:
    after = {"encoder": "y", "precision": 1.0, "recall": 1.0}
    record: dict[str, Any] = {"clips": 3, "abnormal_threshold": 0.001, "after": after}
    record |= {"encoder": "x", "precision": precision, "recall": recall}
    assert describe_prediction(record).splitlines()[0] == says


@given(st.fractions(0, 1))
def test_percentages_say_no_more_than_they_know(share: Any) -> None:
    text, value = percent(float(share)), float(share) * 100
    assert len(text) <= 4
    if text == "<0.1":
        assert 0 < value < 0.1
    elif text == ">99":
        assert 99 < value < 100
    else:
        assert abs(float(text) - value) <= 0.5
        assert (text == "0") == (value == 0)
        assert (text == "100") == (value == 100)


def test_figures(experiment: Experiment, before: Path, tmp_path: Path) -> None:
    init, plots = tmp_path / "init.safetensors", tmp_path / "plots"
    done("init", "--modality", "visual", "--weights", before, "--bn", "abri", "--out", init)
    command = ("inspect", before, "--after", init, "--store", experiment.store, *FEW, "--plot", plots, *HERE)
    paths = done(*command).stdout.splitlines()
    names = {"abnormal", "abnormal-1e-06", "gamma", "feature-maps", "filters", "alpha-after"}
    assert set(paths) == {f"{plots}/{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    for path in map(Path, paths):
        start = b"\x89PNG" if path.suffix == ".png" else b"%PDF"
        assert path.read_bytes().startswith(start)


@pytest.mark.slow
def test_figures_are_not_mixed(experiment: Experiment, before: Path, tmp_path: Path) -> None:
    init = tmp_path / "init.safetensors"
    done("init", "--modality", "visual", "--weights", before, "--bn", "abri", "--out", init)
    told = done("inspect", before, "--plot", tmp_path / "other")
    assert "feature maps are left out: they are measured on clips, which --store names" in told.stderr
    assert {path.stem for path in (tmp_path / "other").iterdir()} == {"abnormal", "abnormal-1e-06", "gamma", "filters"}
    content = (tmp_path / "other" / "gamma.png").read_bytes()
    says = "is another figure; choose another folder, or --overwrite"
    result = refused("inspect", init, "--plot", tmp_path / "other", *HERE, says=says, silent=False)
    assert result.stdout == done("inspect", init).stdout  # the tables are shown all the same
    assert not (tmp_path / "other" / "alpha.pdf").exists()  # and nothing is mixed
    assert (tmp_path / "other" / "gamma.png").read_bytes() == content
    refused("inspect", init, "--store", experiment.store, *FEW, "--plot", tmp_path / "other", *HERE, says=says)
    late = tmp_path / "late" / "filters.pdf"  # which is drawn after the clips alone
    late.parent.mkdir()
    late.write_bytes(b"another")
    result = refused(
        "inspect",
        before,
        "--store",
        experiment.store,
        *FEW,
        "--plot",
        late.parent,
        *HERE,
        says="no figure is written: ",
        silent=False,
    )
    assert "dead channels: zero at 99.9%" in result.stdout
    assert list(late.parent.iterdir()) == [late]
    done("inspect", init, "--plot", tmp_path / "other", "--overwrite")
    assert (tmp_path / "other" / "gamma.png").read_bytes() != content
    assert (tmp_path / "other" / "alpha.pdf").exists()


WORDS = {"dead": "no life", "abnormal": "not well"}


def frames(axes: Any) -> list[tuple[Any, str]]:
    """Where frames are in a grid, and whether they are full lines."""
    return [(p.get_xy(), "dashed" if p.get_linestyle() not in ("-", "solid") else "full") for p in axes.patches]


@pytest.mark.filterwarnings("error::UserWarning")
def test_what_is_framed() -> None:
    dead, abnormal = np.zeros((2, 64), dtype=bool)
    dead[[3, 17]] = abnormal[[17, 40]] = True
    expected = [((3, 0), "full"), ((1, 2), "full"), ((0, 5), "dashed")]  # dead outdoes abnormal
    weights = np.random.default_rng(0).normal(size=(64, 3, 7, 7))
    (known,) = figures.draw_filters({"": (weights, dead, abnormal)}, WORDS).axes
    (unknown,) = figures.draw_filters({"": (weights, None, abnormal)}, WORDS).axes
    assert [frames(known), known.get_title()] == [expected, "2 dead, 2 abnormal of 64"]
    assert [frames(unknown), unknown.get_title()] == [[((1, 2), "dashed"), ((0, 5), "dashed")], "2 abnormal of 64"]

    maps = {"before": (np.ones((64, 9, 5)), dead, abnormal), "after": (np.zeros((64, 9, 5)), dead, dead)}
    figure: Any = figures.draw_feature_maps(np.zeros((1, 20, 8)), maps, "a clip", WORDS)
    figure.draw_without_rendering()
    picture, first, second, _ = figure.axes
    assert [frames(picture), frames(first), frames(second)] == [[], expected, expected[:2]]
    assert first.get_title() == "before: 2 dead, 2 abnormal of 64"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no life", "not well"]
    tops = [(axes.get_window_extent().y0, axes.get_window_extent().y1) for axes in (picture, first, second)]
    assert np.allclose(tops, tops[0], atol=1)  # pixels: side by side, as high as each other
    inside = [figure.bbox.padded(1).contains(0, axes.title.get_window_extent().y1) for axes in (picture, first, second)]
    assert all(inside)


def test_abnormal_channels_do_not_make_the_others_glare() -> None:
    """Of 64 channels most are at 1e-9: the others still span the scale, and none is bright throughout."""
    strengths = np.full(64, 1e-9)
    strengths[:24] = np.linspace(0.5, 2, 24)
    ramp = np.linspace(0, 1, 45).reshape(9, 5)
    none = np.zeros(64, dtype=bool)
    figure = figures.draw_feature_maps(
        np.zeros((1, 9, 5)), {"": (strengths[:, None, None] * ramp, none, none)}, "", WORDS
    )
    shown = np.stack([np.asarray(image.get_array()) for image in figure.axes[1].images])
    assert (shown > 1).mean() < 0.1
    assert shown[24:].max() < 1e-4
    assert shown[:24].max(axis=(1, 2)).min() > 0.4
    assert not figure.legends  # there are no frames to tell of


def heights(figure: Any) -> list[float]:
    """Of the bars of a figure, series by series."""
    groups = (group for group in figure.axes[0].containers if isinstance(group, BarContainer))
    return [bar.get_height() for bars in groups for bar in bars]


def test_what_the_bars_and_the_histogram_count() -> None:
    shares = {"before": [[0.0, 0.0], [0.25, 0.5]], "after": [[0.0, 0.0], [0.0, 0.125]]}
    (panel,) = figures.draw_abnormal(["bn1", "bn2"], [1e-6, 1e-3], shares).axes  # nothing below 1e-6: no empty panel
    assert heights(panel.figure) == [0.25, 0.5, 0.0, 0.125]
    empty = figures.draw_abnormal(["bn1"], [1e-6, 1e-3], {"": [[0.0], [0.0]]})
    assert [text.get_text() for text in empty.axes[0].texts] == ["no channel in any layer"]
    assert heights(figures.draw_gamma({"": [0.0, 0.0, 1e-12, 0.5, 0.5, 0.5]})) == [2]  # the zeros
    assert heights(figures.draw_gamma({"": [0.0, 0.0]})) == [2]
    assert len(figures.draw_alpha(["bn1", "bn2"], [np.array([0.4]), np.array([0.6])]).axes[0].lines) == 2


# --- bad input ---------------------------------------------------------------------------------------------------


def edited(source: Path, target: Path, change: Callable[[State], Any]) -> Path:
    state = load_file(source)
    change(state)
    save_file(state, target)
    return target


def without_norm(state: State) -> None:
    for name in [name for name in state if "running" in name or "num_batches" in name]:
        del state[name]  # as GroupNorm has it: weight and bias alone


def test_files_that_can_not_be_inspected(experiment: Experiment, before: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    refused(
        "inspect",
        tmp_path / "none",
        *HERE,
        says="does not exist; inspect takes imagenet, a file with weights or a run folder",
    )
    refused("inspect", edited(before, path, without_norm), *HERE, says=f"{path} has no BatchNorm layer")
    refused(
        "inspect",
        edited(before, path, lambda state: state["layer2.0.bn1.weight"].fill_(torch.nan)),
        *HERE,
        says="holds infinite values or NaN",
    )
    refused(
        "inspect",
        edited(before, path, lambda state: state.pop("layer2.0.bn1.bias")),
        *HERE,
        says="layer2.0.bn1.bias is missing",
    )
    refused(
        "inspect",
        edited(before, path, lambda s: s.update({"conv1.weight": torch.ones(64, 6, 7, 7)})),
        *HERE,
        says="is 64x6x7x7",
    )
    refused("inspect", edited(experiment.audio_init, path, lambda s: s.pop("bn1.new_bias")), *HERE, says="bn1.new_bias")
    refused(
        "inspect",
        edited(experiment.audio_init, path, lambda s: s.update({"bn1.alpha": torch.ones(3)})),
        *HERE,
        says="bn1.alpha",
    )
    refused("inspect", experiment.confidence, *HERE, says="is of kind confidence; encoder or")
    refused("inspect", experiment.store, *HERE, says="is not a run folder")
    torch.save([torch.ones(3)], tmp_path / "list.pt")
    refused("inspect", tmp_path / "list.pt", *HERE, says="it holds no tensors by name; a state_dict does")
    (tmp_path / "text.pt").write_text("hi")
    refused("inspect", tmp_path / "text.pt", *HERE, says="neither safetensors nor what torch.save writes")
    refused("inspect", before, "--arch", "resnet50", *HERE, says="it looks like resnet18")
    (tmp_path / "file").write_text("x")
    refused("inspect", before, "--plot", tmp_path / "file", *HERE, says="is a file; --plot takes a folder")
    refused("inspect", before, "--image-size", "32", *HERE, says="--image-size is for clips; say with --store whose")
    refused("inspect", before, "--after", tmp_path / "none", *HERE, says="does not exist")
    other = tmp_path / "other.safetensors"
    done("init", "--modality", "visual", "--arch", "resnet34", "--weights", "random", "--out", other)
    refused("inspect", before, "--after", other, *HERE, says=f"{other} is a resnet34 and {before} a resnet18")
    run = tmp_path / "run"
    shutil.copytree(experiment.visual, run)
    (run / "summary.json").unlink()
    refused("inspect", run, *HERE, says=f"{run} is unfinished")


def test_without_its_store_the_parameters_are_shown(experiment: Experiment, before: Path, tmp_path: Path) -> None:
    table = done("inspect", before).stdout
    store = tmp_path / "store"
    says = "neither dead channels nor feature maps can be shown"
    result = refused("inspect", before, "--store", store, *HERE, says=says, silent=False)
    assert result.stdout == table
    result = refused(
        "inspect",
        before,
        "--store",
        store,
        "--json",
        "--plot",
        tmp_path / "plots",
        *HERE,
        says=f"{store} does not exist",
        silent=False,
    )
    assert result.json() == inspect(before)
    assert (tmp_path / "plots" / "filters.png").exists()
    shutil.copytree(experiment.store, store)
    shard = next(store.glob("train-*.h5"))
    shard.write_bytes(shard.read_bytes()[:5000])
    refused("inspect", before, "--store", store, *FEW, *HERE, says="missing or truncated", silent=False)
    (store / "store.json").unlink()
    refused("inspect", before, "--store", store, *FEW, *HERE, says=f"{store} is unfinished", silent=False)


def test_a_store_that_lacks_what_is_needed(experiment: Experiment, before: Path, tmp_path: Path) -> None:
    rows = [row | {"frames": ""} for row in digit_rows() if row["split"] == "train"]
    manifest = write_manifest(tmp_path / "m.csv", rows[:1] + [row | {"split": "test"} for row in rows[1:4]])
    done("preprocess", manifest, "--out", tmp_path / "deaf", *STORE_OPTIONS, "--mel-bins", "16")
    says = "has 1 train clips, and two or more are needed; --split can be test"
    refused("inspect", before, "--store", tmp_path / "deaf", *FEW, *HERE, says=says, silent=False)
    refused(
        "inspect",
        before,
        "--store",
        tmp_path / "deaf",
        "--split",
        "val",
        *FEW,
        *HERE,
        says="has 0 val clips",
        silent=False,
    )
    refused(
        "inspect",
        before,
        "--store",
        tmp_path / "deaf",
        "--split",
        "test",
        *FEW,
        *HERE,
        says="no clip of test has pictures",
        silent=False,
    )
    says = "other spectrograms than the model was trained on (mel_bins 16 against 32)"
    refused(
        "inspect", experiment.audio, "--store", tmp_path / "deaf", "--split", "test", *HERE, says=says, silent=False
    )


# --- networks that avpt does not build ---------------------------------------------------------------------------


def below(state: Mapping[str, Tensor], threshold: float) -> int:
    """How many channels have both parameters below a threshold, by the formula."""
    layers = [name.removesuffix(".running_var") for name in state if name.endswith(".running_var")]
    largest = [torch.maximum(state[f"{one}.weight"].abs(), state[f"{one}.bias"].abs()) for one in layers]
    return sum(int((values < threshold).sum()) for values in largest)


def check_parameters(path: Path, state: Mapping[str, Tensor]) -> list[int]:
    """How many channels are below 1e-3, 1e-2 and 0.05, which `inspect` counts as they are counted here."""
    thresholds = [1e-3, 1e-2, 0.05]
    options = [word for threshold in thresholds for word in ("--threshold", str(threshold))]
    result = done("inspect", path, *options, "--json")
    assert f"{path}: only its BatchNorm parameters are looked at" in result.stderr
    layers = result.json()["layers"]
    counts = [sum(layer["below"][i] for layer in layers) for i in range(len(thresholds))]
    assert counts == [below(state, threshold) for threshold in thresholds]
    return counts


def test_parameters_of_any_network_are_looked_at(experiment: Experiment, tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 30, 1), nn.BatchNorm2d(30)
    )
    with torch.no_grad():
        for layer in (network[1], network[4]):
            for value in layer.parameters():
                value.copy_(10 ** torch.empty_like(value).uniform_(-5, 0))
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "strange.pt")
    check_parameters(tmp_path / "strange.pt", network.state_dict())
    refused("inspect", tmp_path / "strange.pt", "--store", experiment.store, says="--arch says which", silent=False)
    result = refused("inspect", tmp_path / "strange.pt", "--arch", "resnet34", says="; leave --arch out")
    assert "avpt inspect" not in result.error
    other = nn.Sequential(nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    both = ("inspect", tmp_path / "strange.pt", "--after", tmp_path / "other.pt")
    result = avpt(*both)
    assert (result.code, result.stdout) == (1, "")
    assert "do not have the same BatchNorm layers" in result.error


@pytest.mark.parametrize("arch", ["test_resnet", None])
def test_half_precision_is_told_once(arch: str | None, tmp_path: Path) -> None:
    """Of an architecture that is looked up, and of a network that avpt does not build."""
    network = timm.create_model(arch) if arch else nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.save(network.half().state_dict(), tmp_path / "half.pt")
    told = done("inspect", tmp_path / "half.pt").stderr
    assert " ".join(told.split()).count("holds float16 weights: nothing below 6e-08 can be told from 0") == 1
    torch.save(network.float().state_dict(), tmp_path / "whole.pt")
    assert "told from 0" not in " ".join(done("inspect", tmp_path / "whole.pt").stderr.split())


def test_the_architecture_is_looked_up_once(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []
    search = known_architectures._search

    def counted(state: State, everywhere: bool, seconds: float) -> known_architectures.Known | None:
        searched.append(everywhere)
        return search(state, everywhere, seconds)

    monkeypatch.setattr(known_architectures, "_search", counted)
    network = timm.create_model("resnet18d", in_chans=1)
    torch.save({"state_dict": {f"net.{key}": value for key, value in network.state_dict().items()}}, tmp_path / "x.pt")
    result = done("inspect", tmp_path / "x.pt", "--json")
    record = result.json()
    assert (record["arch"], record["modality"], searched) == ("resnet18d", "audio", [True])
    assert f"{tmp_path / 'x.pt'} looks like resnet18d, and is read as that" in result.stderr
    assert done("inspect", tmp_path / "x.pt", "--arch", "resnet18d", "--json").json() == record
    done("inspect", tmp_path / "x.pt", "--store", experiment.store, *FEW, *HERE)

    searched.clear()
    small = {key: value[:4] for key, value in network.state_dict().items() if value.ndim}
    torch.save(small, tmp_path / "strange.pt")
    result = done("inspect", tmp_path / "strange.pt")
    assert "is not recognised as any of torchvision's or timm's architectures" in result.stderr
    assert "avpt inspect" not in result.stderr
    assert searched == [True]


@pytest.mark.parametrize(
    ("arch", "layers", "says"),
    [
        ("efficientformer_l1", 33, ""),  # takes sound of no usual size
        ("tresnet_m", 60, "takes patches of it as 48 channels, which can't be carried across; leave --modality out"),
    ],
)
def test_networks_that_take_no_usual_sound(arch: str, layers: int, says: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = timm.create_model(arch).state_dict()
    full = {key: torch.full(value.shape, 0.5).to(value.dtype) for key, value in state.items()}
    torch.save(full, tmp_path / "x.pt")
    for named in (("--arch", arch), ())[: 1 if says else 2]:  # the larger is looked up no further
        record = done("inspect", tmp_path / "x.pt", *named, "--json").json()
        assert (record["arch"], record["modality"], len(record["layers"])) == (arch, "visual", layers)
    as_sound = ("inspect", tmp_path / "x.pt", "--arch", arch, "--modality", "audio")
    if says:
        refused(*as_sound, says=says)
    else:
        assert done(*as_sound, "--json").json()["modality"] == "audio"


def test_networks_without_batch_norm_are_told_as_that(tmp_path: Path) -> None:
    says = "has no BatchNorm layer, so there are no abnormal or dead channels to look for"
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pt")
    refused("inspect", tmp_path / "vit.pt", says=says)
    torch.save(timm.create_model("csatv2").state_dict(), tmp_path / "csatv2.pt")
    refused("inspect", tmp_path / "csatv2.pt", "--arch", "csatv2", says=says)


def test_a_batch_norm_without_parameters_is_passed_over(experiment: Experiment, before: Path, tmp_path: Path) -> None:
    state = load_file(before)
    for part in ("weight", "bias"):
        del state[f"layer2.0.bn1.{part}"]
    save_file(state, tmp_path / "x.safetensors")
    result = done("inspect", tmp_path / "x.safetensors", "--json")
    whole = {layer["name"]: layer for layer in inspect(before)["layers"]}
    del whole["layer2.0.bn1"]
    assert result.json()["layers"] == list(whole.values())
    says = "passed over, as they have no gamma and beta (affine=False): layer2.0.bn1"
    assert result.stderr.count(says) == 1
    fed = done("inspect", tmp_path / "x.safetensors", "--store", experiment.store, *FEW, *HERE, "--json").json()
    assert "layer2.0.bn1" not in [layer["name"] for layer in fed["layers"]]
    init = ("init", "--modality", "visual", "--weights", tmp_path / "x.safetensors", "--bn", "abri")
    refused(*init, "--out", tmp_path / "y.safetensors", says="save them as 1 and 0, which amounts to the same")


@pytest.mark.parametrize("name", ["resnet20-12fca82f", "resnet56-4bfd9763"])
def test_parameters_of_real_weights(name: str) -> None:
    """CIFAR-10 ResNets that others trained for 200 epochs."""
    folder = Path(os.environ.get("AVPT_CLIPS") or Path(__file__).parents[2] / "shared" / "data" / "clips").parent
    path = folder / "weights" / f"{name}.th"
    if not path.is_file():
        pytest.skip(f"no {path}")
    counts = check_parameters(path, torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    if name.startswith("resnet56"):
        assert counts == [35, 61, 64]  # of 2032: abnormal channels stand apart
