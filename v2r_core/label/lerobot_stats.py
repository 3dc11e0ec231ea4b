"""Statistics of a LeRobotDataset v3: of one feature of one episode, and of all episodes together.

They are what the dataset's readers normalise with: min, max, mean, std, count and five quantiles. NaN means "not
available" and takes no part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.video.resize import Frame

Stats = dict[str, NDArray[Any]]
"""min, max, mean, std, q01 to q99: one value an entry of the feature; count: int64 (1,)."""

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_LONGEST_SIDE = 300
"""Pixels; of a larger picture only every so manieth row and column is counted, down to half of this."""


def column_stats(values: NDArray[Any]) -> Stats:
    """Statistics of a feature that is no picture.

    Args:
        values: numbers or booleans (T,) or (T, *shape), at least one.

    Returns:
        One value an entry of the last axis, as LeRobot has it also for features of several axes: (1,) or
        (shape[-1],); NaN, with a count of 0, where no frame has a number. `min` and `max` have the type of the values,
        all else is float64. `count` is that of the frames that have a number.
    """
    frames = len(values)
    rows = values.reshape(frames, 1) if values.ndim == 1 else values.reshape(-1, values.shape[-1])
    numbers = rows.astype(np.float64)
    present = ~np.isnan(numbers)
    count = int(present.reshape(frames, -1).any(axis=1).sum())
    known: NDArray[np.bool_] = np.asarray(present.any(axis=0))

    def over(function: Callable[..., NDArray[Any]], table: NDArray[Any] = numbers, *more: object) -> NDArray[Any]:
        """Of every entry that some frame has; the others stay NaN, without a warning of numpy's."""
        found = function(table[:, known], *more, axis=0)
        if known.all():
            return found
        every = np.full((*found.shape[:-1], len(known)), np.nan, found.dtype)
        every[..., known] = found
        return every

    stats: Stats = {
        "min": over(np.nanmin, rows),
        "max": over(np.nanmax, rows),
        "mean": over(np.nanmean),
        "std": over(np.nanstd),
        "count": np.array([count], np.int64),
    }
    return stats | {name: over(np.nanquantile, numbers, quantile) for name, quantile in QUANTILES.items()}


class ImageStats:
    """Statistics of the frames of a camera, which are counted as they come: exact, in a few kilobytes."""

    def __init__(self) -> None:
        """No frame yet."""
        self._counts = np.zeros((3, 256), np.int64)
        self._frames = 0

    def add(self, frame: Frame) -> None:
        """Counts one frame, uint8 RGB (H, W, 3)."""
        longest = max(frame.shape[:2])
        step = max(1, longest // (_LONGEST_SIDE // 2)) if longest >= _LONGEST_SIDE else 1
        seen = frame[::step, ::step]
        for channel in range(3):
            self._counts[channel] += np.bincount(seen[..., channel].ravel(), minlength=256)
        self._frames += 1

    def stats(self) -> Stats:
        """Of all frames so far, at least one: float64 (3, 1, 1) in [0, 1], and the number of frames."""
        levels = np.arange(256) / 255
        total = self._counts.sum(axis=1, keepdims=True)
        share = self._counts / total
        mean = share @ levels
        found = {
            "min": levels[(self._counts > 0).argmax(axis=1)],
            "max": levels[255 - (self._counts[:, ::-1] > 0).argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0)),
        }
        reached = self._counts.cumsum(axis=1)
        for name, quantile in QUANTILES.items():
            found[name] = levels[(reached >= quantile * total).argmax(axis=1)]
        stats: Stats = {name: value.reshape(3, 1, 1) for name, value in found.items()}
        return stats | {"count": np.array([self._frames], np.int64)}


def merge_stats(first: Stats | None, second: Stats) -> Stats | None:
    """Statistics of two parts together, e.g. of the episodes so far and of one more.

    Quantiles of the whole cannot be had from those of its parts: they are averaged by count, as LeRobot does it.

    Args:
        first: None: nothing so far.
        second: one part.

    Returns:
        None if no frame of either has a number.
    """
    if not second["count"][0]:
        return first
    if first is None:
        return second
    # An entry may be missing in all frames of one part.
    weights = [np.where(np.isnan(part["mean"]), 0.0, float(part["count"][0])) for part in (first, second)]
    total = weights[0] + weights[1]
    shares = [np.divide(weight, total, out=np.full(total.shape, np.nan), where=total > 0) for weight in weights]

    def mixed(values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        known = [np.where(share > 0, value, 0.0) for share, value in zip(shares, values, strict=True)]
        return shares[0] * known[0] + shares[1] * known[1]

    def average(name: str) -> NDArray[np.float64]:
        return mixed([part[name].astype(np.float64) for part in (first, second)])

    mean = average("mean")
    squares = [part["std"].astype(np.float64) ** 2 + (part["mean"] - mean) ** 2 for part in (first, second)]
    merged: Stats = {
        "min": np.fmin(first["min"], second["min"]),
        "max": np.fmax(first["max"], second["max"]),
        "mean": mean,
        "std": np.sqrt(mixed(squares)),
        "count": first["count"] + second["count"],
    }
    return merged | {name: average(name) for name in QUANTILES}


def flat_stats(name: str, stats: Stats) -> dict[str, object]:
    """As columns of the table of episodes: `stats/NAME/mean` and so on, in plain lists."""
    return {f"stats/{name}/{kind}": value.tolist() for kind, value in stats.items()}
