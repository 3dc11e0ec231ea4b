"""Tasks for processes of this machine, one by one, so that a crash costs one task and not the run.

`concurrent.futures` is not used: when one of its processes dies, all tasks that are on their way are lost with it.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Generic, TypeVar

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Done(Generic[ResultT]):
    """What became of a task.

    Attributes:
        number: its place among the tasks, from 0.
        result: None if it failed.
        error: why it failed; empty if it did not.
        seconds: wall time that it took.
        cpu_seconds: processor time of all threads of its process meanwhile; 0 if the process died.
    """

    number: int
    result: ResultT | None
    error: str
    seconds: float
    cpu_seconds: float


def attempt(run: Callable[[TaskT], ResultT], number: int, task: TaskT) -> Done[ResultT]:
    """Runs one task; an exception becomes the error of its result."""
    start, cpu = time.perf_counter(), time.process_time()
    result, error = None, ""
    try:
        result = run(task)
    except Exception as problem:  # one bad file must not end a run of thousands
        error = describe(problem)
    return Done(number, result, error, time.perf_counter() - start, time.process_time() - cpu)


def describe(problem: BaseException) -> str:
    """One line about an exception; those that were not raised for a reader get their type."""
    text = " ".join(str(problem).split())
    meant = isinstance(problem, (ValueError, OSError, RuntimeError)) and text
    return text if meant else f"{type(problem).__name__}: {text}"


def run_all(
    make: Callable[[], Callable[[TaskT], ResultT]], tasks: Sequence[TaskT], workers: int
) -> Generator[Done[ResultT], None, None]:
    """Runs tasks in this process or in others, which it ends whatever happens.

    Processes are spawned, end with this one even if it is killed, and leave an interrupt (Ctrl-C) to it. One that dies
    costs the task that it was at, and is replaced.

    Args:
        make: makes what runs a task, once in every process; can be pickled, as tasks and results can.
        tasks: what to run.
        workers: number of processes; 0: this one.

    Yields:
        One result a task, as they become ready.

    Raises:
        ValueError: a negative number of workers.
        RuntimeError: processes die before they are ready.
        Exception: what `make` raised.
    """
    if workers < 0:
        raise ValueError(f"{workers} workers; 0 (this process) or more expected")
    if not tasks:
        return
    if workers == 0:
        run = make()
        for number, task in enumerate(tasks):
            yield attempt(run, number, task)
        return
    crew = _Crew(make, tasks)
    try:
        yield from crew.run(min(workers, len(tasks)))
    finally:
        crew.end()


class _Worker:
    """A process as its parent sees it.

    Attributes:
        connection: to it.
        number: of the task that it is at.
        ready: whether it has made what runs tasks.
    """

    def __init__(self, make: Callable[[], Callable[[TaskT], ResultT]]) -> None:
        context = get_context("spawn")
        self.connection, other = context.Pipe()
        self.number: int | None = None
        self.ready = False
        self._began = 0.0
        self._process: SpawnProcess = context.Process(target=_serve, args=(make, other), daemon=True)
        try:
            with interrupts_held():
                self._process.start()
        finally:
            # Only while nobody else has this end does reading from the other one tell that the process has died.
            other.close()

    def give(self, number: int, task: object) -> None:
        """Hands out a task. A process that has died meanwhile is noticed at the next reading."""
        self.number, self._began = number, time.perf_counter()
        try:
            self.connection.send((number, task))
        except OSError:
            return

    @property
    def seconds(self) -> float:
        """Since it got its task."""
        return time.perf_counter() - self._began

    def kill(self) -> None:
        self._process.kill()

    def bury(self) -> str:
        """Waits for its end and says how it died."""
        self._process.join()
        self.connection.close()
        code = self._process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return how + (", perhaps for want of memory" if code == -signal.SIGKILL else "")


class _Crew(Generic[TaskT, ResultT]):
    """Processes and the tasks that wait for them."""

    def __init__(self, make: Callable[[], Callable[[TaskT], ResultT]], tasks: Sequence[TaskT]) -> None:
        self._make = make
        self._waiting = deque(enumerate(tasks))
        self._workers: list[_Worker] = []

    def run(self, count: int) -> Generator[Done[ResultT], None, None]:
        for _ in range(count):
            self._workers.append(_Worker(self._make))
        while self._waiting or any(worker.number is not None for worker in self._workers):
            ready = wait([worker.connection for worker in self._workers])
            for worker in [each for each in self._workers if each.connection in ready]:
                done = self._hear(worker)
                if done is not None:
                    yield done

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.bury()

    def _hear(self, worker: _Worker) -> Done[ResultT] | None:
        """Takes what a process says, or its silence, and gives it the next task before anybody looks at the result."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return self._replace(worker)
        if isinstance(message, BaseException):
            raise message
        worker.ready, worker.number = True, None
        if self._waiting:
            worker.give(*self._waiting.popleft())
        return message if isinstance(message, Done) else None

    def _replace(self, worker: _Worker) -> Done[ResultT] | None:
        self._workers.remove(worker)
        how = worker.bury()
        if not worker.ready:
            # With others at work the run goes on: one less may be just what the memory allows.
            if not self._workers:
                raise RuntimeError(f"a worker died while it loaded the model ({how}); take fewer workers")
            return None
        if self._waiting:
            self._workers.append(_Worker(self._make))
        if worker.number is None:
            return None
        return Done(worker.number, None, f"its worker died ({how})", worker.seconds, 0.0)


def _serve(make: Callable[[], Callable[[TaskT], ResultT]], connection: Connection) -> None:
    """The life of a worker: says None when it is ready, or why it will never be; then one `Done` a task."""
    depend_on_parent()
    try:
        run = make()
    except Exception as problem:  # the parent raises it
        connection.send(portable(problem))
        return
    connection.send(None)
    while True:
        try:
            number, task = connection.recv()
        except EOFError:
            return
        connection.send(attempt(run, number, task))


def depend_on_parent() -> None:
    """Leaves interrupts (Ctrl-C) to the parent of this process, and ends with it; for one that was just spawned."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker in the middle of a long task would not notice that nobody waits for it any more."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
    os._exit(1)


def portable(problem: Exception) -> Exception:
    """The exception if it can be sent to another process, else what it says."""
    try:
        sent: object = pickle.loads(pickle.dumps(problem))  # noqa: S301 (what this process has just written)
    except Exception:  # an exception may ask for other arguments than it hands on
        sent = None
    return problem if isinstance(sent, type(problem)) else RuntimeError(describe(problem))


@contextmanager
def interrupts_held() -> Iterator[None]:
    """An interrupt waits meanwhile; a process that is started inherits this until it has made up its mind."""
    # Its first start would let interrupts through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
