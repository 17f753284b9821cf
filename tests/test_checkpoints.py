"""Training in one process: what a checkpoint holds, how a step is taken, and when it stops."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import RUNAWAY, Experiment, avpt, done, files_of, finetune, fuse
from safetensors.torch import load_file
from torch import Tensor
from toy import STEPS, AfterStep, InOrder, Linear, Stop, trained

from avpt.errors import AvptError
from avpt.models.encoder import Classifier, EncoderSpec, build_encoder
from avpt.training import runtime
from avpt.training.checkpoint import load_checkpoint, previous_of, save_checkpoint
from avpt.training.passes import Stepping, train_epoch
from avpt.training.state import EpochState, new_epoch
from avpt.training.world import World
from avpt.types import Batch


def checkpoint(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "last.pt", weights_only=True)
    return state


def equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


# --- stopped and resumed -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_signals_raise")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("dynamics", ["train", "eval"])
def test_a_signal_loses_no_step(tmp_path: Path, dynamics: str, number: signal.Signals) -> None:
    options: dict[str, Any] = {"clean_train": InOrder() if dynamics == "eval" else None}
    expected = trained(tmp_path / "whole", **options)
    for at in range(4 * STEPS):  # stopped in every step, one after the other

        def after_step(epoch: int, state: EpochState, at: int = at) -> None:
            assert epoch * STEPS + state.step > at, "a step is taken twice"
            if epoch * STEPS + state.step == at + 1:
                signal.raise_signal(number)

        with pytest.raises(Stop):
            trained(tmp_path / "parts", watcher=AfterStep(after_step), **options)
        state = checkpoint(tmp_path / "parts")
        assert len(state["progress"]["records"]) * STEPS + state["epoch"]["step"] == at + 1
    assert equal(trained(tmp_path / "parts", **options), expected)


@pytest.mark.usefixtures("_signals_raise")
def test_a_signal_during_evaluation_does_not_wait_for_its_end(tmp_path: Path) -> None:
    class Interrupting(InOrder):
        seen = 0

        def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
            for batch in super().epoch(number, start):
                self.seen += 1
                if self.seen == STEPS + 1:
                    signal.raise_signal(signal.SIGTERM)
                yield batch

    val = Interrupting()
    expected = trained(tmp_path / "whole")
    with pytest.raises(Stop):
        trained(tmp_path / "parts", val=val)
    assert val.seen == STEPS + 1
    state = checkpoint(tmp_path / "parts")
    assert (len(state["progress"]["records"]), state["epoch"]["step"]) == (1, STEPS)
    assert equal(trained(tmp_path / "parts"), expected)


@pytest.mark.usefixtures("_signals_raise")
def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    def after_step(epoch: int, state: EpochState) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # as batch systems send more than one
        signal.raise_signal(signal.SIGTERM)
        if state.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stop):
        trained(tmp_path, watcher=AfterStep(after_step))
    assert checkpoint(tmp_path)["epoch"]["step"] == 1


@pytest.mark.usefixtures("_signals_raise")
def test_an_error_is_told_before_a_signal(tmp_path: Path) -> None:
    def after_step(epoch: int, state: EpochState) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise AvptError("the disk is full")

    with pytest.raises(AvptError, match="the disk is full"):
        trained(tmp_path, watcher=AfterStep(after_step))


@pytest.mark.parametrize(
    ("every", "steps"), [(1, list(range(1, 13))), (5, [3, 5, 6, 9, 10, 12]), (None, [3, 6, 9, 12])]
)
def test_a_checkpoint_every_so_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int | None, steps: list[int]
) -> None:
    saved: list[int] = []

    def save(path: Path, state: dict[str, Any]) -> None:
        saved.append(len(state["progress"]["records"]) * STEPS + state["epoch"]["step"])

    monkeypatch.setattr("avpt.training.run_state.save_checkpoint", save)
    trained(tmp_path, stepping=Stepping(checkpoint_every=every))
    assert sorted(set(saved)) == steps


def test_a_checkpoint_is_read_without_running_code(tmp_path: Path) -> None:
    trained(tmp_path)
    assert checkpoint(tmp_path).keys() == {"progress", "epoch", "job", "model", "optimizer", "scaler"}

    class Harmful:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"progress": Harmful()}, tmp_path / "last.pt")
    previous_of(tmp_path / "last.pt").unlink()
    with pytest.raises(AvptError, match="damaged"):
        trained(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.usefixtures("_signals_raise")
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, keep: float, caplog: pytest.LogCaptureFixture
) -> None:
    def after_step(epoch: int, state: EpochState) -> None:
        if (epoch, state.step) == (2, 2):
            signal.raise_signal(signal.SIGTERM)

    expected = trained(tmp_path / "whole")
    with pytest.raises(Stop):
        trained(tmp_path / "parts", watcher=AfterStep(after_step), stepping=Stepping(checkpoint_every=1))
    last = tmp_path / "parts" / "last.pt"
    content = last.read_bytes()
    last.write_bytes(content[: int(len(content) * keep)])
    with caplog.at_level("WARNING", logger="avpt"):
        assert equal(trained(tmp_path / "parts"), expected)
    assert f"{last} is damaged" in caplog.text
    assert "going on from the one before it" in caplog.text


def test_both_damaged_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for value in (1, 2):
        save_checkpoint(path, {"value": value})
    actual: list[int] = []
    assert load_checkpoint(path, lambda state: actual.append(state["value"]))
    path.write_bytes(path.read_bytes()[:99])
    assert load_checkpoint(path, lambda state: actual.append(state["value"]))
    assert actual == [2, 1]
    assert not path.exists()  # a save would move it over the good one
    previous_of(path).write_bytes(b"PK")
    with pytest.raises(AvptError, match=r"last\.pt is damaged .*--overwrite starts the run over"):
        load_checkpoint(path, lambda state: None)
    previous_of(path).unlink()
    assert not load_checkpoint(path, lambda state: None)


def test_another_number_of_processes_is_a_warning_or_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path, epochs=1)
    state = checkpoint(tmp_path)
    torch.save(state | {"job": {"processes": 4, "steps": STEPS}}, tmp_path / "last.pt")
    with caplog.at_level("WARNING", logger="avpt"):
        trained(tmp_path, epochs=2)
    assert "was made by 4 process(es); going on with 1 changes the result" in caplog.text
    state["epoch"]["step"] = 1
    torch.save(state | {"job": {"processes": 4, "steps": STEPS - 1}}, tmp_path / "last.pt")
    with pytest.raises(AvptError, match=r"4 process\(es\) that took 2 steps an epoch, 1 take 3; start 4, or"):
        trained(tmp_path, epochs=3)


def test_another_device_or_thread_count_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path, epochs=1)
    state = checkpoint(tmp_path)
    assert state["job"] == {"processes": 1, "steps": STEPS} | runtime.environment(torch.device("cpu"))
    with caplog.at_level("WARNING", logger="avpt"):
        trained(tmp_path, epochs=2)
        assert not caplog.messages
        state["job"] |= {"threads": 7, "device": "NVIDIA H100"}
        torch.save(state, tmp_path / "last.pt")
        trained(tmp_path, epochs=3)
    begins = f"{tmp_path / 'last.pt'} was made with"
    assert [message.partition(":")[0] for message in caplog.messages] == [
        f"{begins} device NVIDIA H100, going on with cpu",
        f"{begins} threads 7, going on with {torch.get_num_threads()}",
    ]


# --- how a step is taken -----------------------------------------------------------------------------------------


def stepped(stepping: Stepping, *, seed: int = 0) -> tuple[dict[str, Tensor], EpochState]:
    """One step of a ResNet whose BatchNorm is frozen: its gradients, and what was noted."""
    torch.manual_seed(seed)
    model = Classifier(build_encoder(EncoderSpec("resnet18", "audio", "abri-channel")), 3)
    model.train = lambda mode=True: model  # type: ignore[method-assign]
    for module in model.modules():
        module.training = False
    labels = torch.tensor([0, 1, 2, 0, 1])
    batch = Batch((torch.randn(5, 1, 64, 64),), labels, torch.arange(5))
    state = new_epoch(5)
    train_epoch(
        model,
        [batch],
        torch.optim.SGD(model.parameters(), lr=0.0),
        state,
        epoch=0,
        first_step=0,
        set_rate=lambda step: None,
        stepping=stepping,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        world=World(),
        watched={"encoder": list(model.encoder.parameters())},
        after_step=lambda positions: None,
    )
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, state


def test_accumulated_parts_are_one_batch() -> None:
    whole, state = stepped(Stepping())
    for parts in (2, 9):  # of 2 and 3 clips: no part is of one clip
        actual, same = stepped(Stepping(accumulate=parts))
        assert actual.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6 * float(whole[name].abs().max()))
        torch.testing.assert_close(same.loss, state.loss)
        torch.testing.assert_close(same.probability, state.probability)
        assert same.norms == pytest.approx(state.norms, rel=1e-4)


def test_clipping_bounds_the_gradient_and_the_norm_noted_is_from_before() -> None:
    whole, state = stepped(Stepping())
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in whole.values()))
    limit = norm / 7
    clipped, noted = stepped(Stepping(clip_grad=limit))
    after = math.sqrt(sum(float(value.double().square().sum()) for value in clipped.values()))
    assert after == pytest.approx(limit, rel=1e-4)
    for name, value in whole.items():
        torch.testing.assert_close(clipped[name], value / 7, rtol=1e-3, atol=1e-7)
    encoder = [value for name, value in whole.items() if name.startswith("encoder.")]
    expected = math.sqrt(sum(float(value.double().square().sum()) for value in encoder))
    assert noted.norms == state.norms == {"encoder": pytest.approx(expected, rel=1e-4)}
    loose, _ = stepped(Stepping(clip_grad=norm * 2))
    assert equal(loose, whole)


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_clipping_to_nothing_is_refused(experiment: Experiment, tmp_path: Path, limit: str) -> None:
    command = (*finetune(experiment, "visual", experiment.visual_init), "--out", tmp_path / "run")
    result = avpt(*command, "--clip-grad", limit)
    assert result.code == 1
    assert result.stderr == f"avpt: --clip-grad is {limit}; it must be over 0, or left out for no clipping\n"
    assert not (tmp_path / "run").exists()


def test_bfloat16_is_close(tmp_path: Path) -> None:
    whole, state = stepped(Stepping())
    actual, noted = stepped(Stepping(precision="bf16"))
    assert noted.probability.dtype == torch.float32
    torch.testing.assert_close(noted.loss, state.loss, rtol=0.05, atol=0.05)
    assert noted.norms["encoder"] == pytest.approx(state.norms["encoder"], rel=0.1)
    mine, theirs = (torch.cat([gradients[name].flatten() for name in whole]) for gradients in (whole, actual))
    assert not torch.equal(mine, theirs)
    assert torch.cosine_similarity(mine, theirs, dim=0) > 0.98


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_are_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    expected, actual = trained(tmp_path / "plain"), trained(tmp_path / "compiled", compiled=True)
    assert actual.keys() == expected.keys()
    for name in expected.keys() - {"records"}:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-5)
    assert equal(trained(tmp_path / "compiled"), actual)  # nothing of it is left in the checkpoint's names


# --- numbers that are none ---------------------------------------------------------------------------------------


def test_the_clip_to_blame_is_named(tmp_path: Path) -> None:
    class Broken(InOrder):
        def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
            for batch in super().epoch(number, start):
                inputs = batch.inputs[0].clone()
                inputs[batch.positions == 9] = math.nan
                yield Batch((inputs,), batch.labels, batch.positions)

    says = "loss is nan at step 3 of epoch 1, on clips clip 9, whose values in the store are not numbers"
    with pytest.raises(AvptError, match=says):
        trained(tmp_path, train=Broken())


@pytest.mark.parametrize("name", ["encoder.weight", "head.weight"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gradient_that_is_never_finite_stops_the_run(tmp_path: Path, name: str, precision: Any) -> None:
    model = Linear()
    model.get_parameter(name).register_hook(lambda gradient: gradient * math.nan)  # type: ignore[no-untyped-call]
    before = model.get_parameter(name).clone()
    with pytest.raises(AvptError, match="gradient is not finite at step"):
        trained(tmp_path, model=model, stepping=Stepping(precision=precision), epochs=40)
    assert torch.equal(model.get_parameter(name), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("every", [None, 1])
def test_a_loss_that_is_no_number_stops_and_names_step_clips_and_checkpoint(
    tmp_path: Path, value: float, every: int | None
) -> None:
    class Broken(InOrder):
        def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
            for i, batch in enumerate(super().epoch(number, start), start):
                broken = (number, i) == (1, 2)
                yield Batch((batch.inputs[0] * (value if broken else 1),), batch.labels, batch.positions)

    stepping = Stepping(checkpoint_every=every)
    with pytest.raises(AvptError) as caught:
        trained(tmp_path, train=Broken(), stepping=stepping)
    message = str(caught.value)
    assert "the loss is nan at step 3 of epoch 2, on clips clip 8, clip 9, clip 10, clip 11" in message
    assert f"the last checkpoint is {tmp_path / 'last.pt'}" in message
    assert message.endswith("`avpt verify` says what is damaged")  # the clips' own values are no numbers
    state = checkpoint(tmp_path)
    assert (len(state["progress"]["records"]), state["epoch"]["step"]) == (1, 2 if every else 0)
    assert all(value.isfinite().all() for value in state["model"].values())
    assert equal(trained(tmp_path), trained(tmp_path / "whole"))  # nothing of the broken step is left


def test_a_gradient_that_is_no_number_stops_before_it_is_learnt_from(tmp_path: Path) -> None:
    model = Linear()

    def spoil(gradient: Tensor) -> Tensor:
        return gradient * math.inf

    model.encoder.weight.register_hook(spoil)  # type: ignore[no-untyped-call]
    with pytest.raises(AvptError, match=r"gradient is not finite at step 1 of epoch 1, .* nothing was saved yet"):
        trained(tmp_path, model=model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# --- from the command line ---------------------------------------------------------------------------------------


def test_a_rate_that_is_too_high_is_one_line(experiment: Experiment, tmp_path: Path) -> None:
    command = (*finetune(experiment, "visual", experiment.visual_init), "--out", tmp_path / "run", "--quiet")
    result = avpt(*command, *RUNAWAY)
    assert result.code == 1
    (line,) = result.stderr.splitlines()
    assert " of epoch 1, on clips " in line
    assert "nothing was saved yet; lower --lr, with --overwrite" in line


def test_fp16_needs_cuda(experiment: Experiment, tmp_path: Path) -> None:
    command = (*finetune(experiment, "visual", experiment.visual_init), "--out", tmp_path / "run", "--quiet")
    result = avpt(*command, "--precision", "fp16")
    assert (result.code, result.stderr) == (
        1,
        "avpt: --precision fp16 needs a CUDA device, not cpu; use bf16 or fp32\n",
    )
    assert not (tmp_path / "run").exists()


def last_line(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return record


def test_the_options_of_a_step_go_through(wide: Experiment, tmp_path: Path) -> None:
    plain, laid_out, parts, coarse = (tmp_path / name for name in ("plain", "laid-out", "parts", "coarse"))
    command = (*finetune(wide, "audio", wide.audio_init), "--epochs", "1", "--lr", "0.001")
    done(*command, "--out", plain)
    done(*command, "--channels-last", "--out", laid_out)
    done(*command, "--accumulate", "3", "--clip-grad", "0.5", "--out", parts)
    done(*command, "--precision", "bf16", "--out", coarse)
    expected, actual = load_file(plain / "dynamics.safetensors"), load_file(laid_out / "dynamics.safetensors")
    torch.testing.assert_close(actual["probability"], expected["probability"], rtol=1e-3, atol=1e-4)
    near = load_file(coarse / "dynamics.safetensors")
    torch.testing.assert_close(near["probability"], expected["probability"], rtol=0, atol=0.1)
    for run in (plain, laid_out, parts, coarse):
        record = last_line(run)
        assert record["gradient_norm"].keys() == {"encoder"}
        assert record["gradient_norm"]["encoder"] > 0.5  # from before clipping
        assert record["train"]["loss"] == pytest.approx(last_line(plain)["train"]["loss"], rel=0.2)
        assert (run / "summary.json").exists()
    assert "clip_grad: 0.5 there, None now" in avpt(*command, "--accumulate", "3", "--out", parts).error.replace(
        "nothing", "None"
    )


def test_a_fused_run_notes_the_norm_that_reaches_each_encoder(experiment: Experiment, tmp_path: Path) -> None:
    assert last_line(experiment.fused)["gradient_norm"].keys() == {"audio", "visual"}
    run = tmp_path / "run"
    done(*fuse(experiment), "--mask", "none", "--channels-last", "--accumulate", "2", "--epochs", "1", "--out", run)
    assert all(value > 0 for value in last_line(run)["gradient_norm"].values())


def test_how_often_is_saved_is_no_difference(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done(*finetune(experiment, "visual", experiment.visual_init), "--checkpoint-every", "2", "--out", run)
    assert files_of(run) == files_of(experiment.visual)
    assert sorted(path.name for path in (run / "checkpoint").iterdir()) == ["last.pt", "settings.json"]
