"""Log lines that repeat at camera rate are shown once in a while, each kind for itself."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

NUMBERS = re.compile(r"[0-9]+(\.[0-9]+)?")
MAX_KINDS = 64


class Throttle:
    """rclpy throttles by source line, so one problem would hide every other that goes through the same line."""

    def __init__(self, write: Callable[[str], object], period: float = 5.0) -> None:
        """Wraps a log function.

        Args:
            write: e.g. `node.get_logger().warning`.
            period: seconds between two lines of the same kind.
        """
        self._write = write
        self._period = period
        self._last: dict[str, float] = {}

    def __call__(self, text: str) -> None:
        """Writes the text unless one that differs only in its numbers was written within the period."""
        kind, now = NUMBERS.sub("#", text), time.monotonic()
        if now - self._last.get(kind, -self._period) < self._period:
            return
        if len(self._last) >= MAX_KINDS:  # texts quote what came from outside, so their number has to have a bound
            self._last.clear()
        self._last[kind] = now
        self._write(text)
