"""Executions of a task as embeddings: straight legs between way points, noise, and way points that move a little."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEGS = 4
DIMENSIONS = 256


def way_points(seed: int = 0, legs: int = LEGS, dimensions: int = DIMENSIONS) -> NDArray[np.float64]:
    """Way points, (legs + 1, D): one task."""
    return np.random.default_rng(seed).standard_normal((legs + 1, dimensions))


def execution(
    points: NDArray[np.float64], frames: int, noise: float = 0.0, offset: float = 0.0, seed: int = 1
) -> NDArray[np.float32]:
    """One execution, float32 (frames, D): noise in every frame, an offset of every way point."""
    rng = np.random.default_rng(seed)
    moved = points + offset * rng.standard_normal(points.shape)
    at = np.linspace(0, len(points) - 1, frames)
    leg = np.minimum(at.astype(int), len(points) - 2)
    part = (at - leg)[:, None]
    clean = (1 - part) * moved[leg] + part * moved[leg + 1]
    return (clean + noise * rng.standard_normal(clean.shape)).astype(np.float32)
