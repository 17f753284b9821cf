"""The same work on a Ray cluster: one task per shard, each with a local pool on its node."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from avpt.errors import AvptError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

Job = TypeVar("Job", bound="DataclassInstance")
Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = 4  # decoding processes per task: enough to hide a slow clip, few enough to spread shards over nodes
IN_FLIGHT = 2  # submitted tasks per task that the cluster can run at once
RETRIES = 10  # of a task whose node died
LOOK_EVERY = 5.0  # the most seconds between two checks of how many nodes there are
PATIENCE = 10.0  # seconds for the cluster's head to accept a connection


def run_on_ray(
    function: Callable[[Job, Item], Result],
    job: Job,
    items: Sequence[Item],
    *,
    address: str | None,
    workers: int | None,
) -> Iterator[Result]:
    """Run `function(job, item)` for every item on an existing cluster; yields results as they come.

    A task whose node dies is run again on another; a node that joins gets its share. `job` must have a field
    `workers`, which is set to the number of processes of a task: `workers`, or 4 if a node has as many cores.

    Raises:
        AvptError: ray is not installed, there is no cluster, or no node has that many cores.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise AvptError("--engine ray needs ray; get it with `pip install 'avpt[ray]'`") from None
    _connect(ray, address)
    log.info("on the Ray cluster at %s", ray.get_runtime_context().gcs_address)
    try:
        yield from _run(ray, function, job, items, workers)
    except RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, AvptError | OSError) else error from None
    except RayError as error:
        reason = str(error).splitlines()[0]
        raise AvptError(f"the Ray cluster gave up ({reason}); run the same command again") from error
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    handler = signal.getsignal(signal.SIGTERM)
    try:
        host, colon, port = address.rpartition("://")[2].rpartition(":")
        if colon and port.isdecimal():  # ray itself would try for a minute and a half, with many messages
            socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (Exception, SystemExit) as error:  # it exits if a head that it knows does not answer
        where = "on this machine" if address == "auto" else f"at {address}"
        reason = "it does not answer" if isinstance(error, SystemExit) else str(error).strip().partition("\n")[0]
        raise AvptError(
            f"no Ray cluster {where} ({reason}); start one with `ray start --head`, or give --ray-address"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, handler)  # ray installs its own


def _run(
    ray: Any, function: Callable[[Job, Item], Result], job: Job, items: Sequence[Item], workers: int | None
) -> Iterator[Result]:
    most = max(_cores(ray), default=0)
    workers = workers or min(WORKERS, max(most, 1))
    if workers > most:
        raise AvptError(f"no node of the Ray cluster has {workers} cores, but {most} at most; choose fewer --workers")
    task = ray.remote(num_cpus=workers, max_retries=RETRIES)(function)
    job = replace(job, workers=workers)
    source = iter(items)
    waiting: list[Any] = []
    while True:
        wanted = max(sum(cores // workers for cores in _cores(ray)), 1) * IN_FLIGHT
        waiting += [task.remote(job, item) for item in islice(source, max(wanted - len(waiting), 0))]
        if not waiting:
            return
        ready, waiting = ray.wait(waiting, timeout=LOOK_EVERY)
        yield from ray.get(ready)


def _cores(ray: Any) -> list[int]:
    """How many cores each node has, as the cluster counts them."""
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
