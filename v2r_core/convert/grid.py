"""Messages that come when they come, on a grid of constant rate. Nothing in here reads anything."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SECOND_NS = 1_000_000_000
NONE = -1
_IN_STEP = 0.5
"""Length of the mean phase, in [0, 1], above which a camera is said to keep step with the grid."""

Times = NDArray[np.int64]


def median_rate(stamps: Times) -> float:
    """Messages a second, by the median of their distances; NaN for fewer than two different stamps.

    Args:
        stamps: (N,) ascending nanoseconds.
    """
    steps = np.diff(stamps)
    steps = steps[steps > 0]
    return SECOND_NS / float(np.median(steps)) if len(steps) else float("nan")


def sample_instants(stamps: Times, fps: int) -> Times:
    """The instants at which an episode is sampled, one a frame.

    They lie on a grid of `fps`, and each is moved to the stamp of the image that is nearest, if there is one within
    half a step of the grid and of the camera. A camera that trembles a little would otherwise now give two images
    between two points of the grid, now none, and a state would be up to a step newer than its image. Where the camera
    keeps step with the grid, that is in the middle of the trembling; otherwise it begins with the first image.

    Args:
        stamps: (N,) ascending nanoseconds of the images of the first camera, at least one.
        fps: frames a second.

    Returns:
        (T,) nanoseconds, never descending, none before the first image or further than half a step (and 1 ns) from its
        point of the grid.
    """
    step = SECOND_NS / fps
    since = (stamps - stamps[0]).astype(np.float64)
    phase = np.exp(2j * np.pi * (since / step)).mean()
    offset = float(np.angle(phase)) / (2 * np.pi) * step if abs(phase) > _IN_STEP else 0.0
    rate = median_rate(stamps)
    near = step / 2 if np.isnan(rate) else min(step, SECOND_NS / rate) / 2
    count = int((since[-1] - offset + near) / step) + 1
    points = stamps[0] + np.rint(offset + np.arange(count) * step).astype(np.int64)
    points = np.maximum(points, stamps[0])
    after = np.minimum(np.searchsorted(stamps, points), len(stamps) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(points - stamps[before] <= np.abs(stamps[after] - points), stamps[before], stamps[after])
    instants = np.where(np.abs(nearest - points) <= near + 1, nearest, points)
    return np.maximum.accumulate(instants)


def newest_at(stamps: Times, instants: Times) -> NDArray[np.int64]:
    """For each instant the newest message at or before it: never one from the future.

    Args:
        stamps: (N,) ascending nanoseconds; of equal ones the last counts.
        instants: (T,) nanoseconds.

    Returns:
        (T,) places in `stamps`, `NONE` where there is no message yet.
    """
    return np.searchsorted(stamps, instants, side="right").astype(np.int64) - 1


def runs(wanted: NDArray[np.bool_]) -> Iterator[slice]:
    """The runs of True, in their order."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield slice(int(start), int(stop))


def summed(rewards: NDArray[np.float64], chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rewards of the frames that remain: the sum over a stretch of time stays what it was.

    Args:
        rewards: (N,) of the steps that ended in each image; NaN: not available.
        chosen: (T,) ascending number of the image of each frame.

    Returns:
        (T,): the first frame has the reward of its image, each later one the sum over the images after that of the
        frame before it. So the reward of an image that is repeated is 0; one that is not available makes a sum NaN.
    """
    found = np.zeros(len(chosen))
    for place, number in enumerate(chosen):
        start = chosen[place - 1] + 1 if place else number
        found[place] = rewards[start : number + 1].sum()
    return found
