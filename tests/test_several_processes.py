"""Several processes on one machine, gloo between them: as torchrun starts them, or copies of this one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import THREADS, Experiment, Result, done, files_of, finetune, forked, fuse, in_processes, job, near, places
from hypothesis import given
from hypothesis import strategies as st
from kills import PATIENCE, alive, chance, descendants, wait_for
from safetensors.torch import load_file
from torch import Tensor

from avpt.errors import StoreError
from avpt.loading.dataset import ClipDataset
from avpt.loading.loader import Loader
from avpt.loading.sampling import EpochSampler, batch_bounds, share_of
from avpt.models.checkpoint import load_encoder
from avpt.models.encoder import Classifier, EncoderSpec, build_encoder
from avpt.store.store import Store
from avpt.training import metrics
from avpt.training.passes import Stepping, measure_dynamics, train_epoch
from avpt.training.state import new_epoch
from avpt.training.world import World
from avpt.types import Batch


def training(experiment: Experiment) -> tuple[str | Path, ...]:
    """Unequal shares: eighteen clips in batches of 4, 5, 4 and 5, taken in two parts."""
    return (*finetune(experiment, "audio", experiment.audio_init), "--batch-size", "5", "--accumulate", "2")


@pytest.fixture(scope="module")
def whole(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result]]:
    """An uninterrupted run of two processes, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    return folder / "run", job(folder, *training(experiment), "--out", folder / "run")


# --- who takes which clips ---------------------------------------------------------------------------------------


@given(st.integers(2, 2000), st.integers(2, 300), st.integers(1, 9), st.integers(0, 2**31), st.integers(0, 3))
def test_every_clip_is_taken_once(num_clips: int, batch_size: int, processes: int, seed: int, start: int) -> None:
    if num_clips < 2 * processes:
        with pytest.raises(StoreError, match=f"at least {2 * processes} are needed"):
            batch_bounds(num_clips, batch_size, processes)
        return
    sizes = [high - low for low, high in pairwise(batch_bounds(num_clips, batch_size, processes))]
    assert sum(sizes) == num_clips
    assert max(sizes) - min(sizes) <= 1
    wanted = -(-num_clips // batch_size)
    if num_clips // wanted >= 2 * processes:  # else fewer, lest a clip be alone on its device
        assert len(sizes) == wanted
        assert max(sizes) <= batch_size
    samplers = [EpochSampler(num_clips, batch_size, seed, rank, processes) for rank in range(processes)]
    steps = list(zip(*samplers, strict=True))
    assert len(steps) == len(samplers[0])
    for shares, size in zip(steps, sizes, strict=True):
        counts = [len(share) for share in shares]
        assert sum(counts) == size
        assert min(counts) >= 2
        assert max(counts) - min(counts) <= 1
    taken = [position for shares in steps for share in shares for _, position, _ in share]
    alone = [position for batch in EpochSampler(num_clips, batch_size, seed) for _, position, _ in batch]
    assert sorted(taken) == list(range(num_clips))
    assert taken == alone  # the order depends on the seed alone
    for sampler in samplers:
        sampler.start = start
    rest = [position for shares in zip(*samplers, strict=True) for share in shares for _, position, _ in share]
    assert rest == taken[sum(sizes[:start]) :]


@given(st.integers(1, 200), st.integers(2, 50), st.integers(1, 9))
def test_every_clip_is_evaluated_once(num_clips: int, batch_size: int, processes: int) -> None:
    shares = [share_of(range(num_clips), rank, processes) for rank in range(processes)]
    assert [position for share in shares for position in share] == list(range(num_clips))
    if num_clips < processes:
        with pytest.raises(StoreError, match="start fewer"):
            EpochSampler(num_clips, batch_size, None, 0, processes)
        return
    samplers = [EpochSampler(num_clips, batch_size, None, rank, processes) for rank in range(processes)]
    assert [p for sampler in samplers for batch in sampler for _, p, _ in batch] == list(range(num_clips))
    assert all(0 < len(batch) <= max(1, batch_size // processes) for sampler in samplers for batch in sampler)


# --- one step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_are_those_of_one_process(tmp_path: Path, size: int) -> None:
    """Where BatchNorm is frozen; seven clips, so the shares are unequal, and some are taken in two parts."""
    inputs, labels = torch.randn(7, 1, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2, 0])

    def step(world: World) -> dict[str, Any]:
        torch.manual_seed(0)
        model = Classifier(build_encoder(EncoderSpec("resnet18", "audio", "abri-channel")), 3).eval()
        parallel = world.parallel(model)
        parallel.train = lambda mode=True: parallel  # type: ignore[method-assign]
        mine = torch.tensor(list(share_of(range(7), world.rank, world.size)))
        state = new_epoch(7)
        batch = Batch((inputs[mine],), labels[mine], mine, 7)
        clean = measure_dynamics(model, [batch], 7, world)
        train_epoch(
            parallel,
            [batch],
            torch.optim.SGD(model.parameters(), lr=0.1),
            state,
            epoch=0,
            first_step=0,
            set_rate=lambda number: None,
            stepping=Stepping(accumulate=2, clip_grad=1.0),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            world=world,
            watched={"encoder": list(model.encoder.parameters())},
            after_step=lambda positions: None,
        )
        seen = vars(state.merged(world))
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"gradients": gradients, "weights": dict(model.state_dict()), "seen": seen, "clean": clean.probability}

    expected = step(World())
    actual = in_processes(size, tmp_path, step)
    for name, gradient in expected["gradients"].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(actual[0]["gradients"][name], gradient, rtol=1e-3, atol=1e-5 * scale)
        for other in actual[1:]:
            assert torch.equal(other["gradients"][name], actual[0]["gradients"][name])
            assert torch.equal(other["weights"][name], actual[0]["weights"][name])
    for result in actual:
        torch.testing.assert_close(result["clean"], expected["clean"])
        for what in ("probability", "loss"):
            torch.testing.assert_close(result["seen"][what], expected["seen"][what])
        assert torch.equal(result["seen"]["correct"], expected["seen"]["correct"])
        assert result["seen"]["norms"] == pytest.approx(expected["seen"]["norms"], rel=1e-3)


# --- a run -------------------------------------------------------------------------------------------------------


def test_only_the_first_process_speaks(whole: tuple[Path, list[Result]]) -> None:
    run, (first, second) = whole
    assert (first.code, second.code) == (0, 0)
    assert first.stdout == f"{run}\n"
    assert (second.stdout, second.stderr) == ("", "")
    few, *lines = first.stderr.splitlines()
    assert few.startswith("warning: an epoch of 18 clips has only 4 step(s)")
    assert lines[0] == "2 processes: batches of 5 clips in all, 2 or 3 on each"
    assert [line.split()[:2] for line in lines[1:3]] == [["epoch", "1"], ["epoch", "2"]]
    assert not list(run.parent.glob(".*"))


def test_dynamics_have_every_clip(experiment: Experiment, whole: tuple[Path, list[Result]]) -> None:
    dynamics = load_file(whole[0] / "dynamics.safetensors")
    assert dynamics["probability"].shape == (2, 18)
    assert bool((dynamics["probability"] > 0).all())
    line = json.loads((whole[0] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert line["train"]["accuracy"] == pytest.approx(float(dynamics["correct"][1].double().mean()))
    ids = bytes(dynamics["id_bytes"].tolist()).decode()
    assert ids == "".join(Store(experiment.store).indices["train"].ids)


def test_the_metrics_are_those_of_the_saved_model(experiment: Experiment, whole: tuple[Path, list[Result]]) -> None:
    state, predictions = load_file(whole[0] / "model.safetensors"), load_file(whole[0] / "predictions.safetensors")
    model = Classifier(load_encoder(whole[0], "audio").encoder, 3)
    model.load_state_dict(state)
    store = Store(experiment.store)
    spec = store.input_spec(image_size=32, num_frames=1)
    summary = json.loads((whole[0] / "summary.json").read_text(encoding="utf-8"))
    for split in ("val", "test"):
        clips = ClipDataset(store.indices[split], ["audio"], spec, "jpeg")
        (batch,) = Loader(clips, 64, device=torch.device("cpu"), workers=0).epoch(0)
        with torch.inference_mode():
            logits = model.eval()(*batch.inputs)
        near(predictions[f"{split}_logits"], logits, 1e-4)
        assert torch.equal(predictions[f"{split}_labels"], batch.labels)
        assert summary[split] == metrics.measure(predictions[f"{split}_logits"], predictions[f"{split}_labels"])


def test_eval_dynamics_and_masking_go_through(experiment: Experiment, tmp_path: Path) -> None:
    options = ("--confidence", experiment.confidence, "--mask-threshold", "0.1", "--dynamics", "eval", "--epochs", "1")
    first, second = job(tmp_path, *fuse(experiment), *options, "--json", "--out", tmp_path / "run")
    assert (first.code, second.code, second.stdout) == (0, 0, ""), (first.stderr, second.stderr)
    assert first.json()["epochs"] == 1
    mask = (tmp_path / "run" / "mask.safetensors").read_bytes()
    assert len(mask) == len((experiment.fused / "mask.safetensors").read_bytes())


def test_a_finished_run_is_left_alone_and_another_refused(
    experiment: Experiment, whole: tuple[Path, list[Result]], tmp_path: Path
) -> None:
    run, _ = whole
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    first, second = job(tmp_path, *training(experiment), "--out", run)
    assert [(result.code, result.stdout) for result in (first, second)] == [(0, f"{run}\n"), (0, "")]
    began = time.monotonic()
    results = job(tmp_path, *training(experiment), "--lr", "0.5", "--quiet", "--out", run)
    assert [result.code for result in results] == [1, 1]
    (line,) = [line for result in results for line in result.stderr.splitlines()]
    assert line.startswith(f"avpt: {run} was made with other options or inputs (lr: 0.02 there, 0.5 now)")
    for wrong, says in ((("--init", "nowhere"), "nowhere"), (("--precision", "fp16"), "needs a CUDA device")):
        results = job(tmp_path, *training(experiment), *wrong, "--out", tmp_path / "other")
        assert [result.code for result in results] == [1, 1]
        (line,) = [line for result in results for line in result.stderr.splitlines()]
        assert says in line
    assert time.monotonic() - began < PATIENCE / 2
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_three_processes_add_their_gradients_in_one_order(experiment: Experiment, tmp_path: Path) -> None:
    """Where two add them, any order gives the same sum."""
    command = (*finetune(experiment, "audio", experiment.audio_init), "--batch-size", "9", "--quiet")
    assert [result.code for result in job(tmp_path, *command, "--out", tmp_path / "whole", size=3)] == [0, 0, 0]
    run = tmp_path / "run"
    logs, often = [tmp_path / str(rank) for rank in range(3)], ("--checkpoint-every", "1", "--out", run)
    pids = [forked(log, *command, *often, environment=place) for log, place in zip(logs, places(3), strict=True)]
    try:
        wait_for((run / "checkpoint" / "last.pt").exists, "a step")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert not (run / "summary.json").exists()
    assert [result.code for result in job(tmp_path, *command, "--out", run, size=3)] == [0, 0, 0]
    assert files_of(run) == files_of(tmp_path / "whole")


def test_another_number_of_processes_is_told(
    experiment: Experiment, whole: tuple[Path, list[Result]], tmp_path: Path
) -> None:
    run = shutil.copytree(whole[0], tmp_path / "run")
    result = done(*training(experiment), "--epochs", "3", "--out", run)
    assert "last.pt was made by 2 process(es); going on with 1 changes the result" in result.stderr


def test_more_processes_than_clips_is_one_line(experiment: Experiment, tmp_path: Path) -> None:
    results = job(tmp_path, *training(experiment), "--quiet", "--out", tmp_path / "run", size=10)
    assert [result.code for result in results] == [1] * 10
    lines = [line for result in results for line in result.stderr.splitlines()]
    assert lines == ["avpt: the training split has 18 clip(s); at least 20 are needed, two for each of 10 processes"]


# --- torchrun ----------------------------------------------------------------------------------------------------


def torchrun(*command: str | Path, log: Path) -> subprocess.Popen[str]:
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "avpt", *map(str, command)],
            env=os.environ | THREADS,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )


@pytest.mark.parametrize(
    "victim", ["last", pytest.param("first", marks=pytest.mark.slow), pytest.param("torchrun", marks=pytest.mark.slow)]
)
def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(
    experiment: Experiment, whole: tuple[Path, list[Result]], tmp_path: Path, victim: str
) -> None:
    run, log, moments = tmp_path / "run", tmp_path / "log", chance()
    command = (*training(experiment), "--out", run, "--checkpoint-every", "1", "--workers", "1")
    agent = torchrun(*command, log=log)
    try:
        wait_for((run / "checkpoint" / "previous.pt").exists, "two steps")
        time.sleep(moments.uniform(0, 0.3))
        processes = descendants(agent.pid)
        ranks = sorted(pid for pid in processes if os.getsid(pid) == pid)
        assert len(ranks) == 2
        place = {"last": ranks[-1], "first": ranks[0], "torchrun": agent.pid}[victim]
        os.kill(place, signal.SIGKILL)
        assert agent.wait(PATIENCE) != 0
        wait_for(lambda: not any(map(alive, processes)), "the other processes to end")
    finally:
        agent.kill()
        agent.communicate()
    said = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("avpt: ")]
    assert any("the same command" in line and "goes on from" in line for line in said), log.read_text(encoding="utf-8")
    assert not (run / "summary.json").exists()

    first, _ = job(tmp_path / "again", *command, "--workers", "0")
    assert (first.code, first.stdout) == (0, f"{run}\n"), first.stderr
    assert files_of(run) == files_of(whole[0])


def test_a_stopped_job_saves_its_step_and_names_its_command(experiment: Experiment, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = (*training(experiment), "--epochs", "50", "--out", run, "--quiet")
    agent = torchrun(*command, log=log)
    try:
        wait_for((run / "metrics.jsonl").exists, "the first epoch")
        before = (run / "checkpoint" / "last.pt").stat().st_mtime_ns
        processes = descendants(agent.pid)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(PATIENCE) != 0
    finally:
        agent.kill()
        agent.communicate()
    assert not any(map(alive, processes))
    (line,) = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("avpt: ")]
    assert line.startswith("avpt: terminated; the same command again goes on from here: torchrun --nproc-per-node 2 ")
    assert line.endswith(f"-m avpt {' '.join(map(str, command))}")
    assert (run / "checkpoint" / "last.pt").stat().st_mtime_ns > before
    state: dict[str, Tensor] = torch.load(run / "checkpoint" / "last.pt", weights_only=True)
    threads = int(THREADS["OMP_NUM_THREADS"])
    version = str(torch.__version__)
    assert state["job"] == {"processes": 2, "steps": 4, "device": "cpu", "threads": threads, "torch": version}
