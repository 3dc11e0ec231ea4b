"""Labels videos on a Ray cluster, or on a Ray of this machine, through Ray Data.

Every node needs this package and the extra `cluster`, and reaches model, goals and videos under the same paths as this
machine: a shared file system, or a copy. Only names go out and only labels come back, about 70 bytes a frame. Overlay
videos are written by the node that labels.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.label.outcome import Outcome
from v2r_core.label.table import Labels
from v2r_core.label.video_labeller import LabellerOptions, VideoLabeller, VideoTask
from v2r_core.label.workers import Done, attempt, depend_on_parent, describe, interrupts_held, portable

MOST_BLOCKS = 4096
"""What goes to an actor at once is one video, until there are more than so many: each block costs the driver memory."""
TRIES = 3
"""A video that is lost with its actor may have been next to the one that killed it, or its node was taken away."""
_LOST = f"its worker died {TRIES} times, perhaps for want of memory; look at the logs of Ray"
_STORE_BYTES = 256 << 20
"""Object store of a Ray that is started here; nothing large ever lies in it."""

_REACH_S = 10.0
_SPAWN = get_context("spawn")

Columns = Mapping[str, NDArray[Any]]


def label_on_ray(
    tasks: Sequence[VideoTask], options: LabellerOptions, actors: int, address: str
) -> Generator[Outcome, None, None]:
    """See `pool.label_all`.

    An actor that dies is started again by Ray, and the video that was lost with it is tried again, `TRIES` times in
    all: the loss of a node costs nothing, and a video that kills its worker only itself.

    Ray runs in a process of its own, unless this one has a Ray already. An interrupt (Ctrl-C) that comes in the middle
    of its calls is swallowed by some of them, and others crash when their Ray is shut down under them; that process
    and what it starts hear of none, and are killed.

    Args:
        tasks: which videos; paths are the same on every node.
        options: the model, under a path that every node has.
        actors: at most so many; 0: one for each GPU of the cluster, or for each CPU if it has no GPU.
        address: of the cluster ("auto", "ray://HOST:10001"); "" starts one on this machine, and ends it.

    Raises:
        RuntimeError: Ray is not installed, not there or gone, or an actor cannot load the model.
    """
    if not tasks:
        return
    if find_spec("ray") is None:
        raise RuntimeError("--ray needs Ray Data, which is not installed; pip install -e '.[cluster]'")
    there = sys.modules.get("ray")
    if there is not None and there.is_initialized():
        yield from _label(tasks, options, actors, address)
        return
    connection, other = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_drive, args=(other, tasks, options, actors, address), daemon=True)
    try:
        try:
            with interrupts_held():
                process.start()
        finally:
            # Only while nobody else has this end does reading from the other one tell that the process has died.
            other.close()
        yield from _heard(connection)
    finally:
        # A cluster forgets whoever has gone; on this machine it goes with all that it has started.
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
        connection.close()


def _heard(connection: Connection) -> Iterator[Outcome]:
    """What the process that has the Ray says, until it has said all."""
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("the process that talks to Ray has died; start the same command again") from error
        if isinstance(message, BaseException):
            raise message
        if message is None:
            return
        yield message


def _drive(
    connection: Connection, tasks: Sequence[VideoTask], options: LabellerOptions, actors: int, address: str
) -> None:
    """The life of the process that has the Ray: an outcome a task; None when all is done, or why it cannot be."""
    depend_on_parent()
    # A group of its own, with the processes of its Ray: a terminal does not interrupt it, and it can be killed as one.
    os.setsid()
    try:
        for outcome in _label(tasks, options, actors, address):
            connection.send(outcome)
    except Exception as problem:  # the parent raises it
        connection.send(portable(problem))
        return
    connection.send(None)


def _label(
    tasks: Sequence[VideoTask], options: LabellerOptions, actors: int, address: str
) -> Generator[Outcome, None, None]:
    """See `label_on_ray`; in this process."""
    with _connected(address) as resources:
        kind = "GPU" if resources.get("GPU", 0) >= 1 else "CPU"
        there = int(resources.get(kind, 0))
        if not there:
            raise RuntimeError("the Ray cluster has neither a CPU nor a GPU; wait until one of its nodes has")
        pool = min(actors or there, there, len(tasks))
        waiting = dict(enumerate(tasks))
        for number in range(TRIES):
            if waiting:
                blocks = min(len(waiting), MOST_BLOCKS) if number == 0 else len(waiting)
                for done in _pass(waiting, options, pool, kind, blocks):
                    del waiting[done.number]
                    yield Outcome.of(done)
        for number in waiting:
            yield Outcome(number, None, _LOST, 0.0)


def _pass(
    tasks: Mapping[int, VideoTask], options: LabellerOptions, pool: int, kind: str, blocks: int
) -> Iterator[Done[Labels]]:
    """What comes back of the tasks; those whose actor dies do not."""
    import ray.data  # noqa: PLC0415 (an extra)
    import ray.exceptions  # noqa: PLC0415

    # What goes wrong with a video comes back as its outcome, without ten lines of Ray's own calls.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    rows = [{"number": number, "task": pickle.dumps(task)} for number, task in tasks.items()]
    source = ray.data.from_items(rows, override_num_blocks=blocks)
    source.context.max_errored_blocks = -1
    source.context.enable_progress_bars = False
    with warnings.catch_warnings():
        # Ray 2.60 wants to rename these arguments and has no other name for them yet.
        warnings.filterwarnings("ignore", "`ray_remote_args`", DeprecationWarning)
        found = source.map_batches(
            _Actor,
            fn_constructor_args=(options,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool, max_tasks_in_flight_per_actor=1),
            num_cpus=0 if kind == "GPU" else 1,
            num_gpus=1 if kind == "GPU" else 0,
            max_restarts=-1,
            # By default Ray gives a video that kills its actor to one after the other, for ever.
            max_task_retries=0,
        )
    batches = iter(found.iter_batches(batch_size=None, prefetch_batches=0))
    while True:
        try:
            batch = next(batches, None)
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray has given up: {describe(error)}; start the same command again") from error
        if batch is None:
            return
        for sent in batch["done"]:
            done = pickle.loads(sent)  # noqa: S301 (from our own actor, through a cluster that runs our code anyway)
            if isinstance(done, str):
                raise RuntimeError(f"a node of the cluster cannot load the model: {done}")
            yield done


class _Actor:
    """One labeller on some node. A model that does not load is told in a result, for Ray would only try again."""

    def __init__(self, options: LabellerOptions) -> None:
        self._refusal = ""
        try:
            self._labeller = VideoLabeller(options)
        except Exception as problem:  # the driver raises it
            self._refusal = describe(problem)

    def __call__(self, batch: Columns) -> dict[str, NDArray[Any]]:
        """Columns `number` and `task`, pickled, to a column `done`, pickled."""
        sent: list[Done[Labels] | str] = [self._refusal] if self._refusal else [self._run(row) for row in _rows(batch)]
        return {"done": np.array([pickle.dumps(each) for each in sent], object)}

    def _run(self, row: tuple[int, bytes]) -> Done[Labels]:
        task: VideoTask = pickle.loads(row[1])  # noqa: S301 (from our own driver)
        return attempt(self._labeller.label, row[0], task)


def _rows(batch: Columns) -> list[tuple[int, bytes]]:
    return [(int(number), task) for number, task in zip(batch["number"], batch["task"], strict=True)]


@contextmanager
def _connected(address: str) -> Iterator[Mapping[str, float]]:
    """A Ray, and what it has; one that was there already goes on afterwards.

    Raises:
        RuntimeError: not installed, or not there.
    """
    # Read when the module is loaded. Nobody who labels videos has been asked whether he wants to be counted.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: PLC0415 (an extra)
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise RuntimeError(f"--ray needs Ray Data ({error}); pip install -e '.[cluster]'") from error
    ours = not ray.is_initialized()
    if ours:
        chosen: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if not address:
            chosen |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        try:
            _reach(address)
            ray.init(address or "local", **chosen)
        except (OSError, RuntimeError, ValueError) as error:
            raise RuntimeError(f"no Ray at {address or 'this machine'}: {describe(error)}") from error
    try:
        yield ray.cluster_resources()
    finally:
        if ours:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT; Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), _REACH_S).close()
