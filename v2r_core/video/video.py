"""The contract of a video, and what every kind of it shares."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from v2r_core.video.resize import Frame

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class VideoError(ValueError):
    """A video cannot be read; the message names the file, what is wrong with it and the remedy."""


class Video(Protocol):
    """Frames with their times, read on demand: opening costs an index, never the frames. Not thread-safe.

    Attributes:
        name: what to call it in a table or a message: the file's or folder's name, with the topic for a bag.
        fps: mean frame rate in frames/s; NaN where a single frame has none.
        stamps: presentation time of every frame, float64 (T,) in seconds. They are as exact as the source has them and
            start where the source starts: a bag has the header stamps, which are times since 1970.
    """

    name: str
    fps: float
    stamps: NDArray[np.float64]

    def __len__(self) -> int:
        """Number of frames T."""

    def __getitem__(self, index: SupportsIndex) -> Frame:
        """Frame `index`, uint8 RGB (H, W, 3), often read-only; negative indices count from the end.

        Asking for one frame after the other is fast too; going backwards is the slow direction.

        Raises:
            IndexError: outside [-T, T).
            VideoError: the frame is damaged, or of another size than the first one.
        """

    def __iter__(self) -> Iterator[Frame]:
        """All frames in order, with a reader of its own: the fast path."""

    def close(self) -> None:
        """Frees the file; frames can no longer be read. May be called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def resolve_index(index: SupportsIndex, length: int, name: str) -> int:
    """Turns an index from the end into one from the start.

    Raises:
        IndexError: outside [-length, length).
    """
    number = operator.index(index)
    if not -length <= number < length:
        raise IndexError(f"{name}: frame {number} of {length} asked for")
    return number % length


def check_shape(name: str, index: int, frame: Frame, expected: tuple[int, ...]) -> None:
    """Refuses a frame of another size than the first one.

    Raises:
        VideoError: the sizes differ.
    """
    if frame.shape != expected:
        raise VideoError(
            f"{name}: frame {index} is {frame.shape[1]}x{frame.shape[0]}, the first one {expected[1]}x{expected[0]}; "
            "split the recording where the size changes"
        )


def mean_rate(stamps: NDArray[np.float64]) -> float:
    """Frames per second over all stamps; NaN for fewer than two frames or stamps that do not advance."""
    duration = float(stamps[-1] - stamps[0]) if len(stamps) > 1 else 0.0
    return (len(stamps) - 1) / duration if duration > 0 else float("nan")
