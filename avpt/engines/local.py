"""A pool of processes on this machine that survives tasks that hang, crash or use too much memory.

Every worker has its own pipe and thread, so that its death, at any moment, does not affect the others. Pools whose
workers share a queue (the standard library's, pebble) lose it if a worker is killed while it writes.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

from avpt.errors import TOO_LITTLE_MEMORY, AvptError, wants_memory
from avpt.machine.processes import die_with_parent, start_forkserver

Task = TypeVar("Task")
Result = TypeVar("Result")

IN_FLIGHT = 16  # tasks in flight per worker: enough to keep it busy, few enough for constant memory
STARVED = 86  # exit code of a worker that may take no more memory
ATTEMPTS = 3  # at a task whose worker dies: the system may be to blame, not the task
BREAKDOWNS = 5  # of a worker in a row, each before it accepted a task; then the pool gives up
PATIENCE = 60.0  # seconds for a worker to start, or to end when killed: far more than either takes


@dataclass(frozen=True)
class Crashed:
    """The worker died at every attempt at the task, or the task raised an error."""

    how: str


@dataclass(frozen=True)
class Hung:
    """The task took longer than allowed, and its worker was killed."""

    how: str


def run_isolated(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    workers: int,
    timeout: float,
    preload: str,
    memory: int | None = None,
) -> Generator[tuple[Task, Result | Crashed | Hung], None, None]:
    """Run a function over tasks in worker processes; yields (task, result) as they finish, in any order.

    A worker that dies for any reason is replaced, and its task is tried up to three times in all. Close the generator
    if the loop over it may end early: the workers live until then.

    Args:
        function: a module-level function.
        tasks: picklable; taken as workers become free.
        workers: processes.
        timeout: seconds that a task may take.
        preload: module that the workers need; imported once, in the server that they are forked from, so that a
            replacement for a killed worker costs milliseconds.
        memory: bytes that a worker may allocate beyond what it starts with; more raises MemoryError in it.

    Raises:
        AvptError: the workers can't load what they need, may not have the memory, or die before they accept a task.
    """
    context = multiprocessing.get_context("forkserver")
    ray = ["ray"] if "ray" in sys.modules else []  # every child of a Ray worker imports it, since its main module does
    start_forkserver(preload, *ray)
    _wait_until_ready(context, preload, memory)
    pool = _Pool(context, function, workers, timeout, memory)
    source = iter(tasks)
    under_way = 0
    try:
        while True:
            for task in islice(source, workers * IN_FLIGHT - under_way):
                pool.todo.put(_Envelope(task))
                under_way += 1
            if not under_way:
                return
            done = pool.done.get()
            if isinstance(done, BaseException):
                raise done
            under_way -= 1
            yield done
    finally:
        pool.stop()


@dataclass(frozen=True)
class _Envelope(Generic[Task]):
    """A task in the queue, where None means stop."""

    task: Task


class _Pool(Generic[Task, Result]):
    """Threads, each of which hands tasks to a worker process of its own, one by one."""

    def __init__(
        self,
        context: ForkServerContext,
        function: Callable[[Task], Result],
        workers: int,
        timeout: float,
        memory: int | None,
    ) -> None:
        self.context, self.function, self.timeout, self.memory = context, function, timeout, memory
        self.todo: SimpleQueue[_Envelope[Task] | None] = SimpleQueue()
        self.done: SimpleQueue[tuple[Task, Result | Crashed | Hung] | BaseException] = SimpleQueue()
        self.lock = Lock()  # guards starting and ending processes, since multiprocessing keeps a list of them
        self.stopped = False
        self.keepers = [_Keeper(self) for _ in range(workers)]
        for keeper in self.keepers:
            keeper.start()

    def stop(self) -> None:
        """End every worker, even a busy one, and every thread."""
        with self.lock:
            self.stopped = True
            for keeper in self.keepers:
                keeper.kill()
        for _ in self.keepers:
            self.todo.put(None)
        for keeper in self.keepers:
            keeper.join()


class _Stopped(Exception):  # noqa: N818 - it is not an error
    pass


class _Keeper(Thread, Generic[Task, Result]):
    """Keeps one worker busy, and replaces it when it dies or hangs."""

    def __init__(self, pool: _Pool[Task, Result]) -> None:
        super().__init__(daemon=True)
        self.pool = pool
        self.worker: tuple[Any, Connection] | None = None  # a process, and the pipe to it
        self.next: _Envelope[Task] | None = None  # taken while the worker is busy with the one before
        self.in_pipe = False  # whether the next task is there already, so that the worker need not wait for it

    def run(self) -> None:
        try:
            while (envelope := self.next or self.pool.todo.get()) is not None:
                self.next = None
                self.pool.done.put((envelope.task, self._result(envelope.task)))
        except _Stopped:
            pass
        except BaseException as error:
            self.pool.done.put(error)
        finally:
            self._end()

    def _result(self, task: Task) -> Result | Crashed | Hung:
        how = ""
        for _ in range(ATTEMPTS):
            pipe = self._hand_over(task)
            try:
                self._hand_over_next(pipe)
                if not pipe.poll(self.pool.timeout):
                    self._end()
                    return Hung(f"took longer than {self.pool.timeout:g} s")
                result: Result | Crashed = pipe.recv()
                return result
            except (EOFError, OSError):
                how = self._end()
        return Crashed(f"the worker died {ATTEMPTS} times ({how})")

    def _hand_over(self, task: Task) -> Connection:
        """Send the task to the worker and wait until it accepts it; a death before that is not the task's fault."""
        how = ""
        for breakdown in range(BREAKDOWNS):
            try:
                pipe = self._start()
                if not self.in_pipe:
                    pipe.send(task)
                self.in_pipe = False
                if pipe.poll(PATIENCE):
                    pipe.recv()
                    return pipe
            except (EOFError, OSError):
                pass
            how = self._end() or how
            time.sleep(0.1 * 2**breakdown)  # the fork server may be dying too, which takes a moment
        raise AvptError(
            f"the workers die before they begin ({how or 'they do not start'}; out of memory?); "
            "run the same command again, with fewer --workers"
        )

    def _hand_over_next(self, pipe: Connection) -> None:
        """Put another task into the pipe, if there is one."""
        with contextlib.suppress(Empty):
            envelope = self.next or self.pool.todo.get_nowait()
            if envelope is None:  # the signal to stop, which `run` waits for
                self.pool.todo.put(None)
                return
            self.next = envelope
            pipe.send(envelope.task)
            self.in_pipe = True

    def _start(self) -> Connection:
        """The pipe to the worker, which is started if there is none."""
        with self.pool.lock:
            if self.pool.stopped:
                raise _Stopped
            if self.worker is None:
                pipe, theirs = self.pool.context.Pipe()
                arguments = (theirs, self.pool.function, self.pool.memory)
                process = self.pool.context.Process(target=_work, args=arguments, daemon=True)
                with theirs:
                    process.start()
                self.worker = process, pipe
            return self.worker[1]

    def _end(self) -> str:
        """End the worker, and say how it died."""
        with self.pool.lock:
            if self.worker is None:
                return ""
            process, pipe = self.worker
            process.join(0 if self.pool.stopped else 1)  # if it is ending by itself, its exit code says how
            self.kill()
            process.join(PATIENCE)
            pipe.close()
            self.worker, self.in_pipe = None, False
            return _describe_death(process.exitcode)

    def kill(self) -> None:
        """Kill the worker; call it with the pool's lock held."""
        if self.worker is not None:
            self.worker[0].kill()


def _describe_death(exitcode: int) -> str:
    if exitcode == STARVED:
        return "out of memory"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"exit code {exitcode}"


def _wait_until_ready(context: ForkServerContext, preload: str, memory: int | None) -> None:
    """Wait until the process that workers are forked from has imported what they need.

    Otherwise, workers might still be starting when the parent gives up, and would print errors about what it removed.
    """
    try:
        pipe, theirs = context.Pipe()
        ready = context.Process(target=_try_out, args=(theirs, preload, memory))
        with pipe, theirs:
            ready.start()
            ready.join()
            problem = pipe.recv() if pipe.poll() else ""  # if it was killed, the workers may still succeed
    except (EOFError, OSError) as error:
        how = str(error) or type(error).__name__
        raise AvptError(
            f"the process that workers are started from was killed ({how}); run the same command again"
        ) from error
    if problem:
        raise AvptError(f"a worker can't begin: {problem}")


def _try_out(pipe: Connection, preload: str, memory: int | None) -> None:
    """Report what would fail in every task, so that no single task is blamed for it."""
    with contextlib.suppress(OSError):  # the parent is gone
        pipe.send(_problem(preload, memory))


def _problem(preload: str, memory: int | None) -> str:
    """What prevents a worker from running tasks; empty if nothing does."""
    try:
        importlib.import_module(preload)
    except Exception as error:
        return TOO_LITTLE_MEMORY if wants_memory(error) else f"{type(error).__name__}: {error}"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    room = limit - _status("VmSize")
    if memory is not None and limit != resource.RLIM_INFINITY and room < memory:
        return (
            f"ulimit -v leaves it {max(0, room) / 2**30:.2g} GiB, under --worker-memory {memory / 2**30:g}; "
            "raise that limit, or make --worker-memory smaller"
        )
    return ""


def _status(name: str) -> int:
    """Bytes of one of the kinds of memory that Linux reports for this process; 0 on other systems."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _work(pipe: Connection, function: Callable[[Any], Any], memory: int | None) -> None:
    """The worker's loop: receive a task, send a sign that it is accepted, then send the result."""
    _start_worker(memory)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            task = pipe.recv()
            pipe.send(None)
            try:
                result = pickle.dumps(function(task), pickle.HIGHEST_PROTOCOL)
            except MemoryError:
                os._exit(STARVED)  # earlier tasks may be to blame, so it is tried again in a fresh worker
            except Exception as error:
                result = pickle.dumps(Crashed(f"{type(error).__name__}: {error}"))
            pipe.send_bytes(result)


def _start_worker(memory: int | None) -> None:
    die_with_parent()
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers are the parallelism
    if "torch" in sys.modules:  # it has read that variable already
        sys.modules["torch"].set_num_threads(1)
    if memory is not None and (data := _status("VmData")):  # Linux only: there the limit is on allocations
        limit = data + memory
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
