"""Node processes without `ros2 launch`: for the demo, the benchmarks and the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from v2r_ros.environment import node_environment

CONFIGURE, ACTIVATE = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE
DEACTIVATE, CLEANUP = Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP
REACHED = {
    CONFIGURE: State.PRIMARY_STATE_INACTIVE,
    ACTIVATE: State.PRIMARY_STATE_ACTIVE,
    DEACTIVATE: State.PRIMARY_STATE_INACTIVE,
    CLEANUP: State.PRIMARY_STATE_UNCONFIGURED,
}
ANSWER_S = 3.0
LONG_ANSWER_S = 10.0


class GraphError(RuntimeError):
    """A process did not start, did not answer or did not end well."""


class Graph:
    """A few node processes in a DDS domain of their own, and a node here to talk to them.

    Use as a context manager: at the end every process gets SIGINT and is waited for.

    Attributes:
        node: a node in this process.
        domain: the DDS domain.
    """

    def __init__(self, logs: Path, domain: int | None = None) -> None:
        """Prepares the environment.

        Args:
            logs: folder for the processes' output, one file each.
            domain: DDS domain; None takes ROS_DOMAIN_ID, or one that depends on the process number, so that neither a
                robot nor a second run on the same machine is disturbed.
        """
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        given = os.environ.get("ROS_DOMAIN_ID")
        self.domain = domain if domain is not None else int(given) if given else os.getpid() % 100 + 1
        os.environ.update(node_environment())
        self._environment = {**os.environ, "ROS_DOMAIN_ID": str(self.domain), "ROS_LOG_DIR": str(logs)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._clients: dict[str, Client] = {}
        self._context = rclpy.Context()
        self.node: Node
        self._executor: SingleThreadedExecutor

    def __enter__(self) -> Graph:
        rclpy.init(context=self._context, domain_id=self.domain, signal_handler_options=rclpy.SignalHandlerOptions.NO)
        self.node = Node(f"graph_{os.getpid()}", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._executor.shutdown()
            self.node.destroy_node()
            rclpy.try_shutdown(context=self._context)

    def start(
        self, module: str, parameters: Mapping[str, object] | None = None, name: str | None = None, *arguments: str
    ) -> subprocess.Popen[bytes]:
        """Starts `python -m MODULE` as a node process.

        Args:
            module: e.g. v2r_ros.reward_node.
            parameters: ROS parameters; lists become YAML lists.
            name: name of the process here and of its log; the module's last part by default.
            arguments: further ROS arguments, e.g. "-r", "image:=/camera".
        """
        name = name or module.rpartition(".")[2]
        ros = ["--ros-args", *arguments]
        for key, value in (parameters or {}).items():
            ros += ["-p", f"{key}:={_yaml(value)}"]
        with (self._logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *ros], env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._processes[name] = process
        return process

    def spin(self, until: Callable[[], bool], timeout: float, what: str) -> None:
        """Handles this process's callbacks until a condition holds.

        Raises:
            GraphError: it did not come true in time, or a process died meanwhile with an error.
        """
        deadline = time.monotonic() + timeout
        while not until():
            for name, process in self._processes.items():
                if process.poll():
                    raise GraphError(
                        f"{name} exited with {process.returncode} while waiting for {what}\n{self.log(name)}"
                    )
            if time.monotonic() > deadline:
                raise GraphError(f"waited {timeout:.0f} s for {what} in vain; logs are in {self._logs}")
            self._executor.spin_once(timeout_sec=0.02)

    def call(self, kind: type, service: str, request: object, timeout: float = 20.0) -> Any:
        """Calls a service and returns its response.

        DDS may still be matching the server with this client when the response leaves, and then it is lost; so the
        request is repeated. Services called this way must not mind.

        Raises:
            GraphError: no response within the timeout in seconds.
        """
        client = self._client(kind, service, timeout)
        deadline = time.monotonic() + timeout
        while True:
            future = client.call_async(request)
            patience = min(ANSWER_S, deadline - time.monotonic())
            try:
                self.spin(future.done, patience, f"an answer of {service}")
                return future.result()
            except GraphError:
                if time.monotonic() >= deadline or self._dead():
                    raise

    def transition(self, node: str, transition: int, timeout: float = 60.0) -> bool:
        """Asks a lifecycle node for a transition; True if it was made.

        Raises:
            GraphError: the node says nothing within the timeout in seconds.
        """
        client = self._client(ChangeState, f"{node}/change_state", timeout)
        future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        try:
            self.spin(future.done, min(LONG_ANSWER_S, timeout), f"an answer of {node}")
            return bool(future.result().success)
        except GraphError:
            if self._dead():
                raise
        # No answer: it takes long, or the answer was lost (see `call`). The state tells, once the node has time for it.
        state = self.call(GetState, f"{node}/get_state", GetState.Request(), timeout).current_state
        return future.result().success if future.done() else state.id == REACHED[transition]

    def _client(self, kind: type, service: str, timeout: float) -> Client:
        if service not in self._clients:
            self._clients[service] = self.node.create_client(kind, service)
        client = self._clients[service]
        self.spin(client.service_is_ready, timeout, f"service {service}")
        return client

    def _dead(self) -> bool:
        return any(process.poll() for process in self._processes.values())

    def log(self, name: str, lines: int = 30) -> str:
        """The last lines of a process's output."""
        text = (self._logs / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def stop(self, *names: str, number: int = signal.SIGINT, timeout: float = 5.0) -> dict[str, int]:
        """Signals processes (all by default) and waits for them.

        Returns:
            Exit codes by name. A process that does not end in time is killed and reported as -9.
        """
        chosen = {name: self._processes.pop(name) for name in names or tuple(self._processes)}
        for process in chosen.values():
            if process.poll() is None:
                process.send_signal(number)
        codes = {}
        for name, process in chosen.items():
            try:
                codes[name] = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)
