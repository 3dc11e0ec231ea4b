"""A mailbox for one: whoever is late gets the newest item, and what was replaced is counted."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Hands the newest item from a callback to a worker thread. No queue, so latency cannot build up.

    Attributes:
        received: items put since `clear`.
        dropped: items that were replaced before anybody took them.
    """

    def __init__(self) -> None:
        self._item: T | None = None
        self._condition = threading.Condition()
        self._closed = False
        self.received = 0
        self.dropped = 0

    def put(self, item: T) -> bool:
        """Stores an item; True if it replaced one that waited. Never blocks."""
        with self._condition:
            self.received += 1
            replaced = self._item is not None
            self.dropped += replaced
            self._item = item
            self._condition.notify()
            return replaced

    def take(self, timeout: float | None = None) -> T | None:
        """Waits for an item and removes it; None after the timeout in seconds, or once closed and empty."""
        with self._condition:
            self._condition.wait_for(lambda: self._item is not None or self._closed, timeout)
            item, self._item = self._item, None
            return item

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def close(self) -> None:
        """Wakes the taker for good."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
