"""Start and end of a node's process: arguments, signals, exit codes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import suppress
from threading import Event
from typing import Generic, Protocol, TypeVar

import rclpy
from rclpy._rclpy_pybind11 import RCLError
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

T = TypeVar("T")

LOOK_S = 0.5
"""So often the executor looks whether it is to end. At a signal rclpy wakes it just before the context goes: one that
looked in between would sleep on until the next message."""


class Closeable(Protocol):
    """A node that has threads or files to end."""

    def close(self) -> None: ...


def run(make: Callable[[], Node], args: list[str] | None = None) -> int:
    """Runs one node until it is told to stop.

    SIGINT and SIGTERM end it with exit code 0; a node that cannot start says why and gives 1.
    """
    rclpy.init(args=args)
    node = None
    try:
        node = make()
        # By a clock that never stands still, as simulated time may.
        node.create_timer(LOOK_S, lambda: None, clock=Clock(clock_type=ClockType.STEADY_TIME))
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while rclpy.ok():
            try:
                executor.spin_once()
            except Exception as error:
                if isinstance(error, ExternalShutdownException) or not rclpy.ok():
                    break
                # What a callback raises must not end a robot's node; ours catch what they expect.
                node.get_logger().error(f"a callback failed:\n{traceback.format_exc()}")
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RCLError:
        # A signal that comes while the node is made takes the context away from under whatever is made next.
        if rclpy.ok():
            raise
    except (ValueError, OSError, ParameterException) as error:
        if rclpy.ok():
            print(f"{sys.argv[0]}: {error}", file=sys.stderr)
            return 1
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        with suppress(RCLError):  # the thread that handles signals may just have been faster
            rclpy.try_shutdown()
    return 0


class Job(Generic[T]):
    """The result of work in another thread, for `await` inside a callback.

    rclpy looks at a waiting coroutine whenever anything wakes its executor, so the worker wakes it at the end.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        """`wake` is the `trigger` of a guard condition of the node."""
        self._wake = wake
        self._done = Event()
        self._result: T | None = None

    def finish(self, result: T) -> None:
        """Hands over the result; called by the working thread."""
        self._result = result
        self._done.set()
        self._wake()

    def __await__(self) -> Generator[None, None, T]:
        while not self._done.is_set():
            yield
        assert self._result is not None
        return self._result
