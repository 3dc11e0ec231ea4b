"""The services that are called before an episode, one after the other, without ever waiting in a callback."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rclpy.client import Client
from rclpy.exceptions import NameValidationException
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

ANSWER_S = 3.0
"""After so long without an answer the request is sent again: DDS may lose one that leaves while it is still matching
client and server."""
AGAIN_S = 0.5
"""So long after a refusal the request is sent again: a node may not be configured yet."""


class ResetError(RuntimeError):
    """A service is not there, did not answer, or went on refusing."""


class Resets:
    """Calls Trigger services in order. For one thread, that of the executor."""

    def __init__(
        self, node: Node, services: Mapping[str, str], timeout: float, on_answer: Callable[[], object]
    ) -> None:
        """Makes the clients.

        Args:
            node: makes the clients.
            services: names, by the parameter that gives them; empty ones are left out.
            timeout: seconds for each.
            on_answer: called when `poll` is worth a call.

        Raises:
            ValueError: a name that no service can have.
        """
        self._node, self._timeout, self._on_answer = node, timeout, on_answer
        self._clients: list[Client] = []
        try:
            for parameter, name in services.items():
                if name:
                    self._clients.append(_client(node, parameter, name))
        except ValueError:
            self.close()
            raise
        self.start()

    def start(self) -> None:
        """Begins with the first; answers of earlier calls count no more."""
        self._next = 0
        self._begun()

    def poll(self) -> bool:
        """Goes as far as it can; True once all have answered.

        Raises:
            ResetError: one of them cannot be had in time.
        """
        while self._next < len(self._clients):
            client, now = self._clients[self._next], time.monotonic()
            if self._future is not None and self._future.done():
                answer = self._future.result()
                if answer is not None and answer.success:
                    self._next += 1
                    self._begun()
                    continue
                self._problem = f"refused: {answer.message if answer is not None else 'no answer'}"
                self._future, self._due = None, now + AGAIN_S
            if now - self._since > self._timeout:
                raise ResetError(f"{client.service_name} {self._problem} (for {self._timeout:.1f} s)")
            if now >= self._due and client.service_is_ready():
                self._problem, self._due = "gave no answer", now + ANSWER_S
                self._future = client.call_async(Trigger.Request())
                self._future.add_done_callback(lambda _: self._on_answer())
            return False
        return True

    def close(self) -> None:
        """Destroys the clients."""
        for client in self._clients:
            self._node.destroy_client(client)
        self._clients.clear()

    def _begun(self) -> None:
        self._future: Future | None = None
        self._since, self._due = time.monotonic(), 0.0
        self._problem = "is not there"


def _client(node: Node, parameter: str, name: str) -> Client:
    try:
        return node.create_client(Trigger, name)
    except (NameValidationException, ValueError) as error:
        why = str(error).splitlines()[0].removeprefix("Invalid service name: ").rstrip(":")
        raise ValueError(
            f"{parameter} is {name!r}, which is not the name of a service ({why}); give that of a std_srvs/Trigger "
            "service, as `ros2 service list` shows it, or leave it empty"
        ) from error
