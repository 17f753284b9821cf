"""What the training methods compute, against the formulas written out here."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Experiment, in_processes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from avpt.errors import AvptError
from avpt.loading import transforms
from avpt.loading.dataset import Augmentation, ClipDataset
from avpt.loading.loader import Loader
from avpt.loading.sampling import EpochSampler, share_of
from avpt.machine.processes import InterruptedWork
from avpt.models.encoder import EncoderSpec, Freezable, build_encoder, freeze
from avpt.models.fusion import FusedModel, FusionName, shares
from avpt.store.splits import balancing_weights
from avpt.store.store import Store
from avpt.training import objective
from avpt.training.balancing.ogm_ge import OgmGe
from avpt.training.display import _Board
from avpt.training.loop import Clips, Plan, fit
from avpt.training.mixing import average_weights, mix_clips
from avpt.training.optim import build_optimizer
from avpt.training.passes import Stepping, train_epoch
from avpt.training.state import Clock, EpochState, Progress, new_epoch
from avpt.training.watch import Watcher
from avpt.training.world import World
from avpt.types import MODALITIES, Batch

CPU = torch.device("cpu")
FUSION_NAMES: tuple[FusionName, ...] = ("concat", "sum", "film", "gated")
State = dict[str, Tensor]


# --- OGM-GE ------------------------------------------------------------------------------------------------------

CLIPS = 7
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def joint_model(fusion: FusionName = "concat") -> FusedModel:
    """BatchNorm of its encoders stays as it is, so that a clip's features do not hang on the others."""
    torch.manual_seed(3)
    audio = build_encoder(EncoderSpec("resnet18", "audio", "batchnorm"))
    visual = build_encoder(EncoderSpec("resnet18", "visual", "abri-channel"))
    model = FusedModel(audio, visual, fusion, 3)
    for encoder in (audio, visual):
        freeze(encoder)
        encoder.requires_grad_(True)
    return model


def joint_inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    return torch.randn(CLIPS, 1, 32, 32, generator=draw), torch.randn(CLIPS, 1, 3, 32, 32, generator=draw)


def ogm_step(
    *,
    alpha: float | None,
    fusion: FusionName = "concat",
    window: tuple[int, int] = (0, 50),
    epoch: int = 0,
    seed: int = 5,
    world: World | None = None,
    **stepping: Any,
) -> tuple[State, EpochState]:
    """Gradients of one step as the optimiser gets them, and what was noted; OGM-GE unless alpha is None."""
    world = World() if world is None else world
    model = joint_model(fusion)
    balance = None if alpha is None else OgmGe(model, shares, alpha, window, seed, world)
    mine = torch.tensor(share_of(range(CLIPS), world.rank, world.size))
    state = new_epoch(CLIPS)
    train_epoch(
        world.parallel(model),
        [Batch(tuple(values[mine] for values in joint_inputs()), LABELS[mine], mine, CLIPS)],
        torch.optim.SGD(model.parameters(), lr=0.0),
        state,
        epoch=epoch,
        first_step=10 * epoch,
        set_rate=lambda step: None,
        stepping=Stepping(balance=balance, **stepping),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        world=world,
        watched={modality: list(model.get_submodule(modality).parameters()) for modality in MODALITIES},
        after_step=lambda rows: None,
    )
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, state


@torch.no_grad()
def factors_by_hand(alpha: float, fusion: FusionName = "concat") -> dict[str, float]:
    """k of each encoder. For `concat` a share is W_u z_u + b/2; else f with the other feature there and away."""
    model = joint_model(fusion)
    sound, pictures = joint_inputs()
    a, v = model.audio(sound), model.visual(pictures[:, 0])
    head = model.fusion
    if fusion == "concat":
        weight, bias = head.linear.weight, head.linear.bias  # type: ignore[union-attr]
        logits = [a @ weight[:, :512].T + bias / 2, v @ weight[:, 512:].T + bias / 2]  # type: ignore[index, operator]
    else:
        none_a, none_v = torch.zeros_like(a), torch.zeros_like(v)
        both, only_a, only_v = head(a, v), head(a, none_v), head(none_a, v)
        logits = [(both - only_v + only_a) / 2, (both - only_a + only_v) / 2]
    scores = [sum(z[i].exp()[y] / z[i].exp().sum() for i, y in enumerate(LABELS.tolist())).item() for z in logits]
    found = {}
    for name, rho in (("audio", scores[0] / scores[1]), ("visual", scores[1] / scores[0])):
        found[name] = 1 - math.tanh(alpha * rho) if rho > 1 else 1.0
    assert sorted(found.values())[1] == 1.0 > sorted(found.values())[0]
    return found


def is_convolution(name: str) -> bool:
    return not name.startswith("fusion.") and ("conv" in name or "downsample.0" in name)


def test_ogm_ge_is_its_formula() -> None:
    expected = factors_by_hand(0.8)
    plain, before = ogm_step(alpha=None)
    found, state = ogm_step(alpha=0.8)
    assert state.factors == pytest.approx(expected, rel=1e-5)
    assert state.norms == before.norms  # of the loss alone
    assert before.factors == {}
    noises = {}
    for name, gradient in plain.items():
        if not is_convolution(name):
            assert torch.equal(found[name], gradient), name
            continue
        assert gradient.ndim == 4
        spread = gradient.double().std().item() + 1e-8
        noise = (found[name].double() - expected[name.partition(".")[0]] * gradient.double()) / spread
        count = noise.numel()
        assert abs(noise.mean().item()) < 5 / math.sqrt(count), name
        assert abs(noise.std().item() - 1) < 5 / math.sqrt(2 * count), name
        assert noise.abs().max() < 7
        noises[name] = noise
    assert len(noises) == 2 * 20
    alike = [noise.flatten() for name, noise in noises.items() if noise.shape == (64, 64, 3, 3)]
    assert len(alike) == 8
    crossed = torch.corrcoef(torch.stack(alike))
    assert (crossed - torch.eye(8)).abs().max() < 0.03  # each parameter has noise of its own


@pytest.mark.parametrize("fusion", FUSION_NAMES)
def test_ogm_ge_takes_any_fusions_shares(fusion: FusionName) -> None:
    _, state = ogm_step(alpha=0.3, fusion=fusion)
    assert state.factors == pytest.approx(factors_by_hand(0.3, fusion), rel=1e-5)


def test_ogm_ge_in_parts_and_before_clipping() -> None:
    found, state = ogm_step(alpha=0.8)
    parts, same = ogm_step(alpha=0.8, accumulate=3)
    assert same.factors == pytest.approx(state.factors, rel=1e-5)
    clipped, _ = ogm_step(alpha=0.8, clip_grad=0.01)
    norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in found.values()))
    assert norm > 0.1
    for name, gradient in found.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-4 * scale)  # the same noise
        torch.testing.assert_close(clipped[name], gradient * (0.01 / norm), rtol=1e-3, atol=1e-6 * scale)


def test_ogm_ge_keeps_to_its_window() -> None:
    for epoch, inside in ((0, False), (1, True), (2, True), (3, False)):
        plain, _ = ogm_step(alpha=None, epoch=epoch)
        found, state = ogm_step(alpha=0.8, window=(1, 2), epoch=epoch)
        changed = {name for name, gradient in plain.items() if not torch.equal(found[name], gradient)}
        assert changed == ({name for name in plain if is_convolution(name)} if inside else set())
        assert (state.factors == {"audio": 1.0, "visual": 1.0}) is not inside


def test_ogm_ges_noise_hangs_on_seed_and_step_alone() -> None:
    found, _ = ogm_step(alpha=0.0, epoch=1)  # k is 1, the noise is there
    torch.manual_seed(1)
    again, _ = ogm_step(alpha=0.0, epoch=1)
    others = [ogm_step(alpha=0.0, epoch=2)[0], ogm_step(alpha=0.0, epoch=1, seed=6)[0]]
    name = "visual.layer1.0.conv1.weight"
    assert torch.equal(found[name], again[name])
    assert not any(torch.equal(found[name], other[name]) for other in others)


def test_ogm_ge_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    def step(world: World) -> dict[str, Any]:
        gradients, state = ogm_step(alpha=0.8, world=world)
        return {"gradients": gradients, "factors": state.factors}

    expected = step(World())
    found = in_processes(2, tmp_path, step)
    for name, gradient in expected["gradients"].items():
        assert torch.equal(found[0]["gradients"][name], found[1]["gradients"][name])
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[0]["gradients"][name], gradient, rtol=1e-3, atol=1e-4 * scale)
    assert found[0]["factors"] == found[1]["factors"] == pytest.approx(expected["factors"], rel=1e-5)


@pytest.mark.parametrize(
    ("audio", "visual", "expected"),
    [(0.0, 0.0, (1.0, 1.0)), (0.5, 0.0, (0.0, 1.0)), (0.0, 0.5, (1.0, 0.0)), (0.4, 0.4, (1.0, 1.0))],
)
def test_ogm_ge_where_scores_are_0_or_equal(audio: float, visual: float, expected: tuple[float, float]) -> None:
    model = joint_model()
    balance = OgmGe(model, shares, 0.1, (1, 1), 0, World())
    balance.scores = torch.tensor([audio, visual], dtype=torch.float64)
    balance.window = (0, 0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    found = balance.modulate(0, 0)
    assert (found["audio"], found["visual"]) == pytest.approx(expected)
    assert not balance.scores.any()  # those of the next step begin at 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


class Narrow(nn.Sequential):
    """An encoder that compiles in seconds."""

    width = 4

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 4, 5, stride=3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.slow
def test_ogm_ge_sees_what_a_compiled_model_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = FusedModel(Narrow(1), Narrow(3), "concat", 3)  # type: ignore[arg-type]
        balance = OgmGe(model, shares, 0.8, (0, 0), 0, World())
        called: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
        for _ in range(2):
            sound, pictures = joint_inputs()
            objective.loss(called(sound * 3, pictures), LABELS).backward()  # type: ignore[no-untyped-call]
            balance.observe(LABELS)
        found.append(balance.modulate(0, 0))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert min(found[0].values()) < 1


@pytest.mark.parametrize("name", FUSION_NAMES)
def test_shares_add_up_in_training_and_evaluation(name: FusionName) -> None:
    model = joint_model(name)
    for module in (model.train(), model.eval()):
        a, v = torch.randn(4, 512, requires_grad=True), torch.randn(4, 512)
        logits = module.fusion(a, v)
        audio, visual = shares(module.fusion, a, v, logits)
        torch.testing.assert_close(audio + visual, logits, rtol=1e-5, atol=1e-5)


# --- a small model through the whole loop ------------------------------------------------------------------------


class SmallEncoder(Freezable, nn.Sequential):
    """Layers that can be frozen."""


class Small(nn.Module):
    """An "encoder" with BatchNorm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SmallEncoder(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(inputs))
        return logits

    def outputs(self, inputs: Tensor) -> State:
        return {"logits": self(inputs)}


class Two:
    """Two batches of four clips; a pass can be taken up in the middle."""

    def __init__(self, draws: Tensor | None = None) -> None:
        draw = torch.Generator().manual_seed(1)
        self.inputs, self.labels = torch.randn(8, 3, generator=draw), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
        self.draws = draws

    def __len__(self) -> int:
        return 2

    def epoch(self, number: int, start: int = 0) -> Any:
        for first in range(4 * start, 8, 4):
            rows = torch.arange(first, first + 4)
            positions = rows if self.draws is None else self.draws[rows]
            draws = None if self.draws is None else rows
            yield Batch((self.inputs[positions],), self.labels[positions], positions, draws=draws)


class Steps(Watcher):
    """Calls something after each step."""

    def __init__(self, after: Callable[[], None]) -> None:
        self.after = after

    def step_done(self, epoch: int, state: EpochState, clock: Clock, positions: Tensor) -> None:
        self.after()


def small() -> Small:
    torch.manual_seed(7)
    return Small()


def fitted(
    folder: Path,
    model: Small,
    *,
    epochs: int = 3,
    scale: float = 1.0,
    accuracies: Sequence[float] | None = None,
    patience: int | None = None,
    after: Callable[[], None] = lambda: None,
    watcher: Watcher | None = None,
    train: Two | None = None,
    lr: float = 0.1,
    momentum: float = 0.0,
    seen: list[State] | None = None,
    **stepping: Any,
) -> Progress:
    optimizer = build_optimizer(
        model,
        set(),
        set(model.encoder.parameters()),
        name="sgd",
        lr=lr,
        momentum=momentum,
        weight_decay=0.0,
        encoder_lr_scale=scale,
    )
    left = list(accuracies or [])

    def measure(outputs: State) -> dict[str, float]:
        if seen is not None:
            seen.append(outputs)
        return {"accuracy": left.pop(0) if accuracies else 0.5, "loss": 1.0}

    return fit(
        model,
        Clips(
            train=Two() if train is None else train,
            val=Two(),
            clean_train=None,
            ids=[str(i) for i in range(8)],
            num_val=8,
        ),
        Plan(
            epochs=epochs,
            rate=lambda epoch, step, steps: lr / (1 + epoch),
            stepping=Stepping(**stepping),
            measure=measure,
            watched={},
            patience=patience,
        ),
        optimizer=optimizer,
        checkpoint=folder / "last.pt",
        watcher=watcher or Steps(after),
        world=World(),
    )


def copied(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_the_average_is_its_recursion_and_is_judged(tmp_path: Path) -> None:
    model, steps, seen = small(), list[State](), list[State]()
    average = average_weights(model, 0.4)  # less than the warm-up's from the sixth step on
    accuracies = [0.2, 0.6, 0.4]
    progress = fitted(
        tmp_path,
        model,
        accuracies=accuracies,
        after=lambda: steps.append(copied(model)),
        seen=seen,
        average=average,
    )
    assert len(steps) == 6
    expected, after_epoch = dict(steps[0]), []
    for number, now in enumerate(steps[1:], start=2):
        decay = min(0.4, number / (9 + number))
        for name, value in now.items():
            floats = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if floats else value
        if number % 2 == 0:
            after_epoch.append(dict(expected))
    judge = small().eval()
    for outputs, weights in zip(seen, after_epoch, strict=True):
        judge.load_state_dict(weights)
        with torch.no_grad():
            torch.testing.assert_close(outputs["logits"], judge(Two().inputs))
    torch.testing.assert_close(dict(average.module.state_dict()), expected)
    assert int(expected["encoder.1.num_batches_tracked"]) == 6
    assert progress.best_epoch == 2
    torch.testing.assert_close(progress.best_model, after_epoch[1])


@pytest.mark.parametrize(("decay", "steps", "least", "most"), [(0.999, 104, 92, 95), (0.99, 3000, 2890, 2910)])
def test_an_average_is_not_left_where_it_began(decay: float, steps: int, least: float, most: float) -> None:
    """Of a weight that is t after t steps: 0.999 from the first step on would be at 5 after 104 of them."""
    model = nn.Linear(1, 1, bias=False).double()
    average = average_weights(model, decay)
    for step in range(1, steps + 1):
        nn.init.constant_(model.weight, step)
        average.update_parameters(model)
    assert least < float(average.module.state_dict()["weight"]) < most


def test_an_average_of_what_does_not_move_is_that(tmp_path: Path) -> None:
    model = small()
    model.encoder[1].num_batches_tracked.fill_(1000)  # type: ignore[operator]
    freeze(model.encoder)
    before = copied(model)
    average = average_weights(model, 0.999)
    fitted(tmp_path, model, epochs=5, average=average)
    for state in (copied(model), copied(average.module)):
        for name, value in state.items():
            assert torch.equal(value, before[name]) is name.startswith("encoder."), name


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("running_var", "BatchNorm's running statistics are no longer numbers after step 1 of epoch 2"),
        ("average", "the averaged weights are no longer numbers after step 1 of epoch 2"),
        ("momentum", "the optimiser's sums are no longer numbers after step 1 of epoch 2"),
    ],
)
def test_what_is_not_a_number_is_never_saved(tmp_path: Path, value: float, where: str, says: str) -> None:
    """Weights and losses may look right beside it: a variance of infinity makes every output 0."""
    model, steps = small(), list[int]()
    average = average_weights(model, 0.5)

    def spoil() -> None:
        steps.append(len(steps))
        if len(steps) != 3:
            return
        if where == "running_var":
            model.get_buffer("encoder.1.running_var")[2] = value
        elif where == "average":
            average.get_parameter("module.head.bias").data[0] = value
        else:
            optimizers[0].state[model.head.bias]["momentum_buffer"] = torch.tensor([value, 0.0])

    optimizers, sgd = list[torch.optim.Optimizer](), torch.optim.SGD

    def seen(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
        optimizers.append(sgd(*arguments, **options))
        return optimizers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.optim.SGD", seen)
        with pytest.raises(AvptError, match=re.escape(says)):
            fitted(tmp_path, model, after=spoil, average=average, checkpoint_every=1, momentum=0.5)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["epoch"]["step"] == 0
    assert all(values.isfinite().all() for part in ("model", "average") for values in saved[part].values())


def test_encoders_learn_at_their_own_rate(tmp_path: Path) -> None:
    start, moved = copied(small()), {}
    for scale in (1.0, 0.25):
        (tmp_path / str(scale)).mkdir()
        model = small()
        fitted(tmp_path / str(scale), model, epochs=1, scale=scale, train=_one_batch())
        moved[scale] = {name: value - start[name] for name, value in copied(model).items()}
    for name, step in moved[1.0].items():
        if "running" not in name and "tracked" not in name:
            by = 0.25 if name.startswith("encoder.") else 1.0
            torch.testing.assert_close(moved[0.25][name], by * step, rtol=1e-4, atol=1e-7)
            assert step.any() or name == "encoder.0.bias"  # which BatchNorm takes out again


def _one_batch() -> Two:
    class One(Two):
        def __len__(self) -> int:
            return 1

        def epoch(self, number: int, start: int = 0) -> Any:
            yield Batch((self.inputs,), self.labels, torch.arange(8))

    return One()


def test_a_scaled_rate_follows_the_schedule_through_a_resumed_run(tmp_path: Path) -> None:
    model, rates = small(), list[dict[float, float]]()
    original = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append({group["lr_scale"]: group["lr"] for group in self.param_groups})
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        fitted(tmp_path, model, epochs=2, scale=0.5, lr=0.1)
        fitted(tmp_path, model, epochs=3, scale=0.5, lr=0.1)
    expected = [0.1, 0.1, 0.05, 0.05, 0.1 / 3, 0.1 / 3]
    assert [rate[1.0] for rate in rates] == pytest.approx(expected)
    assert [rate[0.5] for rate in rates] == pytest.approx([value / 2 for value in expected])


# --- early stopping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patience", "accuracies", "done", "best"),
    [
        (1, [0.5, 0.5, 0.9], 2, 1),  # an equal one is no better
        (2, [0.5, 0.6, 0.6, 0.1, 0.9], 4, 2),
        (3, [0.5, 0.6, 0.6, 0.1, 0.9, 0.8], 6, 5),
        (9, [0.5, 0.4, 0.3], 3, 1),
    ],
)
def test_a_run_stops_when_nothing_gets_better(
    tmp_path: Path, patience: int, accuracies: list[float], done: int, best: int
) -> None:
    steps: list[int] = []
    progress = fitted(
        tmp_path,
        small(),
        epochs=len(accuracies),
        accuracies=accuracies,
        patience=patience,
        after=lambda: steps.append(1),
    )
    assert (len(progress.records), progress.best_epoch, len(steps)) == (done, best, 2 * done)
    again = fitted(
        tmp_path, small(), epochs=len(accuracies), accuracies=[], patience=patience, after=lambda: steps.append(1)
    )
    assert len(steps) == 2 * done  # nothing is left to do
    assert again.records == progress.records


def test_a_run_that_stopped_early_has_no_time_left(tmp_path: Path) -> None:
    board = _Board(9, 2, {}, ["loss", "accuracy"], [])
    fitted(tmp_path, small(), epochs=9, accuracies=[0.5, 0.4], patience=1, watcher=board)
    assert (board.place(), board.left()) == ("2 epochs", "")


def test_a_stopped_run_goes_on_to_where_it_would_have_stopped(tmp_path: Path) -> None:
    accuracies = [0.5, 0.6, 0.6, 0.1, 0.9]
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = fitted(
        whole, small(), epochs=5, accuracies=accuracies, patience=2, average=average_weights(small(), 0.9)
    )
    model, count = small(), [0]

    def interrupt() -> None:
        count[0] += 1
        if count[0] == 5:  # the first step of the third epoch
            signal.raise_signal(signal.SIGINT)

    with pytest.raises((KeyboardInterrupt, InterruptedWork)):
        fitted(
            tmp_path,
            model,
            epochs=5,
            accuracies=accuracies,
            patience=2,
            after=interrupt,
            average=average_weights(small(), 0.9),
        )
    found = fitted(
        tmp_path, small(), epochs=5, accuracies=accuracies[2:], patience=2, average=average_weights(small(), 0.9)
    )
    assert found.records == expected.records
    assert len(found.records) == 4
    for name, value in expected.best_model.items():
        assert torch.equal(found.best_model[name], value)


# --- labels ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(2, 7), st.floats(0, 0.99), st.integers(0, 2**31))
def test_smoothed_losses(clips: int, classes: int, smoothing: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(scale=3, size=(clips, classes))
    labels = random.integers(0, classes, clips)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = []
    for row, label in zip(chances, labels, strict=True):
        wanted = [smoothing / classes + (1 - smoothing) * (k == label) for k in range(classes)]
        expected.append(-sum(share * math.log(chance) for share, chance in zip(wanted, row, strict=True)))
    found = objective.clip_losses(torch.from_numpy(logits), torch.from_numpy(labels), smoothing=smoothing)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-13)  # small ones are differences

    several = (random.random((clips, classes)) < 0.4).astype(np.float64)
    yes = 1 / (1 + np.exp(-logits))
    wanted_yes = several * (1 - smoothing) + 0.5 * smoothing
    expected_several = -(wanted_yes * np.log(yes) + (1 - wanted_yes) * np.log(1 - yes)).mean(axis=1)
    found = objective.clip_losses(torch.from_numpy(logits), torch.from_numpy(several), smoothing=smoothing)
    np.testing.assert_allclose(found.numpy(), expected_several, rtol=1e-9, atol=1e-13)


def test_smoothing_is_what_is_learnt_from_and_not_what_is_told(tmp_path: Path) -> None:
    """One step on 8 clips, 5 of them of one class, against its gradient written out."""
    few = _one_batch()
    few.labels = torch.tensor([0, 1, 1, 1, 1, 0, 0, 1])
    for smoothing in (0.0, 0.3):
        (tmp_path / str(smoothing)).mkdir()
        model, start = small(), small()
        progress = fitted(tmp_path / str(smoothing), model, epochs=1, train=few, label_smoothing=smoothing)
        with torch.no_grad():
            features = start.encoder(few.inputs)
            chances = start.head(features).softmax(1)
            wanted = smoothing / 2 + (1 - smoothing) * torch.eye(2)[few.labels]
            errors = (chances - wanted) / 8
            torch.testing.assert_close(model.head.weight, start.head.weight - 0.1 * errors.T @ features)
            torch.testing.assert_close(model.head.bias, start.head.bias - 0.1 * errors.sum(0))
        loss = -chances[torch.arange(8), few.labels].log().mean().item()
        assert progress.records[0]["train"]["loss"] == pytest.approx(loss, rel=1e-5)  # without smoothing


# --- mixup -------------------------------------------------------------------------------------------------------


def mixed(batch: Batch, step: int = 0, alpha: float = 0.4, seed: int = 0, part: int = 0) -> Batch:
    return mix_clips(batch, step, alpha=alpha, num_classes=5, seed=seed, part=part)


@pytest.mark.parametrize("shape", [(1, 8, 6), (3, 3, 8, 8), (2, 3, 8, 8)])
def test_mixed_clips_and_labels(shape: tuple[int, ...]) -> None:
    inputs, labels = torch.randn(4, *shape), torch.tensor([2, 0, 1, 4])
    batch = Batch((inputs,), labels, torch.tensor([7, 3, 5, 1]), draws=torch.arange(4))
    before, state = inputs.clone(), torch.get_rng_state()
    found = mixed(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(inputs, before)
    assert found.targets is not None
    weight = found.targets[0, 2].item()
    assert 0 < weight < 1
    assert type(found.inputs[0]) is Tensor
    for i in range(4):
        partner = (i - 1) % 4
        torch.testing.assert_close(found.inputs[0][i], weight * inputs[i] + (1 - weight) * inputs[partner])
        wanted = torch.zeros(5)
        wanted[labels[i]] += weight
        wanted[labels[partner]] += 1 - weight
        torch.testing.assert_close(found.targets[i], wanted)
        assert found.labels[i] == labels[i if weight > 0.5 else partner]
    assert torch.equal(found.positions, batch.positions)
    assert torch.equal(found.rows, torch.arange(4))

    logits = torch.randn(4, 5)
    logs = logits.log_softmax(1)
    own, other = -logs[torch.arange(4), labels], -logs[torch.arange(4), labels.roll(1)]
    loss = objective.loss(logits, found.labels, found.targets)
    torch.testing.assert_close(loss, (weight * own + (1 - weight) * other).mean())
    parts = [found.part(slice(0, 2)), found.part(slice(2, 4))]
    halves = [
        objective.loss(logits[i : i + 2], part.labels, part.targets) for i, part in zip((0, 2), parts, strict=True)
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), loss)


def test_mixed_clips_of_several_labels() -> None:
    labels = torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0]])
    found = mixed(Batch((torch.randn(3, 1, 4, 4),), labels, torch.arange(3)))
    assert found.targets is not None
    weight = found.targets[0, 0].item()
    torch.testing.assert_close(found.targets, weight * labels + (1 - weight) * labels[[2, 0, 1]])
    assert torch.equal(found.labels, torch.maximum(labels, labels[[2, 0, 1]]))


def test_weights_are_beta_distributed_and_hang_on_seed_step_and_process() -> None:
    batch = Batch((torch.zeros(2, 1, 4, 4),), torch.tensor([0, 1]), torch.arange(2))

    def weight(**options: Any) -> float:
        targets = mixed(batch, **options).targets
        assert targets is not None
        return targets[0, 0].item()

    drawn = np.array([weight(step=step, alpha=0.4) for step in range(800)])
    variance = 1 / (4 * (2 * 0.4 + 1))  # of Beta(a, a)
    assert abs(drawn.mean() - 0.5) < 4 * math.sqrt(variance / 800)
    assert drawn.var() == pytest.approx(variance, rel=0.12)
    assert weight(step=3) == weight(step=3)
    assert len({weight(step=3), weight(step=4), weight(step=3, seed=1), weight(step=3, part=1)}) == 4


def test_mixed_clips_are_what_is_learnt_from(tmp_path: Path) -> None:
    model = small()
    steps: list[int] = []

    def mix(batch: Batch, step: int) -> Batch:
        steps.append(step)
        return Batch((batch.inputs[0] * 0,), batch.labels, batch.positions, targets=torch.full((4, 2), 0.5))

    progress = fitted(tmp_path, model, epochs=2, lr=0.0, mix=mix)
    assert steps == [0, 1, 2, 3]  # counted over the run
    with torch.no_grad():
        logits = small().head(small().state_dict()["encoder.1.bias"][None])
    loss = -logits.log_softmax(1).mean().item()
    assert progress.records[0]["train"]["loss"] == pytest.approx(loss, rel=1e-5)


# --- balanced sampling -------------------------------------------------------------------------------------------


def test_classes_are_drawn_equally_often() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 30, 15, 5])
    weights = torch.from_numpy(balancing_weights(labels))
    sampler = EpochSampler(100, 16, 3, weights=weights)
    epochs, counts = 80, np.zeros(100)
    for epoch in range(epochs):
        sampler.epoch = epoch
        batches = list(sampler)
        assert [row for batch in batches for _, _, row in batch] == list(range(100))
        assert {number for batch in batches for number, _, _ in batch} == {epoch}
        drawn = [position for batch in batches for _, position, _ in batch]
        assert len(set(drawn)) < 100
        np.add.at(counts, drawn, 1)
    by_class = np.array([counts[labels == k].sum() for k in range(4)])
    expected = 100 * epochs / 4
    assert ((by_class - expected) ** 2 / expected).sum() < 21.1  # chi-square, 3 degrees of freedom, p 0.0001
    for k in range(4):  # and within a class its clips
        clips = counts[labels == k]
        even = expected / len(clips)
        assert (abs(clips - even) < 5 * math.sqrt(even)).all()


def test_several_labels_count_under_the_rarest() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]], np.uint8)  # rarest: 1, 0, 0, 2
    assert balancing_weights(labels).tolist() == pytest.approx([1, 0.5, 0.5, 1])


@given(st.integers(8, 90), st.integers(4, 20), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2**31))
@settings(max_examples=30)
def test_processes_share_the_draws(num_clips: int, batch_size: int, processes: int, start: int, seed: int) -> None:
    weights = torch.arange(1, num_clips + 1, dtype=torch.float64)
    samplers = [EpochSampler(num_clips, batch_size, seed, rank, processes, weights) for rank in range(processes)]
    steps = list(zip(*samplers, strict=True))
    rows = [row for shared in steps for share in shared for _, _, row in share]
    assert rows == list(range(num_clips))
    for sampler in samplers:
        sampler.start = start
    assert list(zip(*samplers, strict=True)) == steps[start:]


def dataset(experiment: Experiment, **augmentation: Any) -> ClipDataset:
    store = Store(experiment.store)
    spec = store.input_spec(image_size=32, num_frames=1)
    jitter = Augmentation((0.3, 1.0), True, (4, 6), **augmentation)
    codec = store.settings["frame_codec"]
    return ClipDataset(store.indices["train"], MODALITIES, spec, codec, seed=2, augmentation=jitter)


def test_a_clip_that_is_drawn_twice_looks_different(experiment: Experiment) -> None:
    clips = dataset(experiment)
    draws = [clips[0, 3, row] for row in (3, 5, 6)]
    for modality in MODALITIES:
        assert not torch.equal(draws[0][modality], draws[1][modality])
        assert not torch.equal(draws[1][modality], draws[2][modality])
        assert torch.equal(draws[1][modality], clips[0, 3, 5][modality])
    assert {int(draw["label"]) for draw in draws} == {int(clips.index.labels[3])}


@pytest.mark.parametrize("workers", [0, 2])
def test_drawn_batches_say_which_draw_and_which_clip(experiment: Experiment, workers: int) -> None:
    clips = dataset(experiment)
    weights = torch.zeros(18, dtype=torch.float64)
    weights[[4, 9]] = 1
    batches = list(Loader(clips, 5, device=CPU, workers=workers, shuffle_seed=0, weights=weights).epoch(1))
    assert torch.equal(torch.cat([batch.rows for batch in batches]), torch.arange(18))
    assert set(torch.cat([batch.positions for batch in batches]).tolist()) == {4, 9}
    for batch in batches:
        for i, (position, row) in enumerate(zip(batch.positions.tolist(), batch.rows.tolist(), strict=True)):
            label = int(clips[1, position, row]["label"])
            assert int(batch.labels[i]) == label == int(clips.index.labels[position])


def test_training_means_are_over_draws(tmp_path: Path) -> None:
    draws = torch.tensor([1, 1, 1, 5, 6, 1, 5, 5])
    progress = fitted(tmp_path, small(), epochs=1, lr=0.0, train=Two(draws))
    model, losses, right = small().train(), list[float](), list[bool]()
    for batch in Two(draws).epoch(0):
        with torch.no_grad():
            chances = model(*batch.inputs).softmax(1)
        losses += (-chances[torch.arange(4), batch.labels].log()).tolist()
        right += (chances.argmax(1) == batch.labels).tolist()
    learnt = progress.records[0]["train"]
    assert learnt["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert learnt["accuracy"] == np.mean(right)


# --- modality dropout --------------------------------------------------------------------------------------------


def test_either_modality_is_withheld_from_a_share_of_the_clips() -> None:
    drawn = torch.stack([transforms.draw_present(0.3, seed) for seed in range(6000)])
    away = 1 - drawn
    assert not (away.sum(1) > 1).any()
    for share in away.mean(0).tolist():
        assert abs(share - 0.15) < 4 * math.sqrt(0.15 * 0.85 / 6000)
    assert transforms.draw_present(0.0, 1).tolist() == [1, 1]
    assert all(transforms.draw_present(1.0, seed).sum() == 1 for seed in range(100))


@pytest.mark.parametrize("name", FUSION_NAMES)
def test_a_withheld_modality_has_no_features(name: FusionName) -> None:
    model = joint_model(name)
    sound, pictures = joint_inputs()
    present = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    with torch.no_grad():
        found = model(sound[:3], pictures[:3], present)
        a, v = model.audio(sound[:3]), model.visual(pictures[:3, 0])
        nothing = torch.zeros(1, 512)
        expected = torch.cat([model.fusion(a[:1], nothing), model.fusion(nothing, v[1:2]), model.fusion(a[2:], v[2:])])
    torch.testing.assert_close(found, expected)


def test_what_is_withheld_hangs_on_the_clip_alone(experiment: Experiment) -> None:
    clips = dataset(experiment, modality_dropout=0.5)
    said: dict[tuple[int, int], dict[int, list[float]]] = {}
    for processes, workers in ((1, 0), (1, 2), (2, 0)):
        found: dict[int, list[float]] = {}
        for process in range(processes):
            loader = Loader(clips, 6, device=CPU, workers=workers, shuffle_seed=1, process=process, processes=processes)
            for batch in loader.epoch(4):
                assert len(batch.inputs) == 3
                found |= dict(zip(batch.positions.tolist(), batch.inputs[2].tolist(), strict=True))
        said[processes, workers] = found
    assert said[1, 0] == said[1, 2] == said[2, 0]
    assert len(said[1, 0]) == 18
    assert {tuple(present) for present in said[1, 0].values()} == {(1, 1), (0, 1), (1, 0)}
    evaluated = ClipDataset(clips.index, MODALITIES, clips.spec, clips.frame_codec)
    assert all(len(batch.inputs) == 2 for batch in Loader(evaluated, 6, device=CPU, workers=0).epoch(4))
