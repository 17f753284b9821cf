"""Where a process stands in a job, which device it takes, and what is said when the others are not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import in_processes, places
from torch import Tensor

from avpt.errors import AvptError, ConfigError, OtherProcessError
from avpt.machine.processes import place_in_job
from avpt.training import runtime
from avpt.training.world import World, _cause, join_world

JOB = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(**values: str) -> None:
        for name in JOB:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_places_in_a_job(environment: Callable[..., None]) -> None:
    for values, place in (
        ({}, (0, 1, 0, 1)),
        ({"RANK": "3"}, (0, 1, 0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 4, 1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1, None)),  # srun
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4, None, None)),  # a Kubernetes job
    ):
        environment(**values)
        assert place_in_job() == place


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x' in the environment; it must be a number"),
        ({"RANK": "0", "WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2' in the environment"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 where WORLD_SIZE is 2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "WORLD_SIZE is 2 without MASTER_ADDR, where"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "p"}, "MASTER_PORT is 'p' in the"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "65536"}, "must be a number up to 65535"),
    ],
)
def test_an_environment_that_makes_no_sense(environment: Callable[..., None], values: Any, says: str) -> None:
    environment(**values)
    with pytest.raises(ConfigError, match=says), join_world():
        pass


def test_what_all_of_a_job_lack_the_first_tells(environment: Callable[..., None]) -> None:
    environment(RANK="1", WORLD_SIZE="64")
    with pytest.raises(OtherProcessError) as error, join_world():
        pass
    assert not str(error.value)


def test_srun_tells_ranks_alone(tmp_path: Path) -> None:
    """Processes on one machine count themselves where LOCAL_RANK and LOCAL_WORLD_SIZE are not set."""

    def here(world: World) -> dict[str, Any]:
        return {"here": [world.rank, world.size, world.local_rank, world.local_size]}

    actual = in_processes(3, tmp_path, here, without=("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    assert [one["here"] for one in actual] == [[0, 3, 0, 3], [1, 3, 1, 3], [2, 3, 2, 3]]


# --- devices --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fake(World):
    """One of several processes, which knows what the others say."""

    others: tuple[str, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


@dataclass(frozen=True)
class Properties:
    uuid: str


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties(f"gpu-{device.index}"))
    monkeypatch.setattr(runtime, "resolve_device", lambda name: torch.device("cuda" if name == "auto" else name))
    monkeypatch.setattr(runtime, "this_machine", lambda: "here")


@pytest.mark.usefixtures("two_devices")
def test_each_process_has_a_device_of_its_own() -> None:
    assert runtime.start(0, "cuda:1").index == 1
    assert runtime.start(0, "auto").index == 0
    second = Fake(1, 2, 1, 2, others=("cuda here gpu-0",))
    assert runtime.start(0, "auto", world=second).index == 1
    elsewhere = Fake(2, 3, 0, 1, others=("cuda there gpu-0", "cuda there gpu-1"))
    assert runtime.start(0, "cuda", world=elsewhere).index == 0
    shown_one = Fake(3, 4, 3, 4, others=("cuda here gpu-5", "cuda here gpu-6", "cuda here gpu-7"))
    assert runtime.start(0, "cuda", world=shown_one).index == 1  # the launcher hides the others' from each


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize(
    ("device", "world", "says"),
    [
        ("cuda:0", Fake(1, 2, 1, 2, ("cuda here gpu-0",)), "--device cuda:0 is one device for several processes; with"),
        ("auto", Fake(2, 3, 2, 3, ("cuda here gpu-0", "cuda here gpu-1")), "3 processes have 2 CUDA device"),
        ("auto", Fake(0, 2, 0, 1, ("cpu",)), "--device auto is cpu here and cuda there"),
        ("cpu", Fake(0, 2, 0, 1, ("cuda there gpu-0",)), "--device cpu is cpu here and cuda there"),
    ],
)
def test_a_device_of_two_is_refused(device: str, world: World, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        runtime.start(0, device, world=world)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="has what the others have not")
@pytest.mark.parametrize("name", ["mps", "hpu", "xla", "foo", "", "cpu ", "cuda:-1", "meta", "privateuseone"])
def test_a_device_that_is_not_there_is_a_line(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--device {name} can't be used here") as caught:
        runtime.resolve_device(name)
    assert str(caught.value).endswith("; try auto or cpu")
    assert len(str(caught.value)) < 220
    assert "\n" not in str(caught.value)


def test_predict_asks_a_device_for_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as mps, which has none: what is on it is fetched first."""
    from avpt.commands.predict import answer
    from avpt.loading.dataset import InputSpec
    from avpt.media.clip import ClipSettings, DecodedClip
    from avpt.models.encoder import Classifier, EncoderSpec, build_encoder
    from avpt.runs.trained_model import TrainedModel
    from avpt.store.manifest import Clip

    fetched: list[int] = []
    cpu, double = Tensor.cpu, Tensor.double

    def fetch(values: Tensor) -> Tensor:
        fetched.append(values.data_ptr())
        return cpu(values)

    def widen(values: Tensor) -> Tensor:
        assert values.data_ptr() in fetched
        return double(values)

    settings = ClipSettings(spectrogram_frames=32, mel_bins=32)
    stored = {name: value for name, value in vars(settings).items() if name in InputSpec.__dataclass_fields__}
    spec = InputSpec(**stored, mean=0.0, std=1.0, image_size=32, num_frames=1)
    model = Classifier(build_encoder(EncoderSpec("resnet18", "audio", "batchnorm")), 2).eval()
    trained = TrainedModel(model, ("audio",), spec, ["a", "b"], False, None)  # type: ignore[arg-type]
    sound = torch.zeros(32, 32, dtype=torch.float16).numpy()
    decoded = DecodedClip(sound, 32, sound[0, :0], sound[:0, :2], [])
    clip = Clip("clip", (), "test", Path(), ("", "", ""), None, None)
    monkeypatch.setattr(Tensor, "cpu", fetch)
    monkeypatch.setattr(Tensor, "double", widen)
    actual = answer(clip, decoded, settings, trained, 2, torch.device("cpu"))
    assert fetched
    assert sum(p for _, p in actual.rankings["joint"]) == pytest.approx(1)


# --- what the others did --------------------------------------------------------------------------------------------

BACKENDS_SAY = {  # as gloo, torch's store and NCCL word it
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711": (
        "Connection closed by peer [127.0.0.1]:4711",
        OtherProcessError,
    ),
    "The client socket has timed out after 1000ms while trying to connect to (10.0.0.7, 29500).\nException raised "
    "from throwTimeoutError at ../torch/csrc/distributed/c10d/socket.cpp:1023 (most recent call first):\nframe #0: x": (
        "The client socket has timed out after 1000ms while trying to connect to (10.0.0.7, 29500).",
        OtherProcessError,
    ),
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:317, invalid usage (run with NCCL_DEBUG=WARN for "
    "details), NCCL version 2.21.5\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:"
    "\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000": (
        "NCCL: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000",
        AvptError,
    ),
    "NCCL error in: ../torch/csrc/NCCLUtils.cpp:77, unhandled cuda error, NCCL version 2.21.5\nncclUnhandledCudaError: "
    "Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'": (
        "NCCL: Cuda failure 2 'out of memory'",
        AvptError,
    ),
    "NCCL error: remote process exited or there was a network error, NCCL version 2.21.5\nLast error:\n": (
        "NCCL error: remote process exited or there was a network error, NCCL version 2.21.5",
        OtherProcessError,
    ),
}


@pytest.mark.parametrize("said", BACKENDS_SAY)
def test_the_cause_is_kept(said: str, environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    cause, kind = BACKENDS_SAY[said]
    assert _cause(RuntimeError(said)) == cause
    (place,) = places(1)
    environment(**place | {"WORLD_SIZE": "2"})
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    with pytest.raises(AvptError) as caught, join_world():
        raise torch.distributed.DistBackendError(said)
    assert type(caught.value) is kind
    assert f"({cause})" in str(caught.value)
    assert "same command goes on from" in str(caught.value)


def test_a_process_that_leaves_is_told_by_what_the_connection_says() -> None:
    left, stays = os.pipe(), places(2)
    pids = []
    for place in stays:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.environ.update(place)
                with join_world() as world:
                    if world.rank:
                        os._exit(0)
                    world.sum(torch.ones(3))
                    world.sum(torch.ones(3))
            except OtherProcessError as error:
                os.write(left[1], str(error).encode())
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    os.close(left[1])
    said = os.read(left[0], 10_000).decode()
    os.close(left[0])
    assert "another process of this job died or can't be reached (" in said
    assert "peer" in said
    assert "pair.cc" not in said
