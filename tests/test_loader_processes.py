"""Loading processes: however they are started, how many there are, and what is said of their end."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import THREADS, done
from kills import alive, descendants, wait_for
from loading import loader, sums

from avpt.errors import AvptError
from avpt.files.outputs import write_json
from avpt.loading.loader import explain_worker_deaths
from avpt.machine.workers import _granted_cores, loading_workers, num_cores, why_threads_wait
from avpt.media.clip import ClipSettings, DecodedClip
from avpt.store.store import read_shard_record, store_record, write_shard

SETTINGS = ClipSettings(spectrogram_frames=64, mel_bins=32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of noise, sound alone."""
    path = tmp_path_factory.mktemp("store")
    draw, none = np.random.default_rng(0), np.zeros(0)
    attributes = vars(SETTINGS) | {"multi_label": False}
    write_shard(
        path / "train-00000",
        ids=[f"clip {i}" for i in range(12)],
        labels=np.arange(12) % 2,
        clips=[DecodedClip(draw.normal(size=(64, 32)), 64, none, np.zeros((0, 2)), []) for _ in range(12)],
        failures=(),
        partial=(),
        settings=attributes,
    )
    record = read_shard_record(path / "train-00000")
    assert record is not None
    settings = {"schema": 1, "config": attributes | {"shard_size": 12}, "inputs": {"manifest": "0" * 64}}
    write_json(path / "settings.json", settings)
    write_json(path / "store.json", store_record(settings, ("a", "b"), {"train": [("train-00000", record)]}))
    return path


def script(store: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("loading.py")), str(store), *arguments]


def test_any_start_method_gives_the_same_batches_and_ends_with_its_parent(store: Path) -> None:
    """From Python 3.14 on forkserver is the default on Linux; macOS has spawn."""
    command = script(store, "spawn,forkserver", "wait")
    environment = os.environ | THREADS | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            assert [process.stdout.readline().strip() for _ in range(2)] == ["spawn", "forkserver"]
            workers = [int(pid) for pid in process.stdout.readline().split()]
            assert len(workers) == 1
            assert all(map(alive, workers))
        finally:
            process.kill()
        wait_for(lambda: not any(map(alive, workers)), "the loading processes to end")


def test_a_worker_that_hangs_ends_with_its_parent() -> None:
    """The server that it was forked from does not: it lives as long as the worker."""
    hang = "import time; from avpt.engines.local import run_isolated as run; "
    hang += "list(run(time.sleep, [60], workers=1, timeout=60, preload='avpt.machine.processes'))"
    with subprocess.Popen(
        [sys.executable, "-c", hang], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ) as it:
        try:
            wait_for(lambda: len(descendants(it.pid)) >= 3, "the server, its worker, and a tracker")
            time.sleep(0.5)  # until the worker is at its task
            processes = descendants(it.pid)
        finally:
            it.kill()
    wait_for(lambda: not any(map(alive, processes)), "the worker and its server to end")


def test_two_loaders_never_have_their_processes_together(store: Path) -> None:
    train, val = loader(store, 2, seed=1), loader(store, 2)
    others, seen = set(multiprocessing.active_children()), []  # a test that was interrupted may have left some

    def living() -> int:
        return len(set(multiprocessing.active_children()) - others)

    for epoch in range(2):
        for batches in (train, val):
            for _ in batches.epoch(epoch):
                seen.append(living())
            assert not living()
    assert seen == [2] * 12
    assert sums(val) == sums(loader(store, 0))


TORCH_SAYS = {  # as torch 2.14 words it
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit.": "is full: loading processes hand batches over",
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x\n"
    "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)": (
        "/dev/shm ("
    ),
    "DataLoader worker (pid 7) is killed by signal: Killed. ": (
        "a loading process died (Killed; out of memory?); try again with fewer --workers"
    ),
    "DataLoader worker (pid(s) 7, 8) exited unexpectedly": "a loading process died (exited unexpectedly; out of",
    "unable to open shared memory object </torch_1_2> in read mode: Too many open files (24)": "raise `ulimit -n`",
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback\nRuntimeError: [enforce fail at "
    "alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.": (
        "a loading process has too little memory (RuntimeError: [enforce fail"
    ),
}


@pytest.mark.parametrize(("said", "explained"), TORCH_SAYS.items())
def test_what_ended_a_loading_process_is_told(said: str, explained: str) -> None:
    with pytest.raises(AvptError) as caught, explain_worker_deaths():
        raise RuntimeError(said)
    assert explained in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", ["mat1 and mat2", "Caught RuntimeError in DataLoader worker process 0.\nown fault"])
def test_our_own_faults_keep_their_traceback(said: str) -> None:
    with pytest.raises(RuntimeError, match=said.splitlines()[0]), explain_worker_deaths():
        raise RuntimeError(said)


def test_memory_that_is_lacking_where_no_one_looks_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that hands a batch over would drop it, and the main process wait for ever."""
    share = torch.Tensor.share_memory_

    def full(values: torch.Tensor) -> torch.Tensor:
        if values.ndim == 1:  # labels and positions
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
            )
        return share(values)  # type: ignore[no-untyped-call, no-any-return]

    monkeypatch.setattr("torch.Tensor.share_memory_", full)
    with pytest.raises(AvptError, match=r"/dev/shm .*is full"), explain_worker_deaths():
        sums(loader(store, 1))


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], stderr=-1).returncode != 0,
    reason="needs the right to mount",
)
def test_a_full_dev_shm_is_named(store: Path) -> None:
    small = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", small, "sh", *script(store, "fork", "")],
        env=os.environ | THREADS | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,  # what fails where no one looks makes the main process wait for ever
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("avpt.errors.AvptError: /dev/shm (0.1 MiB, 0.0 free) is full"), result.stderr
    assert "docker run --shm-size" in last


# --- how many -------------------------------------------------------------------------------------------------------


def groups(folder: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "cgroup", folder / "sys"


CGROUPS = {
    "none": ({"cgroup": "0::/\n"}, None),
    "not limited": ({"cgroup": "0::/\n", "sys/cpu.max": "max 100000\n"}, None),
    "a container's own": ({"cgroup": "0::/\n", "sys/cpu.max": "150000 100000\n"}, 1.5),
    "of a group around": (
        {"cgroup": "0::/job/step\n", "sys/job/cpu.max": "400000 100000\n", "sys/job/step/cpu.max": "max 100000\n"},
        4.0,
    ),
    "the least of several": (
        {"cgroup": "0::/job/step\n", "sys/job/cpu.max": "400000 100000\n", "sys/job/step/cpu.max": "200000 100000\n"},
        2.0,
    ),
    "seen from outside": ({"cgroup": "0::/docker/1234\n", "sys/cpu.max": "300000 100000\n"}, 3.0),
    "version 1": (
        {
            "cgroup": "9:memory:/x\n4:cpu,cpuacct:/docker/12\n",
            "sys/cpu/cpu.cfs_quota_us": "250000\n",
            "sys/cpu/cpu.cfs_period_us": "100000\n",
        },
        2.5,
    ),
    "version 1 without a quota": (
        {"cgroup": "4:cpu:/\n", "sys/cpu/cpu.cfs_quota_us": "-1\n", "sys/cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_quotas_of_control_groups(tmp_path: Path, name: str) -> None:
    files, cores = CGROUPS[name]
    assert min(_granted_cores(*groups(tmp_path, files))) == (float("inf") if cores is None else cores)


def test_workers_are_by_what_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    for granted, cores in ((0.2, 1), (2.0, 2), (3.5, 4), (float("inf"), 64)):
        monkeypatch.setattr("avpt.machine.workers._granted_cores", lambda granted=granted: [float("inf"), granted])
        assert num_cores() == cores
        assert loading_workers(None) == cores - 1
        assert loading_workers(None, 4) == max(0, cores // 4 - 1)
        assert loading_workers(3, 4) == 3
        assert loading_workers(None, clips=10) == 0  # which are read before a process has begun
        assert loading_workers(2, clips=10) == 2
        assert loading_workers(None, clips=1000) == cores - 1


# --- threads that wait for one another --------------------------------------------------------------------------


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores, and nine processes that want them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.getloadavg", lambda: (9.2, 1.0, 1.0))
    monkeypatch.setattr("avpt.machine.workers.num_cores", lambda: 4)


@pytest.mark.usefixtures("busy")
def test_why_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_threads_wait(2) == "9 processes share the 4 cores of this machine"
    assert why_threads_wait(8) == "4 core(s) are all that this process may use"
    assert why_threads_wait(1) == ""
    monkeypatch.setattr("os.getloadavg", lambda: (7.9, 9.0, 9.0))  # as the command before may leave it
    assert why_threads_wait(4) == ""
    monkeypatch.setattr("os.getloadavg", lambda: (9.2, 1.0, 1.0))
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert why_threads_wait(4) == ""


@pytest.mark.usefixtures("busy")
def test_training_says_once_why_threads_wait(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("init", "--modality", "audio", "--weights", "random", "--out", tmp_path / "init.safetensors")
    few = ("--epochs", "1", "--batch-size", "8", "--workers", "0", "--device", "cpu")
    train = ("finetune-unimodal", store, "--modality", "audio", "--init", tmp_path / "init.safetensors", *few)
    hint = "OMP_NUM_THREADS=1"
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert hint not in done(*train, "--out", tmp_path / "one").stderr
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)  # which would make it true
    command = (*train, "--out", tmp_path / "two")
    (line,) = (line for line in done(*command).stderr.splitlines() if hint in line)
    assert line == (
        "warning: torch computes with 2 threads, but 9 processes share the 4 cores of this machine: "
        "training may be many times faster with OMP_NUM_THREADS=1 before the command"
    )
    assert hint not in done(*command).stderr  # it is finished
