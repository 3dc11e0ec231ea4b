"""What a reward costs: time a frame, one frame at a time as a camera brings them, and memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from v2r_core.evaluate.scored_models import Rows, ScoredModel
from v2r_core.video.resize import Frame

WARM_UP, TIMED = 3, 30
"""Frames that are scored before the clock starts, and frames that are timed."""


@dataclass(frozen=True)
class Cost:
    """Measured on this machine, with whatever else runs on it.

    Attributes:
        p50_ms: median wall milliseconds a frame, resizing included.
        p95_ms: 95th percentile.
        frames: that were timed.
        peak_mb: largest resident memory of a process that does nothing else, in MB; None where it is not measured.
    """

    p50_ms: float
    p95_ms: float
    frames: int
    peak_mb: float | None


def measure_cost(model: ScoredModel, frames: Sequence[Frame], goal: Rows | None) -> Cost:
    """Scores frames of an episode over and over, one at a time.

    Args:
        model: what to measure. Its window is filled with the frames before any of them is timed.
        frames: uint8 RGB; one at least.
        goal: see `ScoredModel.score`.
    """
    model.score(model.embed(frames), goal)
    looped = [frames[number % len(frames)] for number in range(WARM_UP + TIMED)]
    for frame in looped[:WARM_UP]:
        model.step(frame)
    times = []
    for frame in looped[WARM_UP:]:
        start = time.perf_counter()
        model.step(frame)
        times.append((time.perf_counter() - start) * 1e3)
    median, worst = (float(np.quantile(times, share)) for share in (0.5, 0.95))
    return Cost(median, worst, len(times), model.peak_mb(frames[0], goal))
