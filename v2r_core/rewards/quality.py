"""How good a value curve is on one expert video, without labels. Numpy only, so that a robot can compute it too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_FRAMES = 3


def voc(values: NDArray[np.float64], times: NDArray[np.float64], exclude_goal: bool = True) -> float:
    """Value-order correlation: Spearman's rank correlation of value and time, ties sharing their mean rank.

    Args:
        values: (T,); frames whose value is not finite are left out.
        times: (T,) anything that grows with time.
        exclude_goal: leave out the last frame, which a goal taken from the video itself makes perfect.

    Returns:
        In [-1, 1]; NaN where it is undefined (fewer than 3 frames, or constant values).

    Raises:
        ValueError: lengths differ.
    """
    if np.shape(values) != np.shape(times) or np.ndim(values) != 1:
        raise ValueError(f"values {np.shape(values)} and times {np.shape(times)}: one axis of equal length expected")
    end = len(values) - 1 if exclude_goal else len(values)
    chosen, when = np.asarray(values, np.float64)[:end], np.asarray(times, np.float64)[:end]
    usable = np.isfinite(chosen) & np.isfinite(when)
    if usable.sum() < MIN_FRAMES:
        return float("nan")
    first, second = average_ranks(chosen[usable]), average_ranks(when[usable])
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first @ first) * (second @ second))
    return float(np.clip(first @ second / scale, -1, 1)) if scale > 0 else float("nan")


def average_ranks(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks 1 to N of (N,) finite numbers; equal numbers share the mean of their ranks."""
    _, group, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    result: NDArray[np.float64] = (last - (counts - 1) / 2)[group]
    return result


def bumps(values: NDArray[np.float64]) -> float:
    """Fraction of steps that go away from the goal (VIP's measure of smoothness); 0 is best.

    Args:
        values: (T,); steps to or from a value that is not finite do not count.

    Returns:
        In [0, 1]; NaN without any step.
    """
    steps = np.diff(np.asarray(values, np.float64))
    steps = steps[np.isfinite(steps)]
    return float(np.mean(steps < 0)) if len(steps) else float("nan")
