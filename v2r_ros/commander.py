"""The only way to the actuator: a command goes out if it is safe to move, and what is safe instead if it is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from v2r_ros.actions import ActionMap, WhenUnsafe
from v2r_ros.safety import Guard

Command = NDArray[np.float64]


class Commander:
    """Publishes for one episode at a time. Safe to call from several threads.

    Attributes:
        guard: says whether it is safe.
    """

    def __init__(
        self, actions: ActionMap, when_unsafe: WhenUnsafe, guard: Guard, publish: Callable[[Command], None]
    ) -> None:
        """Wraps a publisher.

        Args:
            actions: from the policy's numbers to a command.
            when_unsafe: `zero`, or `hold`: the last command again, if there was one.
            guard: asked before each command.
            publish: sends a command.
        """
        self.guard = guard
        self._actions, self._hold, self._publish = actions, when_unsafe == "hold", publish
        self._episode: int | None = None
        self._last: Command | None = None
        self._lock = threading.RLock()

    def begin(self, episode: int) -> None:
        """From now on `act` is heard, for this episode only."""
        with self._lock:
            self.guard.begin(time.monotonic())
            self._episode = episode
            self._last = None  # a position of before the reset must not be held

    def end(self) -> None:
        """Stops the robot; a late `act` is not heard any more."""
        with self._lock:
            self._episode = None
            self.stop()

    def act(self, episode: int, action: NDArray[np.float32] | None) -> None:
        """Publishes the command of an action (A,); the safe one if it is not safe to move or there is no action."""
        with self._lock:
            if episode != self._episode:
                return
            if action is None or self.guard.reason(time.monotonic()):
                self.stop()
            else:
                self._send(self._actions.command(action))

    def check(self) -> str:
        """Publishes the safe command unless it is safe to move; gives the reason, empty if there is none."""
        with self._lock:
            reason = self.guard.reason(time.monotonic()) if self._episode is not None else ""
            if reason:
                self.stop()
            return reason

    def stop(self) -> None:
        """Publishes the safe command: zeros, or the last command again."""
        with self._lock:
            if not self._hold:
                self._send(np.zeros(self._actions.dim))
            elif self._last is not None:
                self._send(self._last)

    def stop_anew(self) -> None:
        """Publishes zeros before an episode begins; where positions are held nothing, for none is held over a reset."""
        with self._lock:
            self._last = None
            self.stop()

    @property
    def in_force(self) -> NDArray[np.float32]:
        """The action in [-1, 1] that the newest command stands for; that of zeros before the first."""
        last = self._last
        return self._actions.action(np.zeros(self._actions.dim) if last is None else last)

    def _send(self, command: Command) -> None:
        self._publish(command)
        self._last = command
