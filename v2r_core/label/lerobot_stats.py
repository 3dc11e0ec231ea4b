"""Statistics of a LeRobotDataset v3: of one feature of one episode, and of all episodes together.

They are what the dataset's readers normalise with: min, max, mean, std, count and five quantiles. NaN means "not
available" and takes no part.
"""

from __future__ import annotations

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
    if not present.all():
        # An entry that no frame has stays NaN, without a warning of numpy's.
        numbers = np.ma.masked_invalid(numbers)
        rows = np.ma.array(rows, mask=~present)
    stats: Stats = {
        "min": _filled(rows.min(axis=0)),
        "max": _filled(rows.max(axis=0)),
        "mean": _filled(numbers.mean(axis=0)),
        "std": _filled(numbers.std(axis=0)),
        "count": np.array([count], np.int64),
    }
    return stats | _quantiles(numbers)


def _filled(values: NDArray[Any]) -> NDArray[Any]:
    return np.ma.filled(values, np.nan) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)


def _quantiles(numbers: NDArray[np.float64]) -> Stats:
    plain = np.ma.filled(numbers, np.nan)
    known = ~np.isnan(plain).all(axis=0)
    found = np.full((len(QUANTILES), *plain.shape[1:]), np.nan)
    if known.any():
        found[:, known] = np.nanquantile(plain[:, known], list(QUANTILES.values()), axis=0)
    return dict(zip(QUANTILES, found, strict=True))


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
    counts = [float(part["count"][0]) for part in (first, second)]
    shares = [count / sum(counts) for count in counts]

    def average(name: str) -> NDArray[np.float64]:
        return shares[0] * first[name].astype(np.float64) + shares[1] * second[name].astype(np.float64)

    mean = average("mean")
    squares = [part["std"].astype(np.float64) ** 2 + (part["mean"] - mean) ** 2 for part in (first, second)]
    merged: Stats = {
        "min": np.minimum(first["min"], second["min"]),
        "max": np.maximum(first["max"], second["max"]),
        "mean": mean,
        "std": np.sqrt(shares[0] * squares[0] + shares[1] * squares[1]),
        "count": first["count"] + second["count"],
    }
    return merged | {name: average(name) for name in QUANTILES}


def flat_stats(name: str, stats: Stats) -> dict[str, object]:
    """As columns of the table of episodes: `stats/NAME/mean` and so on, in plain lists."""
    return {f"stats/{name}/{kind}": value.tolist() for kind, value in stats.items()}
