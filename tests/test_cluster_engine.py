"""The same store from a Ray cluster, whichever of its nodes, and whichever driver, is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import STORE_OPTIONS, THREADS, avpt, digit_rows, done, failures_of, untimed, write_manifest
from kills import killed, running, stopped, to_go_on, wait_for
from media import Clips, grey_png

OBJECTS = 100 * 2**20  # bytes of the object store of a node, which nothing here uses
CORES = 2  # of a node


def test_without_ray_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    manifest = write_manifest(tmp_path / "manifest.csv", digit_rows())
    result = avpt("preprocess", manifest, "--out", tmp_path / "store", *STORE_OPTIONS, "--engine", "ray")
    assert result.code == 1
    assert result.error == "avpt: --engine ray needs ray; get it with `pip install 'avpt[ray]'`"


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "nowhere", "nowhere.invalid:6379", "ray://127.0.0.1:{port}"])
def test_no_cluster_at_the_address_is_one_line(tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and listens to nobody
        address = address.format(port=bound.getsockname()[1])
        manifest = write_manifest(tmp_path / "manifest.csv", digit_rows())
        command = ("preprocess", manifest, "--out", tmp_path / "store", *STORE_OPTIONS, "--engine", "ray", "--quiet")
        result = avpt(*command, "--ray-address", address)
    assert result.code == 1
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.error.startswith(f"avpt: no Ray cluster at {address} (")
    assert "`ray start --head`" in result.error


class Nodes:
    """A cluster of two nodes on this machine."""

    def __init__(self) -> None:
        from ray._private.utils import get_ray_address_file  # type: ignore[attr-defined]
        from ray.cluster_utils import Cluster

        Path(get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)  # which only a plain head makes
        self.folder = tempfile.mkdtemp(prefix="avpt-ray-", dir="/tmp")  # pytest's is too long for a socket's name
        head = {"num_cpus": CORES, "object_store_memory": OBJECTS, "include_dashboard": False, "temp_dir": self.folder}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.other = self.add()

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=CORES, object_store_memory=OBJECTS)

    def options(self) -> tuple[str, ...]:
        return ("--engine", "ray", "--ray-address", self.cluster.address)

    def kill_other(self) -> None:
        self.cluster.remove_node(self.other, allow_graceful=False)

    def processes(self) -> list[str]:
        """Those that have to do with this cluster."""
        names = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                name = (folder / "comm").read_text()
            except OSError:
                continue
            if self.folder in command and int(folder.name) != os.getpid():
                names.append(f"{folder.name} {name.strip()} {command[:200]}")
        return names

    def shutdown(self) -> None:
        self.cluster.shutdown()
        wait_for(lambda: not self.processes(), "the cluster to end", 30)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (
            *THREADS.items(),
            ("RAY_USAGE_STATS_ENABLED", "0"),
            ("RAY_DISABLE_MEMORY_MONITOR", "1"),
            ("RAY_worker_niceness", "0"),  # else they wait for all other tests
        ):
            patched.setenv(name, value)
        running = Nodes()
        try:
            yield running
        finally:
            running.shutdown()


@pytest.fixture
def other_node(nodes: Nodes) -> Iterator[Nodes]:
    """The nodes, one of which may be killed."""
    yield nodes
    if nodes.other not in nodes.cluster.worker_nodes:
        nodes.other = nodes.add()


def preprocess(folder: Path, rows: list[dict[str, str]], shard_size: int = 2) -> tuple[str | Path, ...]:
    manifest = write_manifest(folder / "manifest.csv", rows)
    size = ("--shard-size", str(shard_size))
    return ("preprocess", manifest, *STORE_OPTIONS, *size, "--max-failures", "0.2", "--workers", "2")


def test_a_cluster_makes_the_same_store_and_tells_of_clips_that_fail_or_hang(
    nodes: Nodes, clips: Clips, tmp_path: Path
) -> None:
    endless = tmp_path / "endless"  # a minute of work or more
    endless.mkdir()
    grey_png(tmp_path / "large.png", 7000)
    for i in range(200):
        (endless / f"{i}.png").symlink_to(tmp_path / "large.png")
    bad = [
        {"id": "broken", "label": "0", "split": "train", "video": str(clips["cut.mp4"])},
        {"id": "hangs", "label": "0", "split": "train", "frames": str(endless)},
    ]
    rows = digit_rows() + bad
    command = (*preprocess(tmp_path, rows, shard_size=10), "--clip-timeout", "5", "--max-frames", "200", "--out")
    done(*command, tmp_path / "here")
    with running(*command, tmp_path / "there", *nodes.options(), "--quiet", "--json") as process:
        stdout, stderr = process.communicate(timeout=400)
        assert process.returncode == 0, stderr
    assert stderr == ""
    assert '"failures": 2' in stdout
    assert [row["id"] for row in failures_of(tmp_path / "there")] == ["broken", "hangs"]
    assert failures_of(tmp_path / "there")[1]["stage"] == "timeout"
    assert untimed(tmp_path / "there") == untimed(tmp_path / "here")


def many_rows() -> list[dict[str, str]]:
    return [row | {"id": f"{i}-{j}"} for i in range(4) for j, row in enumerate(digit_rows())]


@pytest.mark.slow
def test_a_killed_driver_is_followed_by_another_that_finishes(nodes: Nodes, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = (*preprocess(tmp_path, many_rows()), "--out")
    with running(*command, store, *nodes.options()) as process:
        wait_for(lambda: list(store.glob("*.h5")), "the first shard")
        killed(process)
    assert not (store / "store.json").exists()
    with running(*command, store, *nodes.options()) as process:
        _, stderr = process.communicate(timeout=400)
        assert process.returncode == 0, stderr
    done(*command, tmp_path / "undisturbed")
    assert untimed(store) == untimed(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_killed_node_costs_no_clip_and_a_new_one_helps(other_node: Nodes, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = (*preprocess(tmp_path, many_rows()), "--out")
    with running(*command, store, *other_node.options()) as process:
        wait_for(lambda: len(list(store.glob("*.h5"))) > 5, "some shards")
        other_node.kill_other()
        done_then = len(list(store.glob("*.h5")))
        other_node.other = other_node.add()
        wait_for(lambda: len(list(store.glob("*.h5"))) > done_then, "more shards")
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    done(*command, tmp_path / "undisturbed")
    assert failures_of(store) == []
    assert untimed(store) == untimed(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_driver_told_to_stop_says_how_to_go_on(
    nodes: Nodes, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    store = tmp_path / "store"
    command = (*preprocess(tmp_path, many_rows()), "--out", store, *nodes.options(), "--quiet")
    with running(*command) as process:
        wait_for(lambda: list(store.glob("*.h5")), "the first shard")
        assert stopped(process, number) == (code, [to_go_on(word, *command)])
    assert not (store / "store.json").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_more_workers_than_a_node_has_cores_are_refused(nodes: Nodes, tmp_path: Path) -> None:
    command = (*preprocess(tmp_path, digit_rows()), "--out", tmp_path / "store", *nodes.options())
    with running(*command, "--workers", "3", "--quiet") as process:
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1
    assert stderr.splitlines() == [
        "avpt: no node of the Ray cluster has 3 cores, but 2 at most; choose fewer --workers"
    ]


@pytest.mark.slow
def test_a_disk_that_is_full_under_a_task_is_one_line_of_the_driver(nodes: Nodes, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    try:
        command = (*preprocess(tmp_path, digit_rows()), "--out", disk / "store", *nodes.options(), "--quiet")
        with running(*command) as process:
            _, stderr = process.communicate(timeout=100)
        assert process.returncode == 1
        (line,) = stderr.splitlines()
        assert "can't be written (No space left on device); mend that and run the same command again" in line
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
