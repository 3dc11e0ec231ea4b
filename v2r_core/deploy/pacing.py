"""Which images have their turn, so that policies and rewards see the world at the rate of their training."""

from __future__ import annotations

import math
from collections import deque

# A stamp that goes back by more than this is a restarted stream (a bag that loops, a simulator that was reset);
# by less it is an image that came too late.
RESTART_NS = 1_000_000_000
INTERVALS = 8
LATEST = 1.5
"""In periods of a reward's window: after a frame this late it holds another stretch of time than in training."""


def frames_apart(interval: float, period: float) -> int:
    """How many frames of a camera lie from one frame of a reward's window to the next, online and offline.

    Args:
        interval: seconds from one frame of the camera to the next.
        period: seconds that the window wants.

    Returns:
        What comes nearest to the period; 0 if the camera is too slow.
    """
    if interval > LATEST * period:
        return 0
    # Halfway, as a camera of 30 Hz is for 20 Hz, the larger number is the nearer one in proportion. It wins by a
    # margin, or a camera that keeps time badly would have now this one, now the other.
    return max(1, math.floor(period / interval + 0.55))


class Pacer:
    """Lets through every so manieth image: what comes nearest to the period in whole images of the camera.

    Attributes:
        too_slow: whether the camera is so slow that even every image of it comes later than the period wants.
    """

    def __init__(self, period: float) -> None:
        """Paces for a period in seconds."""
        self._period = period
        self._intervals: deque[int] = deque(maxlen=INTERVALS)
        self._camera_ns = self._due_ns = 0
        self.too_slow = False

    def restart(self) -> None:
        """The next image is let through, whenever it comes."""
        self._due_ns = 0

    def late(self, moment_ns: int) -> bool:
        """Whether an image of that stamp is no newer than the one that had its turn last."""
        return -RESTART_NS < moment_ns - self._due_ns <= 0

    def give_back(self, moment_ns: int, before_ns: int) -> None:
        """The turn of the image of that stamp was of no use, unless another one had its turn since.

        Args:
            moment_ns: its stamp.
            before_ns: that of the last image whose turn was of use; the next one is due a period after it.
        """
        if self._due_ns == moment_ns:
            self._due_ns = before_ns

    def due(self, moment_ns: int) -> bool:
        """Whether the image of that stamp (or time of arrival, where it has none) has its turn; call it with each."""
        since_camera = moment_ns - self._camera_ns
        if self._camera_ns and -RESTART_NS < since_camera <= 0:
            return False  # late, or twice
        if not self._camera_ns or since_camera <= -RESTART_NS:
            self._intervals.clear()
            self._due_ns = 0
        else:
            self._intervals.append(since_camera)
        self._camera_ns = moment_ns
        if self._due_ns:
            # Of intervals that a lost image made longer there may be many, of shorter ones hardly any.
            interval = sorted(self._intervals)[len(self._intervals) // 4]
            apart = frames_apart(interval * 1e-9, self._period)
            self.too_slow = apart == 0
            # What is due after a later moment was given back by a stream that has been restarted since.
            if 0 <= round((moment_ns - self._due_ns) / interval) < apart:
                return False
        self._due_ns = moment_ns
        return True
