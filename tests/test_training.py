"""`avpt finetune-unimodal`: what a run records, against the same sums done by hand."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    ARCH,
    STORE_OPTIONS,
    TRAIN_OPTIONS,
    Experiment,
    Result,
    digit_rows,
    done,
    files_of,
    finetune,
    input_of,
    lines,
    near,
    network_of,
    summary,
    write_manifest,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn
from torch.nn import functional

from avpt.errors import StoreError
from avpt.loading.dataset import ClipDataset
from avpt.loading.loader import Loader
from avpt.loading.sampling import EpochSampler
from avpt.models.abri import AbriBatchNorm2d
from avpt.models.encoder import Classifier, EncoderSpec, build_encoder, norm_parameters
from avpt.store.shard_files import ShardFiles
from avpt.store.splits import carve, training_splits
from avpt.store.store import SplitIndex, Store
from avpt.training import metrics, objective
from avpt.training.loop import Clips, Plan, fit
from avpt.training.optim import build_optimizer
from avpt.training.passes import Stepping
from avpt.training.schedules import learning_rate
from avpt.training.state import Progress
from avpt.training.watch import Watcher
from avpt.training.world import World
from avpt.types import Batch, Split

State = dict[str, Tensor]


def names(tensors: State, prefix: str = "") -> list[str]:
    flat, offsets = bytes(tensors[f"{prefix}id_bytes"].tolist()), tensors[f"{prefix}id_offsets"].tolist()
    return [flat[offsets[i] : offsets[i + 1]].decode() for i in range(len(offsets) - 1)]


def train(experiment: Experiment, out: Path, *options: str, modality: str = "visual") -> Path:
    start = experiment.visual_init if modality == "visual" else experiment.audio_init
    done(*finetune(experiment, modality, start), "--epochs", "1", *options, "--out", out)
    return out


def network(state: State, channels: int, num_classes: int, norm_layer: Any = None) -> nn.Module:
    """timm's own network with a classifier artifact's tensors."""
    renamed = {name.removeprefix("encoder.").replace("head.", "fc."): value for name, value in state.items()}
    return network_of(renamed, channels, num_classes, norm_layer)


def visual_clips(store_path: Path, split: Split) -> tuple[Tensor, Tensor]:
    """Inputs (clips, 3, 32, 32) and labels, unaugmented, in store order."""
    store = Store(store_path)
    clips = ClipDataset(store.indices[split], ["visual"], input_of(store), "jpeg")
    batches = list(Loader(clips, 64, device=torch.device("cpu"), workers=0).epoch(0))
    assert len(batches) == 1
    return batches[0].inputs[0][:, 0], batches[0].labels


# optimiser and learning rate


@pytest.mark.parametrize("norm", ["batchnorm", "abri-channel", "abri-layer"])
def test_no_weight_decay_on_norm_layers(norm: Any) -> None:
    model = Classifier(build_encoder(EncoderSpec("resnet18", "audio", norm)), 3)
    undecayed = norm_parameters(model)
    optimizer = build_optimizer(
        model, undecayed, set(), name="sgd", lr=0.1, momentum=0.9, weight_decay=0.5, encoder_lr_scale=1.0
    )
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        plain = name.endswith("conv1.weight") or ".conv" in name or "downsample.0" in name or name.startswith("head.")
        assert decay[id(parameter)] == (0.5 if plain else 0.0), name
    everything = build_optimizer(
        model, set(), set(), name="adam", lr=0.1, momentum=0.9, weight_decay=0.5, encoder_lr_scale=1.0
    )
    assert [group["weight_decay"] for group in everything.param_groups] == [0.5]
    assert len(everything.param_groups[0]["params"]) == len(decay)


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_optimizers_are_torchs(name: Any, kind: str) -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(
        model, set(), set(), name=name, lr=0.25, momentum=0.7, weight_decay=0.1, encoder_lr_scale=1.0
    )
    assert type(optimizer) is getattr(torch.optim, kind)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0].get("momentum", 0.7) == 0.7


@given(
    lr=st.floats(1e-6, 1),
    epochs=st.integers(1, 100),
    milestones=st.lists(st.integers(0, 100), max_size=4),
    factor=st.floats(0, 1),
    warmup=st.integers(0, 10),
    steps=st.integers(1, 30),
    at=st.floats(0, 1, exclude_max=True),
)
def test_learning_rates(
    lr: float, epochs: int, milestones: list[int], factor: float, warmup: int, steps: int, at: float
) -> None:
    epoch, step = int(at * epochs), int(at * 997) % steps
    expected = {"constant": lr, "step": lr, "cosine": 0.0}
    for milestone in milestones:
        if epoch >= milestone:
            expected["step"] *= factor
    if epochs > warmup:
        expected["cosine"] = lr * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2
    if epoch < warmup:
        expected = dict.fromkeys(expected, lr * (epoch * steps + step + 1) / (warmup * steps))
    for schedule, value in expected.items():
        rate = learning_rate(
            lr=lr,
            schedule=schedule,  # type: ignore[arg-type]
            epochs=epochs,
            milestones=milestones,
            factor=factor,
            warmup_epochs=warmup,
        )
        assert rate(epoch, step, steps) == pytest.approx(value, rel=1e-9, abs=1e-18)


def test_the_default_schedule_drops_tenfold_after_60_epochs() -> None:
    rate = learning_rate(lr=1e-3, schedule="step", epochs=80, milestones=(60,), factor=0.1, warmup_epochs=0)
    assert [rate(epoch, 0, 5) for epoch in (0, 59, 60, 79)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        (("step", "--milestones", "1,2", "--lr-factor", "0.5"), [0.01, 0.005, 0.0025]),
        (("step", "--warmup-epochs", "1", "--milestones", "2"), [0.01, 0.01, 0.001]),
        (("cosine", "--warmup-epochs", "1"), [0.01, 0.01, 0.005]),
    ],
)
def test_rates_in_the_metrics(
    experiment: Experiment, tmp_path: Path, options: tuple[str, ...], rates: list[float]
) -> None:
    run = train(experiment, tmp_path / "run", "--epochs", "3", "--lr", "0.01", "--schedule", *options)
    assert [line["lr"] for line in lines(run)] == pytest.approx(rates)
    assert [line["epoch"] for line in lines(run)] == [1, 2, 3]


# one pass by hand


def one_pass(experiment: Experiment, lr: float, decay: float, batch_size: int = 8) -> tuple[State, Tensor, float]:
    """A pass of SGD over the training pictures, written out: tensors, probabilities, loss."""
    torch.manual_seed(0)  # as the command: the encoder is built before the head is drawn
    head = Classifier(build_encoder(EncoderSpec(ARCH, "visual", "batchnorm")), 3).head
    state = load_file(experiment.visual_init)
    model = network(
        {f"encoder.{name}": value for name, value in state.items()}
        | {"head.weight": head.weight.detach(), "head.bias": head.bias.detach()},
        3,
        3,
    )
    inputs, labels = visual_clips(experiment.store, "train")
    probability, total = torch.full((18,), math.nan), 0.0
    for batch in EpochSampler(18, batch_size, 0):
        rows = torch.tensor([position for _, position, _ in batch])
        logits = model.train()(inputs[rows])
        loss = functional.cross_entropy(logits, labels[rows])
        model.zero_grad()
        torch.autograd.backward(loss)
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(lr * (parameter.grad + (decay * parameter if parameter.ndim > 1 else 0)))
        probability[rows] = logits.detach().softmax(1)[torch.arange(len(rows)), labels[rows]]
        total += loss.item() * len(rows)
    return model.state_dict(), probability, total / 18


def test_a_pass_is_stochastic_gradient_descent(experiment: Experiment, tmp_path: Path) -> None:
    options = ("--momentum", "0", "--weight-decay", "0.1", "--lr", "0.001")
    run = train(experiment, tmp_path / "run", *options)
    state, probability, loss = one_pass(experiment, 0.001, 0.1)
    found = load_file(run / "last.safetensors")
    for name, value in state.items():
        if name == "fc.bias":  # one-dimensional too, but no part of a norm layer
            continue
        ours = found[name.replace("fc.", "head.") if name.startswith("fc.") else f"encoder.{name}"]
        torch.testing.assert_close(ours, value, rtol=1e-3, atol=1e-4)
    dynamics = load_file(run / "dynamics.safetensors")
    torch.testing.assert_close(dynamics["probability"][0], probability, rtol=1e-3, atol=1e-4)
    assert lines(run)[0]["train"]["loss"] == pytest.approx(loss, rel=1e-3)


def test_without_learning_the_dynamics_are_train_mode_outputs(experiment: Experiment, tmp_path: Path) -> None:
    run = train(experiment, tmp_path / "run", "--lr", "0")
    state, probability, loss = one_pass(experiment, 0, 0)
    dynamics = load_file(run / "dynamics.safetensors")
    assert names(dynamics) == Store(experiment.store).indices["train"].ids
    torch.testing.assert_close(dynamics["probability"][0], probability, rtol=1e-4, atol=1e-5)
    assert lines(run)[0]["train"]["loss"] == pytest.approx(loss, rel=1e-5)
    found = load_file(run / "last.safetensors")
    before = load_file(experiment.visual_init)
    assert torch.equal(found["encoder.layer3.0.conv1.weight"], before["layer3.0.conv1.weight"])
    torch.testing.assert_close(found["encoder.bn1.running_mean"], state["bn1.running_mean"])


def test_eval_dynamics_are_an_evaluation_pass(experiment: Experiment, tmp_path: Path) -> None:
    run = train(experiment, tmp_path / "run", "--dynamics", "eval", "--crop-scale", "0.3", "1", "--batch-size", "7")
    inputs, labels = visual_clips(experiment.store, "train")
    with torch.no_grad():
        chances = network(load_file(run / "last.safetensors"), 3, 3).eval()(inputs).softmax(1)
    dynamics = load_file(run / "dynamics.safetensors")
    assert dynamics["probability"].shape == (1, 18)
    torch.testing.assert_close(dynamics["probability"][0], chances[torch.arange(18), labels], rtol=1e-4, atol=1e-5)
    assert torch.equal(dynamics["correct"][0], chances.argmax(1) == labels)


@pytest.mark.parametrize("batch_size", ["2", "17", "64"])
def test_dynamics_have_a_column_for_every_clip(experiment: Experiment, tmp_path: Path, batch_size: str) -> None:
    run = train(experiment, tmp_path / "run", "--batch-size", batch_size)
    dynamics = load_file(run / "dynamics.safetensors")
    assert dynamics["probability"].shape == dynamics["correct"].shape == (1, 18)
    assert dynamics["probability"].dtype == torch.float32
    assert dynamics["correct"].dtype == torch.bool
    assert names(dynamics) == Store(experiment.store).indices["train"].ids
    assert bool(((dynamics["probability"] >= 0) & (dynamics["probability"] <= 1)).all())
    assert lines(run)[0]["train"]["accuracy"] == pytest.approx(float(dynamics["correct"][0].double().mean()))


# what a run leaves behind


def test_predictions_and_summary_agree(experiment: Experiment) -> None:
    for run, model in ((experiment.visual, None), (experiment.audio, AbriBatchNorm2d)):
        record, tensors = summary(run), load_file(run / "predictions.safetensors")
        held_out: tuple[Split, ...] = ("val", "test")
        for split in held_out:
            logits, labels = tensors[f"{split}_logits"].double().numpy(), tensors[f"{split}_labels"].numpy()
            index = Store(experiment.store).indices[split]
            assert names(tensors, f"{split}_") == index.ids
            assert labels.tolist() == index.labels.tolist()
            found = logits.argmax(1)
            expected = {
                "accuracy": (found == labels).mean(),
                "top5": 1.0,  # of three classes
                "macro_f1": sklearn_metrics.f1_score(labels, found, average="macro"),
                "loss": (np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]).mean(),
            }
            assert record[split] == pytest.approx(expected, rel=1e-6)
        if model is None:
            inputs, _ = visual_clips(experiment.store, "test")
            with torch.no_grad():
                expected_logits = network(load_file(run / "model.safetensors"), 3, 3).eval()(inputs)
            near(tensors["test_logits"], expected_logits, 1e-4)
        epochs = [line["val"]["accuracy"] for line in lines(run)]
        assert record["best_epoch"] == 1 + epochs.index(max(epochs))
        assert record["epochs"] == len(epochs) == 2
        assert record["val"] == lines(run)[record["best_epoch"] - 1]["val"]


LATE = 0.02  # seconds


class Late:
    """Batches that are all the same, and are waited for."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def epoch(self, number: int, start: int = 0) -> Any:
        if start == 0:
            time.sleep(LATE)
            yield self.batch

    def __len__(self) -> int:
        return 1


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(inputs)
        return logits

    def outputs(self, inputs: Tensor) -> State:
        return {"logits": self(inputs)}


@pytest.mark.parametrize(
    ("values", "best"), [([0.5, 0.5, 0.5], 1), ([0.1, 0.7, 0.7], 2), ([0.0, 0.0], 1), ([0.2, 0.1, 0.3], 3)]
)
def test_the_best_epoch_is_the_first_of_equals(tmp_path: Path, values: Sequence[float], best: int) -> None:
    torch.manual_seed(0)
    model, left, weights = Tiny(), list(values), []
    batches = Late(Batch((torch.randn(4, 2),), torch.tensor([0, 1, 0, 1]), torch.arange(4)))

    def measure(outputs: State) -> dict[str, float]:
        weights.append(model.head.weight.detach().clone())
        return {"accuracy": left.pop(0), "loss": 1.0}

    class Looks(Watcher):
        def epoch_done(self, progress: Progress, timing: dict[str, Any]) -> None:
            assert timing["seconds"] >= timing["training_seconds"] >= 0
            assert timing["clips"] == 4
            waited = timing["waiting"] * timing["training_seconds"]
            assert 0.9 * LATE < waited <= timing["training_seconds"]

    progress = fit(
        model,
        Clips(train=batches, val=batches, clean_train=None, ids=["a", "b", "c", "d"], num_val=4),
        Plan(
            epochs=len(values),
            rate=lambda epoch, step, steps: 0.1,
            stepping=Stepping(),
            measure=measure,
            watched={},
        ),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        checkpoint=tmp_path / "last.pt",
        watcher=Looks(),
        world=World(),
    )
    assert progress.best_epoch == best
    assert torch.equal(progress.best_model["head.weight"], weights[best - 1])
    assert not torch.equal(weights[0], weights[-1])


def test_abri_layers_learn_in_training(experiment: Experiment) -> None:
    before, after = load_file(experiment.audio_init), load_file(experiment.audio / "last.safetensors")
    for layer in ("bn1", "layer1.0.bn2", "layer2.0.downsample.2", "layer4.0.bn2"):
        for name in ("weight", "new_weight", "bias", "new_bias", "alpha", "running_mean", "new_running_var"):
            key = f"{layer}.{name}"
            assert not torch.equal(before[key], after[f"encoder.{key}"]), key
        steps = 2 * 3  # epochs, batches
        assert int(after[f"encoder.{layer}.num_batches_tracked"] - before[f"{layer}.num_batches_tracked"]) == steps
        change = after[f"encoder.{layer}.running_mean"] - 0.9**steps * before[f"{layer}.running_mean"]
        torch.testing.assert_close(change, after[f"encoder.{layer}.new_running_mean"], rtol=1e-3, atol=1e-4)


# options and seeds


def test_every_option_changes_the_result(experiment: Experiment, tmp_path: Path) -> None:
    two_steps = ("--batch-size", "9")  # momentum shows in the second
    plain = train(experiment, tmp_path / "plain", *two_steps)
    model = (plain / "last.safetensors").read_bytes()[-400_000:]  # tensors, not the header
    options = (
        ("--optimizer", "adam"),
        ("--optimizer", "adamw"),
        ("--weight-decay", "0.1"),
        ("--weight-decay", "0.1", "--decay-norm"),
        ("--momentum", "0.5"),
        ("--seed", "1"),
        ("--flip",),
        ("--crop-scale", "0.2", "0.5"),
        ("--num-frames", "2", "--image-size", "24"),
    )
    seen = {model}
    for number, option in enumerate(options):
        run = train(experiment, tmp_path / str(number), *two_steps, *option)
        seen.add((run / "last.safetensors").read_bytes()[-400_000:])
    assert len(seen) == 1 + len(options)
    heard = [
        train(experiment, tmp_path / f"a{i}", *two_steps, *more, modality="audio")
        for i, more in enumerate(((), ("--spec-augment", "8", "12")))
    ]
    assert len({(run / "metrics.jsonl").read_bytes() for run in heard}) == 2


def test_same_command_same_bytes_whatever_the_workers(experiment: Experiment, tmp_path: Path) -> None:
    options = ("--crop-scale", "0.3", "1", "--flip")
    runs = [train(experiment, tmp_path / str(i), *options, "--workers", n) for i, n in enumerate(("0", "0", "2"))]
    expected = files_of(runs[0])
    assert {"model.safetensors", "dynamics.safetensors", "metrics.jsonl", "summary.json"} <= expected.keys()
    assert files_of(runs[1]) == expected
    assert files_of(runs[2]) == expected


# metrics


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(2, 9), st.integers(0, 2**31))
def test_single_label_metrics(clips: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(clips, classes)).astype(np.float32), random.integers(0, classes, clips)
    found = metrics.measure(torch.from_numpy(logits), torch.from_numpy(labels))
    exact = logits.astype(np.float64)
    ranks = [sorted(range(classes), key=lambda k, row=row: -row[k]) for row in exact.tolist()]  # type: ignore[misc]
    chances = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    expected = {
        "loss": -np.log(chances[np.arange(clips), labels]).mean(),
        "accuracy": np.mean([rank[0] == label for rank, label in zip(ranks, labels, strict=True)]),
        "top5": np.mean([label in rank[:5] for rank, label in zip(ranks, labels, strict=True)]),
    }
    scores = []
    for k in sorted({rank[0] for rank in ranks} | set(labels.tolist())):
        hit = sum(rank[0] == k == label for rank, label in zip(ranks, labels, strict=True))
        said, true = sum(rank[0] == k for rank in ranks), int((labels == k).sum())
        scores.append(2 * hit / (said + true))
    expected["macro_f1"] = np.mean(scores)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found["macro_f1"] == sklearn_metrics.f1_score(labels, logits.argmax(1), average="macro", zero_division=0)
    if classes <= 5:
        assert found["top5"] == 1.0
    confidence = objective.true_probability(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_allclose(confidence.numpy(), chances[np.arange(clips), labels], rtol=1e-5)


def average_precision(labels: Sequence[float], scores: Sequence[float]) -> float:
    order = sorted(range(len(labels)), key=lambda i: -scores[i])
    hits, total = 0, 0.0
    for rank, i in enumerate(order, start=1):
        if labels[i]:
            hits += 1
            total += hits / rank
    return total / hits


def area(labels: Sequence[float], scores: Sequence[float]) -> float:
    pairs = [
        (p, n)
        for p, yes in zip(scores, labels, strict=True)
        if yes
        for n, no in zip(scores, labels, strict=True)
        if not no
    ]
    return sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)


@settings(deadline=None)
@given(st.integers(2, 20), st.integers(2, 6), st.floats(0.1, 0.9), st.integers(0, 2**31))
def test_multi_label_metrics(clips: int, classes: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = (random.random((clips, classes)) < share).astype(np.float32)
    labels[np.arange(clips), random.integers(0, classes, clips)] = 1  # no clip is without a label
    logits = random.normal(size=(clips, classes)).astype(np.float32)
    found = metrics.measure(torch.from_numpy(logits), torch.from_numpy(labels))
    chances = 1 / (1 + np.exp(-logits.astype(np.float64)))
    some = [k for k in range(classes) if labels[:, k].any()]
    both = [k for k in some if not labels[:, k].all()]
    top = logits.argmax(1)
    expected = {
        "loss": -(labels * np.log(chances) + (1 - labels) * np.log(1 - chances)).mean(),
        "accuracy": labels[np.arange(clips), top].mean(),
        "map": np.mean([average_precision(labels[:, k].tolist(), logits[:, k].tolist()) for k in some]),
        "auc": np.mean([area(labels[:, k].tolist(), logits[:, k].tolist()) for k in both]) if both else None,
    }
    assert (found.pop("auc") is None) == (expected["auc"] is None)
    if (auc := expected.pop("auc")) is not None:
        assert metrics.measure(torch.from_numpy(logits), torch.from_numpy(labels))["auc"] == pytest.approx(auc)
    assert found == pytest.approx(expected, rel=1e-5)
    assert metrics.key_metric(found) == found["map"]
    confidence = objective.true_probability(torch.from_numpy(logits), torch.from_numpy(labels))
    by_hand = [chances[i][labels[i] > 0].mean() for i in range(clips)]
    np.testing.assert_allclose(confidence.numpy(), by_hand, rtol=1e-5)
    correct = metrics.is_correct(torch.from_numpy(logits), torch.from_numpy(labels))
    assert correct.tolist() == [labels[i, top[i]] > 0 for i in range(clips)]


# splits


def index(ids: Sequence[str], labels: np.ndarray[Any, Any]) -> SplitIndex:
    count = np.arange(len(ids))
    shards = ShardFiles([Path("train-00000.h5")], "float16", (48, 32))
    return SplitIndex(list(ids), labels, count * 0, count, count * 0 + 5, count * 0 + 1, shards)


@given(
    st.dictionaries(st.text(min_size=1, max_size=6), st.integers(0, 3), min_size=2, max_size=60),
    st.floats(0.001, 0.5),
)
def test_carving_is_stratified_by_a_hash(clips: dict[str, int], fraction: float) -> None:
    ids, labels = list(clips), np.array(list(clips.values()), np.int64)
    members = {
        label: sorted((i for i in ids if clips[i] == label), key=lambda i: hashlib.sha256(i.encode()).hexdigest())
        for label in set(clips.values())
    }
    room = sum(len(names) - 1 for names in members.values())
    if not room:
        with pytest.raises(StoreError, match="too few training clips"):
            carve(index(ids, labels), fraction)
        return
    train_side, val = carve(index(ids, labels), fraction)
    assert len(val.ids) <= max(1, round(fraction * len(ids)))
    if room >= len(ids) / 2:  # enough classes have clips to spare for the whole share
        assert len(val.ids) >= min(int(fraction * len(ids)), 1)
    for names in members.values():
        held = [name for name in names if name in set(val.ids)]
        assert held == names[: len(held)]  # the lowest hashes
        assert len(held) < len(names)
        if all(fraction * len(other) <= len(other) - 1 for other in members.values()):
            assert abs(len(held) - fraction * len(names)) <= 1  # no class has to give for another
    assert sorted(val.ids + train_side.ids) == sorted(ids)
    assert val.ids == [i for i in ids if i in set(val.ids)]
    assert [clips[i] for i in val.ids] == val.labels.tolist()
    assert {clips[i] for i in train_side.ids} == set(clips.values())


@pytest.mark.parametrize(("classes", "each"), [(300, 3), (4, 25), (10, 40), (7, 9)])
def test_carving_takes_the_fraction_that_was_asked_for(classes: int, each: int) -> None:
    ids = [f"clip {i}" for i in range(classes * each)]
    single = np.repeat(np.arange(classes), each)
    several = np.eye(classes, dtype=np.uint8)[single]
    several[::2, 0] = 1  # and class 0 on every other clip
    for labels in (single, several):
        _, val = carve(index(ids, labels), 0.1)
        assert len(val.ids) == round(0.1 * len(ids))


@given(st.integers(0, 40))
def test_carving_is_stable_when_clips_are_added(added: int) -> None:
    ids = [f"clip {i}" for i in range(40 + added)]
    labels = np.arange(40 + added) % 2
    _, before = carve(index(ids[:40], labels[:40]), 0.1)
    _, after = carve(index(ids, labels), 0.1)
    for label in (0, 1):  # of the old clips, the first by hash are still the ones
        old = {i for i, k in zip(before.ids, before.labels, strict=True) if k == label}
        still = {i for i, k in zip(after.ids, after.labels, strict=True) if k == label} & set(ids[:40])
        assert still <= old or old <= still


@pytest.fixture(scope="module")
def many_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without val split, each clip with one or two labels."""
    folder = tmp_path_factory.mktemp("many-labels")
    rows = [row for row in digit_rows() if row["split"] != "val"]
    for number, row in enumerate(rows):
        row["label"] = f"digit {row['label']}" + (";even" if row["label"] in "02" and number % 2 else "")
    manifest = write_manifest(folder / "manifest.csv", rows)
    done("preprocess", manifest, *STORE_OPTIONS, "--multi-label", "--out", folder / "store")
    return folder / "store"


def many(store: Path, experiment: Experiment, out: Path, *options: str) -> Result:
    fixed = (*TRAIN_OPTIONS, "--epochs", "1", "--init", experiment.visual_init, "--modality", "visual")
    return done("finetune-unimodal", store, *fixed, *options, "--out", out)


def test_several_labels_from_end_to_end(many_labels: Path, experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = many(many_labels, experiment, run, "--epochs", "2", "--dynamics", "eval").stderr
    assert "warning: " in told
    assert "no val split" in told
    store = Store(many_labels)
    assert store.classes == ["digit 0", "digit 1", "digit 2", "even"]
    tensors, record = load_file(run / "predictions.safetensors"), summary(run)
    for split in ("val", "test"):
        logits, truth = tensors[f"{split}_logits"].T.tolist(), tensors[f"{split}_labels"].T.tolist()
        assert record[split].keys() == {"map", "auc", "accuracy", "loss"}
        columns = list(zip(truth, logits, strict=True))
        some = [(y, z) for y, z in columns if any(y)]
        both = [(y, z) for y, z in some if not all(y)]
        assert record[split]["map"] == pytest.approx(np.mean([average_precision(y, z) for y, z in some]))
        assert record[split]["auc"] == pytest.approx(np.mean([area(y, z) for y, z in both]))
    maps = [line["val"]["map"] for line in lines(run)]
    assert record["best_epoch"] == 1 + maps.index(max(maps))

    dynamics = load_file(run / "dynamics.safetensors")
    kept = [store.indices["train"].ids.index(name) for name in names(dynamics)]
    assert set(names(dynamics)) | set(names(tensors, "val_")) == set(store.indices["train"].ids)
    inputs, labels = visual_clips(many_labels, "train")
    with torch.no_grad():
        chances = network(load_file(run / "last.safetensors"), 3, 4).eval()(inputs[kept]).sigmoid()
    mean = (chances * labels[kept]).sum(1) / labels[kept].sum(1)
    torch.testing.assert_close(dynamics["probability"][1], mean, rtol=1e-4, atol=1e-5)


def test_the_same_clips_are_carved_for_every_seed(many_labels: Path, experiment: Experiment, tmp_path: Path) -> None:
    held = []
    for seed in ("0", "7"):
        run = tmp_path / seed
        many(many_labels, experiment, run, "--seed", seed, "--val-fraction", "0.3")
        held.append(names(load_file(run / "predictions.safetensors"), "val_"))
        trained = names(load_file(run / "dynamics.safetensors"))
        assert not set(held[-1]) & set(trained)
        assert len(held[-1]) + len(trained) == 18
    assert held[0] == held[1]
    splits = training_splits(Store(many_labels), ["audio", "visual"], 0.3)
    assert splits["val"].ids == held[0]
