"""The newest frames of an episode, a fixed number of frames apart: what a reward with a history looks at."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class FrameWindow(Generic[ItemT]):
    """Every `stride`-th item of the newest ones, `length` of them, the newest included.

    Attributes:
        length: items that `items` gives, at least 1.
        stride: frames from one of them to the next, at least 1.
    """

    def __init__(self, length: int, stride: int = 1) -> None:
        """Starts empty.

        Raises:
            ValueError: a number below 1.
        """
        for name, value in (("length", length), ("stride", stride)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value!r}: a whole number from 1 on expected")
        self.length = length
        self.stride = stride
        self._kept: deque[ItemT] = deque(maxlen=self.span)

    @property
    def span(self) -> int:
        """Frames that the window reaches over."""
        return (self.length - 1) * self.stride + 1

    @property
    def full(self) -> bool:
        """True once there are as many frames as the window reaches over."""
        return len(self._kept) == self.span

    def push(self, item: ItemT) -> None:
        """Adds the newest item; the oldest one goes when the window is full."""
        self._kept.append(item)

    def items(self) -> list[ItemT]:
        """The items, oldest first.

        Raises:
            RuntimeError: the window is not full.
        """
        if not self.full:
            raise RuntimeError(f"{len(self._kept)} frames of {self.span} are there; ask `full` first")
        return list(self._kept)[:: self.stride]

    def clear(self) -> None:
        """Forgets all items, for a new episode."""
        self._kept.clear()
