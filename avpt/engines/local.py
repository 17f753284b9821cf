"""A pool of processes on this machine that survives hanging and crashing tasks."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from avpt.errors import AvptError
from avpt.processes import die_with_parent

Task = TypeVar("Task")
Result = TypeVar("Result")

IN_FLIGHT = 4  # tasks per worker that are submitted ahead: enough to keep it busy, few enough for flat memory


@dataclass(frozen=True)
class Crashed:
    """The worker died under the task."""

    how: str


@dataclass(frozen=True)
class Hung:
    """The task outlasted its time and its worker was killed."""

    how: str


def run_isolated(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int, timeout: float, preload: str
) -> Iterator[tuple[Task, Result | Crashed | Hung]]:
    """Run a function over tasks in worker processes; yields (task, result) as they finish, in any order.

    Args:
        function: a module-level function; it must not raise.
        tasks: picklable; drawn as workers come free.
        workers: processes.
        timeout: seconds a task may take.
        preload: module that the workers need; imported once, in the server that they are forked from, so that a
            replacement for a killed worker costs milliseconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    _start_server(context)
    waiting: dict[Future[Result], Task] = {}
    source = iter(tasks)
    exhausted = False
    pool = ProcessPool(max_workers=workers, initializer=_start_worker, context=context)
    try:
        while waiting or not exhausted:
            while not exhausted and len(waiting) < workers * IN_FLIGHT:
                try:
                    task = next(source)
                except StopIteration:
                    exhausted = True
                else:
                    waiting[pool.schedule(function, args=(task,), timeout=timeout)] = task
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), _result(future, timeout)
        pool.close()  # type: ignore[no-untyped-call]
    except BrokenProcessPool as error:  # pebble's, where a worker dies between two tasks
        pool.stop()  # type: ignore[no-untyped-call]
        raise AvptError("the worker pool broke down (out of memory?); run the same command again") from error
    except BaseException:
        pool.stop()  # type: ignore[no-untyped-call]
        raise
    finally:
        pool.join()


def _start_server(context: ForkServerContext) -> None:
    """Start the process that workers are forked from, and wait until it has imported what they need.

    It is deaf to Ctrl-C, which is its parent's to handle; and no worker may be on its way while the parent gives up,
    or it would complain of what its parent took down.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)
    ready = context.Process(target=_do_nothing)
    ready.start()
    ready.join()


def _do_nothing() -> None:
    return


def _result(future: Future[Any], timeout: float) -> Any:
    try:
        return future.result()
    except TimeoutError:
        return Hung(f"took longer than {timeout:g} s")
    except ProcessExpired as error:
        return Crashed(f"the worker died (exit code {error.exitcode})")


def _start_worker() -> None:
    import torch

    die_with_parent()
    torch.set_num_threads(1)  # the workers are the parallelism
