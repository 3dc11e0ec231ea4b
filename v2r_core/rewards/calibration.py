"""What a demonstration says about a frame: how far the task has come, and how far off the demonstration it is.

This is ours: neither VIP nor UVD calibrates anything. Their values are distances in an embedding, whose scale is
another one for every encoder, task and camera.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

CameraRule = Literal["mean", "min"]
"""How the distances of several cameras become one."""

TAIL = 0.03
"""Last part of a segment that counts as having arrived."""
MIN_TAIL_FRAMES = 2
REACH = 1.25
"""Another execution may stay this much farther from the milestone than the demonstration's own last frames."""
REACH_OF_WAY = 0.25
"""But at most this part of the segment's way may be left, noise aside."""
MAX_SPREAD = 0.75
"""The spread around a milestone is at most this part of the largest distance of its segment."""
NEIGHBOURS = 0.05
"""Part of the demonstration's frames, the most similar ones, whose times are averaged into progress."""
WINDOW = 0.03
"""Neighbours in time, up to this part of the demonstration, do not count as its nearest frame."""
MARGIN = 1.5
"""Another execution may be this much farther from the demonstration than it is from itself."""
MIN_FRAMES_FOR_UNCERTAINTY = 8
RELATIVE_RESOLUTION = 1e-3
"""Distances below this part of an embedding's norm are taken for noise."""


def distance(
    embeddings: NDArray[np.float32], target: NDArray[np.float32], cameras: CameraRule = "mean"
) -> NDArray[np.float64]:
    """Euclidean distance in each camera, then the mean or the minimum over cameras (VIP's trajopt code: minimum).

    Args:
        embeddings: float32 (..., C, D).
        target: float32, broadcast against them.
        cameras: the rule.

    Returns:
        float64 (...).
    """
    # The difference in float32, as the released code; its squares in float64, so that their order does not matter.
    difference = (embeddings - target).astype(np.float64)
    each = np.sqrt(np.einsum("...d,...d->...", difference, difference))
    result: NDArray[np.float64] = each.mean(axis=-1) if cameras == "mean" else each.min(axis=-1)
    return result


def resolution(embedding: NDArray[np.float32]) -> float:
    """The smallest distance worth telling from zero around an embedding, float32 (C, D)."""
    return max(RELATIVE_RESOLUTION * float(np.linalg.norm(embedding, axis=-1).mean()), 1e-6)


def arrival_spread(distances: NDArray[np.float64]) -> float:
    """How near a milestone counts as being there, from the part of a demonstration that leads to it.

    Another execution never reaches distance 0. How near "there" is, the demonstration shows by itself, in its last 3 %
    of frames (2 at least): 1.25 times their largest distance n is the spread. Noise adds in squares, so where n is
    mostly noise a quarter more would be most of the way: the spread is at most sqrt(n^2 + (w / 4)^2), with
    w^2 = (largest distance)^2 - n^2 the square of the way without the noise.

    Args:
        distances: (N,) to the milestone, of the frames before the milestone's own, in order; N may be 0.
    """
    if len(distances) == 0:
        return 0.0
    largest = float(distances.max())
    near = float(distances[-max(MIN_TAIL_FRAMES, round(TAIL * len(distances))) :].max())
    way = np.sqrt(max(largest**2 - near**2, 0.0))
    return min(REACH * near, float(np.hypot(near, REACH_OF_WAY * way)), MAX_SPREAD * largest)


def times_of_progress(numbers: NDArray[np.int64], distances: NDArray[np.float64], spread: float) -> NDArray[np.float32]:
    """Progress of the demonstration's own frames: the fraction of its time, up to its arrival at the goal.

    A demonstration often rests at the end; the task is done when the rest begins, with the first frame from which on
    all are within the spread of the goal.

    Args:
        numbers: (T,) ascending frame numbers.
        distances: (T,) to the goal.
        spread: see `arrival_spread`.

    Returns:
        float32 (T,) in [0, 1], non-decreasing, 1 at the end.
    """
    away = np.flatnonzero(distances > spread)
    arrival = int(numbers[min(away[-1] + 1, len(numbers) - 1)]) if len(away) else 0
    return np.minimum(1.0, numbers / arrival if arrival else np.ones(len(numbers))).astype(np.float32)


def uncertainty_threshold(
    demonstration: NDArray[np.float32], frames: NDArray[np.int64], cameras: CameraRule = "mean"
) -> float:
    """The distance to the nearest frame of the demonstration above which a frame is out of distribution.

    One demonstration is all there is, so it has to stand in for a second one: for every frame, the distance to the
    nearest frame that is not its neighbour in time (3 % of the length to either side, 1 frame at least). The
    threshold is 1.5 times the largest of these.

    Args:
        demonstration: float32 (T, C, D).
        frames: (T,) their frame numbers.
        cameras: see `distance`.

    Returns:
        Threshold, above 0; NaN for fewer than 8 frames, which are too few to say.
    """
    count = len(demonstration)
    if count < MIN_FRAMES_FOR_UNCERTAINTY:
        return float("nan")
    window = max(1.0, WINDOW * float(frames[-1] - frames[0]), float(np.diff(frames).max()))
    nearest = np.empty(count)
    for i in range(count):
        apart = np.abs(frames - frames[i]) > window
        nearest[i] = distance(demonstration[apart], demonstration[i], cameras).min()
    return max(MARGIN * float(nearest.max()), resolution(demonstration[-1]))


class NearestFrames:
    """Finds the frames of a demonstration that are most like a camera frame, at camera rate.

    Progress is the mean time of the most similar 5 %. It needs no scale, so noise and the offset of another execution,
    which add much the same to all distances, hardly move it; and a value that first falls and then rises (an arm that
    reaches over before it pulls) does not matter, as it would for a function of the value.
    """

    def __init__(
        self,
        demonstration: NDArray[np.float32],
        progress: NDArray[np.float32],
        threshold: float,
        cameras: CameraRule = "mean",
    ) -> None:
        """Prepares the search.

        Args:
            demonstration: float32 (T, C, D); T = 0 gives NaN throughout.
            progress: (T,) of its frames.
            threshold: distance that counts as uncertainty 1; NaN gives NaN.
            cameras: see `distance`.
        """
        self._progress = progress
        self._threshold = threshold
        self._cameras = cameras
        self._count = round(NEIGHBOURS * len(demonstration))
        if len(demonstration) == 0:
            return
        # |a-b|^2 = |a|^2 - 2ab + |b|^2 costs one product of matrices; around the mean it loses few digits.
        self._mean: NDArray[np.float32] = demonstration.mean(axis=0)
        self._frames = np.ascontiguousarray((demonstration - self._mean).transpose(1, 0, 2))
        self._squares = np.einsum("ctd,ctd->ct", self._frames, self._frames)

    def distances(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """Distances of an embedding, float32 (C, D), to all frames, float32 (T,)."""
        if len(self._progress) == 0:
            return self._progress
        centred = embedding - self._mean
        products = np.matmul(self._frames, centred[:, :, None])[:, :, 0]
        squares = self._squares - 2 * products + np.einsum("cd,cd->c", centred, centred)[:, None]
        each = np.sqrt(np.maximum(squares, 0.0))
        result: NDArray[np.float32] = each.mean(axis=0) if self._cameras == "mean" else each.min(axis=0)
        return result

    def uncertainty(self, distances: NDArray[np.float32]) -> float:
        """Distance to the nearest frame over the threshold; NaN if unknown."""
        return float(distances.min()) / self._threshold if len(distances) else float("nan")

    def progress(self, distances: NDArray[np.float32], part: slice | None = None) -> float:
        """Mean time of the most similar frames, in [0, 1]; NaN without a demonstration.

        Args:
            distances: (T,) as `distances` gives them.
            part: only these frames may be meant, e.g. those that lead to the current subgoal; not empty.
        """
        part = part or slice(None)
        near, times = distances[part], self._progress[part]
        if len(near) == 0:
            return float("nan")
        count = max(1, min(self._count, len(near)))
        return float(times[np.argpartition(near, count - 1)[:count]].mean())
